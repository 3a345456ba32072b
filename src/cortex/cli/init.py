"""`cortex init`: look at a model and write what it takes to deploy it."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from cortex.cli import text
from cortex.cli.boundary import DONE
from cortex.cli.command import Command, on_interrupt
from cortex.cli.live import display
from cortex.cli.parameters import flag
from cortex.cli.problems import show_problems
from cortex.cli.starter import HANDLER_FILE, IGNORE_FILE, SAMPLE_FILE, YAML_FILE, Starter, described, ignore_text
from cortex.cli.terminal import Terminal, harmless
from cortex.client.errors import FolderGone
from cortex.client.project import models_in
from cortex.errors import CortexError, Problem, Problems
from cortex.ids import DEFAULT_DEPLOYMENT, ReplicaId, Revision, Version, api_key
from cortex.settings import Settings
from cortex.wire.launch import Inspect, InspectReport, ReplicaSpec

if TYPE_CHECKING:
    import subprocess

    from cortex.artifacts.models import ResolvedModel
    from cortex.wire.build import ModelFormat

INSPECTOR_COMMAND = (sys.executable, "-P", "-m", "cortex.replica.inspector")
"""`-P`: nothing in the user's folder is ours to import."""
INSPECTOR_GRACE_S = 60.0
"""On top of the time that the inspection itself may take: for imports on a crowded machine."""
END_GRACE_S = 5.0
OUTPUT_CHARS = 4000
NOTHING_WRITTEN = "nothing was written"
USUAL_NAME = "model"

_WRITTEN = {
    YAML_FILE: "what is deployed",
    HANDLER_FILE: "what is done before and after the model: nothing yet",
    SAMPLE_FILE: "a request that the model takes",
    IGNORE_FILE: "what handlers do not need: everything else in this folder",
}


class FilesExist(CortexError):
    """There are files where ours would go."""

    reference = "file-exists"

    def __init__(self, shown: list[str]) -> None:
        self.shown = shown
        self.hint = "name another folder: cortex init MODEL DIR; or replace them: --force"
        super().__init__(f"{text.listed(shown)} {'is' if len(shown) == 1 else 'are'} there already")


class UnknownScheme(CortexError):
    """A model on a kind of place that Cortex does not know."""

    reference = "unknown-scheme"

    def __init__(self, shown: str) -> None:
        from cortex.spec.locations import SCHEMES

        self.shown = shown
        schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        self.hint = f"MODEL is a path on this machine, or begins with one of {schemes}"
        super().__init__(f"models on {shown.partition('://')[0]}:// cannot be fetched")


class CannotWrite(CortexError):
    """The folder cannot be made, or a file in it cannot be written."""

    reference = "cannot-write"

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        super().__init__(f"{path} cannot be written: {reason}")


class InspectorFailed(CortexError):
    """The process that looks at the model ended without a report, or not at all. `output` is what it wrote last."""

    reference = "inspection-died"

    def __init__(self, reason: str, output: str) -> None:
        self.output = output
        super().__init__(f"the model could not be looked at: {reason}")

    def problem(self) -> Problem:
        return Problem(reference=self.reference, message=str(self), traceback=self.output)


class NoModelNamed(CortexError):
    """No model is named, and not exactly one lies in the folder. `found` are those that do."""

    reference = "no-model-named"

    def __init__(self, found: tuple[str, ...]) -> None:
        self.found = found
        self.hint = f"say which: cortex init {found[0]}" if found else "name it: cortex init MODEL"
        several = f"{text.listed(found)} lie in this folder"
        super().__init__(several if found else "no model lies in this folder: no .onnx file and no SavedModel")


def init(
    terminal: Terminal,
    settings: Settings,
    *,
    model: str | None,
    folder: str | None,
    model_format: str | None,
    signature: str | None,
    force: bool,
) -> int:
    if not terminal.cwd.is_dir():
        raise FolderGone(terminal.cwd)
    place = terminal.cwd / os.path.expanduser(folder or "")
    with on_interrupt(NOTHING_WRITTEN):
        if not force:
            _refuse_to_replace(terminal, place)
        if model is None:
            found = models_in(terminal.cwd)
            if len(found) != 1:
                raise NoModelNamed(found)
            model = found[0]
        with tempfile.TemporaryDirectory(prefix="cortex-init-") as scratch:
            try:
                looked = _look_at(
                    terminal,
                    settings,
                    model,
                    place,
                    model_format=model_format,
                    signature_key=signature,
                    scratch=Path(scratch),
                )
            except CortexError as error:
                raise Problems(map(_by_flags, error.all_problems())) from error
    files = looked.starter.files()
    _check(terminal, place, files)
    unshippable = _why_unshippable(place, looked.model_files)
    if unshippable and not os.path.lexists(place / IGNORE_FILE):
        files[IGNORE_FILE] = ignore_text(unshippable[0].message)
        unshippable = ()
    _write(place, files, replace=force)
    _tell(terminal, place, looked, files, warnings=(*looked.report.warnings, *unshippable))
    return DONE


_FLAGS: tuple[tuple[str, str], ...] = (
    (r"say `model_format: (\w+)`, or leave it out", r"say --model-format \1, or leave it out"),
    (r"say `model_format: (\w+)`", r"say --model-format \1"),
    (r"leave model_format out", "leave --model-format out"),
    (r"model_format is (\w+)", r"--model-format is \1"),
    (r"say `model: ([^`]+)`", r"say `cortex init \1`"),
    (r"e\.g\. `model: ([^`]+)`", r"e.g. `cortex init \1`"),
    (r"and name the folder in `model:`", "and name the folder"),
    (r"\btf_signature_key: (\S+)", r"--signature \1"),
    (r"\btf_signature_key\b", "--signature"),
    (r"add one to the api in cortex\.yaml, e\.g\.", "name one, e.g."),
)
"""What errors of models say of cortex.yaml, as flags of this command."""


def _by_flags(problem: Problem) -> Problem:
    """A problem of a model in words of the command line: there is no cortex.yaml yet that could be changed."""

    return msgspec.structs.replace(problem, message=_in_flags(problem.message), hint=_in_flags(problem.hint))


def _in_flags(words: str) -> str:
    for pattern, flag_ in _FLAGS:
        words = re.sub(pattern, flag_, words)
    return words


class _Looked(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a model once it has been looked at."""

    starter: Starter
    report: InspectReport
    note: str
    """What was chosen among several files; empty when there was nothing to choose."""
    model_files: tuple[Path, ...]
    """The model and its weights, where they lie."""


def _look_at(
    terminal: Terminal,
    settings: Settings,
    model: str,
    place: Path,
    *,
    model_format: str | None,
    signature_key: str | None,
    scratch: Path,
) -> _Looked:
    """
    Find the model and have it inspected.

    Raises:
        CortexError: as `artifacts.models.resolve`.
        Problems: what is wrong with the model, as a deploy would say it.
    """
    from cortex.artifacts.errors import ModelNotFound
    from cortex.artifacts.models import resolve
    from cortex.spec.locations import SCHEME, is_remote

    named = model if SCHEME.match(model) else os.path.expanduser(model)
    given = _known_format(model_format)
    if is_remote(named):
        resolved = _fetch(terminal, named, given, scratch / "fetched")
    else:
        try:
            resolved = resolve(named, folder=terminal.cwd, scratch=scratch / "unpacked", model_format=given)
        except ModelNotFound as error:
            if not error.suggestion:
                error.hint = "MODEL is a path on this machine, relative to where you are"
            raise
    location = _Location.of(named, resolved, terminal.cwd, place)
    report = inspect_model(
        terminal,
        settings,
        resolved.format,
        _loadable(resolved, scratch / "model"),
        api=api_key(location.deployment, location.api),
        signature_key=signature_key,
    )
    if report.problems or report.signature is None:
        raise Problems(report.problems)
    starter = Starter(
        deployment=location.deployment,
        api=location.api,
        model=location.model,
        shown_model=location.shown,
        model_format=given,
        signature=report.signature,
        signature_key=report.signature.key if len(report.signature_keys) > 1 else None,
        sample=report.made_up,
    )
    own = terminal.cwd / named.removeprefix("file://")
    return _Looked(
        starter=starter,
        report=report,
        note=resolved.note,
        model_files=(own, *(source for _, source in resolved.files)),
    )


def _fetch(terminal: Terminal, model: str, model_format: ModelFormat | None, folder: Path) -> ResolvedModel:
    """
    Bring a remote model here, only to look at it: a deploy fetches it where it is served.

    Raises:
        GiveUp: it cannot be had; says why.
    """
    import threading

    from cortex.artifacts.fetching import cloud_variables, fetch_in_process
    from cortex.artifacts.models import ResolvedModel
    from cortex.artifacts.store import ArtifactStore
    from cortex.artifacts.trees import tree_digest
    from cortex.spec.locations import is_known_scheme, masked_model
    from cortex.wire.fetch import FetchRequest

    if not is_known_scheme(model):
        raise UnknownScheme(masked_model(model))
    with display(terminal) as shown:
        shown.step(f"looking at {masked_model(model)}")
        fetched = fetch_in_process(
            FetchRequest(model=model, store=str(folder), model_format=model_format),
            cloud=cloud_variables(terminal.environ, str(terminal.cwd)),
            environ=terminal.environ,
            tell=lambda told: shown.step(
                f"fetching {masked_model(model)}", told.done_bytes, told.total_bytes, in_bytes=True
            ),
            stop=threading.Event(),
        )
    tree = ArtifactStore(folder).tree_path(tree_digest(fetched.model.files))
    return ResolvedModel(
        format=fetched.model.format,
        entry=fetched.model.entry,
        files=tuple((file.path, tree / file.path) for file in fetched.model.files),
        note=fetched.model.note,
    )


class _Location(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model is as seen from the project, and the names that follow from it."""

    model: str
    """As cortex.yaml has it."""
    shown: str
    deployment: str
    api: str

    @classmethod
    def of(cls, named: str, resolved: ResolvedModel, cwd: Path, place: Path) -> _Location:
        """
        The location of a model for a project in `place`.

        A model is never copied: it may be large, and an export that goes to the same path again is noticed by the next
        deploy. It is named relative to the project wherever both lie below some folder other than `/`, so that the two
        can be moved or checked out together.
        """
        from cortex.spec.locations import SCHEME
        from cortex.spec.rules import suggest_name

        if SCHEME.match(named):
            model, path = named, Path(named.partition("?")[0].rstrip("/"))
        else:
            path = _own_file(cwd / named, resolved)
            model = _relative(path, place)
        stem = path.name if path.suffix.lower() not in (".onnx", ".zip") else path.stem
        if stem.isdigit():  # a version below the model's own folder
            stem = path.parent.name
        api = suggest_name(stem) or USUAL_NAME
        deployment = suggest_name(place.resolve().name) or api
        if deployment == DEFAULT_DEPLOYMENT:  # it belongs to one folder only
            deployment = api if api != DEFAULT_DEPLOYMENT else USUAL_NAME
        return cls(model=model, shown=path.name, deployment=deployment, api=api)


def _own_file(path: Path, resolved: ResolvedModel) -> Path:
    """The model's file inside a folder that holds nothing else to serve; else the path itself."""
    if resolved.format == "onnx" and path.is_dir():
        path = dict(resolved.files)[resolved.entry]
    whole = Path(os.path.abspath(path)) if path.name in ("", "..") else path
    return whole.parent.resolve() / whole.name


def _relative(path: Path, place: Path) -> str:
    folder = place.resolve()
    if os.path.commonpath([path, folder]) == "/":
        return str(path)
    relative = os.path.relpath(path, folder)
    return relative if relative[:1] not in "~ " and ":" not in relative.partition("/")[0] else f"./{relative}"


def _known_format(model_format: str | None) -> ModelFormat | None:
    return "onnx" if model_format == "onnx" else "tensorflow" if model_format == "tensorflow" else None


def _loadable(resolved: ResolvedModel, folder: Path) -> Path:
    """
    A path to load the model from, laid out as the artifact store would.

    Files that lie as they should are used where they are. Others, such as links into a cache of downloads, are copied
    to `folder`: onnxruntime follows no link that leaves the model's folder.
    """
    import shutil

    sources = dict(resolved.files)
    first, source = next(iter(sources.items())) if resolved.entry == "." else (resolved.entry, sources[resolved.entry])
    top = source.parents[first.count("/")]
    if all(path.resolve() == top.resolve() / inner for inner, path in sources.items()):
        return top / resolved.entry
    for inner, path in sources.items():
        target = folder / inner
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return folder / resolved.entry


def inspect_model(
    terminal: Terminal,
    settings: Settings,
    model_format: ModelFormat,
    model_path: Path,
    *,
    api: str,
    signature_key: str | None,
) -> InspectReport:
    """
    Have a process of its own load the model, describe it, and make up a sample.

    Raises:
        InspectorFailed: it ended without a report, which is no fault of the model's.
    """
    import subprocess

    from cortex.ids import ApiKey

    request = Inspect(
        request="",
        spec=ReplicaSpec(
            replica=ReplicaId("init"),
            attempt=0,
            api=ApiKey(api),
            version=Version(""),
            revision=Revision(""),
            home=str(settings.home),
            runtime=model_format,
            model_path=str(model_path),
            signature_key=signature_key,
            start_timeout_s=settings.start_timeout_s,
        ),
        handler=False,
        make_up_sample=True,
    )
    with display(terminal) as shown, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        shown.step("looking at the model")
        with subprocess.Popen(
            INSPECTOR_COMMAND,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=errors,
            cwd=terminal.cwd,
            env=dict(terminal.environ),
            start_new_session=True,
        ) as process:
            assert process.stdin is not None
            try:
                process.stdin.write(msgspec.json.encode(request) + b"\n")
                process.stdin.flush()
                reason = _how_it_ended(process.wait(settings.start_timeout_s + INSPECTOR_GRACE_S))
            except BrokenPipeError:
                reason = _how_it_ended(process.wait())
            except subprocess.TimeoutExpired:
                reason = f"its process did not end within {settings.start_timeout_s + INSPECTOR_GRACE_S:g} s"
            finally:
                _end(process)
        output.seek(0)
        try:
            return msgspec.json.decode(output.read(), type=InspectReport)
        except msgspec.MsgspecError as error:
            errors.seek(0)
            written = errors.read().decode("utf-8", "backslashreplace").strip()[-OUTPUT_CHARS:]
            raise InspectorFailed(reason, written) from error


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"its process was ended by signal {-code}"
    return f"its process ended with exit code {code}" if code else "its report cannot be read"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close its input, which ends it and what it has forked."""
    import subprocess

    assert process.stdin is not None
    try:
        process.stdin.close()
    except BrokenPipeError:
        pass
    try:
        process.wait(END_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _refuse_to_replace(terminal: Terminal, place: Path) -> None:
    there = [name for name in (YAML_FILE, HANDLER_FILE, SAMPLE_FILE) if os.path.lexists(place / name)]
    if there:
        raise FilesExist([text.shown_path(place / name, terminal.cwd) for name in there])


def _why_unshippable(place: Path, model_files: tuple[Path, ...]) -> tuple[Problem, ...]:
    """Why a deploy would refuse what lies in the folder already, such as other models; empty if it would not."""
    from cortex.artifacts.project import collect_project

    if not place.is_dir():
        return ()
    try:
        collect_project(place, leave_out=[place / YAML_FILE, *model_files])
    except CortexError as error:
        return error.all_problems()
    return ()


def _check(terminal: Terminal, place: Path, files: Mapping[str, str]) -> None:
    """Raises Problems if our own cortex.yaml is none, as with a model whose name no yaml can hold."""
    from cortex.spec import loading

    loading.load(files[YAML_FILE].encode("utf-8", "replace"), file=text.shown_path(place / YAML_FILE, terminal.cwd))


def _write(place: Path, files: Mapping[str, str], *, replace: bool) -> None:
    """Write all files. Without `replace`, none that has appeared meanwhile is touched."""
    path = place
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = place / name
            if replace:
                path.unlink(missing_ok=True)
            with open(path, "x", encoding="utf-8", newline="\n") as stream:
                stream.write(content)
    except FileExistsError as error:
        raise CannotWrite(path, "it is there already" if path != place else "it is no folder") from error
    except OSError as error:
        raise CannotWrite(path, (error.strerror or str(error)).lower()) from error


def _tell(
    terminal: Terminal, place: Path, looked: _Looked, files: Mapping[str, str], *, warnings: tuple[Problem, ...]
) -> None:
    paint, starter = terminal.paint, looked.starter
    terminal.out(paint(harmless(starter.shown_model), "bold"))
    for title, specs in (("takes", starter.signature.inputs), ("gives", starter.signature.outputs)):
        for line in described(specs):
            terminal.out(f"  {paint(title, 'dim')}  {harmless(line)}")
    terminal.out()
    width = max(len(text.shown_path(place / name, terminal.cwd)) for name in files)
    for name in files:
        path = text.shown_path(place / name, terminal.cwd)
        about = _WRITTEN[name]
        if name == SAMPLE_FILE and starter.sample is not None and not starter.sample.accepted:
            about = "types and shapes as the model declares them"
        terminal.out(f"wrote {path:<{width}}  {paint(about, 'dim')}")
    if warnings:
        terminal.say()
        show_problems(terminal, warnings, level="warning")
    for sentence in (looked.note, *map(_in_flags, looked.report.notes), _on_sample(starter)):
        if sentence:
            terminal.say(f"{terminal.paint_talk('note:', 'yellow')} {harmless(sentence)}")
    folder = text.shown_path(place, terminal.cwd)
    target = "" if folder == "." else f" {text.quoted_for_shell(folder)}"
    terminal.say("\nnext:")
    terminal.say(f"  cortex deploy{target}")
    if starter.sample is not None and starter.sample.accepted:
        api = starter.api if not target else f"{starter.deployment}/{starter.api}"
        sample = text.quoted_for_shell(text.shown_path(place / SAMPLE_FILE, terminal.cwd))
        terminal.say(f"  cortex predict {api} {sample}")


def _on_sample(starter: Starter) -> str:
    if starter.sample is None:
        return f"no {SAMPLE_FILE} was written: as JSON it would be very large. Arrays can be sent as application/x-npy"
    if not starter.sample.accepted:
        return (
            f"the model took none of the inputs that were made up for it: {SAMPLE_FILE} may not work as it stands, "
            "and nothing has to answer it"
            + (f". Of the first of them the model said: {starter.sample.reason}" if starter.sample.reason else "")
        )
    return ""


COMMAND = Command(
    "init",
    init,
    summary="Look at a model, and write a cortex.yaml, a handler and a sample for it.",
    details="""
    MODEL is an .onnx file, a SavedModel, or a folder or zip with one; without it, the only one that lies here. The
    files go to DIR, which is the current folder unless given
    and is made if it is not there. They can be deployed as they are. The model itself stays where it is: cortex.yaml
    names it relative to DIR, or by its whole path if the two have only / in common. It is loaded in a process of its
    own, with limits, and the sample is a request that it was seen to take; where none is found, the sample has the
    right types and shapes, and no version has to answer it. What else lies in DIR is shipped with the handler, unless a
    deploy would refuse that, as when other models lie there: then a .cortexignore is written too.
    """,
    parameters=(
        click.Argument(["model"], required=False, type=click.Path()),
        click.Argument(["folder"], required=False, type=click.Path(), metavar="[DIR]"),
        click.Option(
            ["--model-format"],
            type=click.Choice(["onnx", "tensorflow"]),
            metavar="FORMAT",
            help="onnx or tensorflow, where the model's name does not tell.",
        ),
        click.Option(
            ["--signature"], metavar="KEY", help="The signature to serve, where a TensorFlow model has several."
        ),
        flag("--force", help="Replace files that are there already."),
    ),
    examples=(
        ("cortex init model.onnx", "then: cortex deploy"),
        ("cortex init", "the model in this folder"),
        ("cortex init exports/bert.onnx bert", "a new folder for it"),
        ("cortex init model.onnx --force", "begin anew"),
    ),
)
