"""
Finds the files of a model that lies on this machine: which ones, in which format, and why these.

A model is an `.onnx` file with the files of weights beside it, a SavedModel folder, a folder above exported versions
(`bert/1568244606/saved_model.pb`), or a zip of one of these. What is not said by `model_format` is seen from what is
there: a SavedModel wins over `.onnx` files, exactly one `.onnx` without a SavedModel is taken, and of version folders
the numerically highest. Signatures are looked at elsewhere; here no model is loaded.

Models in object stores are found by the same `Search`; what is theirs is in `remote`.
"""

from __future__ import annotations

import difflib
import os
import posixpath
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple, Protocol
from urllib.parse import unquote

import msgspec

from cortex.artifacts.errors import (
    AmbiguousModel,
    ExternalDataMissing,
    ModelFormatMismatch,
    ModelNotFound,
    NoModel,
    UnusableFile,
    UnusableModel,
)
from cortex.artifacts.hashing import HashCache, hash_file
from cortex.artifacts.zips import ModelZip
from cortex.spec.locations import SCHEME, infer_format
from cortex.wire.build import ModelFormat
from cortex.wire.onnx_proto import external_files
from cortex.wire.operator import ModelUpload, StoredFile

MARKERS = ("saved_model.pb", "saved_model.pbtxt")
"""A folder with one of these is a SavedModel. Source: tensorflow/cc/saved_model/constants.h."""
MAX_ENTRIES = 100_000
"""A folder with more entries than this is not searched through: it is more likely a home folder than a model."""

_LFS_POINTER = b"version https://git-lfs"
_SKIPPED = frozenset(("__MACOSX", "__pycache__", "node_modules"))
_ZIPS_OF_OTHERS = frozenset((".pt", ".pth", ".ckpt", ".keras", ".npz", ".mar"))
"""Kinds of files that are zips inside, and that hold no model of ours."""
_EXPORT_ADVICE = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".safetensors"), "export it with torch.onnx.export"),
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), "convert it with skl2onnx"),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), "export it with Keras' `model.export`, which makes a SavedModel"),
    **dict.fromkeys((".ubj", ".bst", ".xgb", ".model", ".txt"), "convert it with onnxmltools"),
    ".pb": "a frozen graph is no SavedModel: write one with tf.saved_model.save, or convert it with tf2onnx",
    ".tflite": "convert it with tf2onnx",
    **dict.fromkeys((".gz", ".tgz", ".tar", ".bz2", ".xz", ".7z", ".rar", ".zst"), "unpack it and name the folder"),
}


class ResolvedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model's files as they are to be stored, and what was chosen among them."""

    format: ModelFormat
    entry: str
    """Path inside the stored folder: `model.onnx`, or `.` for a SavedModel folder."""
    files: tuple[tuple[str, Path], ...]
    """Path inside the stored folder, and the file to read; sorted."""
    note: str = ""
    """What was chosen and why, for people; empty when there was nothing to choose."""


def resolve(model: str, *, folder: Path, scratch: Path, model_format: ModelFormat | None = None) -> ResolvedModel:
    """
    Find the files of a model.

    Args:
        model: as `cortex.yaml` has it: a path relative to `folder`, an absolute one, or a `file://` URL.
        folder: the folder of `cortex.yaml`.
        scratch: a folder for what has to be unpacked, each model in one of its own; the caller removes it when the
            files have been read.
        model_format: as `cortex.yaml` has it; None looks at what is there.

    Raises:
        ModelNotFound: there is nothing at that path; suggests a name that is.
        NoModel: there is no model in it; says what was looked for.
        AmbiguousModel: there are several, and nothing says which; lists them.
        ExternalDataMissing: an `.onnx` needs files that are not beside it; names them.
        ModelFormatMismatch: `model_format` contradicts what is there.
        UnusableModel: a file of it is empty, unreadable, or not what its name says.
        UnusableZip: see `zips.ModelZip`.
    """
    return resolve_path(_local_path(model, folder), model=model, scratch=scratch, model_format=model_format)


def resolve_path(path: Path, *, model: str, scratch: Path, model_format: ModelFormat | None = None) -> ResolvedModel:
    """
    Find the files of the model at a path of this machine.

    Args:
        model: how the user named it, for errors and notes.
        scratch, model_format: see `resolve`, which also says what is raised.
    """
    search = Search(model, model_format)
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelNotFound(model, path, _suggestion(model, path)) from error
    except OSError:
        pass  # said by `look_at`
    found = search.look_at(path)
    if stat.S_ISDIR(found.st_mode):
        return search.inside(_Folder(search, path))
    search.check_file(path)
    named = infer_format(path.name)
    if named is None and model_format is None and path.suffix.lower() in _ZIPS_OF_OTHERS:
        raise search.unknown_file(path)
    if named == "tensorflow" or (named is None and _begins_with(path, b"PK\x03\x04")):
        with ModelZip(path, model) as archive:
            return search.inside(ZipPlace(archive, path.name, _unpacking(archive, scratch)))
    if model_format == "tensorflow":
        raise search.mismatch(f"{path.name} is a file, and a TensorFlow model is a SavedModel folder or a zip of one")
    if named is None and model_format is None:
        raise search.unknown_file(path)
    try:
        return search.onnx(_Folder(search, path.parent), path.name, note="")
    except ExternalDataMissing:
        if not path.is_symlink():
            raise
        target = path.resolve()  # the weights may lie beside the file that the link points to
        return search.onnx(_Folder(search, target.parent), target.name, note=f"{target}")


def as_upload(resolved: ResolvedModel, cache: HashCache | None = None) -> ModelUpload:
    """
    Hash a model's files, ready to be announced to the control plane.

    Raises:
        UnusableFile: a file cannot be read, or went away since it was found.
        FileChanged: a file is being written to.
    """
    files = []
    for path, source in resolved.files:
        try:
            files.append(StoredFile(path=path, sha256=hash_file(source, cache).sha256))
        except FileNotFoundError as error:
            raise UnusableFile(source, "is not there any more") from error
    return ModelUpload(files=tuple(files), entry=resolved.entry, format=resolved.format, note=resolved.note)


class _Candidate(NamedTuple):
    """A SavedModel folder somewhere below what the user named."""

    folder: str
    """`""` for the named folder itself."""
    version: int | None
    """The number nearest to the model in its path; None when there is none."""

    @classmethod
    def at(cls, folder: str) -> _Candidate:
        numbers = [int(name) for name in folder.split("/") if name.isascii() and name.isdigit()]
        return cls(folder, numbers[-1] if numbers else None)


class ModelPlace(Protocol):
    """A folder or a zip in which a model is looked for."""

    shown: str
    can_be_named: bool
    """Whether `model:` may name what is inside."""

    def found(self) -> tuple[list[str], list[str]]:
        """Folders that are SavedModels, and paths of `.onnx` files, both sorted; nothing inside a SavedModel."""
        ...

    def below(self, folder: str) -> list[str]:
        """Every file below a folder, as paths from the top."""
        ...

    def sources(self, names: Sequence[str]) -> list[Path]:
        """Readable files with the bytes of these paths."""
        ...

    def has(self, name: str) -> bool: ...


class Search:
    """One search, with what every error of it has to say."""

    def __init__(self, model: str, model_format: ModelFormat | None) -> None:
        self.model = model
        self.wanted = model_format
        self.names: dict[Path, str] = {}
        """How people know a file that was brought here from elsewhere."""

    def inside(self, place: ModelPlace) -> ResolvedModel:
        """Choose the model among what a folder or zip holds."""
        saved, onnx = place.found()
        if self.wanted == "tensorflow" and not saved and onnx:
            raise self.mismatch(f"{place.shown} holds {onnx[0]} and no SavedModel", instead="onnx")
        if self.wanted == "onnx" and not onnx and saved:
            raise self.mismatch(f"{place.shown} holds a SavedModel and no .onnx file", instead="tensorflow")
        if saved and self.wanted != "onnx":
            return self.saved_model(place, self.best(place, saved))
        if len(onnx) > 1:
            raise AmbiguousModel(
                self.model,
                f"{place.shown} holds {len(onnx)} .onnx files",
                onnx,
                hint=f"name the one to serve, e.g. `model: {posixpath.join(self.model.rstrip('/'), onnx[0])}`"
                if place.can_be_named
                else "pack only the one to serve",
            )
        if onnx:
            return self.onnx(place, onnx[0], note=f"{onnx[0]}, the only .onnx in {place.shown}")
        raise self.nothing_found(place)

    def best(self, place: ModelPlace, folders: Sequence[str]) -> tuple[_Candidate, str]:
        """The version to take, and a note on why it."""
        candidates = [_Candidate.at(folder) for folder in folders]
        if len(candidates) == 1:
            only = candidates[0]
            if not only.folder:
                return only, ""
            return only, f"{only.folder}, the only SavedModel in {place.shown}"
        numbered = [c for c in candidates if c.version is not None]
        highest = max((c.version for c in numbered if c.version is not None), default=None)
        best = [c for c in numbered if c.version == highest] or candidates
        if len(best) > 1:
            what = f"the same version {highest}" if numbered else "no version number"
            raise AmbiguousModel(
                self.model,
                f"{place.shown} holds {len(best)} SavedModels with {what}",
                [c.folder for c in best],
                hint="name the folder of the one to serve",
            )
        return best[0], f"{best[0].folder}, the highest version of {len(candidates)} in {place.shown}"

    def saved_model(self, place: ModelPlace, chosen: tuple[_Candidate, str]) -> ResolvedModel:
        candidate, note = chosen
        names = place.below(candidate.folder)
        inner = [posixpath.relpath(name, candidate.folder or ".") for name in names]
        sources = place.sources(names)
        for name, source in zip(inner, sources, strict=True):
            self.check_file(source, may_be_empty=name not in MARKERS)
        return ResolvedModel(format="tensorflow", entry=".", files=tuple(zip(inner, sources, strict=True)), note=note)

    def onnx(self, place: ModelPlace, name: str, *, note: str) -> ResolvedModel:
        """The `.onnx` and the files of weights that it names, laid out as they are beside it."""
        folder, entry = posixpath.split(name)
        source = place.sources([name])[0]
        self.check_file(source)
        try:
            beside = external_files(source)
        except ValueError as error:
            hint = "copy it again from where it was exported, or export the model again"
            raise self.unusable(source, str(error), hint=hint) from error
        except OSError as error:
            raise self.unusable(source, f"cannot be read ({error.strerror})") from error
        weights = [posixpath.join(folder, data) for data in beside]
        if missing := [data for data, path in zip(beside, weights, strict=True) if not place.has(path)]:
            raise ExternalDataMissing(self.model, entry, missing)
        sources = place.sources(weights)
        for path in sources:
            self.check_file(path)
        if beside:
            note = f"{note or entry}, with its weights in {', '.join(beside[:3])}{' …' if len(beside) > 3 else ''}"
        files = {entry: source, **dict(zip(beside, sources, strict=True))}
        return ResolvedModel(format="onnx", entry=entry, files=tuple(sorted(files.items())), note=note)

    def look_at(self, path: Path) -> os.stat_result:
        try:
            return path.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            if path.is_symlink():
                raise self.unusable(path, f"is a link to {os.readlink(path)}, which is not there") from error
            raise self.unusable(path, "is not there any more") from error
        except OSError as error:
            raise self.unusable(path, f"cannot be read ({error.strerror})") from error

    def check_file(self, path: Path, *, may_be_empty: bool = False) -> None:
        """Refuse what no file of a model can be."""
        found = self.look_at(path)
        if not stat.S_ISREG(found.st_mode):
            raise self.unusable(path, "is neither a file nor a folder")
        try:
            pointer = _begins_with(path, _LFS_POINTER)
        except OSError as error:
            raise self.unusable(path, f"cannot be read ({error.strerror})") from error
        if found.st_size == 0 and not may_be_empty:
            raise self.unusable(path, "is empty (0 bytes)", hint="was it copied whole?")
        if pointer:
            raise self.unusable(path, "is a Git LFS pointer, not the file itself", hint="run `git lfs pull`")

    def mismatch(self, message: str, *, instead: str | None = None) -> ModelFormatMismatch:
        hint = f"say `model_format: {instead}`, or leave it out" if instead else "leave model_format out"
        return ModelFormatMismatch(self.model, f"model_format is {self.wanted}, but {message}", hint=hint)

    def unusable(self, path: Path, reason: str, *, hint: str = "") -> UnusableModel:
        return UnusableModel(self.model, self.shown(path), reason, hint=hint)

    def shown(self, path: Path) -> Path | str:
        return self.names.get(path, path)

    def unknown_file(self, path: PurePath, shown: str = "") -> NoModel:
        """The error for a file that no name and no beginning tells anything of. `shown` is how people know it."""
        shown = shown or str(path)
        if path.name in MARKERS:
            return NoModel(
                self.model,
                f"{shown} is one file of a SavedModel; the model is its folder",
                hint=f"say `model: {posixpath.dirname(self.model) or '.'}`",
            )
        advice = _EXPORT_ADVICE.get(path.suffix.lower(), "if it is an ONNX model, say `model_format: onnx`")
        return NoModel(
            self.model, f"{shown} is neither an .onnx file, nor a SavedModel folder, nor a zip of one", hint=advice
        )

    def nothing_found(self, place: ModelPlace) -> NoModel:
        looked_for = "a SavedModel (saved_model.pb, here or in version folders such as 1/) or exactly one .onnx file"
        if self.wanted == "onnx":
            looked_for = "exactly one .onnx file"
        elif self.wanted == "tensorflow":
            looked_for = "a SavedModel (saved_model.pb, here or in version folders such as 1/)"
        return NoModel(
            self.model,
            f"{place.shown} holds no model; looked for {looked_for}",
            hint="name the folder that the model was exported to, or the .onnx file",
        )


class _Folder:
    """A folder of this machine. Links are followed; one that leads back to a folder above itself ends there."""

    can_be_named = True

    def __init__(self, search: Search, top: Path) -> None:
        self._search = search
        self._top = top
        self.shown = f"the folder {search.model}"

    def found(self) -> tuple[list[str], list[str]]:
        saved: set[str] = set()
        onnx: list[str] = []
        for folder, files, folders in self._walk(""):
            if any(name in MARKERS for name in files):
                saved.add(folder)
                folders.clear()
                continue
            onnx += [posixpath.join(folder, name) for name in files if name.lower().endswith(".onnx")]
            folders[:] = [
                name
                for name in folders
                if not name.startswith(".") and name not in _SKIPPED and not self.has(f"{folder}/{name}/pyvenv.cfg")
            ]
        return sorted(saved), sorted(onnx)

    def below(self, folder: str) -> list[str]:
        names = []
        for inner, files, _ in self._walk(folder):
            names += [posixpath.join(inner, name) for name in files if not _is_clutter(name)]
        return sorted(names)

    def sources(self, names: Sequence[str]) -> list[Path]:
        return [self._locate(name) for name in names]

    def has(self, name: str) -> bool:
        return self._locate(name.lstrip("/")).is_file()

    def _locate(self, name: str) -> Path:
        return self._top / name

    def _walk(self, start: str) -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield (folder, files, folders) from the top down; the caller may take folders out of the list."""
        left = MAX_ENTRIES
        waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(start, frozenset())]
        while waiting:
            folder, above = waiting.pop()
            files: list[str] = []
            folders: list[str] = []
            try:
                here = (self._top / folder).stat()
                if (here.st_dev, here.st_ino) in above:
                    continue
                with os.scandir(self._top / folder) as entries:
                    for entry in entries:
                        left -= 1
                        (folders if entry.is_dir() else files).append(entry.name)
            except OSError as error:
                raise self._search.unusable(self._top / folder, f"cannot be read ({error.strerror})") from error
            if left < 0:
                raise NoModel(
                    self._search.model,
                    f"{self.shown} holds more than {MAX_ENTRIES} entries, so it was not searched through",
                    hint="name the model's own folder",
                )
            yield folder, files, folders
            inside = above | {(here.st_dev, here.st_ino)}
            waiting += [(posixpath.join(folder, name), inside) for name in folders]


class Names:
    """Where models are among the names of files, as of a zip or of a listing."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(name for name in names if not any(_is_clutter(part) for part in name.split("/")))
        self._known = frozenset(self._names)

    def found(self) -> tuple[list[str], list[str]]:
        """See `ModelPlace.found`."""
        marked = {posixpath.dirname(name) for name in self._names if posixpath.basename(name) in MARKERS}
        saved = {folder for folder in marked if not any(_is_inside(folder, other) for other in marked - {folder})}
        onnx = [
            name
            for name in self._names
            if name.lower().endswith(".onnx") and not any(_is_inside(name, folder) for folder in saved)
        ]
        return sorted(saved), onnx

    def below(self, folder: str) -> list[str]:
        return [name for name in self._names if _is_inside(name, folder)]

    def __contains__(self, name: str) -> bool:
        return name in self._known


class ZipPlace:
    """
    A zip archive.

    Args:
        unpack: brings these entries somewhere and returns where.
    """

    can_be_named = False

    def __init__(self, archive: ModelZip, shown: str, unpack: Callable[[Sequence[str]], list[Path]]) -> None:
        self._names = Names(archive.names)
        self._unpack = unpack
        self.shown = shown

    def found(self) -> tuple[list[str], list[str]]:
        return self._names.found()

    def below(self, folder: str) -> list[str]:
        return self._names.below(folder)

    def sources(self, names: Sequence[str]) -> list[Path]:
        return self._unpack(names)

    def has(self, name: str) -> bool:
        return name in self._names


def _unpacking(archive: ModelZip, scratch: Path) -> Callable[[Sequence[str]], list[Path]]:
    """Unpack to a folder of its own in `scratch`."""
    folder: list[Path] = []

    def unpack(names: Sequence[str]) -> list[Path]:
        if not folder:
            scratch.mkdir(parents=True, exist_ok=True)
            folder.append(Path(tempfile.mkdtemp(dir=scratch)))
        archive.unpack(names, folder[0])
        return [folder[0] / name for name in names]

    return unpack


def _local_path(model: str, folder: Path) -> Path:
    scheme = SCHEME.match(model)
    if scheme is None:
        return folder / model
    path = "/" + model[scheme.end() :].partition("/")[2]
    return Path(path) if os.path.lexists(path) else Path(unquote(path))


def _suggestion(model: str, path: Path) -> str | None:
    """The model's text with its first wrong component replaced by the nearest name that exists there."""
    missing = path
    while not os.path.lexists(missing.parent):
        missing = missing.parent
    try:
        siblings = sorted(name for name in os.listdir(missing.parent) if not name.startswith("."))
    except OSError:
        return None
    near = difflib.get_close_matches(missing.name, siblings, n=1)
    near = near or [name for name in siblings if Path(name).stem.lower() == missing.stem.lower()]
    if not near:
        return None
    after = path.relative_to(missing).parts
    text = model.rstrip("/").split("/")
    before = text[: len(text) - len(after) - 1]
    if os.path.lexists(missing.with_name(near[0]).joinpath(*after)):
        return "/".join([*before, near[0], *after])
    return "/".join([*before, near[0]])


def _begins_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _is_inside(path: str, folder: str) -> bool:
    return not folder or path.startswith(f"{folder}/")


def is_searched(name: str) -> bool:
    """Whether a model is looked for here: not below hidden folders and others that hold none."""
    folders = name.split("/")[:-1]
    return not any(folder.startswith(".") or folder in _SKIPPED for folder in folders)


def _is_clutter(name: str) -> bool:
    """What macOS leaves in folders and zips."""
    return name in ("__MACOSX", ".DS_Store") or name.startswith("._")
