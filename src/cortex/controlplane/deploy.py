"""
Taking a deploy in: check everything, say what changes, write the wanted state in one transaction.

Anything wrong, and nothing is changed. Models and handlers are looked at in children of the node's launcher, through
the agent: users' code never runs here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Protocol

import msgspec
from pydantic import ValidationError

from cortex.artifacts.store import ArtifactStore
from cortex.clock import Clock
from cortex.controlplane import changes
from cortex.controlplane.agents import CalledOff
from cortex.controlplane.fetching import DeployLeft, Models
from cortex.controlplane.packages import DeployPackages, Packages
from cortex.controlplane.secrets import CloudKeys, pinned, stored_builds
from cortex.controlplane.versions import revision_of, trees_of, version_of
from cortex.engines.base import Engine
from cortex.errors import CortexError, Problem, Problems
from cortex.ids import DEFAULT_DEPLOYMENT, ApiKey, DeploymentName, Version, api_key, route_path, split_api_key
from cortex.planning.batching import Decision, Known, disagreement_text, place_of
from cortex.planning.model import WantedApi
from cortex.settings import Settings
from cortex.spec.effects import not_in_effect
from cortex.spec.locations import masked_model
from cortex.spec.models import ApiSpec, ProjectSpec, SecretRef
from cortex.spec.problems import nearest
from cortex.state.base import ApiRecord, DeployChange, DeploymentRecord, StateStore, VersionRecord
from cortex.state.secrets import SecretStore
from cortex.wire.batching import Disagreement, Mode
from cortex.wire.build import BuildSpec, ModelArtifact, ModelKey, Resources, Sample, TrackerConfig
from cortex.wire.fetch import Fetched
from cortex.wire.launch import InspectReport
from cortex.wire.operator import (
    ApiChange,
    ApiUpload,
    ChangeKind,
    DeployProgress,
    DeployRequest,
    DeployResult,
    ModelUpload,
    SampleUpload,
    StoredFile,
)

MAX_SAMPLE_BYTES = 16 * 2**20
"""A sample travels inside orders and is kept with each version; one that shows what works is far smaller."""
INSPECTIONS_AT_ONCE = 4
"""Each is a process that loads a model; more at once only compete for the same cores."""

WAITING_SAID_S = 1.0
"""How often a deploy that waits for another one says so, and notices that nobody waits for it any more."""

Emit = Callable[[DeployProgress], None]


class Inspector(Protocol):
    """
    Looks at a build in a child of the node, and at its model's rows if it is said how, until the event is set.

    `keep`: a replica of it is about to be started. Raises CortexError when the node cannot be asked.
    """

    def __call__(self, build: BuildSpec, rows: Mode, left: threading.Event, /, *, keep: bool) -> InspectReport: ...


class Deployer:
    """
    Takes deploys in: of each deployment one at a time, of several side by side.

    Args:
        models: fetches the remote ones.
        packages: resolves and prepares what requirements.txt asks for.
        secrets: what `env` may name.
        cloud: keeps what handlers get to reach their clouds.
        committed: called after the wanted state has changed.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        state: StateStore,
        store: ArtifactStore,
        engine: Engine,
        clock: Clock,
        inspect: Inspector,
        models: Models,
        packages: Packages,
        secrets: SecretStore,
        cloud: CloudKeys,
        committed: Callable[[], None],
        ingress_url: Callable[[], str],
    ) -> None:
        self._settings = settings
        self._state = state
        self._store = store
        self._engine = engine
        self._clock = clock
        self._inspect = inspect
        self._models = models
        self._packages = packages
        self._secrets = secrets
        self._cloud = cloud
        self._committed = committed
        self._ingress_url = ingress_url
        self._turns: dict[DeploymentName, threading.Lock] = {}
        """Held by who deploys: what a deploy takes for known of its deployment stays so until it is written."""

    def deploy(
        self, name: str, request: DeployRequest, emit: Emit, left: threading.Event | None = None
    ) -> DeployResult:
        """
        Check a deploy and, unless it is a dry run, write it.

        Args:
            left: set when nobody waits for the result any more, which ends the deploy: nobody wants an installer or an
                import to go on that was called off. Where nothing takes long it is not looked at, and what is accepted
                stays so.

        Raises:
            Problems: something is wrong with it; nothing was changed.
            DeployLeft: nothing was changed either.
        """
        deployment = DeploymentName(name)
        specs = _validated(request.apis)
        self._guard_folder(deployment, request, self._known(deployment))
        with self._store.pin() as pin:
            left = left or threading.Event()
            fetched = self._models.of_deploy(specs, request, emit, left, pin)
            emit = _while_awaited(emit, left)
            turn = self._turns.setdefault(deployment, threading.Lock())
            if not turn.acquire(blocking=False):
                waiting = DeployProgress(message=f"waiting for another deploy of {deployment}")
                emit(waiting)
                while not turn.acquire(timeout=WAITING_SAID_S):
                    emit(waiting)
            try:
                return self._deploy(deployment, specs, _with_models(request, fetched), fetched, emit, left)
            finally:
                turn.release()

    def _known(self, deployment: DeploymentName) -> dict[ApiKey, ApiRecord]:
        return {record.wanted.api: record for record in self._state.apis(deployment)}

    def _deploy(
        self,
        deployment: DeploymentName,
        specs: Sequence[ApiSpec],
        request: DeployRequest,
        fetched: Mapping[int, Fetched],
        emit: Emit,
        left: threading.Event,
    ) -> DeployResult:
        known = self._known(deployment)
        self._guard_folder(deployment, request, known)
        if request.indexes is not None:
            self._packages.take_over(request.indexes)
        records, package_warnings = self._records(deployment, specs, request, known, emit)
        records = [
            msgspec.structs.replace(record, origin=fetched[index].origin) if index in fetched else record
            for index, record in enumerate(records)
        ]
        self._check_room(records)
        with self._store.pin(*(tree for record in records for tree in trees_of(record.wanted.build))):
            self._packages.prepare((record.wanted.build for record in records), _telling(emit))
            inspected, warnings = self._inspect_new(records, known, emit, left, keep=not request.dry_run)
            warnings += package_warnings
            return self._commit(deployment, specs, request, known, inspected, warnings)

    def _commit(
        self,
        deployment: DeploymentName,
        specs: Sequence[ApiSpec],
        request: DeployRequest,
        known: Mapping[ApiKey, ApiRecord],
        inspected: Sequence[ApiRecord],
        warnings: list[Problem],
    ) -> DeployResult:
        """Say what changes, and unless it is a dry run, change it."""
        wall_s = self._clock.wall_s()
        told = [
            self._change(record, known.get(record.wanted.api), upload)
            for record, upload in zip(inspected, request.apis, strict=True)
        ]
        gone = [changes.removed(known[key]) for key in sorted(known.keys() - {r.wanted.api for r in inspected})]
        warnings += not_in_effect(ProjectSpec(deployment=deployment, apis=tuple(specs)))
        result = DeployResult(changes=(*told, *gone), warnings=tuple(warnings), committed=not request.dry_run)
        if request.dry_run:
            return result
        self._models.keep_cloud(request)
        self._state.commit_deploy(
            DeployChange(
                deployment=DeploymentRecord(
                    name=deployment,
                    source=request.source,
                    updated_wall_s=self._updated_wall_s(deployment, result, wall_s),
                ),
                apis=tuple(_dated(r, c, known.get(r.wanted.api), wall_s) for r, c in zip(inspected, told, strict=True)),
                versions=tuple(_history(inspected, told, wall_s)),
            )
        )
        self._committed()
        return result

    def _updated_wall_s(self, deployment: DeploymentName, result: DeployResult, wall_s: float) -> float:
        """When something of it changed, as for its apis; not when the same was deployed again."""
        before = next((known for known in self._state.deployments() if known.name == deployment), None)
        changes_something = any(change.kind is not ChangeKind.UNCHANGED for change in result.changes)
        return wall_s if before is None or changes_something else before.updated_wall_s

    # ---- from a request to records ------------------------------------------------------------------------------

    def _records(
        self,
        deployment: DeploymentName,
        specs: Sequence[ApiSpec],
        request: DeployRequest,
        known: Mapping[ApiKey, ApiRecord],
        emit: Emit,
    ) -> tuple[list[ApiRecord], tuple[Problem, ...]]:
        """The records of all apis, and warnings. Raises Problems with what is wrong with any of them."""
        project = self._store_project(request)
        settled, resolved_anew = (
            self._packages.of_deploy(project, request.project, refresh=refresh, tell=_telling(emit))
            for refresh in (False, True)
        )
        records: dict[int, ApiRecord] = {}
        problems: list[Problem] = []
        numbered = list(enumerate(zip(specs, request.apis, strict=True)))
        # The refreshed come last: the others recall what was resolved before, not what is resolved now.
        for index, (spec, upload) in sorted(numbered, key=lambda each: _is_refreshed(each[1][0], request)):
            key = api_key(deployment, spec.name)
            packages = resolved_anew if _is_refreshed(spec, request) else settled
            try:
                records[index] = self._record(key, spec, upload, request, project, packages, known.get(key))
            except Problems as error:
                problems += [msgspec.structs.replace(p, path=("apis", index, *p.path)) for p in error.problems]
        if problems:
            raise Problems(problems)
        return [records[index] for index in sorted(records)], settled.warnings

    def _record(
        self,
        key: ApiKey,
        spec: ApiSpec,
        upload: ApiUpload,
        request: DeployRequest,
        project: str | None,
        packages: DeployPackages,
        old: ApiRecord | None,
    ) -> ApiRecord:
        model = self._store_model(spec, upload)
        tracker = None
        if spec.tracker is not None:
            tracker = TrackerConfig(model_type=spec.tracker.model_type, key=spec.tracker.key)
        env = {name: value for name, value in spec.env.items() if isinstance(value, str)}
        secrets = {name: value.secret for name, value in spec.env.items() if isinstance(value, SecretRef)}
        refresh = (old.refresh if old else 0) + (1 if _is_refreshed(spec, request) else 0)
        handler = spec.request_handler
        if handler is not None:
            _check_handler_is_there(spec, handler, request)
        if upload.sample is not None:
            _check_sample(spec, upload.sample)
        pinned(self._secrets, secrets, api=spec.name)  # a missing one is told before anything takes long
        before = stored_builds(old) if old else ()
        settled = packages.of(model.format, old.packages if old else None) if handler else None
        version = version_of(
            model=model,
            project=project if handler else None,
            handler=handler,
            tracker=tracker,
            env=env,
            batching=spec.batching,
            refresh=refresh,
            secrets=secrets,
            environment=settled.environment if settled else None,
        )
        resources = Resources(
            cpu_millis=spec.compute.cpu_millis, mem_bytes=spec.compute.mem_bytes, gpus=spec.compute.gpu
        )
        sample = upload.sample
        cloud = self._cloud.pinned(key, request.cloud, old.wanted.build if old else None) if handler else None
        build = BuildSpec(
            api=key,
            version=version,
            revision=revision_of(version, resources, spec.compute.concurrency, cloud),
            model=model,
            project=project if handler else None,
            handler=handler,
            tracker=tracker,
            env=env,
            secrets=pinned(
                self._secrets, secrets, [build for build in before if build.version == version], api=spec.name
            ),
            cloud=cloud,
            environment=settled.environment if settled else None,
            batching=spec.batching != "off",
            trust_rows=spec.batching == "on",
            concurrency=spec.compute.concurrency,
            resources=resources,
            sample=None
            if sample is None
            else Sample(body=sample.body, content_type=sample.content_type, gate=sample.gate, timeout_s=spec.timeout_s),
        )
        wanted = WantedApi(
            api=key,
            build=build,
            replicas=_replicas(spec, old),
            min_replicas=spec.compute.min_replicas,
            max_replicas=spec.compute.max_replicas,
            path=route_path(key),
            timeout_s=spec.timeout_s,
            max_body_bytes=spec.max_body_bytes,
            retry=spec.retry == "on",
            force=request.force,
        )
        shown = spec.model_dump(mode="json")
        shown["model"] = masked_model(spec.model)
        return ApiRecord(
            wanted=wanted,
            spec=shown,
            inspection=InspectReport(),
            refresh=refresh,
            project=request.project if handler else (),
            model_files=upload.model.files if upload.model else (),
            model_note=upload.model.note if upload.model else "",
            packages=settled,
        )

    def _store_project(self, request: DeployRequest) -> str | None:
        if not request.project:
            return None
        return self._store_tree(request.project, "project")

    def _store_model(self, spec: ApiSpec, upload: ApiUpload) -> ModelArtifact:
        if upload.model is None:
            raise _problem(
                spec,
                "model",
                "model-not-available",
                f"{masked_model(spec.model)} was not uploaded",
                hint="deploy with `cortex deploy`, which uploads it",
            )
        _check_entry(spec, upload.model)
        tree = self._store_tree(upload.model.files, f'model of api "{spec.name}"')
        return ModelArtifact(
            format=upload.model.format,
            tree=tree,
            entry=upload.model.entry,
            signature_key=spec.tf_signature_key,
            source=masked_model(spec.model),
        )

    def _store_tree(self, files: Sequence[StoredFile], what: str) -> str:
        missing = set(self._store.missing([file.sha256 for file in files]))
        if missing:
            names = ", ".join(sorted(file.path for file in files if file.sha256 in missing)[:5])
            raise Problems(
                [
                    Problem(
                        reference="blobs-missing",
                        message=f"the {what} was not uploaded completely: {names}",
                        hint="deploy again",
                    )
                ]
            )
        return self._store.put_tree(files)

    # ---- checks -------------------------------------------------------------------------------------------------

    def _guard_folder(
        self, deployment: DeploymentName, request: DeployRequest, known: Mapping[ApiKey, ApiRecord]
    ) -> None:
        """A deployment belongs to the folder it came from: another folder must not remove its apis unasked."""
        if request.prune:
            return
        before = next((d for d in self._state.deployments() if d.name == deployment), None)
        if before is None or before.source == request.source:
            return
        lost = known.keys() - {api_key(deployment, str(upload.spec.get("name"))) for upload in request.apis}
        if lost:
            names = ", ".join(sorted(split_api_key(key)[1] for key in lost))
            raise Problems(
                [
                    Problem(
                        reference="from-another-folder",
                        message=f"deployment `{deployment}` came from {before.source}; deploying {request.source} "
                        f"would remove {names}",
                        hint=f"{_how_to_part(deployment)}, or pass --prune to remove them",
                    )
                ]
            )

    def _check_room(self, records: Sequence[ApiRecord]) -> None:
        """What no empty machine could hold is refused at once: a replica, or the minimum of an api."""
        problems = []
        for index, record in enumerate(records):
            wanted = record.wanted
            reason = self._engine.impossible(wanted.build.resources, max(1, wanted.min_replicas))
            if reason is not None:
                name = split_api_key(record.wanted.api)[1]
                problems.append(
                    Problem(
                        reference="compute-unavailable",
                        message=reason,
                        subject=f'api "{name}": compute',
                        path=("apis", index, "compute"),
                        hint="ask for less, or use a larger machine"
                        if not record.wanted.build.resources.gpus
                        else "ask for less, or use a machine with GPUs: those count that `nvidia-smi -L` lists there "
                        "as Cortex starts",
                    )
                )
        if problems:
            raise Problems(problems)

    def _inspect_new(
        self,
        records: Sequence[ApiRecord],
        known: Mapping[ApiKey, ApiRecord],
        emit: Emit,
        left: threading.Event,
        *,
        keep: bool,
    ) -> tuple[list[ApiRecord], list[Problem]]:
        """
        Have each version looked at that has not been before.

        Args:
            keep: replicas of them are about to be started.

        Raises:
            Problems: all that is wrong.
            DeployLeft: nobody waits any more; what was being looked at has been ended.
        """
        reports: dict[Version, InspectReport] = {}
        todo: dict[Version, ApiRecord] = {}
        for record in records:
            old = known.get(record.wanted.api)
            version = record.wanted.build.version
            if old is not None and old.wanted.build.version == version and old.inspection.signature is not None:
                reports[version] = old.inspection
            elif version not in reports:
                todo.setdefault(version, record)
        for version in reports:
            todo.pop(version, None)
        problems: list[Problem] = []
        warnings: list[Problem] = []
        rows = asked_of_rows([record.wanted.build for record in todo.values()], Known(self._state.batching()))
        with ThreadPoolExecutor(INSPECTIONS_AT_ONCE, thread_name_prefix="inspect") as pool:
            futures = {
                pool.submit(self._inspect, record.wanted.build, rows[version], left, keep=keep): version
                for version, record in todo.items()
            }
            for done, future in enumerate(as_completed(futures)):
                version = futures[future]
                key = todo[version].wanted.api
                try:
                    report = future.result()
                except CalledOff:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise DeployLeft("the deploy was called off") from None
                except CortexError as error:
                    report = InspectReport(problems=(error.problem(),))
                emit(
                    DeployProgress(
                        message=_checked(todo[version].wanted.build, report),
                        api=split_api_key(key)[1],
                        done=done + 1,
                        total=len(todo),
                    )
                )
                if report.batching is not None:  # it is kept by model, whatever becomes of this version
                    build = todo[version].wanted.build
                    self._state.record_verdict(build.model_key, report.batching, place=place_of(build))
                reports[version] = msgspec.structs.replace(report, batching=None)
        of_rows = Known(self._state.batching())
        for index, record in enumerate(records):
            report = reports[record.wanted.build.version]
            subject = f'api "{split_api_key(record.wanted.api)[1]}"'
            path = ("apis", index)
            problems += [_placed(problem, subject=subject, path=path) for problem in report.problems]
            if record.wanted.build.version in todo:
                decision = of_rows.decision(record.wanted.build)
                if decision.disagreement is not None:
                    refused = decision.mode == "on" and decision.stop is None
                    found = _placed(_contradiction(decision, decision.disagreement), subject=subject, path=path)
                    (problems if refused else warnings).append(found)
                warnings += [_placed(problem, subject=subject, path=path) for problem in report.warnings]
        if problems:
            raise Problems(problems)
        inspected = [msgspec.structs.replace(r, inspection=reports[r.wanted.build.version]) for r in records]
        return inspected, warnings

    def _change(self, record: ApiRecord, old: ApiRecord | None, upload: ApiUpload) -> ApiChange:
        endpoint = self._ingress_url() + route_path(record.wanted.api)
        change = changes.describe(old, record, endpoint=endpoint)
        notes = [f"model: {upload.model.note}"] if upload.model is not None and upload.model.note else []
        notes += record.inspection.notes
        if change.kind in (ChangeKind.ADDED, ChangeKind.NEW_VERSION):
            decision = Known(self._state.batching()).decision(record.wanted.build)
            # A disagreement is a warning, and batches are what everybody expects.
            if decision.mode == "auto" and not decision.order.batches and decision.disagreement is None:
                notes.append(decision.text)
        untried = (
            change.kind is ChangeKind.SETTINGS
            and changes.SAMPLE_CHANGED in change.causes
            and record.wanted.build.sample is not None
        )
        if untried:
            name = "/".join(split_api_key(record.wanted.api))
            notes.append(f"the new sample is tried when a replica starts next: `cortex refresh {name}` does it now")
        return msgspec.structs.replace(change, notes=tuple(notes), sample_untried=untried)


def asked_of_rows(builds: Iterable[BuildSpec], known: Known) -> dict[Version, Mode]:
    """
    What the inspection of each version is asked about its model's rows: what is not known, and of each model once.

    Where a trial speaks against batches it is made again: what it ran on may be another runtime by now.
    """
    asked: dict[Version, Mode] = {}
    said: set[tuple[ModelKey, str, Mode]] = set()
    for build in builds:
        decision = known.decision(build)
        contradicted = decision.stop is None and decision.disagreement is not None
        rows = decision.mode if contradicted else known.to_be_asked(build)
        asked[build.version] = "off" if (build.model_key, place_of(build), rows) in said else rows
        said.add((build.model_key, place_of(build), rows))
    return asked


def _contradiction(decision: Decision, disagreement: Disagreement) -> Problem:
    """What there is to say where rows disagreed: against the user's word, or against what was proved."""
    seen = "in a replica" if decision.stop is not None else "when they were tried"
    return Problem(
        reference="batching-contradicted",
        message=f"requests are not batched, as rows disagreed {seen}: {disagreement_text(disagreement)}",
        subject="batching",
        path=("batching",),
        hint="write batching: auto, which batches only what is proved"
        if decision.mode == "on"
        else "nothing is wrong with your model; that it was proved is a fault of Cortex, please report it",
    )


def _with_models(request: DeployRequest, fetched: Mapping[int, Fetched]) -> DeployRequest:
    """The request as if its remote models had been uploaded."""
    if not fetched:
        return request
    apis = tuple(
        msgspec.structs.replace(upload, model=fetched[index].model) if index in fetched else upload
        for index, upload in enumerate(request.apis)
    )
    return msgspec.structs.replace(request, apis=apis)


def _validated(uploads: Sequence[ApiUpload]) -> list[ApiSpec]:
    """The specs of a request, checked again: a client is not trusted to have done it."""
    specs, problems = [], []
    names: set[str] = set()
    for index, upload in enumerate(uploads):
        try:
            spec = ApiSpec.model_validate(upload.spec)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                place = ": ".join(str(part) for part in detail["loc"])
                problems.append(
                    Problem(
                        reference="invalid-spec", message=f"{place}: {detail['msg']}", subject=f"api at index {index}"
                    )
                )
            continue
        if spec.name in names:
            problems.append(
                Problem(reference="duplicate-name", message=f'two apis are named "{spec.name}"', path=("apis", index))
            )
        names.add(spec.name)
        specs.append(spec)
    if problems:
        raise Problems(problems)
    return specs


def _replicas(spec: ApiSpec, old: ApiRecord | None) -> int:
    """
    `init_replicas` matters only when an api is first created; a redeploy keeps the count, within the bounds.

    A count that stood at the old minimum follows the minimum, down as well as up.
    """
    compute = spec.compute
    if old is None:
        wanted = compute.init_replicas or compute.min_replicas
    elif old.wanted.replicas == old.wanted.min_replicas:
        wanted = compute.min_replicas
    else:
        wanted = old.wanted.replicas
    return max(compute.min_replicas, min(compute.max_replicas, wanted))


def _is_refreshed(spec: ApiSpec, request: DeployRequest) -> bool:
    return request.refresh and request.refresh_only in ("", spec.name)


def _check_handler_is_there(spec: ApiSpec, handler: str, request: DeployRequest) -> None:
    paths = [file.path for file in request.project]
    if handler not in paths:
        near = nearest(handler, [path for path in paths if path.endswith(".py")])
        raise _problem(
            spec,
            "request_handler",
            "handler-not-found",
            f"{handler} is not in {request.source}, or is left out by .cortexignore",
            hint=f"did you mean {near}?" if near else "",
        )


def _check_entry(spec: ApiSpec, model: ModelUpload) -> None:
    """What is loaded lies among the stored files: nothing else on this machine may be reached by a path."""
    paths = [file.path for file in model.files]
    inside = model.entry in paths or any(path.startswith(f"{model.entry}/") for path in paths)
    if not inside and not (model.entry == "." and paths):
        raise _problem(spec, "model", "bad-request", f"{model.entry!r} is not among the model's files")


def _check_sample(spec: ApiSpec, sample: SampleUpload) -> None:
    if len(sample.body) > MAX_SAMPLE_BYTES:
        raise _problem(
            spec,
            "sample",
            "sample-too-large",
            f"the sample has {len(sample.body)} bytes, at most {MAX_SAMPLE_BYTES} are taken",
            hint="use a smaller one that the handler takes: it is asked of every new replica",
        )
    if sample.gate and len(sample.body) > spec.max_body_bytes:
        raise _problem(
            spec,
            "sample",
            "sample-too-large",
            f"the sample has {len(sample.body)} bytes, and `max_body` takes no more than {spec.max_body_bytes}",
            hint="raise `max_body:`, or use a smaller sample",
        )


def _checked(build: BuildSpec, report: InspectReport) -> str:
    """What was looked at, and whether anything is wrong with it."""
    what = "model and handler" if build.handler is not None else "model"
    return f"found fault with {what}" if report.problems else f"checked {what}"


def _while_awaited(emit: Emit, left: threading.Event) -> Emit:
    """Tells progress, or ends the deploy when nobody waits for it. Raises DeployLeft."""

    def emit_or_end(event: DeployProgress) -> None:
        if left.is_set():
            raise DeployLeft("the deploy was called off")
        emit(event)

    return emit_or_end


def _telling(emit: Emit) -> Callable[[str], None]:
    return lambda message: emit(DeployProgress(message=message))


def _dated(record: ApiRecord, change: ApiChange, old: ApiRecord | None, wall_s: float) -> ApiRecord:
    """`last_updated` is when something changed, not when the same was deployed again."""
    deployed = wall_s if old is None or change.kind is not ChangeKind.UNCHANGED else old.wanted.deployed_wall_s
    return msgspec.structs.replace(record, wanted=msgspec.structs.replace(record.wanted, deployed_wall_s=deployed))


def _history(records: Sequence[ApiRecord], told: Sequence[ApiChange], wall_s: float) -> Iterator[VersionRecord]:
    for record, change in zip(records, told, strict=True):
        if change.kind in (ChangeKind.ADDED, ChangeKind.NEW_VERSION):
            yield VersionRecord(
                api=record.wanted.api,
                version=record.wanted.build.version,
                revision=record.wanted.build.revision,
                deployed_wall_s=wall_s,
                cause=", ".join(change.causes) or "first deploy",
                trees=trees_of(record.wanted.build),
            )


def _how_to_part(deployment: DeploymentName) -> str:
    """What to write into a cortex.yaml whose deployment another folder has."""
    if deployment == DEFAULT_DEPLOYMENT:
        return "name this group of apis: add\n    - kind: deployment\n      name: <name>\nto this cortex.yaml"
    return "name this group of apis otherwise: change `name` below `kind: deployment` of this cortex.yaml"


def _placed(problem: Problem, *, subject: str, path: tuple[str | int, ...]) -> Problem:
    return msgspec.structs.replace(
        problem,
        subject=f"{subject}: {problem.subject}" if problem.subject else subject,
        path=(*path, *problem.path),
    )


def _problem(spec: ApiSpec, field: str, reference: str, message: str, *, hint: str = "") -> Problems:
    subject = f'api "{spec.name}": {field}'
    return Problems([Problem(reference=reference, message=message, subject=subject, path=(field,), hint=hint)])
