"""What a replica's process uses, as the kernel counts it."""

from __future__ import annotations

import os

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

        Source: proc(5): fields 14 and 15 of /proc/pid/stat are utime and stime, 22 starttime and 24 rss, in pages.
        """
        try:
            # After the last `)`, which ends the name, comes field number 3.
            fields = os.pread(self._fd, _LARGEST_BYTES, 0).rsplit(b")", 1)[1].split()
        except (OSError, IndexError):
            return None
        if int(fields[19]) != self._start_ticks:
            return None
        return Usage(cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS_PER_S, rss_bytes=int(fields[21]) * _PAGE_BYTES)

    def close(self) -> None:
        os.close(self._fd)
