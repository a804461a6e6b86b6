"""Worker extension of r1lab's vLLM server: `--worker-extension-cls` names the class here.

vLLM imports this module in each worker process before the worker builds its model, and calls
nothing else by then: patches that must precede the model are applied on import.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from pathlib import Path
from typing import Any

from r1lab.rollout.server.weights_folder import read_weights
from r1lab.rollout.vllm import patches as mends
from r1lab.rollout.vllm.reload import load_weights
from r1lab.rollout.vllm.worker import PatchedWorker  # on import, before the model is built
from r1lab.types import R1labError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class WorkerExtension(PatchedWorker):
    """Methods that a server calls in every worker (vLLM mixes them into the worker's class)."""

    model_runner: Any  # the worker's

    def r1lab_load(self, folder: str, version: int) -> str | None:
        """Load the weights of a version's folder; return an error message, or None."""
        try:
            load_weights(self.model_runner, read_weights(Path(folder)), version)
        except R1labError as error:
            return str(error)
        return None

    def r1lab_mend(self) -> None:
        """Apply the patches that must follow weights received by NCCL."""
        mends.patch_after_reload(self.model_runner.get_model())


def _die_with_the_server() -> None:
    """End with the server: an orphaned engine would hold its memory, and nobody could reach it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


_die_with_the_server()
