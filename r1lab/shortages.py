"""Detects out-of-memory and disk-full errors, whichever library raised them."""

from __future__ import annotations

import errno
from collections.abc import Iterator

# Messages of torch and the C++ runtime for errors without a class of their own.
_NO_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc", "cannot allocate memory")

# ENOSPC, EFBIG and EDQUOT, as Rust (safetensors) and C++ (torch, arrow) put them into words.
_DISK_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_NO_DISK = ("no space left", "file too large", "quota exceeded", "os error 28", "os error 27",
            "os error 122")  # fmt: skip


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is memory that ran out (CPU or GPU)."""
    return any(
        # Match torch.OutOfMemoryError by name, so that torch is not imported here.
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
    message = str(error).lower()
    return any(saying in message for saying in sayings)
