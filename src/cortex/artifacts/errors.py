"""What can go wrong with model files, projects and the store, as facts."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from cortex.errors import CortexError
from cortex.ids import short


class StoreUnavailable(CortexError):
    """The artifact store cannot be read or written now: disk full, read-only, no permission, failing disk."""

    reference = "store-unavailable"

    def __init__(self, root: Path, error: OSError) -> None:
        self.root = root
        self.errno = error.errno
        self.reason = os.strerror(error.errno) if error.errno else str(error)
        self.hint = _STORE_HINTS.get(error.errno or 0, f"check the disk and the owner of {root}").format(root=root)
        super().__init__(f"the artifact store {root} cannot be used: {self.reason}")


_OWNER_HINT = "{root} and everything in it must belong to the user who runs Cortex; `ls -ld {root}` shows the owner"
_STORE_HINTS = {
    errno.ENOSPC: "free space on the disk that holds {root}, then repeat the command; what runs goes on serving",
    errno.EDQUOT: "your disk quota is used up: free space below {root}, then repeat the command",
    errno.EROFS: "the file system that holds {root} is mounted read-only: check the disk (`dmesg`) and remount it",
    errno.EACCES: _OWNER_HINT,
    errno.EPERM: _OWNER_HINT,
    errno.EIO: "the disk that holds {root} reports errors: check it (`dmesg`, `smartctl`)",
    errno.EMFILE: "too many open files: raise the limit (`ulimit -n`)",
    errno.ENFILE: "too many open files on this machine",
    errno.ENOTDIR: "a file is in the way where {root} needs a folder",
}


class ArtifactCorrupt(CortexError):
    """
    Stored bytes are not what their digest says, and nothing in the store can replace them.

    The bad blob has been set aside, so that `missing` names it and the next upload brings it back.
    """

    reference = "artifact-corrupt"
    hint = "deploy again: the damaged file is uploaded anew and put in its place; then check the disk"

    def __init__(self, digest: str, path: Path) -> None:
        self.digest = digest
        self.path = path
        super().__init__(f"{path} no longer has the bytes that were stored (sha256 {short(digest)}…)")


class ArtifactMissing(CortexError):
    """A tree is not in the store."""

    reference = "artifact-missing"
    hint = "deploy again: what is missing is uploaded"

    def __init__(self, digest: str) -> None:
        self.digest = digest
        super().__init__(f"the artifact store has no files of digest {short(digest)}…")


class BlobsMissing(CortexError):
    """A tree names blobs that are not in the store; they have to be put first."""

    reference = "blobs-missing"
    hint = "upload them, then repeat"

    def __init__(self, digests: Sequence[str]) -> None:
        self.digests = tuple(digests)
        super().__init__(f"{len(self.digests)} files are not in the artifact store, the first is {self.digests[0]}")


class DigestMismatch(CortexError):
    """Bytes arrived that do not have the digest they were announced with; nothing of them was kept."""

    reference = "digest-mismatch"
    hint = "repeat: the file changed while it was sent, or was damaged on the way"

    def __init__(self, expected: str, found: str, size_bytes: int) -> None:
        self.expected = expected
        self.found = found
        self.size_bytes = size_bytes
        super().__init__(f"expected bytes with sha256 {expected}, got {size_bytes} bytes with sha256 {found}")


class BlobTooLarge(CortexError):
    """More bytes arrived than are allowed; nothing of them was kept."""

    reference = "upload-too-large"

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        super().__init__(f"a file has more than the {in_words(limit_bytes)} that are allowed")


class InvalidDigest(CortexError):
    """Something that should be a SHA-256 digest is none."""

    reference = "invalid-digest"

    def __init__(self, value: str) -> None:
        self.value = value
        super().__init__(f"expected 64 lower-case hex digits (SHA-256), got {value[:80]!r}")


class InvalidTree(CortexError):
    """A list of files cannot be laid out as a folder: names the path and says why."""

    reference = "invalid-tree"

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path[:200]!r} {reason}")


class UnusableFile(CortexError):
    """A user's file cannot be read, or is no regular file."""

    reference = "unusable-file"

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} {reason}")


class FileChanged(CortexError):
    """A user's file was written to while it was read."""

    reference = "file-changed"
    hint = "wait until whatever writes it is done, then repeat"

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} changed while it was being read")


class ModelSourceError(CortexError):
    """Base of what can be wrong with a model that `cortex.yaml` names. `model` is the text found there."""

    reference = "model"

    def __init__(self, model: str, message: str, *, hint: str = "") -> None:
        self.model = model
        self.hint = hint
        super().__init__(message)


class ModelNotFound(ModelSourceError):
    """There is nothing at the model's path."""

    reference = "model-not-found"

    def __init__(
        self,
        model: str,
        path: Path | str,
        suggestion: str | None,
        *,
        hint: str = "local paths are relative to the folder of cortex.yaml",
    ) -> None:
        self.path = path
        self.suggestion = suggestion
        if suggestion:
            hint = f'did you mean "{suggestion}"?'
        super().__init__(model, f"there is no file or folder {path}", hint=hint)


class NoModel(ModelSourceError):
    """A folder or zip holds nothing that could be a model; says what was looked for."""

    reference = "no-model"

    def __init__(self, model: str, message: str, *, hint: str) -> None:
        super().__init__(model, message, hint=hint)


class AmbiguousModel(ModelSourceError):
    """A folder or zip holds several models and nothing says which is meant; lists them."""

    reference = "ambiguous-model"

    def __init__(self, model: str, message: str, candidates: Sequence[str], *, hint: str) -> None:
        self.candidates = tuple(candidates)
        shown = [f"  {name}" for name in self.candidates[:10]]
        if len(self.candidates) > len(shown):
            shown.append(f"  … and {len(self.candidates) - len(shown)} more")
        super().__init__(model, "\n".join([f"{message}:", *shown]), hint=hint)


class ExternalDataMissing(ModelSourceError):
    """A file of weights that an `.onnx` names is not beside it."""

    reference = "external-data-missing"

    def __init__(self, model: str, onnx: str, missing: Sequence[str]) -> None:
        self.onnx = onnx
        self.missing = tuple(missing)
        names = ", ".join(self.missing[:5]) + (f" and {len(self.missing) - 5} more" if len(self.missing) > 5 else "")
        super().__init__(
            model,
            f"{onnx} needs {names} beside it",
            hint="the weights are in a file of their own: keep it in the same folder, under the exporter's name",
        )


class ModelFormatMismatch(ModelSourceError):
    """`model_format` contradicts what is there."""

    reference = "model-format-mismatch"


class UnusableModel(ModelSourceError):
    """A file of a model is empty, unreadable, or not what its name says."""

    reference = "unusable-model"

    def __init__(self, model: str, path: Path | str, reason: str, *, hint: str = "") -> None:
        self.path = path
        self.reason = reason
        super().__init__(model, f"{path}: {reason}", hint=hint)


class UnusableZip(ModelSourceError):
    """A zip is damaged, encrypted, or would write more or elsewhere than an archive of a model may."""

    reference = "unusable-zip"

    def __init__(self, model: str, path: Path | str, reason: str, *, hint: str = "") -> None:
        self.path = path
        self.reason = reason
        super().__init__(model, f"{path}: {reason}", hint=hint)


class InvalidLocation(ModelSourceError):
    """A URL that leads nowhere: no bucket, no host, or a name that none can have."""

    reference = "invalid-model-location"

    def __init__(self, model: str, reason: str, *, hint: str) -> None:
        self.reason = reason
        super().__init__(model, f"{model} {reason}", hint=hint)


class OriginDenied(ModelSourceError):
    """An object store refuses access. `source` says in words which credentials were used."""

    reference = "model-access-denied"

    def __init__(self, model: str, shown: str, reason: str, *, source: str, hint: str) -> None:
        self.source = source
        self.reason = reason
        with_what = "asked without credentials, as none were found" if source == "none" else f"credentials: {source}"
        super().__init__(model, f"{shown}: access denied ({reason}; {with_what})", hint=hint)


class BucketNotFound(ModelSourceError):
    """There is no such bucket or container."""

    reference = "bucket-not-found"

    def __init__(self, model: str, bucket: str, endpoint: str, *, hint: str) -> None:
        self.bucket = bucket
        super().__init__(model, f'there is no bucket "{bucket}" at {endpoint}', hint=hint)


class OriginUnreachable(ModelSourceError):
    """What a model is to be fetched from does not answer, or breaks off again and again."""

    reference = "model-unreachable"

    def __init__(self, model: str, shown: str, reason: str, *, hint: str = "") -> None:
        self.reason = reason
        hint = hint or "check the address and the network, then deploy again; nothing was changed"
        super().__init__(model, f"{shown} cannot be fetched: {reason}", hint=hint)


class OriginChanged(ModelSourceError):
    """An object was overwritten while it was fetched, so that what was read fits nothing."""

    reference = "model-changed"
    hint = "wait until whatever writes it is done, then deploy again"

    def __init__(self, model: str, shown: str, before: str, after: str) -> None:
        self.before = before
        self.after = after
        super().__init__(
            model, f"{shown} changed while it was fetched: it was {before}, it is {after}", hint=type(self).hint
        )


class NoRoomForModel(ModelSourceError):
    """The disk of the artifact store has less room than the model needs."""

    reference = "disk-full"

    def __init__(self, model: str, shown: str, needed_bytes: int, free_bytes: int, folder: Path) -> None:
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        super().__init__(
            model,
            f"{shown} has {in_words(needed_bytes)} to fetch, and {folder} has room for {in_words(free_bytes)}",
            hint="free space there, or set CORTEX_HOME to a folder on a larger disk",
        )


class IgnoreFileInvalid(CortexError):
    """`.cortexignore` cannot be read or understood; names the line."""

    reference = "invalid-ignore-file"

    def __init__(self, path: Path, line: int | None, reason: str) -> None:
        self.path = path
        self.line = line
        self.reason = reason
        super().__init__(f"{path}{f':{line}' if line else ''}: {reason}")


class ProjectTooLarge(CortexError):
    """What would be shipped of a project is more than the limit; `largest` are (path, bytes), largest first."""

    reference = "project-too-large"
    hint = "add what handlers do not need to .cortexignore, one pattern a line, beside cortex.yaml"

    def __init__(self, total_bytes: int, limit_bytes: int, largest: Sequence[tuple[str, int]]) -> None:
        self.total_bytes = total_bytes
        self.limit_bytes = limit_bytes
        self.largest = tuple(largest)
        shipped = in_words(limit_bytes)
        lines = [f"the project has {in_words(total_bytes)}, at most {shipped} are shipped. Largest files:"]
        lines += [f"  {in_words(size):>9}  {path}" for path, size in self.largest]
        super().__init__("\n".join(lines))


class ProjectTooManyFiles(CortexError):
    """A project has more files and folders than are looked at; `largest` are (folder, entries), largest first."""

    reference = "project-too-many-files"
    hint = "add folders that handlers do not need to .cortexignore, one pattern a line, beside cortex.yaml"

    def __init__(self, limit: int, largest: Sequence[tuple[str, int]]) -> None:
        self.limit = limit
        self.largest = tuple(largest)
        lines = [f"the project has more than {limit} files and folders. Fullest folders:"]
        lines += [f"  {count:>9}  {path}" for path, count in self.largest]
        super().__init__("\n".join(lines))


def in_words(size_bytes: int) -> str:
    """A size as people read it: `512 bytes`, `1.5 MiB`."""
    if size_bytes < 1024:
        return f"{size_bytes} bytes"
    units = ("KiB", "MiB", "GiB", "TiB")
    power = min(len(units), (size_bytes.bit_length() - 1) // 10)
    size = size_bytes / 1024**power
    return f"{size:.0f} {units[power - 1]}" if size >= 100 or size == int(size) else f"{size:.1f} {units[power - 1]}"
