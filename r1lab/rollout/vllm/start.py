"""Explain why vLLM did not start, in one line: the key to change, and its new value.

vLLM raises exceptions of general classes with long messages; this module translates the known
ones. Others are reported in vLLM's words, with a workaround.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from r1lab.types import RecipeError

# Messages of vLLM 0.32 and torch: the cache cannot hold one sequence; out of memory; vLLM does not
# support the model.
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
    """Turn any error of `vllm.LLM(...)` in this context into a RecipeError."""
    if on_cpu:
        room = ("sampling.kv_cache_gib", f"{kv_cache_gib:g} GiB")
    else:
        room = ("sampling.gpu_memory_utilization", f"{gpu_memory_utilization:g} of the GPU")
    try:
        yield
    except Exception as error:  # vLLM raises errors of many classes
        raise RecipeError(_explain(error, folder, *room, max_model_len)) from error


def _explain(error: Exception, folder: str, key: str, room: str, max_model_len: int | None) -> str:
    text = " ".join(str(error).split())
    low = text.lower()
    length = "null" if max_model_len is None else str(max_model_len)
    if any(words in low for words in _NO_CACHE):
        return (
            f"{key}: {room} does not hold vLLM's cache for one whole sequence; raise it, or lower "
            f"sampling.max_model_len ({length})"
        )
    if isinstance(error, MemoryError) or any(words in low for words in _NO_MEMORY):
        return (
            f"{key}: out of memory while vLLM started with {room}; lower it, or lower "
            f"sampling.max_model_len ({length})"
        )
    if any(words in low for words in _NO_MODEL):
        return (
            f"sampling.engine: 'vllm' does not support the model in {folder!r} ({text[:200]}); set "
            "sampling.engine to transformers (slower), or use another base"
        )
    kind = type(error).__name__
    return (
        f"sampling.engine: 'vllm' does not start with the model in {folder!r} ({kind}: "
        f"{text[:300]}); run `r1lab doctor` to find the cause, or set sampling.engine to "
        "transformers (slower)"
    )
