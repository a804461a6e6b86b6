"""Why vLLM did not start, in one line: the key to change, and what to change it to.

vLLM tells by exceptions of general classes with long messages; here they become words. What none
of these fits is told as vLLM said it, with the way around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from r1lab.types import RecipeError

# What vLLM and torch say (vLLM 0.32): the cache does not hold one sequence; memory ran out; vLLM
# has no such model.
_NO_CACHE = ("available memory for the cache", "kv cache is needed", "stored in kv cache",
             "available kv cache memory")  # fmt: skip
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory",
              "free memory on device", "available memory on node")  # fmt: skip
_NO_MODEL = ("are not supported for now", "no vllm implementation", "not supported by vllm")


@contextmanager
def explain_start_errors(
    folder: str,
    *,
    on_cpu: bool,
    kv_cache_gib: float,
    gpu_memory_utilization: float,
    max_model_len: int | None,
) -> Iterator[None]:
    """Around `vllm.LLM(...)`: whatever it raises becomes a RecipeError."""
    if on_cpu:
        room = ("sampling.kv_cache_gib", f"{kv_cache_gib:g} GiB")
    else:
        room = ("sampling.gpu_memory_utilization", f"{gpu_memory_utilization:g} of the GPU")
    try:
        yield
    except Exception as error:  # of whatever class, from deep inside
        raise RecipeError(_explain(error, folder, *room, max_model_len)) from error


def _explain(error: Exception, folder: str, key: str, room: str, max_model_len: int | None) -> str:
    said = " ".join(str(error).split())
    low = said.lower()
    length = "null" if max_model_len is None else str(max_model_len)
    if any(words in low for words in _NO_CACHE):
        return (
            f"{key}: {room} does not hold vLLM's cache for one whole sequence; raise it, or lower "
            f"sampling.max_model_len ({length})"
        )
    if isinstance(error, MemoryError) or any(words in low for words in _NO_MEMORY):
        return (
            f"{key}: memory ran out while vLLM started with {room}; lower it, or lower "
            f"sampling.max_model_len ({length})"
        )
    if any(words in low for words in _NO_MODEL):
        return (
            f"sampling.engine: 'vllm' has no model of the kind in {folder!r} ({said[:200]}); set "
            "sampling.engine to transformers (slower), or take another base"
        )
    kind = type(error).__name__
    return (
        f"sampling.engine: 'vllm' does not start with the model in {folder!r} ({kind}: "
        f"{said[:300]}); `r1lab doctor` looks for the cause, and sampling.engine: transformers "
        "(slower) does without"
    )
