"""From the text of a cluster.yaml to a `Cluster`, or to all problems at once."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cortex.cluster import bounds
from cortex.cluster.bounds import Bounds
from cortex.cluster.explanation import explain, subject
from cortex.cluster.models import KEPT_AS_WRITTEN, PROVIDERS, ClusterSpec, GcpSpec
from cortex.cluster.values import BUCKETS, PYTHONS
from cortex.errors import Problem, Problems
from cortex.spec.document import Document, UnreadableError, parse
from cortex.spec.finding import Path, in_order, problem_of_flaw, with_place
from cortex.spec.problems import found, nearest, one_of, quoted

SMALLEST_FILE = """\
name: prod
provider: aws
region: eu-central-1
storage: s3://my-bucket/cortex"""
FROM_VARIABLES: Mapping[tuple[str, str], Sequence[str]] = {
    ("ray", "address"): ("RAY_ADDRESS",),
    ("aws", "region"): ("AWS_REGION", "AWS_DEFAULT_REGION"),
}
"""By provider and field: which variables say it where the file does not."""


@dataclass(frozen=True)
class Cluster:
    """A cluster.yaml without problems, together with what variables and flags add to it."""

    spec: ClusterSpec
    bounds: Bounds
    python: str
    """Minor version on the nodes."""
    index_url: str | None
    """Where nodes get packages from, without a password; None: from PyPI."""
    file: str
    """The name of the file, as it appears in places."""
    notes: tuple[Problem, ...] = ()
    """What is worth knowing though nothing is wrong."""

    def path(self, name: str) -> str:
        """A path that the file names, as it is reached from where the file was named."""
        return name if name.startswith("~") else posixpath.join(posixpath.dirname(self.file), name)


def load(
    text: str | bytes,
    *,
    file: str,
    environ: Mapping[str, str],
    python: str,
    flags: tuple[int | None, int | None] = (None, None),
    is_there: Callable[[str], bool] = lambda path: True,
) -> Cluster:
    """
    Return the cluster that a cluster.yaml describes.

    Args:
        file: its name for messages; nothing is read from it.
        environ: variables of the shell.
        python: the minor version of whoever asks, the default of the nodes.
        flags: `--nodes-min` and `--nodes-max`.
        is_there: whether a file that is named in it can be read; one that is not there is noted.

    Raises:
        Problems: everything that is wrong, sorted by place.
    """
    try:
        document = parse(text)
    except UnreadableError as error:
        raise in_order(
            [(line, column, problem_of_flaw(flaw, "")) for line, column, flaw in error.flaws], file
        ) from None
    return _Reading(document, file, environ, python, flags, is_there).load()


class _Reading:
    """One pass over a document that collects what is wrong with it."""

    def __init__(
        self,
        document: Document,
        file: str,
        environ: Mapping[str, str],
        python: str,
        flags: tuple[int | None, int | None],
        is_there: Callable[[str], bool],
    ) -> None:
        self._document = document
        self._file = file
        self._environ = environ
        self._python = python
        self._flags = flags
        self._is_there = is_there
        self._data: Any = document.value(_is_kept_as_written)
        self._found: list[tuple[int, int, Problem]] = []
        self._elsewhere: list[Problem] = []
        """What is wrong with variables and flags."""
        self._from_variables: dict[str, str] = {}
        """Fields that the file does not have, and the variable that says them."""

    def load(self) -> Cluster:
        data = self._fields()
        for flaw in self._document.flaws:
            told = problem_of_flaw(flaw, subject(flaw.path, data) if flaw.path else "")
            self._found.append((*self._document.position(flaw.index), told))
        spec = self._spec(data) if data is not None else None
        decided = self._bounds(data or {})
        if self._found or self._elsewhere or spec is None or decided is None:
            raise Problems((*in_order(self._found, self._file).problems, *self._elsewhere))
        index_url, index_notes = self._index(spec)
        return Cluster(
            spec=spec,
            bounds=decided,
            python=spec.python or (self._python if self._python in PYTHONS else PYTHONS[-1]),
            index_url=index_url,
            file=self._file,
            notes=(*self._notes(spec), *index_notes),
        )

    def _add(self, reference: str, message: str, path: Path = (), hint: str = "") -> None:
        words = subject(path, self._data) if path else ""
        problem = Problem(reference=reference, message=message, hint=hint, path=path, subject=words)
        self._found.append((*self._document.locate(path), problem))

    def _fields(self) -> dict[str, Any] | None:
        """The file's fields; None, with a problem, if it is something else."""
        data = self._data
        if isinstance(data, Mapping) and data:
            return dict(data)
        smallest = f"the smallest cluster.yaml is, for example\n{SMALLEST_FILE}"
        if not data:
            self._add("empty-file", "the file has no fields", hint=smallest)
        elif isinstance(data, list) and any(isinstance(item, Mapping) and "kind" in item for item in data):
            self._add("not-a-cluster", "this is a cortex.yaml: it says what is deployed, not where", hint=smallest)
        else:
            self._add("not-a-cluster", f"expected the fields of a cluster, found {found(data)}", hint=smallest)
        return None

    def _spec(self, data: dict[str, Any]) -> ClusterSpec | None:
        model = self._model(data)
        told = frozenset(flaw.path for flaw in self._document.flaws if flaw.reference != "duplicate-key")
        if model is None:
            known = {name for kind in PROVIDERS.values() for name in kind.model_fields} - set(ClusterSpec.model_fields)
            data = {name: value for name, value in data.items() if name not in known}
            data["provider"] = ""
            model = ClusterSpec
        for (provider, name), variables in FROM_VARIABLES.items():
            value, variable = next(((v, k) for k in variables if (v := self._environ.get(k, "").strip())), ("", ""))
            if provider == model.PROVIDER and data.get(name) is None and value:
                data[name] = value
                self._from_variables[name] = variable
        try:
            return self._with_project(model.model_validate(data))
        except ValidationError as error:
            for problem in explain(error, data, model=model, written=self._document.written):
                if problem.path not in told:
                    self._tell(problem, model)
            return None

    def _with_project(self, spec: ClusterSpec) -> ClusterSpec:
        """On gcp the project of the shell, where the file names none."""
        project = self._environ.get("GOOGLE_CLOUD_PROJECT", "").strip()
        if isinstance(spec, GcpSpec) and spec.network.project is None and project:
            return spec.model_copy(update={"network": spec.network.model_copy(update={"project": project})})
        return spec

    def _tell(self, problem: Problem, model: type[ClusterSpec]) -> None:
        name = problem.path[0] if problem.path else ""
        if name in self._from_variables:
            variable = self._from_variables[str(name)]
            message = f"{variable}: {problem.message}"
            self._elsewhere.append(Problem(reference=problem.reference, message=message, hint=problem.hint))
            return
        if problem.reference == "missing-field" and (model.PROVIDER, name) in FROM_VARIABLES:
            variables = FROM_VARIABLES[(model.PROVIDER, str(name))]
            problem = Problem(
                reference=problem.reference,
                message=f"{problem.message}, and {variables[0]} is not set",
                hint=problem.hint,
                path=problem.path,
                subject=problem.subject,
            )
        self._found.append((*self._document.locate(problem.path), problem))

    def _model(self, data: Mapping[str, Any]) -> type[ClusterSpec] | None:
        """The model of the provider that is said or was probably meant; None, with a problem, if nobody can tell."""
        provider = data.get("provider")
        if isinstance(provider, str) and provider in PROVIDERS:
            return PROVIDERS[provider]
        names = tuple(PROVIDERS)
        if provider is None:
            if not any(nearest(key, ("provider",)) for key in data if key not in _ALL_FIELDS):
                self._add("missing-field", '"provider" is missing', ("provider",), f"one of {', '.join(names)}")
            return None
        meant = nearest(provider, names) if isinstance(provider, str) else None
        meant = meant or (_ALSO_CALLED.get(provider.lower()) if isinstance(provider, str) else None)
        hint = f'did you mean "{meant}"?' if meant else "for example, provider: aws"
        shown = found(provider, self._document.written(("provider",)))
        self._add("unknown-value", f"expected {one_of(names)}, found {shown}", ("provider",), hint)
        return PROVIDERS[meant] if meant else None

    def _bounds(self, data: Mapping[str, Any]) -> Bounds | None:
        """The bounds, as far as the file's are numbers at all; what else they are is told already."""
        in_file = tuple(
            value if isinstance(value := data.get(name), int) and not isinstance(value, bool) and value >= 1 else None
            for name in bounds.FIELDS
        )
        hosts = data.get("hosts") if data.get("provider") == "machines" else None
        number = len(hosts) if isinstance(hosts, list) else None
        decided, problems = bounds.decide((in_file[0], in_file[1]), self._environ, self._flags, hosts=number)
        for problem in problems:
            if problem.path:
                self._add(problem.reference, problem.message, problem.path, problem.hint)
            else:
                self._elsewhere.append(problem)
        return decided

    def _index(self, spec: ClusterSpec) -> tuple[str | None, tuple[Problem, ...]]:
        if spec.index_url is not None:
            return spec.index_url, ()
        for variable in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
            url = self._environ.get(variable, "").strip()
            if url:
                scheme, mark, rest = url.partition("://")
                host, slash, path = rest.partition("/")
                if "@" not in host:
                    return url, ()
                message = f"user name and password in {variable} are not printed"
                note = Problem(
                    reference="password-left-out", message=message, hint="put them into the file that is handed over"
                )
                return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}", (note,)
        return None, ()

    def _notes(self, spec: ClusterSpec) -> tuple[Problem, ...]:
        notes = []
        if isinstance(spec, GcpSpec) and spec.network.project is None:
            message = "no project is named, and GOOGLE_CLOUD_PROJECT is not set: it is left open"
            hint = "add network: {project: my-project}"
            notes.append(self._note("project-left-open", message, ("network",), hint))
        if spec.storage.partition("://")[0] not in BUCKETS and spec.PROVIDER in ("aws", "gcp", "azure", "kubernetes"):
            message = f"{quoted(spec.storage)} is a directory, and new nodes share none by themselves"
            hint = f"a bucket, such as storage: {_BUCKET_OF.get(spec.PROVIDER, 's3')}://my-bucket/cortex"
            notes.append(self._note("storage-not-shared", message, ("storage",), hint))
        for path in (("ssh_key",), ("door", "tls", "cert"), ("door", "tls", "key"), ("network", "key_file")):
            value: Any = spec
            for part in path:
                value = getattr(value, part, None)
            if isinstance(value, str) and not self._is_there(value):
                message = f"there is no file {quoted(value)} that can be read"
                notes.append(
                    self._note("file-not-there", message, path, "relative paths begin at the folder of this file")
                )
        return tuple(notes)

    def _note(self, reference: str, message: str, path: Path, hint: str) -> Problem:
        line, column = self._document.locate(path)
        words = subject(path, self._data)
        note = Problem(reference=reference, message=message, hint=hint, path=path, subject=words)
        return with_place(note, f"{self._file}:{line}:{column}")


_ALL_FIELDS = frozenset(name for model in PROVIDERS.values() for name in model.model_fields)
_ALSO_CALLED = {
    **dict.fromkeys(("amazon", "ec2", "eks"), "aws"),
    **dict.fromkeys(("google", "gce", "gke"), "gcp"),
    **dict.fromkeys(("microsoft", "aks"), "azure"),
    **dict.fromkeys(("k8s", "kuberay"), "kubernetes"),
    **dict.fromkeys(("ssh", "local", "hosts", "bare-metal", "on-prem"), "machines"),
}
_BUCKET_OF = {"gcp": "gs", "azure": "az"}


def _is_kept_as_written(path: Path, value: object) -> bool:
    return path in KEPT_AS_WRITTEN and not isinstance(value, bool)
