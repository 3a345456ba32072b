"""
What leaves a replica without passing through Python: output of C code, subprocesses and the fault handler.

Descriptors 1 and 2 of a replica are a file of their own beside its log. The replica reads what arrives there and turns
it into records of the log, with time, request and secrets masked; when it dies, the agent does that with what is left.
What was read is punched out of the file: offsets stay what they are, so that nobody who writes there loses or repeats a
line, and the disk holds only what nobody has read yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from os import SEEK_END, lseek

SUFFIX = ".raw"
MAX_WAITING_BYTES = 4 * 2**20
"""Of more than this, which nobody reads, only the end is taken: it may be a hundred thousand lines in one second."""
MAX_LEFT_BYTES = 2**20
"""And of what a process left when it died: its last words are at the end, and a restart waits for this."""
MAX_LINE_BYTES = 256 * 1024
"""A line that is longer is read in pieces."""
_PUNCH_HOLE = 0x02 | 0x01
"""Source: linux/falloc.h, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE."""


class RawOutput:
    """
    The file behind descriptors 1 and 2, and how far it was read.

    Args:
        path: made if it is not there. What a former process left unread in it comes first.

    Raises:
        OSError
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._read_bytes = _first_data(self.fd)

    def close(self) -> None:
        os.close(self.fd)

    @property
    def is_waiting(self) -> bool:
        """Whether there is something unread. Asked for each request and each line that is printed: one system call."""
        # The position of a descriptor that appends means nothing to those who write.
        try:
            return lseek(self.fd, 0, SEEK_END) > self._read_bytes
        except OSError:  # users' code has closed every descriptor it found
            return False

    def take(
        self, max_bytes: int = MAX_WAITING_BYTES, *, whole: bool = False, most_waiting: int = MAX_WAITING_BYTES
    ) -> list[bytes]:
        """
        Lines that arrived since the last time, without their ends; never raises.

        Args:
            max_bytes: about how much to read; the rest waits.
            whole: also a last line that has no end yet.
            most_waiting: of more than so much the beginning is left out.
        """
        try:
            return self._take(max_bytes, whole, most_waiting)
        except OSError:
            return []

    def _take(self, max_bytes: int, whole: bool, most_waiting: int) -> list[bytes]:
        size = os.lseek(self.fd, 0, os.SEEK_END)
        begin = self._read_bytes
        if size < begin:  # somebody emptied it
            begin = self._read_bytes = 0
        lines: list[bytes] = []
        if size - begin > most_waiting:
            begin = size - most_waiting // 2
            lines.append(left_out(begin - self._read_bytes))
        content = os.pread(self.fd, min(size - begin, max_bytes), begin)
        end = content.rfind(b"\n") + 1
        is_all = begin + len(content) >= size
        if (whole and is_all) or (not end and len(content) >= min(max_bytes, MAX_LINE_BYTES)):
            end = len(content)
        if not end and not lines:
            return []
        lines += content[:end].lstrip(b"\0").split(b"\n")  # a hole reads as zeros
        if not lines[-1]:
            lines.pop()
        self._read_bytes = begin + end
        self._forget(self._read_bytes)
        return lines

    def _forget(self, end: int) -> None:
        if not punched(self.fd, end) and os.lseek(self.fd, 0, os.SEEK_END) == end:
            # No holes on this file system. What is written between these two lines is lost; it would not end otherwise.
            os.ftruncate(self.fd, 0)
            self._read_bytes = 0


def left_out(size_bytes: int) -> bytes:
    """The line in place of so much output that nobody took in time."""
    return b"[%.1f MiB of output were too much at once and are left out]" % (size_bytes / 2**20)


def leftover(path: str | os.PathLike[str]) -> tuple[list[bytes], float]:
    """
    What a process that is gone has left unread, which is then taken as read; and when it was written, in seconds since
    the Unix epoch. Never raises.
    """
    try:
        if not os.path.exists(path):
            return [], 0.0
        raw = RawOutput(path)
    except OSError:
        return [], 0.0
    try:
        written_s = os.fstat(raw.fd).st_mtime
        return raw.take(whole=True, most_waiting=MAX_LEFT_BYTES), written_s
    finally:
        raw.close()


def shrink(path: str | os.PathLike[str], *, keep_bytes: int) -> bool:
    """
    Free what an unread file takes on the disk beyond its last `keep_bytes`: whoever should read it does not get to it.

    Returns:
        Whether there was anything to free.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    with contextlib.closing(os.fdopen(descriptor, "r+b", buffering=0)):
        return keep_end(descriptor, keep_bytes=keep_bytes)


def keep_end(fd: int, *, keep_bytes: int) -> bool:
    """As `shrink`, of an open file. Raises OSError."""
    size = os.fstat(fd).st_size
    return size > keep_bytes and punched(fd, size - keep_bytes)


def _first_data(fd: int) -> int:
    """Where the first byte is that was not punched out; the end when there is none."""
    try:
        return os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return os.lseek(fd, 0, os.SEEK_END)
        return 0


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def punched(fd: int, end: int) -> bool:
    """Free the file's first bytes; False where the file system cannot."""
    return end <= 0 or _libc.fallocate(fd, _PUNCH_HOLE, 0, end) == 0
