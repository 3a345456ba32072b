"""What processes use, as the kernel counts it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from cortex.processes import ProcessIdentity

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LARGEST_BYTES = 4096


class Usage(msgspec.Struct, frozen=True):
    """Of one process, with all its threads."""

    cpu_s: float
    """Of the processor, since its start."""
    rss_bytes: int
    collected_cpu_s: float = 0.0
    """Likewise: of its children that have ended and that it has collected, with what those had collected."""


class UsageMeter:
    """
    Reads /proc/<pid>/stat again and again through one descriptor: opening it costs more than everything else, and when
    nothing is in a cache, which is so where nothing happens, a tenth of a millisecond.

    Raises:
        OSError: there is no such process, or no descriptor left.
    """

    def __init__(self, identity: ProcessIdentity) -> None:
        self._start_ticks = identity.start_ticks
        self._fd = os.open(f"/proc/{identity.pid}/stat", os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> Usage | None:
        """
        What it uses now; None when it has ended, or is not who was meant.

        Source: proc(5): field 22 of /proc/pid/stat is starttime.
        """
        try:
            fields = _fields(os.pread(self._fd, _LARGEST_BYTES, 0))
        except (OSError, IndexError):
            return None
        return _usage(fields) if int(fields[19]) == self._start_ticks else None

    def close(self) -> None:
        os.close(self._fd)


def used_by(pid: int) -> Usage | None:
    """What a process uses now, also one that has ended and is not collected yet; None when there is none."""
    try:
        return _usage(_fields(Path(f"/proc/{pid}/stat").read_bytes()))
    except (OSError, IndexError):
        return None


def _fields(content: bytes) -> list[bytes]:
    """Number 3 and those after it: before that comes the name, which ends with the last `)`."""
    return content.rsplit(b")", 1)[1].split()


def _usage(fields: list[bytes]) -> Usage:
    """
    Source: proc(5): fields 14 and 15 of /proc/pid/stat are utime and stime, 16 and 17 the same of children that were
    waited for, and 24 is rss, in pages.
    """
    return Usage(
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
        rss_bytes=int(fields[21]) * _PAGE_BYTES,
        collected_cpu_s=(int(fields[13]) + int(fields[14])) / _TICKS_PER_S,
    )
