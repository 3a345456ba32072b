"""
Taking a deploy in: check everything, say what changes, write the wanted state in one transaction.

Anything wrong, and nothing is changed. What each api would be comes from `candidates`, what is known of it from
`inspecting`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import msgspec
from pydantic import ValidationError

from cortex.artifacts.pins import Pin
from cortex.artifacts.store import ArtifactStore
from cortex.clock import Clock
from cortex.controlplane import changeovers, changes
from cortex.controlplane.candidates import AskedApi, Candidates
from cortex.controlplane.changeovers import ChangeOvers, Planned
from cortex.controlplane.fetching import DeployLeft, Models
from cortex.controlplane.inspecting import DeployInspections, Inspector
from cortex.controlplane.packages import Packages
from cortex.controlplane.secrets import CloudKeys
from cortex.engines.base import Engine
from cortex.errors import Problem, Problems
from cortex.ids import DEFAULT_DEPLOYMENT, ApiKey, DeploymentName, api_key, route_path, split_api_key
from cortex.planning import happenings
from cortex.planning.batching import Known
from cortex.spec.locations import is_remote, masked_model
from cortex.spec.models import ApiSpec, ProjectSpec
from cortex.state.base import ApiRecord, DeployChange, DeployedApi, DeploymentRecord, VersionRecord
from cortex.state.records import StateStore
from cortex.state.secrets import SecretStore
from cortex.wire.events import TellEvent, told_to_nobody
from cortex.wire.fetch import Fetched
from cortex.wire.operator import (
    ApiChange,
    ApiUpload,
    ChangeKind,
    DeployProgress,
    DeployRequest,
    DeployResult,
)

WAITING_SAID_S = 1.0
"""How often a deploy that waits for another one says so, and notices that nobody waits for it any more."""

Emit = Callable[[DeployProgress], None]
_NOTHING_NEW = frozenset((ChangeKind.UNCHANGED, ChangeKind.LEFT))


class Deployer:
    """
    Takes deploys in: of each deployment one at a time, of several side by side.

    Args:
        models: fetches the remote ones.
        packages: resolves and prepares what requirements.txt asks for.
        secrets: what `env` may name.
        cloud: keeps what handlers get to reach their clouds.
        change_overs: proves them, where that is asked for.
        committed: called after the wanted state has changed.
        last_start_s: what the last start of a replica of an api took; None: not known.
    """

    def __init__(
        self,
        *,
        state: StateStore,
        store: ArtifactStore,
        engine: Engine,
        clock: Clock,
        inspect: Inspector,
        models: Models,
        packages: Packages,
        secrets: SecretStore,
        cloud: CloudKeys,
        change_overs: ChangeOvers,
        committed: Callable[[], None],
        ingress_url: Callable[[], str],
        tell: TellEvent = told_to_nobody,
        last_start_s: Callable[[ApiKey], float | None] = lambda _: None,
    ) -> None:
        self._state = state
        self._store = store
        self._engine = engine
        self._clock = clock
        self._inspections = DeployInspections(state=state, inspect=inspect)
        self._models = models
        self._packages = packages
        self._candidates = Candidates(store=store, packages=packages, secrets=secrets, cloud=cloud)
        self._change_overs = change_overs
        self._committed = committed
        self._ingress_url = ingress_url
        self._tell = tell
        self._last_start_s = last_start_s
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
        specs = _validated(deployment, request.apis)
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
                return self._deploy(deployment, specs, _with_models(request, fetched), fetched, emit, left, pin)
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
        pin: Pin,
    ) -> DeployResult:
        known = self._known(deployment)
        self._guard_folder(deployment, request, known)
        if request.indexes is not None:
            self._packages.take_over(request.indexes)
        asked = self._fetched_again(self._asked(deployment, specs, request, known), request, emit, left, pin)
        candidates, package_warnings = self._candidates.of_deploy(asked, request, _telling(emit))
        candidates = [_with_origin(one, fetched.get(index)) for index, one in enumerate(candidates)]
        self._check_room(candidates)
        self._planned(candidates, asked, request)
        builds = [candidate.version.build for candidate in candidates]
        with self._store.pin(*(tree for build in builds for tree in build.trees)):
            self._packages.prepare(builds, _telling(emit))
            inspected, warnings = self._inspections.of_deploy(candidates, known, emit, left, keep=not request.dry_run)
            warnings += package_warnings
            warnings += self._too_impatient(inspected)
            result = DeployResult(
                changes=tuple(self._changes(inspected, asked, known)),
                warnings=tuple(warnings),
                committed=not request.dry_run,
            )
            planned = self._planned(inspected, asked, request)
            if request.prove:
                result = _with_proofs(result, planned)
            if request.dry_run:
                return result
            self._store.keep(tree for one in inspected for tree in one.version.build.trees)
            self._models.keep_cloud(request)
            beginning = self._change_overs.begin([one for one in planned if isinstance(one, Planned)], emit)
            begun_s = self._clock.monotonic_s()
            with beginning:
                result, left_alone = self._commit(
                    deployment, request.source, known, inspected, result, in_proof=beginning.apis
                )
                beginning.go_on(begun_s, left_alone)
            return result

    def _asked(
        self,
        deployment: DeploymentName,
        specs: Sequence[ApiSpec],
        request: DeployRequest,
        known: Mapping[ApiKey, ApiRecord],
    ) -> list[AskedApi]:
        keyed = (
            (api_key(deployment, spec.name), spec, upload) for spec, upload in zip(specs, request.apis, strict=True)
        )
        return [
            AskedApi(
                key=key,
                spec=spec,
                upload=upload,
                old=known.get(key),
                last_refresh=self._state.refreshes(key),
                passed=self._passed(known.get(key)),
            )
            for key, spec, upload in keyed
        ]

    def _passed(self, old: ApiRecord | None) -> tuple[VersionRecord, ...]:
        """What an api was rolled back from, the latest first; empty where it did not come to that."""
        if old is None or old.wanted.rolled_back is None:
            return ()
        if old.wanted.failed is not None or old.wanted.rolled_back.excuse:
            return ()
        kept = {one.build.revision: one for one in self._state.versions() if one.build.api == old.wanted.api}
        return tuple(kept[revision] for revision in reversed(old.wanted.rolled_back.passed) if revision in kept)

    def _fetched_again(
        self, asked: Sequence[AskedApi], request: DeployRequest, emit: Emit, left: threading.Event, pin: Pin
    ) -> list[AskedApi]:
        """With the remote models of versions that were rolled back to and are to be refreshed."""
        sources = {
            index: source
            for index, one in enumerate(asked)
            if one.passed and request.refreshes(one.spec.name) and not request.force and (source := _source(one))
        }
        specs = [asked[index].spec.model_copy(update={"model": source}) for index, source in sources.items()]
        uploads = tuple(msgspec.structs.replace(asked[index].upload, model=None) for index in sources)
        fetched = self._models.of_deploy(specs, msgspec.structs.replace(request, apis=uploads), emit, left, pin)
        by_index = {index: fetched.get(number) for number, index in enumerate(sources)}
        return [msgspec.structs.replace(one, fetched_again=by_index.get(index)) for index, one in enumerate(asked)]

    def _changes(
        self, inspected: Sequence[DeployedApi], asked: Sequence[AskedApi], known: Mapping[ApiKey, ApiRecord]
    ) -> Iterator[ApiChange]:
        """What becomes of each api: of those that stay in their sequence, then of those that go."""
        for one, of_api in zip(inspected, asked, strict=True):
            yield self._change(one, of_api)
        for key in sorted(known.keys() - {one.settings.api for one in inspected}):
            yield changes.removed(known[key])

    def _planned(
        self, candidates: Sequence[DeployedApi], asked: Sequence[AskedApi], request: DeployRequest
    ) -> list[Planned | str]:
        """
        What is to be proved of each api, or why nothing is; empty where that is not asked for.

        Raises:
            Problems: it cannot be.
        """
        if not request.prove:
            return []
        kinds = [self._change(one, of_api).kind for one, of_api in zip(candidates, asked, strict=True)]
        found = [
            changeovers.planned_of(one, kind, of_api.old)
            for one, kind, of_api in zip(candidates, kinds, asked, strict=True)
        ]
        proved = [
            (index, one, candidates[index].settings.retry)
            for index, one in enumerate(found)
            if isinstance(one, Planned) and not one.why_not
        ]
        if problems := changeovers.refusals(proved, even_unrepeatable=request.prove_unrepeatable):
            raise Problems(problems)
        return found

    def _commit(
        self,
        deployment: DeploymentName,
        source: str,
        known: Mapping[ApiKey, ApiRecord],
        inspected: Sequence[DeployedApi],
        result: DeployResult,
        *,
        in_proof: Collection[ApiKey],
    ) -> tuple[DeployResult, Collection[ApiKey]]:
        """Write it. The result, and what went back to an older version meanwhile, and was left as it is."""
        wall_s = self._clock.wall_s()
        updated_wall_s = self._updated_wall_s(deployment, result, wall_s)
        told = zip(inspected, result.changes, strict=False)  # those that go come last
        left = self._state.commit_deploy(
            DeployChange(
                deployment=DeploymentRecord(name=deployment, source=source, updated_wall_s=updated_wall_s),
                apis=tuple(
                    msgspec.structs.replace(
                        _to_write(one, change, known.get(one.settings.api), wall_s),
                        in_proof=one.settings.api in in_proof,
                    )
                    for one, change in told
                ),
                wall_s=wall_s,
            )
        )
        self._tell_changes(deployment, result.changes, known, left)
        self._committed()
        names = {split_api_key(key)[1]: record for key in left if (record := self._state.api(key)) is not None}
        if not names:
            return result, left
        became = (changes.left_meanwhile(names[one.api], one) if one.api in names else one for one in result.changes)
        return msgspec.structs.replace(result, changes=tuple(became)), left

    def _tell_changes(
        self,
        deployment: DeploymentName,
        told: Sequence[ApiChange],
        known: Mapping[ApiKey, ApiRecord],
        left: Collection[ApiKey],
    ) -> None:
        """Args: `left`: what went back to an older version meanwhile."""
        for change in told:
            key = api_key(deployment, change.api)
            before, now = known.get(key), self._state.api(key)
            if key in left:
                continue
            rescaled = None
            if before is not None and now is not None:
                rescaled = happenings.rescaled(key, before.wanted.scale, now.wanted.scale)
            for event in (happenings.deployed(key, change), rescaled):
                if event is not None:
                    self._tell(event)

    def _updated_wall_s(self, deployment: DeploymentName, result: DeployResult, wall_s: float) -> float:
        """When something of it changed, as for its apis; not when the same was deployed again."""
        before = next((known for known in self._state.deployments() if known.name == deployment), None)
        changes_something = any(change.kind not in _NOTHING_NEW for change in result.changes)
        return wall_s if before is None or changes_something else before.updated_wall_s

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

    def _check_room(self, candidates: Sequence[DeployedApi]) -> None:
        """What no empty machine could hold is refused at once: a replica, or the minimum of an api."""
        problems = []
        for index, candidate in enumerate(candidates):
            resources = candidate.version.build.resources
            reason = self._engine.impossible(resources, max(1, candidate.settings.min_replicas))
            if reason is not None:
                name = split_api_key(candidate.settings.api)[1]
                problems.append(
                    Problem(
                        reference="compute-unavailable",
                        message=reason,
                        subject=f'api "{name}": compute',
                        path=("apis", index, "compute"),
                        hint="ask for less, or use a larger machine"
                        if not resources.gpus
                        else "ask for less, or use a machine with GPUs: those count that `nvidia-smi -L` lists there "
                        "as Cortex starts",
                    )
                )
        if problems:
            raise Problems(problems)

    def _too_impatient(self, candidates: Sequence[DeployedApi]) -> Iterator[Problem]:
        """Of apis that may sleep: whoever wakes one waits for no longer than its `timeout`."""
        for index, candidate in enumerate(candidates):
            settings = candidate.settings
            start_s = self._last_start_s(settings.api) if settings.min_replicas == 0 else None
            if start_s is not None and start_s > settings.timeout_s:
                yield Problem(
                    reference="timeout-shorter-than-start",
                    message=f"its last start took {start_s:.1f} s, longer than its `timeout` of "
                    f"{settings.timeout_s:g} s: who wakes it is told 504",
                    subject=f'api "{split_api_key(settings.api)[1]}": timeout',
                    path=("apis", index, "timeout"),
                    hint=f"raise `timeout` above {math.ceil(start_s)}s, or keep a replica: `compute: min_replicas: 1`",
                )

    def _change(self, candidate: DeployedApi, asked: AskedApi) -> ApiChange:
        """What becomes of an api, with what there is to note."""
        version, old, upload = candidate.version, asked.old, asked.upload
        build = version.build
        endpoint = self._ingress_url() + route_path(build.api)
        change = changes.describe(old, version, endpoint=endpoint)
        if candidate.stays and old is not None:
            if build.revision == old.wanted.build.revision:
                return changes.left(old, version, asked.passed[0], endpoint=endpoint)
            return msgspec.structs.replace(change, causes=("what it was rolled back to is refreshed", *change.causes))
        if asked.passed and change.kind is not ChangeKind.UNCHANGED:
            again = changes.forward_again(asked.passed[0], version)
            change = msgspec.structs.replace(change, causes=(again, *change.causes))
        notes = [f"model: {upload.model.note}"] if upload.model is not None and upload.model.note else []
        notes += version.inspection.notes
        if change.kind in (ChangeKind.ADDED, ChangeKind.NEW_VERSION):
            decision = Known(self._state.batching()).decision(build)
            # A disagreement is a warning, and batches are what everybody expects.
            if decision.mode == "auto" and not decision.order.batches and decision.disagreement is None:
                notes.append(decision.text)
        untried = (
            change.kind is ChangeKind.SETTINGS and changes.SAMPLE_CHANGED in change.causes and build.sample is not None
        )
        if untried:
            name = "/".join(split_api_key(build.api))
            notes.append(f"the new sample is tried when a replica starts next: `cortex refresh {name}` does it now")
        return msgspec.structs.replace(change, notes=tuple(notes), sample_untried=untried)


def _with_models(request: DeployRequest, fetched: Mapping[int, Fetched]) -> DeployRequest:
    """The request as if its remote models had been uploaded."""
    if not fetched:
        return request
    apis = tuple(
        msgspec.structs.replace(upload, model=fetched[index].model) if index in fetched else upload
        for index, upload in enumerate(request.apis)
    )
    return msgspec.structs.replace(request, apis=apis)


def _validated(deployment: DeploymentName, uploads: Sequence[ApiUpload]) -> list[ApiSpec]:
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
    if not problems:
        try:
            ProjectSpec(deployment=deployment, apis=tuple(specs))
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                problems.append(Problem(reference=detail["type"], message=detail["msg"]))
    if problems:
        raise Problems(problems)
    return specs


def _while_awaited(emit: Emit, left: threading.Event) -> Emit:
    """Tells progress, or ends the deploy when nobody waits for it. Raises DeployLeft."""

    def emit_or_end(event: DeployProgress) -> None:
        if left.is_set():
            raise DeployLeft("the deploy was called off")
        emit(event)

    return emit_or_end


def _telling(emit: Emit) -> Callable[[str], None]:
    return lambda message: emit(DeployProgress(message=message))


def _with_proofs(result: DeployResult, planned: Sequence[Planned | str]) -> DeployResult:
    """The result with what is proved of each api that stays; those that go come last."""
    told = [
        msgspec.structs.replace(
            change,
            proved=isinstance(one, Planned) and not one.why_not,
            unproved=one if isinstance(one, str) else one.why_not,
        )
        for change, one in zip(result.changes, planned, strict=False)
    ]
    return msgspec.structs.replace(result, changes=(*told, *result.changes[len(told) :]))


def _source(asked: AskedApi) -> str:
    """Where the model of the wanted version is fetched from; empty if it is not, or if that is not known any more."""
    model = asked.old.version.build.model if asked.old is not None else None
    if model is None or not is_remote(model.source):
        return ""
    if masked_model(asked.spec.model) == model.source:
        return asked.spec.model
    return "" if model.source.endswith("?***") else model.source


def _with_origin(candidate: DeployedApi, fetched: Fetched | None) -> DeployedApi:
    if fetched is None or candidate.stays:
        return candidate
    return msgspec.structs.replace(candidate, version=msgspec.structs.replace(candidate.version, origin=fetched.origin))


def _to_write(candidate: DeployedApi, change: ApiChange, old: ApiRecord | None, wall_s: float) -> DeployedApi:
    """With what made its version; `last_updated` is when something changed, not when the same was deployed again."""
    is_new = change.kind in (ChangeKind.ADDED, ChangeKind.NEW_VERSION)
    deployed_wall_s = wall_s if old is None or change.kind not in _NOTHING_NEW else old.wanted.deployed_wall_s
    return msgspec.structs.replace(
        candidate,
        settings=msgspec.structs.replace(candidate.settings, deployed_wall_s=deployed_wall_s),
        cause=(", ".join(change.causes) or "first deploy") if is_new else "",
    )


def _how_to_part(deployment: DeploymentName) -> str:
    """What to write into a cortex.yaml whose deployment another folder has."""
    if deployment == DEFAULT_DEPLOYMENT:
        return "name this group of apis: add\n    - kind: deployment\n      name: <name>\nto this cortex.yaml"
    return "name this group of apis otherwise: change `name` below `kind: deployment` of this cortex.yaml"
