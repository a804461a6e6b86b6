"""Telling that memory or the disk ran out, whatever the library called it."""

from __future__ import annotations

import errno
from collections.abc import Iterator

# What torch and the C++ runtime say where there is no class of its own for it.
_NO_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc", "cannot allocate memory")

# ENOSPC, EFBIG and EDQUOT, as Rust (safetensors) and C++ (torch, arrow) put them into words.
_DISK_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_NO_DISK = ("no space left", "file too large", "quota exceeded", "os error 28", "os error 27",
            "os error 122")  # fmt: skip


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is memory that ran out (CPU or GPU)."""
    return any(
        # torch.OutOfMemoryError by its name: telling must not import torch.
        isinstance(link, MemoryError)
        or type(link).__name__ == "OutOfMemoryError"
        or (isinstance(link, RuntimeError | OSError) and _says(link, _NO_MEMORY))
        for link in _chain(error)
    )


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is a disk, quota or file size that ran out."""
    return any(
        (isinstance(link, OSError) and link.errno in _DISK_ERRORS)
        or (isinstance(link, Exception) and _says(link, _NO_DISK))
        for link in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _says(error: BaseException, sayings: tuple[str, ...]) -> bool:
    said = str(error).lower()
    return any(saying in said for saying in sayings)
