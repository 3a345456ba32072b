"""
Writes the pages that follow from the code: `python docs/generate.py`. A test holds the pages to what this would write.

`cli.md` is what the commands say of themselves, `configuration.md` what the models of cortex.yaml and the table of
settings say, `errors.md` every code and reference that stands in the source, and of `metrics.md` and
`events.md` their tables.
"""

from __future__ import annotations

import ast
import io
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

import cortex
from cortex.cli.command import PROGRAM, Command, Edge
from cortex.cli.main import SECTIONS as COMMANDS
from cortex.cli.main import CortexGroup
from cortex.cli.terminal import Terminal
from cortex.cluster.explanation import blocks
from cortex.cluster.models import PROVIDERS, ClusterSpec
from cortex.cluster.problems import REFERENCES as CLUSTER
from cortex.ingress.configuration import Refusal
from cortex.metrics.exposition import METRICS
from cortex.packages.explanation import REFERENCES as INSTALLING
from cortex.packages.requirements import REFERENCES as REQUIREMENTS
from cortex.replica.bodies.codec import BadBody
from cortex.replica.transport.faults import STATUS
from cortex.settings import SETTINGS
from cortex.spec.effects import EFFECTS
from cortex.spec.models import BLOCKS, FLAT_FORM, RESOURCES
from cortex.spec.problems import REFERENCES as SPEC
from cortex.spec.quantities import Cpu, Size
from cortex.spec.schema import json_schema
from cortex.wire.events import EventKind

HERE = Path(__file__).resolve().parent
SOURCE = Path(cortex.__file__).parent

# ---- errors.md ------------------------------------------------------------------------------------------------------

PREDICTION: Mapping[str, tuple[str, str, str]] = {
    "malformed-json": (
        "400",
        "The body is no JSON; the message has line and column.",
        "Send one JSON value. `NaN` is written `null`.",
    ),
    "malformed-array": (
        "400",
        "The body is no `.npy` file, or not a whole one.",
        "`numpy.save(file, array, allow_pickle=False)`",
    ),
    "malformed-text": ("400", "`text/plain` in another character set than it says.", "Send UTF-8."),
    "malformed-multipart": ("400", "No multipart form, or one with too many parts.", "`curl -F name=@file` makes one."),
    "malformed-compression": (
        "400",
        "The body is not gzip, or ends too early.",
        "Leave out `content-encoding`, or send all of it.",
    ),
    "malformed-body": ("400", "The body is not what its content type says.", "See the message."),
    "malformed-request": ("400", "What arrived is no HTTP request.", "Use an HTTP client."),
    "bad-request": (
        "400",
        "Not valid HTTP, or the body broke off, or the client closed its end before the answer.",
        "Use an HTTP client; send the whole body, and close nothing before the answer is there.",
    ),
    "not-found": (
        "404",
        "Nothing is deployed at this path. Paths match as a whole, but for `/v2` below an endpoint.",
        "`cortex get` shows endpoints.",
    ),
    "method-not-allowed": ("405", "Another method than GET, HEAD, POST and OPTIONS.", "POST a sample."),
    "request-timeout": ("408", "The request did not arrive in time.", "Send faster, or smaller bodies."),
    "body-too-large": (
        "413",
        "The body, or what it unpacks to, is over the api's `max_body`.",
        "Raise `max_body` in cortex.yaml.",
    ),
    "unsupported-content-type": (
        "415",
        "A content type that this api has no use for; the answer lists those it has.",
        "Say which with `-H 'content-type: …'`.",
    ),
    "unsupported-content-encoding": ("415", "Another content encoding than gzip.", "Send gzip, or the body as it is."),
    "input-mismatch": (
        "422",
        "The sample does not fit the model's signature, or the model itself calls it invalid: the answer names input, "
        "expectation and finding.",
        "`GET` the endpoint: it shows inputs and a sample.",
    ),
    "head-too-large": ("431", "More, or longer, headers than are read.", "Send fewer."),
    "request-error": ("4xx", "The handler raised `cortex.RequestError`.", "See the message, which is the handler's."),
    "handler-failed": (
        "500",
        "The handler raised something else, or `pre_inference` returned other names than the model's.",
        "`cortex logs API --request ID` has the traceback.",
    ),
    "model-failed": (
        "500",
        "The model failed, and not because its input was invalid.",
        "`cortex logs API --request ID` has its words.",
    ),
    "result-not-serialisable": (
        "500",
        "What `post_inference` returned has no JSON form.",
        "Write the line in `hint`.",
    ),
    "internal-error": ("500", "A fault of Cortex.", "Report it, with the lines of `cortex logs API --request ID`."),
    "ingress-fault": (
        "500",
        "HAProxy ran out of something.",
        "`cortex info`; the ingress's log is in `logs/` of the home.",
    ),
    "replica-lost": (
        "502",
        "The replica died with the request, which could not be delivered again: see `limits.md`.",
        "Send again if that does no harm.",
    ),
    "no-ready-replica": ("503", "No replica is ready.", "Send again after `retry-after`; `cortex get API` says why."),
    "overloaded": (
        "503",
        "Every replica is busy, and about a second of work waits already.",
        "Send again after `retry-after`; raise `min_replicas`.",
    ),
    "stopping": ("503", "The replica ends before it could answer.", "Send again after `retry-after`."),
    "timeout": (
        "504",
        "No answer within the api's `timeout`.",
        "Raise `timeout` in cortex.yaml, or make the handler faster.",
    ),
}
"""Status, meaning, next step of each code in the `error` of an answer."""

NOT_CLASSES: Mapping[str, str] = {
    "bad-digest": "A digest in a call to the control plane is none.",
    "bad-parameters": "A call to the control plane has parameters that cannot be meant.",
    "bad-request": "A call to the control plane that cannot be meant.",
    "batching-contradicted": "Rows of the model were answered differently alone and together; the values are shown. "
    "With `batching: on` the deploy is refused, otherwise requests are not batched.",
    "broken-off": "A call to the control plane ended before it was complete.",
    "compute-unavailable": "A replica, or the minimum of an api, asks for more than the empty machine has.",
    "file-name-not-utf8": "A file of the project has a name that is not UTF-8.",
    "from-another-folder": "A deploy would remove apis that came from another folder.",
    "timeout-shorter-than-start": "An api that may sleep has a `timeout` that is shorter than its last start took.",
    "handler-exited": "The handler's file ends the process when it is imported, as `sys.exit` does.",
    "handler-hook-misspelt": "A function of the handler's file has nearly the name of one that Cortex calls.",
    "handler-import-failed": "Importing the handler's file raised an exception; its traceback is shown.",
    "handler-left-out": "The handler's file is excluded from what is shipped, by `.cortexignore` or its place.",
    "handler-missing-module": "The handler imports a package that is not there; the line to add is shown.",
    "handler-not-callable": "`pre_inference` or `post_inference` is no function.",
    "handler-not-found": "There is no file at `request_handler`.",
    "handler-start-failed": "`on_start` of the handler raised an exception; its traceback is shown.",
    "handler-syntax-error": "The handler's file is not valid Python.",
    "handler-without-hook": "The handler's file has none of the functions that Cortex calls; what to write is shown.",
    "handler-wrong-parameters": "`pre_inference` or `post_inference` takes too few or too many parameters.",
    "hung": "A replica did not answer for too long, and was replaced.",
    "ingress-failed": "HAProxy could not be started or changed.",
    "inspection-timeout": "Looking at model and handler took too long, e.g. an endless loop at import.",
    "internal-error": "A fault of Cortex in the control plane; its log has the traceback.",
    "invalid-spec": "A configuration that this control plane does not take: it is of another version.",
    "link-broken": "A link in the project leads nowhere; it is left out.",
    "link-leaves-project": "A link in the project leads out of it.",
    "link-loops": "A link in the project leads back to itself.",
    "model-not-available": "The model lies where this release cannot fetch it from.",
    "node-fault": "The machine could not start a replica.",
    "not-found": "There is no such call of the control plane's API.",
    "not-warmed-up": "No input that was made up for the model was accepted: give it a `sample:`.",
    "our-fault": "Cortex itself failed; a report is written, and it is said where.",
    "out-of-memory": "A replica was ended for its memory; peak and request are shown.",
    "out-of-descriptors": "A replica had no descriptors left for new connections for 10 s, and was replaced.",
    "overdue": "A request outlived its timeout in code that cannot be stopped; the replica was replaced.",
    "packages-conflict": "No versions satisfy requirements.txt and what a replica needs itself; both sides are named.",
    "packages-elsewhere": "A node has another Python or platform than packages were resolved for; both are named.",
    "packages-timeout": "Resolving or installing packages took too long.",
    "packages-unusable": "The packages were installed, and replicas cannot start with them.",
    "replaced-meanwhile": "Another deploy wanted another version of the api before this one was live.",
    "prediction-is-an-array": "`post_inference` does what arrays cannot, e.g. `.index`; the line to write is shown.",
    "removed-meanwhile": "The api was deleted while its new version was on the way.",
    "project-read-only": "The machine allows no view of the project, which is too large to be copied: write elsewhere.",
    "rolled-back-meanwhile": "The new version failed after it had taken over, or was rolled back: see the history.",
    "replica-failed": "A replica ended by itself; how, and its last words, are shown.",
    "sample-lost": "What is stored of the api's own sample is damaged or gone: deploy again, which brings it back.",
    "sample-not-found": "There is no file at `sample`.",
    "sample-too-large": "The sample is larger than the api's `max_body`, or than a sample may be.",
    "secret-read-at-import": "A variable that libraries read when they are imported cannot be a secret.",
    "shadowed-package": "A file of the project hides an installed package of its name.",
    "no-sample-to-prove-with": "`cortex deploy --prove` asks for the sample, and the api has none.",
    "proof-repeats-requests": "`--prove` would repeat requests of an api with `retry: off`; `--yes` says that it may.",
    "socket-removed": "Somebody removed the file of a replica's socket; the replica was replaced.",
    "start-timeout": "A replica made no progress while starting.",
    "tracker-never-matches": "The tracker asks for something that the model never answers.",
    "unknown-api": "There is no api of this name.",
    "unknown-deployment": "There is no deployment of this name.",
    "unknown-variable": "A warning: a variable that begins with `CORTEX_` is no setting, and does nothing.",
    "wrong-usage": "A command line that cannot be meant.",
}
"""References that are given without a class whose docstring would say what they mean."""

BASES = frozenset({"error", "problems", "retry-later", "gave-up", "ingress", "model", "artifact", "stats-error"})
"""References of classes that others derive from; they are never shown."""

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Packages": ("packages/", "agent/installations.py", "agent/installer.py"),
    "Models, handlers and projects": (
        "artifacts/",
        "storage/credentials.py",
        "replica/",
        "controlplane/candidates.py",
        "controlplane/deploy.py",
        "controlplane/inspecting.py",
        "controlplane/secrets.py",
        "client/project.py",
        "cli/init.py",
        "state/secrets.py",
    ),
    "Commands and environments": ("cli/", "client/", "cluster/", "settings.py"),
    "What runs": ("agent/", "planning/", "ingress/", "engines/", "controlplane/", "state/", "metrics/", "wire/", ""),
}
"""Where in the source a reference first stands decides its section: the first prefix that fits."""


@dataclass
class Found:
    """One reference, and where in the source it stands."""

    files: list[str] = field(default_factory=list)
    meaning: str = ""
    """From the docstring of its class, if it has one."""


@cache
@cache
def references() -> Mapping[str, Found]:
    """
    Every reference in the source: `reference = "…"` of a class, and literals that become the `reference`, `error` or
    `code` of a call, by keyword or by the place of a parameter of that name.
    """
    trees = {
        file.relative_to(SOURCE).as_posix(): ast.parse(file.read_text())
        for file in sorted(SOURCE.rglob("*.py"))
        if "testing" not in file.relative_to(SOURCE).parts
    }
    places = _parameter_places(trees)
    found: dict[str, Found] = {}
    for file, tree in trees.items():
        for node in ast.walk(tree):
            for name, meaning in _given(file, node, places):
                one = found.setdefault(name, Found())
                one.files.append(file)
                one.meaning = one.meaning or meaning
    return found


def _parameter_places(trees: Mapping[str, ast.AST]) -> Mapping[str, set[int]]:
    """By function or class, private ones with their file: at which place of a call its reference stands."""
    places: dict[str, set[int]] = {}
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "__init__":
                _note(places, _known_as(node.name, file), node)
            elif isinstance(node, ast.ClassDef):
                for each in node.body:
                    if isinstance(each, ast.FunctionDef) and each.name == "__init__":
                        _note(places, _known_as(node.name, file), each)
    return places


def _known_as(name: str, file: str) -> str:
    return f"{file}:{name}" if name.startswith("_") else name


def _note(places: dict[str, set[int]], name: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    names = names[1:] if names[:1] in (["self"], ["cls"]) else names
    for word in ("reference", "code"):
        if word in names:
            places.setdefault(name, set()).add(names.index(word))


def _given(file: str, node: ast.AST, places: Mapping[str, set[int]]) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.ClassDef):
        for each in node.body:
            target = each.targets[0] if isinstance(each, ast.Assign) else getattr(each, "target", None)
            if isinstance(target, ast.Name) and target.id == "reference":
                meaning = _first_sentence(ast.get_docstring(node) or "")
                yield from ((name, meaning) for name in _literals(getattr(each, "value", None)))
    elif isinstance(node, ast.Call):
        called = _known_as(getattr(node.func, "id", getattr(node.func, "attr", "")), file)
        given = [node.args[place] for place in places.get(called, ()) if place < len(node.args)]
        given += [keyword.value for keyword in node.keywords if keyword.arg in ("reference", "error", "code")]
        yield from ((name, "") for value in given for name in _literals(value))


def _literals(value: ast.AST | None) -> Iterator[str]:
    if isinstance(value, ast.IfExp):
        yield from _literals(value.body)
        yield from _literals(value.orelse)
    elif isinstance(value, ast.Constant) and isinstance(value.value, str) and _is_reference(value.value):
        yield value.value


def _is_reference(text: str) -> bool:
    return len(text) > 2 and text.replace("-", "a").isalnum() and text == text.lower() and text[0] != "-"


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(".") + "." if paragraph else ""


def prediction_codes() -> set[str]:
    """Every code that an answer of the prediction API can have, from the tables that make the answers."""
    bodies = {kind.reference for kind in (BadBody, *BadBody.__subclasses__())}
    return {code for _, _, code in STATUS if code} | bodies | {refusal.value for refusal in Refusal} | {"not-found"}


def meanings() -> dict[str, str]:
    """Every reference of deploys and commands with its meaning. Raises KeyError for one that nobody described."""
    told = {}
    for name, found in references().items():
        if name in BASES or name in SPEC or name in REQUIREMENTS or name in CLUSTER:
            continue
        if name in PREDICTION and name not in NOT_CLASSES:
            continue
        told[name] = NOT_CLASSES.get(name) or found.meaning
        if not told[name]:
            raise KeyError(f"{name} ({found.files[0]}): say what it means, in docs/generate.py")
    return told


def errors_page() -> str:
    head = """\
# Errors

This page is made from the code: `python docs/generate.py`.

Every error has a code that stays the same, a message with what was found and what was expected, and in most cases a
next step. Codes are for programs and for looking up; the message says more than this page can.

## Answers of the prediction API

```json
{"error": "input-mismatch", "message": "…", "request_id": "4f0c…", "input": "features", "expected_shape": ["N", 4]}
```

`request_id` is the `x-request-id` of the answer, and of the request if it had one: `cortex logs API --request ID` shows
what happened. Further keys are facts of the error. A handler's own errors are `cortex.RequestError`, with any 4xx.
"""
    sections: dict[str, dict[str, str]] = {title: {} for title in SECTIONS}
    found = references()
    for name, meaning in meanings().items():
        title = next(
            title
            for title, prefixes in SECTIONS.items()
            if any(found[name].files[0].startswith(prefix) for prefix in prefixes)
        )
        sections[title][name] = meaning
    sections["Packages"] = {**INSTALLING, **sections["Packages"], **REQUIREMENTS}
    rows = [(status, f"`{code}`", meaning, step) for code, (status, meaning, step) in PREDICTION.items()]
    parts = [head, _table(("status", "error", "meaning", "next step"), rows)]
    parts.append("## cortex.yaml\n\nEach with file, line and column, all of a file at once.\n")
    parts.append(_meanings(SPEC))
    parts.append("## cluster.yaml\n\nBeside those of cortex.yaml that are of any file, such as `unknown-field`.\n")
    parts.append(_meanings(CLUSTER))
    for title, told in sections.items():
        parts += [f"## {title}\n", _meanings(told)]
    return "\n".join(parts)


def _meanings(told: Mapping[str, str]) -> str:
    return _table(("reference", "meaning"), [(f"`{name}`", told[name]) for name in sorted(told)])


# ---- configuration.md -----------------------------------------------------------------------------------------------


def configuration_page() -> str:
    head = """\
# Configuration

This page is made from the code: `python docs/generate.py`.

## cortex.yaml

A list of resources: any number of `kind: api`, and at most one `kind: deployment`, which names the group.

```yaml
- kind: deployment
  name: iris

- kind: api
  name: sklearn
  model: models/sklearn.onnx
  request_handler: handler.py
  tracker:
    model_type: classification
  compute:
    min_replicas: 2
    cpu: 500m
    mem: 512Mi
```

Without `kind: deployment` the deployment is called `default`, and its apis live at `/<api>` instead of
`/<deployment>/<api>`. What the file no longer has is removed by the next deploy; from another folder than the last
one only with `cortex deploy --prune`. Unknown keys, duplicate keys and duplicate names are errors, and all problems
of a file are shown at once. `null` means the default. Fields of `tracker` and `compute` that stand beside `name`, as
in a page whose indentation got lost, are taken as if they stood in their block, with a note that shows it.

Quantities are those of Kubernetes: `0.2` = `200m` cpu, `512Mi`, `1G`, `129e6` bytes. `mem: 512` would be 512 bytes, in
which nothing runs, and is refused with `512Mi`. Durations: `30s`, `10m`, `1h30m`, or seconds. An editor completes and
checks the file with the schema that `cortex schema` prints.

A change to a field, when it is deployed, makes a *new version*, which replaces the old one once it is ready and whose
statistics begin anew; or it *rolls replicas*, which are replaced by ones of the same version; or it takes effect *in
place*. Nothing of that loses a request. What has *no effect yet* is checked, and each deploy of a file that has it
notes it.
"""
    parts = [head]
    for kind, model in RESOURCES.items():
        parts += [f"### `kind: {kind}`\n", _fields(kind, model)]
    for name, model in BLOCKS.items():
        parts += [f"### `{name}:` of an api\n", _fields("", model)]
    settings = [(f"`{s.flag}`", f"`{s.variable}`", f"`{s.default}`", s.help) for s in SETTINGS]
    parts.append(
        "## Settings\n\nOf a command and of what it starts. A flag comes before an environment variable, a variable "
        "before the default.\nAny other variable that begins with `CORTEX_` does nothing, and commands warn of it. Two "
        "homes with different ports\nnever disturb each other.\n"
    )
    parts.append(_table(("flag", "variable", "default", "meaning"), settings))
    return "\n".join(parts)


def _fields(kind: str, model: Any) -> str:
    """A table of a block's fields; `kind` is empty for a block inside an api."""
    block = json_schema()["$defs"][kind or model.__name__]
    inside = next((name for name, known in BLOCKS.items() if known is model), "")
    return _table(
        ("field", "default", "a change", "meaning"),
        [
            (
                f"`{name}`",
                "required"
                if name in block["required"]
                else f"`{schema['default']}`"
                if "default" in schema
                else "none",
                _effect(kind, inside, name),
                schema["description"],
            )
            for name, schema in block["properties"].items()
            if name != "kind" and not (kind and name in FLAT_FORM)
        ],
    )


def _effect(kind: str, inside: str, name: str) -> str:
    if name == "name":
        return "another api" if kind == "api" else "another deployment"
    if name in BLOCKS:
        return "see below"
    path = f"{inside}.{name}" if f"{inside}.{name}" in EFFECTS else inside or name
    return str(EFFECTS[path])


# ---- cli.md ---------------------------------------------------------------------------------------------------------

COMMAND_WIDTH = 80

COMMANDS_HEAD = """\
# The command line

This page is made from the commands' own help: `python docs/generate.py`.

Results go to stdout, everything else to stderr. `-o json` prints for programs, with stable keys; a command that fails
prints `{"problems": […]}` then, with `reference`, `message` and `hint` of each. Colours appear on a terminal only,
and not when `NO_COLOR` is set. API is `NAME` or `DEPLOYMENT/NAME`; `NAME` alone means the deployment of the nearest
`cortex.yaml`, else the only api of that name. Where several apis make sense, as for `get` and `logs`, the name of a
deployment stands for all of it. Tables fold on narrow terminals; in a pipe each row is one line. `cx` is short for
`cortex`; commands and flags are not abbreviated. A variable that begins with `CORTEX_` and does nothing, as it is
misspelt or of a later version, is a warning on stderr.

| exit code | means |
|---|---|
| 0 | done |
| 1 | failed, as explained |
| 2 | wrong usage |
| 3 | a fault of Cortex: a report is written, and it is said where |
| 130 | interrupted, with a sentence on what state things are in |
"""


def commands_page() -> str:
    group = CortexGroup()
    terminal = Terminal(
        stdin=io.StringIO(),
        stdout=io.StringIO(),
        stderr=io.StringIO(),
        environ={},
        cwd=Path("/"),
        fixed_width=COMMAND_WIDTH,
    )
    top = click.Context(group, info_name=PROGRAM, terminal_width=COMMAND_WIDTH, obj=Edge(terminal))
    parts = [COMMANDS_HEAD, _block(group.get_help(top))]
    for title, names in COMMANDS:
        parts.append(f"## {title}\n")
        for name in names:
            command = group.get_command(top, name)
            assert isinstance(command, Command)
            context = click.Context(command, info_name=name, parent=top, terminal_width=COMMAND_WIDTH)
            parts.append(f"### {PROGRAM} {name}\n")
            parts.append(_block(command.get_help(context)))
    return "\n".join(parts)


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


# ---- metrics.md -----------------------------------------------------------------------------------------------------


def _filled(name: str, of: str, table: str) -> str:
    """The page that there is, with its table up to date."""
    begin, end = f"<!-- {of}: begin -->\n", f"<!-- {of}: end -->\n"
    before, _, rest = (HERE / name).read_text().partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{table}{end}{after}"


def metrics_page() -> str:
    rows = ((f"`{m.name}`", m.type, ", ".join(f"`{label}`" for label in m.labels), m.help) for m in METRICS)
    return _filled("metrics.md", "metrics", _table(("metric", "type", "labels", "what"), rows))


def events_page() -> str:
    meanings = _meanings_of_members(SOURCE / "wire" / "events.py", "EventKind")
    rows = ((f"`{kind}`", meanings[kind.name]) for kind in EventKind)
    return _filled("events.md", "kinds", _table(("kind", "what"), rows))


def _meanings_of_members(file: Path, name: str) -> dict[str, str]:
    """The line below each member of an enum, by the member's name."""
    body = next(
        one for one in ast.parse(file.read_text()).body if isinstance(one, ast.ClassDef) and one.name == name
    ).body
    found = {}
    for member, below in pairwise(body):
        match member, below:
            case ast.Assign(targets=[ast.Name(id=member_name)]), ast.Expr(value=ast.Constant(value=str(meaning))):
                found[member_name] = meaning
    return found


# ---- cluster.md -----------------------------------------------------------------------------------------------------


def clusters_page() -> str:
    common = set(ClusterSpec.model_fields)
    parts = ["\n### All clusters\n", _cluster_fields(ClusterSpec, ClusterSpec.model_fields)]
    for name, inner in blocks(ClusterSpec).items():
        parts += _cluster_block(name, inner)
    for provider, model in PROVIDERS.items():
        own = [name for name in model.model_fields if name not in common]
        parts += [
            f"### `provider: {provider}`\n",
            f"{_first_sentence(model.__doc__ or '')}\n",
            _cluster_fields(model, own),
        ]
        for name, inner in blocks(model).items():
            parts += _cluster_block(name, inner) if name in own else []
    return _filled("cluster.md", "fields", "\n".join([*parts, ""]))


def _cluster_block(name: str, model: Any) -> list[str]:
    inside = [part for inner, of in blocks(model).items() for part in _cluster_block(f"{name}: {inner}", of)]
    return [f"`{name}:`\n", _cluster_fields(model, model.model_fields), *inside]


def _cluster_fields(model: Any, names: Iterable[str]) -> str:
    rows = []
    for name in names:
        field = model.model_fields[name]
        default = field.default.text if isinstance(field.default, Cpu | Size) else field.default
        default = str(default).lower() if isinstance(default, bool) else default
        shown = f"`{default}`" if isinstance(default, str | int) else "none" if default is None else "see below"
        rows.append((f"`{name}`", "required" if field.is_required() else shown, field.description or ""))
    return _table(("field", "default", "meaning"), rows)


# ---- writing --------------------------------------------------------------------------------------------------------


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


PAGES = {
    "cli.md": commands_page,
    "cluster.md": clusters_page,
    "configuration.md": configuration_page,
    "errors.md": errors_page,
    "events.md": events_page,
    "metrics.md": metrics_page,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())
        sys.stdout.write(f"wrote docs/{name}\n")
