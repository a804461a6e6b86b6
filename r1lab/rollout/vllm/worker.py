"""Patches for the workers of a vLLM server: `--worker-extension-cls` names the class here.

vLLM imports this module in each worker process before the worker builds its model, so the patches
are applied on import.
"""

from __future__ import annotations

import torch

from r1lab.rollout.vllm import patches as mends


class PatchedWorker:
    """Empty: importing this module applies the patches."""


def _prepare() -> None:
    from vllm.platforms import current_platform

    mends.patch_before_build()
    if current_platform.is_cpu():  # see patches.run_uncompiled
        torch.compiler.set_stance("force_eager")


_prepare()
