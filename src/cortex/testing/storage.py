"""A storage in memory that several may share, each over a line of its own that may break at any moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cortex.storage.base import checked_key

Hook = Callable[[str, str], None]
"""Told what is asked (the name of the method) and of which key; may raise, and may wait."""


def _undisturbed(_asked: str, _key: str) -> None: ...


class FakeStorage:
    """
    Args:
        shared: the one whose objects these are too.

    Attributes:
        objects: what is stored, by key.
        before: called with each call. If it raises, nothing was done.
        after: called with each call. If it raises, it was done, and the answer is lost.
    """

    def __init__(self, shared: FakeStorage | None = None) -> None:
        self.place = "memory://storage"
        self.objects: dict[str, bytes] = shared.objects if shared is not None else {}
        self.before: Hook = _undisturbed
        self.after: Hook = _undisturbed
        self._lock: threading.Lock = shared._lock if shared is not None else threading.Lock()

    def create(self, key: str, content: bytes) -> bool:
        self.before("create", checked_key(key))
        with self._lock:
            is_new = key not in self.objects
            self.objects.setdefault(key, content)
        self.after("create", key)
        return is_new

    def read(self, key: str) -> bytes | None:
        self.before("read", checked_key(key))
        content = self.objects.get(key)
        self.after("read", key)
        return content

    def upload(self, key: str, file: Path) -> None:
        self.before("upload", checked_key(key))
        self.objects[key] = file.read_bytes()
        self.after("upload", key)

    def download(self, key: str) -> Iterator[bytes] | None:
        self.before("download", checked_key(key))
        content = self.objects.get(key)
        self.after("download", key)
        return None if content is None else iter([content])

    def size(self, key: str) -> int | None:
        self.before("size", checked_key(key))
        content = self.objects.get(key)
        self.after("size", key)
        return None if content is None else len(content)

    def keys(self, folder: str) -> list[str]:
        self.before("keys", checked_key(folder))
        with self._lock:
            found = sorted(key for key in self.objects if key.startswith(f"{folder}/"))
        self.after("keys", folder)
        return found

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.before("delete", checked_key(key))
            self.objects.pop(key, None)
            self.after("delete", key)
