"""
From what is uploaded to the versions that would serve: what a deploy proposes of each api, before it is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from cortex.artifacts import samples
from cortex.artifacts.store import ArtifactStore
from cortex.controlplane.packages import DeployPackages, Packages
from cortex.controlplane.secrets import CloudKeys, pinned
from cortex.controlplane.versions import is_same_content, revision_of, version_of, with_settings_of
from cortex.errors import Problem, Problems
from cortex.ids import ApiKey, Revision, Version, route_path
from cortex.planning.model import ApiSettings
from cortex.spec.locations import masked_model
from cortex.spec.models import ApiSpec, SecretRef
from cortex.spec.problems import nearest
from cortex.state.base import ApiRecord, DeployedApi, PackagesRecord, VersionRecord
from cortex.state.secrets import SecretStore
from cortex.wire.build import BuildSpec, ModelArtifact, Resources, Runtime, Sample, TrackerConfig
from cortex.wire.fetch import Fetched
from cortex.wire.launch import InspectReport
from cortex.wire.operator import ApiUpload, DeployRequest, ModelUpload, SampleUpload, StoredFile

MAX_SAMPLE_BYTES = 16 * 2**20
"""Each replica that starts reads it; one that shows what works is far smaller."""

Tell = Callable[[str], None]


class AskedApi(msgspec.Struct, frozen=True, kw_only=True):
    """One api of a request, and what is known of it."""

    key: ApiKey
    spec: ApiSpec
    upload: ApiUpload
    old: ApiRecord | None
    last_refresh: int = 0
    """The highest that any of its versions has."""
    passed: tuple[VersionRecord, ...] = ()
    """What it was rolled back from, the latest first; empty: it was not."""

    fetched_again: Fetched | None = None
    """For a refresh of what it was rolled back to: the model of that, if it is a remote one."""


class _Shared(msgspec.Struct, frozen=True, kw_only=True):
    """What the apis of one deploy have in common."""

    request: DeployRequest
    project: str | None
    """Digest of its stored folder."""
    settled: DeployPackages
    resolved_anew: DeployPackages
    tell: Tell

    def refreshes(self, spec: ApiSpec) -> bool:
        return self.request.refreshes(spec.name)

    def packages_of(self, spec: ApiSpec, runtime: Runtime, before: VersionRecord | None) -> PackagesRecord | None:
        packages = self.resolved_anew if self.refreshes(spec) else self.settled
        return packages.of(runtime, before.packages if before is not None else None)


class Candidates:
    """Stores what was uploaded, and says what each api would be. Looks into nothing, and starts nothing."""

    def __init__(self, *, store: ArtifactStore, packages: Packages, secrets: SecretStore, cloud: CloudKeys) -> None:
        self._store = store
        self._packages = packages
        self._secrets = secrets
        self._cloud = cloud

    def of_deploy(
        self, asked: Sequence[AskedApi], request: DeployRequest, tell: Tell
    ) -> tuple[list[DeployedApi], tuple[Problem, ...]]:
        """
        What a request proposes of each api, in its sequence, and warnings.

        Raises:
            Problems: with what is wrong with any of them.
        """
        project = self._store_tree(request.project, "project") if request.project else None
        settled, resolved_anew = (
            self._packages.of_deploy(project, request.project, refresh=refresh, tell=tell) for refresh in (False, True)
        )
        shared = _Shared(request=request, project=project, settled=settled, resolved_anew=resolved_anew, tell=tell)
        found: dict[int, DeployedApi] = {}
        problems: list[Problem] = []
        # The refreshed come last: the others recall what was resolved before, not what is resolved now.
        for index, one in sorted(enumerate(asked), key=lambda each: shared.refreshes(each[1].spec)):
            try:
                found[index] = self._candidate(one, shared)
            except Problems as error:
                problems += [msgspec.structs.replace(p, path=("apis", index, *p.path)) for p in error.problems]
        if problems:
            raise Problems(problems)
        return [found[index] for index in sorted(found)], settled.warnings

    def _candidate(self, asked: AskedApi, shared: _Shared) -> DeployedApi:
        compute = asked.spec.compute
        held = None if shared.request.force else self._held(asked, shared)
        return DeployedApi(
            settings=_settings(asked.key, asked.spec, force=shared.request.force),
            version=held or self._forward(asked, shared),
            first_replicas=compute.init_replicas or compute.min_replicas,
            rolled_back=asked.old.wanted.rolled_back if asked.old is not None else None,
            stays=held is not None,
        )

    def _held(self, asked: AskedApi, shared: _Shared) -> VersionRecord | None:
        """What an api stays at that was rolled back; None: it was not, or its files are others since."""
        if asked.old is None or not asked.passed:
            return None
        if shared.refreshes(asked.spec):
            return self._refreshed(asked, asked.old, shared)
        if self._come_to(asked, shared) is None:
            return None
        served = asked.old.version
        return msgspec.structs.replace(served, spec=with_settings_of(served.spec, _resolved(asked.spec)))

    def _forward(self, asked: AskedApi, shared: _Shared) -> VersionRecord:
        """What the files come to; what was rolled back comes again as it was."""
        found = None if shared.refreshes(asked.spec) else self._come_to(asked, shared)
        return found or self._version(asked, shared, asked.old.version if asked.old is not None else None)

    def _come_to(self, asked: AskedApi, shared: _Shared) -> VersionRecord | None:
        """The version that an api was rolled back from, if that is what the files come to."""
        for passed in asked.passed:
            version = self._version(asked, shared, passed)
            if is_same_content(version.build, passed.build):
                return version
        return None

    def _version(self, asked: AskedApi, shared: _Shared, before: VersionRecord | None) -> VersionRecord:
        """
        What the files come to.

        Args:
            before: what they came to before: unless there is a refresh, it has the packages and the count of refreshes.
        """
        spec, upload = asked.spec, asked.upload
        model = self._store_model(spec, upload)
        runtime: Runtime = model.format  # of models of either format there is one
        handled = spec.request_handler is not None
        if handled:
            _check_handler_is_there(spec, shared.request)
        sample = self._store_sample(spec, upload.sample) if upload.sample is not None else None
        pinned(self._secrets, _secret_names(spec), api=spec.name)  # told before anything takes long
        packages = shared.packages_of(spec, runtime, before) if handled else None
        refresh = before.refresh if before is not None else 0
        if shared.refreshes(spec):
            refresh = asked.last_refresh + 1
        unnamed = BuildSpec(
            api=asked.key,
            version=Version(""),
            revision=Revision(""),
            runtime=runtime,
            model=model,
            project=shared.project if handled else None,
            handler=spec.request_handler,
            tracker=_tracker(spec),
            env={name: value for name, value in spec.env.items() if isinstance(value, str)},
            packages=packages.lock if packages is not None else None,
            batching=spec.batching != "off",
            trust_rows=spec.batching == "on",
            concurrency=spec.compute.concurrency,
            resources=_resources(spec),
            sample=sample,
        )
        known = asked.old.wanted.builds if asked.old is not None else ()
        builds = (*known, before.build) if before is not None else known
        return VersionRecord(
            build=self._named(unnamed, asked, shared, _secret_names(spec), refresh, builds),
            spec=_resolved(spec),
            refresh=refresh,
            project=shared.request.project if handled else (),
            model_files=upload.model.files if upload.model else (),
            model_note=upload.model.note if upload.model else "",
            packages=packages,
        )

    def _refreshed(self, asked: AskedApi, old: ApiRecord, shared: _Shared) -> VersionRecord:
        """The wanted version anew: its own files, today's packages, values of secrets and bytes of its model."""
        record, spec, again = old.version, asked.spec, asked.fetched_again
        build, packages = record.build, None
        if build.handler is not None:
            anew = self._packages.of_deploy(build.project, record.project, refresh=True, tell=shared.tell)
            packages = anew.of(build.runtime, record.packages)
        model, sample = build.model, build.sample
        if model is not None and again is not None:
            tree = self._store_tree(again.model.files, f'model of api "{spec.name}"')
            model = msgspec.structs.replace(model, tree=tree, entry=again.model.entry, format=again.model.format)
            record = msgspec.structs.replace(
                record, model_files=again.model.files, model_note=again.model.note, origin=again.origin
            )
        if sample is not None:
            sample = msgspec.structs.replace(sample, timeout_s=spec.timeout_s)
        unnamed = msgspec.structs.replace(
            build,
            runtime=model.format if model is not None else build.runtime,
            model=model,
            sample=sample,
            packages=packages.lock if packages is not None else None,
        )
        names = {variable: pin.name for variable, pin in build.secrets.items()}
        refresh = asked.last_refresh + 1
        return msgspec.structs.replace(
            record,
            build=self._named(unnamed, asked, shared, names, refresh, old.wanted.builds),
            spec=with_settings_of(record.spec, _resolved(spec)),
            inspection=InspectReport(),
            refresh=refresh,
            packages=packages,
            turn=0,
        )

    def _named(
        self,
        build: BuildSpec,
        asked: AskedApi,
        shared: _Shared,
        names: Mapping[str, str],
        refresh: int,
        known: Sequence[BuildSpec],
    ) -> BuildSpec:
        """The build by its digests, pinned to values of secrets and to what leads to clouds."""
        version = version_of(build, secrets=names, refresh=refresh)
        cloud = None
        if build.handler is not None:
            cloud = self._cloud.pinned(asked.key, shared.request.cloud, known[0] if known else None)
        same = [one for one in known if one.version == version]
        secrets = pinned(self._secrets, names, same, api=asked.spec.name)
        named = msgspec.structs.replace(build, version=version, secrets=secrets, cloud=cloud)
        return msgspec.structs.replace(named, revision=revision_of(named))

    # ---- files --------------------------------------------------------------------------------------------------

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

    def _store_sample(self, spec: ApiSpec, sample: SampleUpload) -> Sample:
        tree = self._store_tree(samples.files_of(sample.sha256), f'sample of api "{spec.name}"')
        _check_sample(spec, samples.body_file(self._store, tree).stat().st_size, gate=sample.gate)
        return Sample(tree=tree, content_type=sample.content_type, gate=sample.gate, timeout_s=spec.timeout_s)

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


def _settings(key: ApiKey, spec: ApiSpec, *, force: bool) -> ApiSettings:
    return ApiSettings(
        api=key,
        min_replicas=spec.compute.min_replicas,
        max_replicas=spec.compute.max_replicas,
        target_cpu_utilization=spec.compute.target_cpu_utilization,
        target_in_flight=spec.compute.target_in_flight,
        downscale_window_s=spec.compute.downscale_window_s,
        idle_timeout_s=spec.compute.idle_timeout_s,
        path=route_path(key),
        timeout_s=spec.timeout_s,
        max_body_bytes=spec.max_body_bytes,
        retry=spec.retry == "on",
        watch_s=spec.rollout.watch.seconds,
        force=force,
    )


def _resolved(spec: ApiSpec) -> dict[str, Any]:
    """The configuration as it is shown."""
    return {**spec.model_dump(mode="json"), "model": masked_model(spec.model)}


def _tracker(spec: ApiSpec) -> TrackerConfig | None:
    if spec.tracker is None:
        return None
    return TrackerConfig(model_type=spec.tracker.model_type, key=spec.tracker.key)


def _resources(spec: ApiSpec) -> Resources:
    return Resources(cpu_millis=spec.compute.cpu_millis, mem_bytes=spec.compute.mem_bytes, gpus=spec.compute.gpu)


def _secret_names(spec: ApiSpec) -> dict[str, str]:
    """Of secrets, by the variable that gets the value."""
    return {name: value.secret for name, value in spec.env.items() if isinstance(value, SecretRef)}


def _check_handler_is_there(spec: ApiSpec, request: DeployRequest) -> None:
    handler = spec.request_handler or ""
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


def _check_sample(spec: ApiSpec, size_bytes: int, *, gate: bool) -> None:
    if size_bytes > MAX_SAMPLE_BYTES:
        raise _problem(
            spec,
            "sample",
            "sample-too-large",
            f"the sample has {size_bytes} bytes, at most {MAX_SAMPLE_BYTES} are taken",
            hint="use a smaller one that the handler takes: it is asked of every new replica",
        )
    if gate and size_bytes > spec.max_body_bytes:
        raise _problem(
            spec,
            "sample",
            "sample-too-large",
            f"the sample has {size_bytes} bytes, and `max_body` takes no more than {spec.max_body_bytes}",
            hint="raise `max_body:`, or use a smaller sample",
        )


def _problem(spec: ApiSpec, field: str, reference: str, message: str, *, hint: str = "") -> Problems:
    subject = f'api "{spec.name}": {field}'
    return Problems([Problem(reference=reference, message=message, subject=subject, path=(field,), hint=hint)])
