"""
A folder with a cortex.yaml → a deploy request, and the files to upload with it.

Nothing of a user's code or model is run here: files are found, hashed and read. All problems of all apis are told at
once, each with its place in the file.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import posixpath
import re
import shlex
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cortex.client.addressing import FILE_NAME, find_file
from cortex.client.errors import FolderGone, OperatorFailed
from cortex.client.operator import OperatorClient
from cortex.client.prediction import content_type_of
from cortex.errors import CortexError, Problem, Problems
from cortex.wire.indexes import index_variables
from cortex.wire.operator import ApiUpload, CloudVariables, DeployRequest, ModelUpload, SampleUpload, StoredFile

if TYPE_CHECKING:
    from cortex.artifacts.hashing import HashCache
    from cortex.spec.loading import Loaded
    from cortex.spec.models import ApiSpec

SAMPLE_FILE = "sample.json"
HASHES_FILE = "hashes.json"
"""In the home: digests of files that were hashed before."""


class NoCortexYaml(CortexError):
    """There is no cortex.yaml where one was looked for. `folder` is where the search began."""

    reference = "no-cortex-yaml"

    def __init__(self, folder: Path, *, given: str | None) -> None:
        self.folder = folder
        misspelt = next((name for name in ("cortex.yml", "Cortex.yaml") if (folder / name).is_file()), None)
        if misspelt is not None:
            self.hint = f"rename {misspelt} to {FILE_NAME}"
        elif models := models_in(folder):
            there = models[0] if len(models) == 1 else "MODEL"
            where_to = "" if given is None else f" {shlex.quote(given)}"
            name = there if there == "MODEL" else shlex.quote(os.path.join(given or "", there))
            self.hint = f"`cortex init {name}{where_to}` writes one for the model that lies there"
        elif given is None:
            self.hint = "go to its folder, or name it: cortex deploy PATH; `cortex init MODEL` writes one for a model"
        where = f"in {folder} or above it" if given is None else f"in {folder}"
        super().__init__(f"there is no {FILE_NAME} {where}")


def models_in(folder: Path) -> tuple[str, ...]:
    """Names of models in a folder: .onnx files, SavedModels, folders of their versions; `.` if it is one itself."""
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return ()
    if _is_saved_model(folder):
        return (".",)
    return tuple(name for name in names if name.lower().endswith(".onnx") or _is_saved_model(folder / name))


def _is_saved_model(folder: Path) -> bool:
    """Whether a folder is a SavedModel, or holds versions of one: `bert/1568244606/saved_model.pb`."""
    if (folder / "saved_model.pb").is_file():
        return True
    return folder.is_dir() and any(
        version.name.isdecimal() and (version / "saved_model.pb").is_file() for version in folder.iterdir()
    )


def _files_beside(folder: Path, name: str) -> list[str]:
    """Paths of what lies where a file of that path would, relative to the folder."""
    place = os.path.dirname(name)
    try:
        return [os.path.join(place, entry.name) for entry in sorted((folder / place).iterdir()) if entry.is_file()]
    except OSError:
        return []


class NoSuchPath(CortexError):
    """The path given to deploy does not exist, or is neither a folder nor a yaml file."""

    reference = "no-such-path"

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.hint = "PATH is a folder with a cortex.yaml, or a yaml file"
        super().__init__(f"{path} {reason}")


class ApiNotInFile(CortexError):
    """The api that was named is not in the cortex.yaml that is deployed. `candidates` are those that are."""

    reference = "api-not-in-file"

    def __init__(self, name: str, file: str, candidates: tuple[str, ...]) -> None:
        self.name = name
        self.candidates = candidates
        there = f"{file} has {', '.join(candidates) or 'no apis'}"
        self.hint = f"{there}; with --path PATH another cortex.yaml is taken"
        super().__init__(f'there is no api "{name}" in {file}')


class FileUnreadable(CortexError):
    """A file that was found cannot be read."""

    reference = "unreadable-file"

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        super().__init__(f"{path} cannot be read: {reason}")


@dataclass(frozen=True)
class Package:
    """All that a deploy needs. Valid inside the `with` that made it: unpacked models go afterwards."""

    loaded: Loaded
    request: DeployRequest
    sources: Mapping[str, Path] = field(repr=False)
    """A file with the bytes, for each SHA-256 that the request names."""
    warnings: tuple[Problem, ...] = ()
    own_modules: Mapping[str, str] = field(default_factory=dict)
    """Paths of the project's modules that requirements.txt asks an index for, by the name of the package."""

    def told(self, problem: Problem) -> Problem:
        """A problem that the control plane found, with its place in the file and with what only this machine knows."""
        if problem.reference == "handler-missing-module":
            problem = self._missing_module(problem)
        elif problem.reference.startswith("packages-"):
            asked = (name for name in self.own_modules if _names(problem.message, name))
            if name := next(asked, None):
                problem = msgspec.structs.replace(problem, hint=_own_module_asked_for(name, self.own_modules[name])[1])
        elif missing := _MISSING_FILE.search(problem.message):
            hint = _left_out_hint(Path(self.request.source), missing[1])
            problem = msgspec.structs.replace(problem, hint=hint) if hint else problem
        return self.loaded.place(problem) if problem.path and not problem.where else problem

    def _missing_module(self, problem: Problem) -> Problem:
        """A module that lies here is no package to be asked for elsewhere, where anybody may own its name."""
        module = _MISSING_MODULE.search(problem.message)
        number = problem.path[1] if problem.path[:1] == ("apis",) and len(problem.path) > 1 else None
        apis = self.loaded.spec.apis
        handler = apis[number].request_handler if isinstance(number, int) and number < len(apis) else None
        hint = own_module_hint(Path(self.request.source), module[1], handler) if module else ""
        return msgspec.structs.replace(problem, hint=hint) if hint else problem


def _names(text: str, package: str) -> bool:
    """Whether a text has a package's name, normalised or not."""
    return re.search(rf"(?<![\w.-]){package.replace('-', '[-_.]')}(?![\w-])", text, re.IGNORECASE) is not None


def _own_module_asked_for(name: str, path: str) -> tuple[str, str]:
    """Message and hint for a package of an index that has the name of a module of the project."""
    return (
        f"{name} is installed from the package index, where anybody may own that name, and {path} is yours",
        "delete the line: modules of the project are imported as they are; "
        f"if that of the index is meant, rename {path}",
    )


_MISSING_MODULE = re.compile(r"No module named '([^']+)'")
_MISSING_FILE = re.compile(r"FileNotFoundError: .*'([^']+)'")


def _left_out_hint(folder: Path, path: str) -> str:
    """What to do about a file that is in the project's folder and not in the project; empty if that is not it."""
    from cortex.artifacts.project import why_left_out

    normal = posixpath.normpath(path)
    if normal.startswith(("/", "..")) or not (folder / normal).exists():
        return ""
    reason = why_left_out(folder, normal)
    return f"{normal} is here, and not shipped: {reason}" if reason else ""


def own_module_hint(folder: Path, module: str, handler: str | None) -> str:
    """
    What to do about a module that a handler does not find, if it lies in the project, beside it or above it.

    Args:
        folder: of cortex.yaml.
        handler: its path in there.
    """
    parts = module.split(".")
    for depth in range(len(parts), 0, -1):
        for form in ("/".join(parts[:depth]) + ".py", "/".join(parts[:depth])):
            if hint := _left_out_hint(folder, form):
                return hint
    top = parts[0]
    inside = [posixpath.dirname(handler)] if handler and posixpath.dirname(handler) else []
    for searched in (folder, *(folder / place for place in inside if len(parts) > 1)):
        if (searched / f"{top}.py").exists() or (searched / top).is_dir():
            return _not_in_it(searched, parts)
    alike = [one for one in _modules_in(folder) if one.lower() == top.lower()]
    if alike:
        return f"{alike[0]} is yours: import it as it is written, {'.'.join([alike[0], *parts[1:]])}"
    for place in (*inside, "src", "lib"):
        for form in (f"{top}.py", top):
            if (folder / place / form).exists():
                return (
                    f"{place}/{form} is yours, and only the folder of cortex.yaml is searched: "
                    f"move it there, or import it as {place.replace('/', '.')}.{top}"
                )
    for above in folder.parents[:2]:
        for form in (f"{top}.py", top):
            if (above / form).exists() and above != Path("/"):
                return f"{above / form} is outside the project: move it into the folder of cortex.yaml, {folder}"
    return ""


def _not_in_it(folder: Path, parts: list[str]) -> str:
    """The hint for a module that a package of the project lacks."""
    if len(parts) == 1 and folder.joinpath(*parts).is_dir():
        return f"{parts[0]} is here, and nothing of what is in it is shipped"
    depth = 1
    while depth < len(parts) and folder.joinpath(*parts[:depth]).is_dir():
        depth += 1
    within = folder.joinpath(*parts[: depth - 1])
    name = parts[depth - 1]
    if not within.is_dir() or depth == 1:
        return f"{parts[0]}.py is yours, and no package with modules in it"
    close = difflib.get_close_matches(name, _modules_in(within), n=1)
    meant = f": did you mean {'.'.join([*parts[: depth - 1], close[0]])}?" if close else ""
    return f"{parts[0]} is yours, and {'/'.join(parts[: depth - 1])} has no {name}{meant}"


def _modules_in(folder: Path) -> list[str]:
    """Names that can be imported from a folder."""
    files = sorted(folder.iterdir())
    return [file.stem for file in files if file.suffix == ".py" or (file.is_dir() and file.name.isidentifier())]


def locate(path: str | None, cwd: Path) -> Path:
    """
    The yaml file that is meant.

    Args:
        path: a folder or a yaml file; None means the nearest cortex.yaml at or above `cwd`.

    Raises:
        NoCortexYaml, NoSuchPath.
    """
    if not cwd.is_dir() and not os.path.isabs(os.path.expanduser(path or "")):
        raise FolderGone(cwd)
    if path is None:
        found = find_file(cwd)
        if found is None:
            raise NoCortexYaml(cwd, given=None)
        return found
    place = cwd / os.path.expanduser(path)  # Path would take `./~name` for a user's folder too
    if place.is_dir():
        if (place / FILE_NAME).is_file():
            return place / FILE_NAME
        raise NoCortexYaml(place, given=path)
    if not place.exists():
        raise NoSuchPath(place, "does not exist")
    if place.suffix.lower() not in (".yaml", ".yml"):
        raise NoSuchPath(place, "is not a yaml file")
    return place


def load(file: Path, *, shown_file: str) -> Loaded:
    """Read and check a yaml file. Raises Problems with all that is wrong with it, FileUnreadable."""
    from cortex.spec import loading

    try:
        text = file.read_bytes()
    except OSError as error:
        raise FileUnreadable(file, error.strerror or str(error)) from error
    return loading.load(text, file=shown_file)


@contextmanager
def prepare(
    file: Path,
    *,
    shown_file: str,
    home: Path,
    now_wall_s: float,
    dry_run: bool = False,
    force: bool = False,
    prune: bool = False,
    prove: bool = False,
    prove_unrepeatable: bool = False,
    refresh: bool = False,
    refresh_only: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Package]:
    """
    Check a cortex.yaml, find and hash what it names.

    Args:
        shown_file: the file's name in messages.
        prove: as in `DeployRequest`, as are those around it.
        refresh_only: `NAME` or `DEPLOYMENT/NAME` of the api that `refresh` is about; None means all.
        home: keeps digests between deploys, if it exists.
        environ: the shell's variables. What they say about where packages come from is handed over, and if a model has
            to be fetched or there is a handler, those that lead to clouds. None hands over none.

    Raises:
        Problems: everything that is wrong, with places.
        ApiNotInFile: `refresh_only` is none of its apis.
    """
    from cortex.artifacts.hashing import HashCache

    loaded = load(file, shown_file=shown_file)
    only = "" if refresh_only is None else _named(refresh_only, loaded, shown_file)
    cache = HashCache(home / HASHES_FILE if _is_our_folder(home) else None, now_wall_s=now_wall_s)
    scratch = Path(tempfile.mkdtemp(prefix="cortex-deploy-"))
    try:
        gathering = _Gathering(loaded, file, cache, scratch)
        uploads, project = gathering.everything()
        if gathering.problems:
            raise Problems(sorted(gathering.problems, key=lambda problem: loaded.locate(problem.path)))
        cache.save()
        yield Package(
            loaded=loaded,
            request=DeployRequest(
                deployment=loaded.spec.deployment,
                source=str(file.parent.resolve()),
                apis=uploads,
                project=project,
                dry_run=dry_run,
                force=force,
                prune=prune,
                prove=prove,
                prove_unrepeatable=prove_unrepeatable,
                refresh=refresh,
                refresh_only=only,
                cloud=_cloud(loaded, environ, _working_folder(file)),
                indexes=None if environ is None else index_variables(environ, _working_folder(file)),
            ),
            sources=gathering.sources,
            warnings=(*loaded.notes, *gathering.warnings),
            own_modules=gathering.own_modules,
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _named(name: str, loaded: Loaded, shown_file: str) -> str:
    deployment, slash, api = name.rpartition("/")
    if (slash and deployment != loaded.spec.deployment) or api not in {known.name for known in loaded.spec.apis}:
        raise ApiNotInFile(name, shown_file, tuple(f"{loaded.spec.deployment}/{a.name}" for a in loaded.spec.apis))
    return api


def _working_folder(file: Path) -> Path:
    """Where relative paths in variables begin; the folder of the yaml file if the own one is gone."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return file.parent


def _cloud(loaded: Loaded, environ: Mapping[str, str] | None, cwd: Path) -> CloudVariables | None:
    """What nobody needs is not handed over."""
    from cortex.artifacts.fetching import cloud_variables
    from cortex.spec.locations import is_remote

    if environ is None or not any(is_remote(api.model) or api.request_handler for api in loaded.spec.apis):
        return None
    return CloudVariables(variables=cloud_variables(environ, str(cwd)))


def upload(operator: OperatorClient, package: Package, on_bytes: Callable[[int, int], None] | None = None) -> None:
    """
    Upload what the control plane lacks.

    Args:
        on_bytes: told (bytes done, bytes in all), first with 0 done.

    Raises:
        OperatorFailed: a file changed since it was hashed, or there is no room for it.
        FileUnreadable: a file is gone.
    """
    missing = operator.missing_blobs(sorted(package.sources))
    sizes = {digest: _size(package.sources[digest]) for digest in missing}
    total, done = sum(sizes.values()), 0
    if on_bytes is not None and missing:
        on_bytes(0, total)

    def told(count: int) -> None:
        nonlocal done
        done += count
        if on_bytes is not None:
            on_bytes(done, total)

    for digest, size_bytes in sizes.items():
        source = package.sources[digest]
        try:
            with source.open("rb") as stream:
                operator.upload_blob(digest, stream, size_bytes, told)
        except OperatorFailed as error:
            if error.failure.error != "digest-mismatch":
                raise
            raise FileUnreadable(source, "it changed while it was uploaded; deploy again") from error
        except OSError as error:
            raise FileUnreadable(source, error.strerror or str(error)) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise FileUnreadable(path, error.strerror or str(error)) from error


class _Gathering:
    """One pass over the apis of a file, collecting files and problems."""

    def __init__(self, loaded: Loaded, file: Path, cache: HashCache, scratch: Path) -> None:
        self._loaded = loaded
        self._file = file
        self._folder = file.parent
        self._cache = cache
        self._scratch = scratch
        self._models: dict[tuple[str, str | None], ModelUpload] = {}
        self._left_out: set[Path] = set()
        """Models and samples: they are no part of the project, and a changed sample makes no new version."""
        self.sources: dict[str, Path] = {}
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self.own_modules: dict[str, str] = {}

    def everything(self) -> tuple[tuple[ApiUpload, ...], tuple[StoredFile, ...]]:
        apis = self._loaded.spec.apis
        uploads = tuple(self._api(number, api) for number, api in enumerate(apis))
        handlers = {number: api.request_handler for number, api in enumerate(apis) if api.request_handler}
        project = self._project(handlers) if handlers else ()
        return uploads, project

    def _api(self, number: int, api: ApiSpec) -> ApiUpload:
        return ApiUpload(
            spec=api.model_dump(mode="json", exclude_unset=True),
            model=self._model(number, api),
            sample=self._sample(number, api),
        )

    def _model(self, number: int, api: ApiSpec) -> ModelUpload | None:
        """The files of a local model; None for one that the control plane fetches, and for one with a problem."""
        from cortex.artifacts.models import as_upload, resolve
        from cortex.spec.locations import is_remote

        if is_remote(api.model):
            return None
        key = (api.model, api.model_format)
        if key in self._models:
            return self._models[key]
        try:
            resolved = resolve(
                api.model,
                folder=self._folder,
                scratch=self._scratch / f"model-{number}",
                model_format=api.model_format,
            )
            found = as_upload(resolved, self._cache)
        except CortexError as error:
            self._add(error.problem(), number, "model")
            return None
        except FileNotFoundError as error:
            self._add(Problem(reference="file-changed", message=f"{error.filename} went away"), number, "model")
            return None
        paths = dict(resolved.files)
        self._models[key] = found
        self._left_out |= {self._folder / api.model.removeprefix("file://"), *paths.values()}
        self.sources.update({file.sha256: paths[file.path] for file in found.files})
        return found

    def _sample(self, number: int, api: ApiSpec) -> SampleUpload | None:
        from cortex.spec.locations import sample_path
        from cortex.spec.problems import nearest

        if api.sample is None:
            file = self._folder / SAMPLE_FILE
            if not file.is_file():
                return None
            self._left_out.add(file)
            return self._sample_of(_read(file), file, content_type_of(SAMPLE_FILE), gate=False)
        name = sample_path(api.sample)
        if name is None:
            body, file = msgspec.json.encode(api.sample), self._scratch / f"sample-{number}"
            file.write_bytes(body)
            return self._sample_of(body, file, "application/json", gate=True)
        self._left_out.add(self._folder / name)
        try:
            body = _read(self._folder / name)
            if content_type_of(name) == "application/json":
                msgspec.json.decode(body)
        except FileUnreadable as error:
            meant = nearest(name, _files_beside(self._folder, name))
            hint = f'did you mean "{meant}"?' if meant else "the path is relative to the folder of cortex.yaml"
            self._add(Problem(reference="sample-not-found", message=str(error), hint=hint), number, "sample")
            return None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            message = f"{name} is not JSON: {error}"
            self._add(Problem(reference="bad-sample", message=message), number, "sample")
            return None
        return self._sample_of(body, self._folder / name, content_type_of(name), gate=True)

    def _sample_of(self, body: bytes, file: Path, content_type: str, *, gate: bool) -> SampleUpload:
        sha256 = hashlib.sha256(body).hexdigest()
        self.sources[sha256] = file
        return SampleUpload(sha256=sha256, content_type=content_type, gate=gate)

    def _project(self, handlers: Mapping[int, str]) -> tuple[StoredFile, ...]:
        from cortex.artifacts.project import collect_project

        leave_out = [self._file, *_own_output(), *sorted(self._left_out)]
        try:
            project = collect_project(self._folder, leave_out=leave_out, cache=self._cache)
        except CortexError as error:
            self.problems += error.all_problems()
            return ()
        self.warnings += project.warnings
        self.sources.update({file.sha256: self._folder / file.path for file in project.files})
        shipped = {file.path for file in project.files}
        self._check_requirements(shipped, {posixpath.normpath(handler) for handler in handlers.values()})
        for number, handler in handlers.items():
            if posixpath.normpath(handler) not in shipped:
                self._add(self._missing_handler(handler, sorted(shipped), leave_out), number, "request_handler")
        return project.stored

    def _check_requirements(self, shipped: Collection[str], handlers: Collection[str]) -> None:
        """What is wrong with requirements.txt is told together with the rest; the control plane resolves it."""
        from cortex.packages.requirements import modules_of_ones_own, read_requirements

        try:
            requirements = read_requirements(
                lambda path: (self._folder / path).read_bytes() if path in shipped else None,
                folder=posixpath.dirname(self._loaded.file),
            )
        except Problems as error:
            self.problems += error.problems
        except OSError as error:
            raise FileUnreadable(Path(error.filename), error.strerror or str(error)) from error
        else:
            # A handler is imported under a name of its own, whatever its file is called.
            own = modules_of_ones_own(requirements, set(shipped) - set(handlers)) if requirements is not None else {}
            for line, path in own.items():
                message, hint = _own_module_asked_for(line.name, path)
                self.own_modules[line.name] = path
                warning = Problem(reference="requirements-own-module", message=message, where=line.where, hint=hint)
                self.warnings.append(warning)

    def _missing_handler(self, handler: str, shipped: Sequence[str], leave_out: Sequence[Path]) -> Problem:
        from cortex.artifacts.project import why_left_out
        from cortex.spec.problems import nearest

        reason = why_left_out(self._folder, posixpath.normpath(handler), leave_out=leave_out)
        if reason is not None and (self._folder / handler).exists():
            return Problem(reference="handler-left-out", message=f"{handler} is not shipped: {reason}")
        meant = nearest(handler, [path for path in shipped if path.endswith(".py")])
        return Problem(
            reference="handler-not-found",
            message=f"there is no file {os.path.normpath(self._folder / handler)}",
            hint=f'did you mean "{meant}"?' if meant else "the path is relative to the folder of cortex.yaml",
        )

    def _add(self, problem: Problem, number: int, name: str) -> None:
        api = self._loaded.spec.apis[number]
        placed = msgspec.structs.replace(
            problem, subject=f'api "{api.name}": {name}', path=("apis", number, name), where=""
        )
        self.problems.append(self._loaded.place(placed))


def _is_our_folder(home: Path) -> bool:
    """Nothing is written to a home that a start would refuse."""
    return home.is_dir() and home.stat().st_uid == os.getuid()


def _own_output() -> Iterator[Path]:
    """Yield the files that this command itself writes to: in a project they would change while they are shipped."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                yield Path(os.readlink(f"/proc/self/fd/{descriptor}"))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise FileUnreadable(file, (error.strerror or str(error)).lower()) from error
