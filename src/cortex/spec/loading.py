"""From the text of a cortex.yaml to a `ProjectSpec` with places, or to all problems of the file at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from cortex.errors import Problem
from cortex.ids import DEFAULT_DEPLOYMENT, DeploymentName
from cortex.spec import rules
from cortex.spec.document import Document, Flaw, MapNode, ScalarNode, UnreadableError, parse, spelled
from cortex.spec.explanation import explain
from cortex.spec.finding import in_order, problem_of_flaw, with_place
from cortex.spec.indentation import mended
from cortex.spec.models import BLOCKS, FLAT_FORM, KEPT_AS_WRITTEN, RESOURCES, ApiSpec, DeploymentSpec, ProjectSpec
from cortex.spec.problems import found, nearest, quoted, subject

Path = tuple[str | int, ...]

SMALLEST_FILE = """\
- kind: api
  name: iris
  model: model.onnx"""


@dataclass(frozen=True)
class Loaded:
    """A cortex.yaml without problems."""

    spec: ProjectSpec
    file: str
    """The name of the file, as it appears in places."""
    _document: Document = field(repr=False, compare=False)
    _api_resources: tuple[int, ...] = field(repr=False, compare=False)
    """For each api of `spec`, which resource of the file it is."""
    _deployment_resource: int | None = field(repr=False, compare=False)
    notes: tuple[Problem, ...] = ()
    """What was understood though it is usually written otherwise."""

    def locate(self, path: Sequence[str | int]) -> tuple[int, int]:
        """
        Return (line, column), both from 1, of the key or list item at a path.

        Args:
            path: into the file (resource index, keys) or into `spec` (`apis`, api index, keys). What does not exist is
                where the nearest existing thing above it is.
        """
        return self._document.locate(self._file_path(tuple(path)))

    def place(self, problem: Problem) -> Problem:
        """Return a problem that was found later, e.g. by the control plane, with its place in this file."""
        return with_place(problem, f"{self.file}:{_colon(self.locate(problem.path))}")

    def _file_path(self, path: Path) -> Path:
        if path[:1] == ("apis",) and len(path) > 1:
            number = path[1]
            known = isinstance(number, int) and 0 <= number < len(self._api_resources)
            return (self._api_resources[int(number)], *path[2:]) if known else ()
        if path[:1] == ("deployment",):
            return () if self._deployment_resource is None else (self._deployment_resource, "name")
        return path


def load(text: str | bytes, *, file: str) -> Loaded:
    """
    Return the spec of a cortex.yaml.

    Args:
        file: its name for messages; nothing is read from it.

    Raises:
        Problems: everything that is wrong, sorted by place.
    """
    try:
        document = parse(text)
    except UnreadableError as error:
        found_ = [(line, column, _problem(flaw, None)) for line, column, flaw in error.flaws]
        if error.flaws[-1][2].reference == "yaml-syntax":
            found_ = _flush_left(text) or found_
        raise in_order(found_, file) from None
    return _Reading(document, file).load()


def _flush_left(text: str | bytes) -> list[tuple[int, int, Problem]]:
    """What to say of a text that is no YAML because its indentation is lost; nothing if that is not why."""
    meant = mended(text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff"))
    if meant is None:
        return []
    message = "the fields of a resource are indented below its first one, and do not stand at the left edge"
    return [(meant.lines[0].start, 1, Problem(reference="yaml-syntax", message=message, hint=meant.hint))]


class _Reading:
    """One pass over a document that collects what is wrong with it."""

    def __init__(self, document: Document, file: str) -> None:
        self._document = document
        self._file = file
        self._data: Any = None
        self._found: list[tuple[int, int, Problem]] = []
        self._told: frozenset[Path] = frozenset()
        """Where the text itself has a flaw, so that the value there says nothing."""

    def load(self) -> Loaded:
        resources = self._resources()
        for flaw in self._document.flaws:
            self._found.append((*self._document.position(flaw.index), _problem(flaw, self._data)))
        self._told = frozenset(flaw.path for flaw in self._document.flaws if flaw.reference != "duplicate-key")
        kinds = [self._kind(number, resource) for number, resource in enumerate(resources)]
        nested = {n: blocks for n, kind in enumerate(kinds) if kind == "api" and (blocks := self._nest(n))}
        self._data = self._document.value(_is_kept_as_written)
        specs = [self._spec(number, kind) for number, kind in enumerate(kinds)]
        self._check_deployments([number for number, kind in enumerate(kinds) if kind == "deployment"])
        self._check_names([number for number, kind in enumerate(kinds) if kind == "api"], "deployment" not in kinds)
        if self._found:
            raise in_order(self._found, self._file)
        apis = {number: spec for number, spec in enumerate(specs) if isinstance(spec, ApiSpec)}
        named = [(number, spec.name) for number, spec in enumerate(specs) if isinstance(spec, DeploymentSpec)]
        deployment: DeploymentName = named[0][1] if named else DEFAULT_DEPLOYMENT
        return Loaded(
            spec=ProjectSpec(deployment=deployment, apis=tuple(apis.values())),
            file=self._file,
            _document=self._document,
            _api_resources=tuple(apis),
            _deployment_resource=named[0][0] if named else None,
            notes=self._flat_form(nested) if nested else (),
        )

    def _add(self, reference: str, message: str, path: Path = (), hint: str = "") -> None:
        words = subject(path, self._data)
        problem = Problem(reference=reference, message=message, hint=hint, path=path, subject=words)
        self._found.append((*self._document.locate(path), problem))

    def _resources(self) -> list[Any]:
        """Return the resources as plain data; what is not a list of them is a problem, and read as far as possible."""
        self._data = self._document.value(_is_kept_as_written)
        if self._data is None or self._data == []:
            self._add("empty-file", "the file has no resources", hint=f"the smallest cortex.yaml is\n{SMALLEST_FILE}")
            return []
        if isinstance(self._data, list):
            return self._data
        hint = f"a cortex.yaml is a list, the smallest is\n{SMALLEST_FILE}"
        if isinstance(self._data, Mapping):
            hint = f'put "- " in front of the first line and indent the others, such as\n{SMALLEST_FILE}'
        self._add("not-a-list", f"expected a list of resources, found {found(self._data)}", hint=hint)
        if not isinstance(self._data, Mapping):
            return []
        if "kind" not in self._data and not ("name" in self._data and _is_like_an_api(self._data)):
            return []
        self._document = self._document.wrapped()
        self._data = self._document.value(_is_kept_as_written)
        return list(self._data)

    def _kind(self, number: int, resource: object) -> str | None:
        """Return the kind that a resource has or was probably meant to have; None if it cannot be told."""
        if not isinstance(resource, Mapping):
            is_pair = isinstance(resource, str) and ":" in resource
            hint = "put a space after the colon" if is_pair else f"a resource is such as\n{SMALLEST_FILE}"
            self._add("wrong-type", f"expected a mapping, found {found(resource)}", (number,), hint)
            return None
        kind = resource.get("kind")
        if isinstance(kind, str) and kind in RESOURCES:
            return kind
        meant = nearest(kind, RESOURCES) if isinstance(kind, str) else None
        if kind is None:
            guess = "api" if _is_like_an_api(resource) else None
            hint = f"add kind: {guess}" if guess else "add kind: api or kind: deployment"
            self._add("missing-field", '"kind" is missing', (number, "kind"), hint)
            return guess
        shown = found(kind, self._document.written((number, "kind")))
        hint = f'did you mean "{meant}"?' if meant else "write kind: api"
        self._add("unknown-kind", f'expected "api" or "deployment", found {shown}', (number, "kind"), hint)
        return meant

    def _nest(self, number: int) -> tuple[str, ...]:
        """Move fields of an api's blocks that stand beside its name into their blocks. Returns the names of these."""
        api = self._document.node((number,))
        assert isinstance(api, MapNode)
        entries = {key: entry for key, entry in api.entries.items() if key not in FLAT_FORM}
        blocks: dict[str, MapNode] = {}
        for key in (key for key in api.entries if key in FLAT_FORM):
            index, value = api.entries[key]
            home = FLAT_FORM[key]
            begin, beside = entries.get(home, (index, None))
            if isinstance(beside, ScalarNode) and beside.value is None:
                beside = None
            if isinstance(value, ScalarNode) and value.value is None:
                continue  # the default, as if it were not there
            if not (beside is None or isinstance(beside, MapNode)):
                entries[key] = (index, value)  # there is no block to move it into; what is there instead is told
                continue
            block = MapNode(dict(beside.entries), beside.size, beside.depth) if beside is not None else MapNode()
            if key in block.entries:
                line, column = self._document.position(block.entries[key][0])
                message = f"{quoted(key)} stands here and under `{home}:`, at line {line}, column {column}"
                self._add("duplicate-key", message, (number, key), "delete one of the two")
                continue
            block.entries[key] = (index, value)
            entries[home] = (begin, block)
            blocks[home] = block
        self._document = self._document.with_mapping(number, MapNode(entries, api.size, api.depth))
        return tuple(name for name in BLOCKS if name in blocks)

    def _flat_form(self, nested: Mapping[int, Sequence[str]]) -> tuple[Problem, ...]:
        """The note on fields that were moved into blocks, with these as they are usually written."""
        lines = ["usually written as"]
        for number, blocks in nested.items():
            if len(nested) > 1:
                lines.append(f"# {subject((number,), self._data)}")
            for name in blocks:
                block = self._document.node((number, name))
                assert isinstance(block, MapNode)
                lines.append(f"  {name}:")
                lines += [f"    {key}: {spelled(value)}" for key, (_, value) in block.entries.items()]
        names = [f"`{name}:`" for name in BLOCKS if any(name in blocks for blocks in nested.values())]
        first = next(iter(nested))
        at = min(self._document.locate((first, name)) for name in nested[first])
        blocks_named = " and ".join(names)
        note = Problem(
            reference="flat-form",
            message=f"fields of {blocks_named} stand beside `name:`, and are taken as if they stood in their block",
            hint="\n".join(lines),
            subject=", ".join(subject((number,), self._data) for number in nested),
        )
        return (with_place(note, f"{self._file}:{_colon(at)}"),)

    def _spec(self, number: int, kind: str | None) -> object:
        """Return the model of a resource, None if it has none or something is wrong with it."""
        if kind is None:
            return None
        data = {key: value for key, value in self._data[number].items() if key != "kind"}
        try:
            return RESOURCES[kind].model_validate(data)
        except ValidationError as error:
            problems = explain(error, self._data, prefix=(number,), written=self._document.written)
            self._found += [(*self._document.locate(p.path), p) for p in problems if p.path not in self._told]
            return None

    def _check_deployments(self, numbers: list[int]) -> None:
        for number in numbers[1:]:
            line, _ = self._document.locate((numbers[0],))
            message = f"a file has at most one deployment; the first is at line {line}"
            self._add("several-deployments", message, (number,), "keep one file to one deployment")

    def _check_names(self, numbers: list[int], in_default: bool) -> None:
        first: dict[str, int] = {}
        for number in numbers:
            name = self._data[number].get("name")
            if isinstance(name, str) and first.setdefault(name, number) != number:
                line, _ = self._document.locate((first[name], "name"))
                here, _ = self._document.locate((number, "name"))
                message = f"two apis are named {quoted(name)}: at line {line} and at line {here}"
                self._add("duplicate-name", message, (number, "name"), "rename one of them")
            reserved = rules.reserved_api_name(str(name), in_default=in_default)
            if reserved is not None:
                self._add(reserved.type, reserved.message(), (number, "name"), (reserved.context or {})["hint"])


def _is_like_an_api(resource: Mapping[Any, Any]) -> bool:
    """Whether it has more than a deployment can have, be it in words of other versions or misspelt."""
    return any(isinstance(key, str) and nearest(key, DeploymentSpec.model_fields) is None for key in resource)


def _is_kept_as_written(path: Path, value: object) -> bool:
    below = path[1:]
    if len(below) == 2 and below[0] == "env":
        return True
    return below in KEPT_AS_WRITTEN and not isinstance(value, bool)


def _problem(flaw: Flaw, data: object) -> Problem:
    return problem_of_flaw(flaw, subject(flaw.path, data))


def _colon(position: tuple[int, int]) -> str:
    return f"{position[0]}:{position[1]}"
