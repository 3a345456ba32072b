"""
Protocol Buffers read field by field out of a file, without protobuf and without knowing a schema.

Files come from users and may be anything: every read is bounded by the file's size, work by a number of fields, and
whatever is no protobuf message ends in a `ValueError` whose text is fit for a user.

Source:
    Protocol Buffers, "Encoding" (protobuf.dev/programming-guides/encoding): tags, varints, wire types, packed fields.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
"""With a length: text, messages, packed lists."""
FIXED32: Final = 5

MAX_FIELDS: Final = 20_000_000
"""How many fields are looked at one by one: some ten seconds. What is skipped in one go counts as one."""
MAX_TEXT_BYTES: Final = 1 << 16

_WINDOW_BYTES = 1 << 14  # skipping over a large weight wastes at most one window
_MAX_TAG_AND_VALUE_BYTES = 20  # two varints of at most 10 bytes each
_TEXTS_PER_FIELD = 4  # how many texts of a run take as long to skip as one field takes to hand out


Span: TypeAlias = tuple[int, int]
"""First byte and end of a part of a file."""


class Source:
    """
    A file of protobuf messages, read through a window, so that one of many gigabytes costs 16 KiB.

    A window rather than mmap: an exporter that rewrites the file meanwhile must not end this process with SIGBUS.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, format_name: str = "ONNX model", max_fields: int = MAX_FIELDS
    ) -> None:
        self._format_name = format_name
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 (closed by __exit__)
        self.size = os.fstat(self._file.fileno()).st_size
        self._base = 0
        self._window = b""
        self._max_fields = max_fields
        self._fields_left = max_fields

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, start: int, length: int) -> bytes:
        """
        Return the bytes from `start` on.

        Raises:
            ValueError: there are fewer by now than when the file was opened.
        """
        offset = start - self._base
        if offset >= 0 and offset + length <= len(self._window):
            return self._window[offset : offset + length]
        parts = []
        while length > 0:
            part = os.pread(self._file.fileno(), length, start)
            if not part:
                raise ValueError("it became shorter while it was read: was something writing it?")
            parts.append(part)
            start += len(part)
            length -= len(part)
        return b"".join(parts)

    def text(self, start: int, end: int) -> str:
        """
        Return a text fit for showing; what is no UTF-8 in it is replaced.

        Raises:
            ValueError: it is longer than names are.
        """
        return self._short(start, end).decode("utf-8", "replace")

    def name(self, start: int, end: int) -> str:
        """
        Return a text that other places may refer to.

        Raises:
            ValueError: it is longer than names are, or no UTF-8; were that replaced, two names could become one.
        """
        try:
            return self._short(start, end).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"it has a name that is no UTF-8 at byte {start}") from None

    def _short(self, start: int, end: int) -> bytes:
        if end - start > MAX_TEXT_BYTES:
            raise ValueError(f"it has a name of {end - start} bytes at byte {start}, so it is no {self._format_name}")
        return self.read(start, end - start)

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
        """
        Yield (field number, value, None) for numbers and (field number, first byte, end) for everything with a length.

        Raises:
            ValueError: the bytes from `start` to `end` are not a protobuf message.
        """
        for tag, first, last in self.tagged(start, end):
            yield tag >> 3, first, last

    def tagged(self, start: int, end: int, runs: Collection[int] = ()) -> Iterator[tuple[int, int, int | None]]:
        """
        Yield what a message consists of, by tag: the field's number and how it is written, as `tag_of` has it.

        Args:
            start: first byte of the message.
            end: of the message.
            runs: tags of repeated fields that are wanted as a whole. Of elements that follow each other, the bytes from
                the first one's tag to the last one's end are yielded, and skipped much faster than one by one. Such a
                run may come in several pieces; `tagged` of a piece has its elements. For numbers below 16.

        Yields:
            (tag, value, None) for varints, unsigned, and (tag, first byte, end) for what has a length.

        Raises:
            ValueError: the bytes from `start` to `end` are not a protobuf message.
        """
        position = start
        window, base, safe_end = b"", start, start  # its own: who reads what is yielded moves the common one
        while position < end:
            self._count(1)
            if position >= safe_end:
                window, base = self._window_at(position)
                safe_end = base + len(window) - _MAX_TAG_AND_VALUE_BYTES
            field = position
            tag, offset = self._varint(window, position - base, position)
            if tag < 8 or tag >= 1 << 32:
                raise self._garbage(position)
            wire_type = tag & 7
            last: int | None
            if wire_type == VARINT:
                first, offset = self._varint(window, offset, position)
                last = None
                position = base + offset
                if position > end:
                    raise self._garbage(position)
            else:
                if wire_type == BYTES:
                    length, offset = self._varint(window, offset, position)
                elif wire_type in (FIXED32, FIXED64):
                    length = 4 if wire_type == FIXED32 else 8
                else:
                    raise self._garbage(position)
                first = base + offset
                if length > end - first:
                    raise self._truncated(first, length, end)
                position = last = first + length
            if tag in runs:
                position = self._run_end(tag, position, end)
                yield tag, field, position
            else:
                yield tag, first, last

    def integers(self, runs: Iterable[Span]) -> list[int]:
        """
        Return the elements of a list of varints, unsigned: of one by one and of packed ones alike.

        Args:
            runs: as `tagged` yields them; together small enough to be held in memory.

        Raises:
            ValueError: a packed one is broken.
        """
        values = []
        for run in runs:
            for _, first, last in self.tagged(*run):
                if last is None:
                    values.append(first)
                    continue
                data, offset = self.read(first, last - first), 0
                while offset < len(data):
                    value, offset = self._varint(data, offset, first + offset)
                    values.append(value)
        return values

    def contents(self, runs: Iterable[Span]) -> list[bytes]:
        """As `integers`, the bytes of a list of what has a length: several numbers in one where they are packed."""
        return [
            self.read(first, last - first) for run in runs for _, first, last in self.tagged(*run) if last is not None
        ]

    def _count(self, fields: int) -> None:
        self._fields_left -= fields
        if self._fields_left < 0:
            raise ValueError(f"it has more than {self._max_fields} protobuf fields")

    def _window_at(self, position: int) -> tuple[bytes, int]:
        """Return bytes that hold a tag and a value at `position`, as far as the file does, and where they begin."""
        window_end = self._base + len(self._window)
        if position < self._base or position + _MAX_TAG_AND_VALUE_BYTES > window_end < self.size:
            self._base, self._window = position, b""
            self._window = self.read(position, min(_WINDOW_BYTES, self.size - position))
        return self._window, self._base

    def _run_end(self, tag: int, position: int, end: int) -> int:
        """Return where the elements of this tag end that begin at `position`, or where the next piece begins."""
        while position < end:
            window, base = self._window_at(position)
            offset, limit = position - base, min(len(window), end - base)
            if tag & 7 == BYTES:
                stop, texts = _end_of_texts(window, tag, offset, limit)
                self._count(texts // _TEXTS_PER_FIELD)
            else:
                found = _elements(tag).match(window, offset, limit)
                stop = found.end() if found else offset
            if stop == offset:
                break
            position = base + stop
        return position

    def _truncated(self, first: int, length: int, end: int) -> ValueError:
        if first + length > self.size and end == self.size:
            missing = first + length - self.size
            return ValueError(f"it ends at least {missing} bytes too early ({self.size} bytes): was it copied whole?")
        return self._garbage(first)

    def _varint(self, data: bytes, offset: int, position: int) -> tuple[int, int]:
        """Return the value at `offset` and the offset after it. `position` is the field's place in the file."""
        try:
            value = data[offset]
            offset += 1
            if value < 0x80:
                return value, offset
            value &= 0x7F
            for shift in range(7, 70, 7):
                byte = data[offset]
                offset += 1
                value |= (byte & 0x7F) << shift
                if byte < 0x80:
                    return value, offset
        except IndexError:
            raise ValueError(f"it ends in the middle of a number at byte {position}: was it copied whole?") from None
        raise self._garbage(position)

    def _garbage(self, position: int) -> ValueError:
        return ValueError(f"its bytes are no {self._format_name} (no protobuf field at byte {position})")


def tag_of(number: int, wire_type: int) -> int:
    """How a field of this number, written in this way, begins."""
    return number << 3 | wire_type


def signed(value: int) -> int:
    """An int64 or int32 as it is meant: both are written as the 64 bits of a two's complement."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


@functools.cache
def _elements(tag: int) -> re.Pattern[bytes]:
    """Whole numbers of this tag, one after the other. Possessive: nothing is kept to come back to."""
    value = {VARINT: rb"[\x80-\xff]{0,9}+[\x00-\x7f]", FIXED32: rb".{4}", FIXED64: rb".{8}"}[tag & 7]
    return re.compile(rb"(?:" + re.escape(bytes((tag,))) + value + rb")*+", re.DOTALL)


def _end_of_texts(window: bytes, tag: int, offset: int, limit: int) -> tuple[int, int]:
    """Return where texts of this tag end, as far as they are short and whole in the window, and how many they are."""
    texts = 0
    while offset + 1 < limit and window[offset] == tag:
        length = window[offset + 1]
        stop = offset + 2 + length
        if length > 127 or stop > limit:
            break
        offset = stop
        texts += 1
    return offset, texts
