"""
Brings a remote model into the artifact store: finds what is to be served, reads only that, and only what is new.

The search is the one for local models (`models.Search`), over a listing instead of a folder. What the origin still
calls by the same ETag and size as when it was read before is not read again.
"""

from __future__ import annotations

import difflib
import posixpath
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Protocol

import msgspec

from cortex.artifacts.blobs import StoredBlob
from cortex.artifacts.download import ATTEMPTS, Download, Interrupted, Item, Piece, RangesUnsupported, Readable
from cortex.artifacts.errors import (
    ArtifactCorrupt,
    BlobsMissing,
    ExternalDataMissing,
    ModelNotFound,
    NoRoomForModel,
    OriginUnreachable,
    UnusableModel,
)
from cortex.artifacts.models import Names, ResolvedModel, Search, ZipPlace, is_searched
from cortex.artifacts.store import ArtifactStore
from cortex.artifacts.zips import ModelZip
from cortex.spec.locations import infer_format
from cortex.wire.build import ModelFormat
from cortex.wire.fetch import Fetched, FetchProgress, KnownModel, Origin, OriginObject
from cortex.wire.operator import ModelUpload, StoredFile

ZIP_START = b"PK\x03\x04"

Tell = Callable[[FetchProgress], None]


class RemoteOrigin(Readable, Protocol):
    """What is asked of an origin; `origin.ObjectOrigin` is it."""

    shown: str
    key: str

    @property
    def is_folder_named(self) -> bool: ...
    def url_of(self, key: str) -> str: ...
    def find(self, key: str) -> OriginObject | None: ...
    def below(self) -> Mapping[str, OriginObject]: ...
    def neighbours(self) -> list[str]: ...
    def begins_with(self, key: str, start: bytes) -> bool: ...


def fetch(
    origin: RemoteOrigin,
    store: ArtifactStore,
    *,
    model_format: ModelFormat | None = None,
    known: Sequence[KnownModel] = (),
    tell: Tell = lambda _progress: None,
    pause: Callable[[float], None] = time.sleep,
) -> Fetched:
    """
    Find a model and have it in the store, as a tree.

    Args:
        known: models fetched before; those of other origins do no harm.
        tell: told of every piece that arrived; may raise to end it, and then nothing but whole files is kept.
        pause: waits that many seconds.

    Raises:
        As `models.resolve` for what is there, `origin.ObjectOrigin` for getting at it, and
        NoRoomForModel: the disk is too small for it.
        StoreUnavailable: the store cannot take it.
    """
    first = _Fetch(origin, store, model_format, known, tell, pause)
    try:
        return first.run()
    except (ArtifactCorrupt, BlobsMissing, UnusableModel):
        if not first.relied_on_known:
            raise
        # What was stored before is damaged, or went away just now: everything is read anew.
        return _Fetch(origin, store, model_format, (), tell, pause).run()


class _Fetch:
    def __init__(
        self,
        origin: RemoteOrigin,
        store: ArtifactStore,
        model_format: ModelFormat | None,
        known: Sequence[KnownModel],
        tell: Tell,
        pause: Callable[[float], None],
    ) -> None:
        self._origin = origin
        self._store = store
        self._wanted = model_format
        self._known = known
        self._search = Search(origin.shown, model_format)
        self._relied_on_known = False
        self._intake = Intake(origin, store, known, tell, pause)

    @property
    def relied_on_known(self) -> bool:
        """Whether something was not read because it is stored already."""
        return self._relied_on_known or self._intake.reused > 0

    def run(self) -> Fetched:
        origin = self._origin
        named = None if origin.is_folder_named else origin.find(origin.key)
        if named is None:
            return self._folder()
        name = posixpath.basename(origin.key)
        kind = infer_format(name)
        if kind == "tensorflow" or (kind is None and self._looks_packed()):
            return self._packed(named)
        if self._wanted == "tensorflow":
            raise self._search.mismatch(
                f"{origin.shown} is a file, and a TensorFlow model is a SavedModel folder or a zip of one"
            )
        if kind is None and self._wanted is None:
            raise self._search.unknown_file(PurePosixPath(name), origin.shown)
        place = RemotePlace(self._intake, self._search, posixpath.dirname(origin.key), {origin.key: named}, origin.find)
        try:
            return self._stored(self._search.onnx(place, name, note=""))
        except ExternalDataMissing as error:
            if origin.shown.endswith("?***"):
                error.hint = "a signed URL gives one file only: pack both files into a zip and sign its URL"
            raise

    def _looks_packed(self) -> bool:
        try:
            return self._origin.begins_with(self._origin.key, ZIP_START)
        except (Interrupted, RangesUnsupported):
            return False

    def _folder(self) -> Fetched:
        objects = self._origin.below()
        if not objects:
            raise self._not_found()
        key = self._origin.key
        found = {posixpath.join(key, name): one for name, one in objects.items()}
        place = RemotePlace(self._intake, self._search, key, found, lambda _key: None)
        return self._stored(self._search.inside(place))

    def _packed(self, named: OriginObject) -> Fetched:
        before = self._unpacked_before(named)
        if before is not None:
            self._relied_on_known = True
            self._store.put_tree(before.model.files)
            origin = msgspec.structs.replace(before.origin, url=self._origin.shown)
            return Fetched(origin=origin, model=before.model, read_bytes=0, read_objects=0)
        archive = self._intake.take({self._origin.key: named}, self._search)[0]
        packed = self._intake.blob_of(archive)
        try:
            with ModelZip(archive, self._origin.shown, shown=self._origin.shown) as content:
                place = ZipPlace(content, self._origin.shown, self._intake.unpacking(content, self._search))
                return self._stored(self._search.inside(place), packed=True)
        finally:
            self._store.discard(packed.sha256)

    def _unpacked_before(self, named: OriginObject) -> KnownModel | None:
        for known in self._known:
            origin = known.origin
            if not origin.packed or origin.wanted_format != self._wanted or not origin.objects[0].is_same(named):
                continue
            if not self._store.missing(file.sha256 for file in known.model.files):
                return known
        return None

    def _stored(self, resolved: ResolvedModel, *, packed: bool = False) -> Fetched:
        blobs = [(path, self._intake.blob_of(source)) for path, source in resolved.files]
        files = tuple(StoredFile(path=path, sha256=blob.sha256) for path, blob in blobs)
        self._store.put_tree(files)
        return Fetched(
            origin=Origin(
                url=self._origin.shown,
                objects=tuple(sorted(self._intake.objects.values(), key=lambda one: one.url)),
                wanted_format=self._wanted,
                packed=packed,
                note=resolved.note,
            ),
            model=ModelUpload(files=files, entry=resolved.entry, format=resolved.format, note=resolved.note),
            read_bytes=self._intake.read_bytes,
            read_objects=self._intake.read_objects,
        )

    def _not_found(self) -> ModelNotFound:
        shown = self._origin.shown.rstrip("/")
        wrong = posixpath.basename(self._origin.key)
        names = self._origin.neighbours() if wrong else []
        near = difflib.get_close_matches(wrong, names, n=1)
        near = near or [name for name in names if PurePosixPath(name).stem.lower() == PurePosixPath(wrong).stem.lower()]
        suggestion = f"{shown[: -len(wrong)]}{near[0]}" if near else None
        hint = f"what is there begins with: {', '.join(sorted(names)[:5])}" if names else "check its spelling"
        return ModelNotFound(self._origin.shown, self._origin.shown, suggestion, hint=hint)


class RemotePlace:
    """
    A folder of an origin; what is chosen in it is brought into the store. A `models.ModelPlace`.

    Args:
        folder: its key.
        objects: what is known to be there, by key.
        find: looks further ones up.
    """

    can_be_named = True

    def __init__(
        self,
        intake: Intake,
        search: Search,
        folder: str,
        objects: Mapping[str, OriginObject],
        find: Callable[[str], OriginObject | None],
    ) -> None:
        self._intake = intake
        self._search = search
        self._folder = folder
        self._objects = dict(objects)
        self._find = find
        names = [posixpath.relpath(key, folder or ".") for key in objects]
        self._names = Names(names)
        self._searched = Names(name for name in names if is_searched(name))
        self.shown = search.model

    def found(self) -> tuple[list[str], list[str]]:
        return self._searched.found()

    def below(self, folder: str) -> list[str]:
        return self._names.below(folder)

    def sources(self, names: Sequence[str]) -> list[Path]:
        keys = [posixpath.join(self._folder, name) for name in names]
        return self._intake.take({key: self._objects[key] for key in keys}, self._search)

    def has(self, name: str) -> bool:
        key = posixpath.join(self._folder, name)
        if key not in self._objects:
            found = self._find(key)
            if found is not None:
                self._objects[key] = found
        return key in self._objects


class Intake:
    """Takes objects into the store, each once, and remembers what they were."""

    def __init__(
        self,
        origin: RemoteOrigin,
        store: ArtifactStore,
        known: Sequence[KnownModel],
        tell: Tell,
        pause: Callable[[float], None],
    ) -> None:
        self._origin = origin
        self._store = store
        self._known = [one for model in known if not model.origin.packed for one in model.origin.objects]
        self._tell = tell
        self._download = Download(origin, on_bytes=self._arrived, on_trouble=self._troubled, pause=pause)
        self._blobs: dict[Path, StoredBlob] = {}
        self._counting = threading.Lock()
        self._done_bytes = 0
        self._total_bytes = 0
        self.objects: dict[str, OriginObject] = {}
        """What was taken, by key."""
        self.read_objects = 0
        self.reused = 0

    @property
    def read_bytes(self) -> int:
        return self._done_bytes

    def blob_of(self, source: Path) -> StoredBlob:
        """What a path that was given out holds."""
        return self._blobs[source]

    def take(self, objects: Mapping[str, OriginObject], search: Search) -> list[Path]:
        """
        Files of the store with the bytes of these objects.

        Args:
            objects: by key, as they were found.
            search: told how people know the files.
        """
        new: dict[str, OriginObject] = {}
        for key, found in objects.items():
            if key in self.objects:
                continue
            sha256 = self._sha256_of(found)
            if sha256:
                self.reused += 1
                self.objects[key] = msgspec.structs.replace(found, sha256=sha256)
            else:
                new[key] = found
        if new:
            self._read(new)
        paths = []
        for key in objects:
            one = self.objects[key]
            path = self._store.blob_path(one.sha256)
            self._blobs[path] = StoredBlob(one.sha256, one.size_bytes)
            search.names[path] = one.url
            paths.append(path)
        return paths

    def unpacking(self, archive: ModelZip, search: Search) -> Callable[[Sequence[str]], list[Path]]:
        """Unpacks entries of an archive straight into the store."""

        def unpack(names: Sequence[str]) -> list[Path]:
            archive.check_room(names, self._store.root)
            paths = []
            for name in names:
                with self._store.writer() as writer:
                    for chunk in archive.read(name):
                        writer.write(chunk)
                    blob = writer.commit()
                path = self._store.blob_path(blob.sha256)
                self._blobs[path] = blob
                search.names[path] = f"{name} in {self._origin.shown}"
                paths.append(path)
            return paths

        return unpack

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _sha256_of(self, found: OriginObject) -> str:
        """Digest of an object that has been read before and is in the store; empty when it has to be read."""
        for one in self._known:
            if one.sha256 and one.is_same(found) and not self._store.missing([one.sha256]):
                return one.sha256
        return ""

    def _read(self, objects: Mapping[str, OriginObject]) -> None:
        needed = sum(one.size_bytes for one in objects.values())
        self._check_room(needed)
        self._total_bytes += needed
        self._report()
        left = {key: Item(key, one.size_bytes) for key, one in objects.items()}
        try:
            while left:
                try:
                    self._keep(self._download.pieces(list(left.values())), objects, left)
                except RangesUnsupported:
                    self._keep(self._download.at_once(next(iter(left.values()))), objects, left)
        except Interrupted as error:
            reason = f"{error}; tried {ATTEMPTS} times in a row"
            raise OriginUnreachable(self._origin.shown, self._origin.shown, reason) from error

    def _keep(self, pieces: Iterator[Piece], objects: Mapping[str, OriginObject], left: dict[str, Item]) -> None:
        """Write pieces as blobs; what is complete is taken out of `left`."""
        with ExitStack() as open_writer:
            for piece in pieces:
                if piece.start == 0:  # of the next object, or of the same one anew
                    open_writer.close()
                    writer = open_writer.enter_context(self._store.writer())
                writer.write(piece.content)
                key = piece.item.name
                if writer.size_bytes == piece.item.size_bytes:
                    self.objects[key] = msgspec.structs.replace(objects[key], sha256=writer.commit().sha256)
                    open_writer.close()
                    self.read_objects += 1
                    del left[key]

    def _check_room(self, needed: int) -> None:
        folder = self._store.root
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise NoRoomForModel(self._origin.shown, self._origin.shown, needed, free, self._store.root)

    def _arrived(self, count: int) -> None:
        with self._counting:
            self._done_bytes += count
        self._report()

    def _troubled(self, words: str) -> None:
        self._tell(FetchProgress(done_bytes=self._done_bytes, total_bytes=self._total_bytes, note=words))

    def _report(self) -> None:
        self._tell(FetchProgress(done_bytes=self._done_bytes, total_bytes=self._total_bytes))
