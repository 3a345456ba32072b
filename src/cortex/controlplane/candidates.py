"""
From what is uploaded to the versions that would serve: what a deploy proposes of each api, before it is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from cortex.artifacts import samples
from cortex.artifacts.store import ArtifactStore
from cortex.controlplane.packages import DeployPackages, Packages
from cortex.controlplane.secrets import CloudKeys, pinned
from cortex.controlplane.versions import revision_of, version_of
from cortex.errors import Problem, Problems
from cortex.ids import ApiKey, Revision, Version, route_path
from cortex.planning.model import ApiSettings
from cortex.spec.locations import masked_model
from cortex.spec.models import ApiSpec, SecretRef
from cortex.spec.problems import nearest
from cortex.state.base import ApiRecord, DeployedApi, PackagesRecord, VersionRecord
from cortex.state.secrets import SecretStore
from cortex.wire.build import BuildSpec, ModelArtifact, Resources, Runtime, Sample, TrackerConfig
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


class _Shared(msgspec.Struct, frozen=True, kw_only=True):
    """What the apis of one deploy have in common."""

    request: DeployRequest
    project: str | None
    """Digest of its stored folder."""
    settled: DeployPackages
    resolved_anew: DeployPackages

    def refreshes(self, spec: ApiSpec) -> bool:
        return self.request.refresh and self.request.refresh_only in ("", spec.name)

    def packages_of(self, asked: AskedApi, runtime: Runtime) -> PackagesRecord | None:
        packages = self.resolved_anew if self.refreshes(asked.spec) else self.settled
        return packages.of(runtime, asked.old.version.packages if asked.old is not None else None)


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
        shared = _Shared(request=request, project=project, settled=settled, resolved_anew=resolved_anew)
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
        return DeployedApi(
            settings=_settings(asked.key, asked.spec, force=shared.request.force),
            version=self._version(asked, shared),
            first_replicas=compute.init_replicas or compute.min_replicas,
        )

    def _version(self, asked: AskedApi, shared: _Shared) -> VersionRecord:
        spec, upload = asked.spec, asked.upload
        model = self._store_model(spec, upload)
        runtime: Runtime = model.format  # of models of either format there is one
        handled = spec.request_handler is not None
        if handled:
            _check_handler_is_there(spec, shared.request)
        sample = self._store_sample(spec, upload.sample) if upload.sample is not None else None
        pinned(self._secrets, _secret_names(spec), api=spec.name)  # told before anything takes long
        packages = shared.packages_of(asked, runtime) if handled else None
        refresh = asked.old.version.refresh if asked.old is not None else 0
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
        return VersionRecord(
            build=self._named(unnamed, asked, shared, refresh),
            spec={**spec.model_dump(mode="json"), "model": masked_model(spec.model)},
            refresh=refresh,
            project=shared.request.project if handled else (),
            model_files=upload.model.files if upload.model else (),
            model_note=upload.model.note if upload.model else "",
            packages=packages,
        )

    def _named(self, build: BuildSpec, asked: AskedApi, shared: _Shared, refresh: int) -> BuildSpec:
        """The build by its digests, pinned to values of secrets and to what leads to clouds."""
        names = _secret_names(asked.spec)
        version = version_of(build, secrets=names, refresh=refresh)
        known = asked.old.wanted.builds if asked.old is not None else ()
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
        path=route_path(key),
        timeout_s=spec.timeout_s,
        max_body_bytes=spec.max_body_bytes,
        retry=spec.retry == "on",
        force=force,
    )


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
