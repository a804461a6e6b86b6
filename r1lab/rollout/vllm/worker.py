"""What a vLLM server's workers must have: `--worker-extension-cls` names the class here.

vLLM imports this module in each worker process before the worker builds its model: what must be in
place by then is done on import.
"""

from __future__ import annotations

import torch

from r1lab.rollout.vllm import patches as mends


class PatchedWorker:
    """Nothing of its own: the import is what counts."""


def _prepare() -> None:
    from vllm.platforms import current_platform

    mends.patch_before_build()
    if current_platform.is_cpu():  # see vllm_mends.run_uncompiled
        torch.compiler.set_stance("force_eager")


_prepare()
