"""Files that a process maps into memory, to leave in them what others may want to know of it."""

from __future__ import annotations

import contextlib
import mmap
import os


def map_file(path: str, size_bytes: int) -> mmap.mmap:
    """A new file, mapped. Where there is no path, or no room for it: memory that nobody else finds."""
    if path:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size_bytes)  # a write into a hole on a full disk would be a SIGBUS
                return mmap.mmap(descriptor, size_bytes)
            finally:
                os.close(descriptor)
    return mmap.mmap(-1, size_bytes)
