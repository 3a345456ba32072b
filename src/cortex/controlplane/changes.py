"""What a deploy changes, and why, in words. Pure: old records and new ones in, changes out."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cortex.controlplane.versions import SETTINGS, SETTINGS_OF_COMPUTE, is_same_content
from cortex.ids import short, split_api_key
from cortex.packages.lock import version_changes
from cortex.packages.requirements import FILE_NAME as REQUIREMENTS
from cortex.state.base import ApiRecord, VersionRecord
from cortex.wire.build import BuildSpec, Sample
from cortex.wire.fetch import Origin, described
from cortex.wire.operator import ApiChange, ChangeKind, StoredFile, date_and_time
from cortex.wire.signature import Signature, TensorSpec

MOST_FILES_NAMED = 5
MOST_OBJECTS_NAMED = 2
"""Each comes with two ETags and two dates."""
SAMPLE_CHANGED = "sample changed"


def describe(old: ApiRecord | None, new: VersionRecord, *, endpoint: str) -> ApiChange:
    """What becomes of one api that the new configuration holds."""
    build = new.build
    name = split_api_key(build.api)[1]
    version = short(build.version)
    if old is None:
        return ApiChange(api=name, kind=ChangeKind.ADDED, version=version, endpoint=endpoint)
    before = old.wanted.build
    causes = list(_version_causes(old.version, new))
    settings = list(_setting_causes(old.version, new))
    rolls = [cause for cause in settings if _rolls(cause)]
    if before.version != build.version:
        kind, told = ChangeKind.NEW_VERSION, causes + settings
    elif before.revision != build.revision:
        kind, told = ChangeKind.ROLLED, rolls + [cause for cause in settings if cause not in rolls]
    elif settings or is_another_request(before.sample, build.sample):
        sample = [SAMPLE_CHANGED] if is_another_request(before.sample, build.sample) else []
        kind, told = ChangeKind.SETTINGS, settings + sample
    elif old.wanted.failed is not None:
        kind, told = ChangeKind.UNCHANGED, ["it failed before and is tried again"]
    else:
        kind, told = ChangeKind.UNCHANGED, []
    return ApiChange(
        api=name,
        kind=kind,
        causes=tuple(told),
        version=version,
        previous=short(before.version),
        endpoint=endpoint,
        breaking=tuple(breaking_changes(old.version.inspection.signature, new.inspection.signature)),
    )


def left(old: ApiRecord, new: VersionRecord, passed: VersionRecord, *, endpoint: str) -> ApiChange:
    """
    What becomes of an api that was rolled back and stays so.

    Args:
        new: what it was rolled back to, with the settings that are deployed.
        passed: what it was rolled back from last.
    """
    back = old.wanted.rolled_back
    when = f" on {date_and_time(back.wall_s)}" if back is not None else ""
    why = f" ({back.reason})" if back is not None and back.reason else ""
    return ApiChange(
        api=split_api_key(new.build.api)[1],
        kind=ChangeKind.LEFT,
        causes=(
            f"rolled back from {short(passed.build.version)}{when}{why}; --force deploys it all the same",
            *_setting_causes(old.version, new),
        ),
        version=short(new.build.version),
        previous=short(old.wanted.build.version),
        endpoint=endpoint,
    )


def left_meanwhile(now: ApiRecord, planned: ApiChange) -> ApiChange:
    """What becomes of an api that went back to an older version while a deploy was under way."""
    version = short(now.wanted.build.version)
    return ApiChange(
        api=planned.api,
        kind=ChangeKind.LEFT,
        causes=(f"it was rolled back to {version} meanwhile; --force deploys it all the same",),
        version=version,
        previous=version,
        endpoint=planned.endpoint,
    )


def forward_again(passed: VersionRecord, new: VersionRecord) -> str:
    """Why an api that was rolled back does not stay so."""
    name = short(passed.build.version)
    if is_same_content(passed.build, new.build):
        return f"goes forward again to {name}, which it was rolled back from: --force"
    what = differences(passed, new)
    only = "only " if len(what) == 1 else ""
    return f"goes forward again: since {name}, which it was rolled back from, {only}{', '.join(what)}"


def differences(old: VersionRecord, new: VersionRecord) -> tuple[str, ...]:
    """What makes one version another than the other, and what makes its replicas others; in words."""
    return (*_version_causes(old, new), *(cause for cause in _setting_causes(old, new) if _rolls(cause)))


def is_another_request(before: Sample | None, now: Sample | None) -> bool:
    """Whether a sample is another one. The time that it may take is the api's `timeout`, which is told as that."""
    if before is None or now is None:
        return before is not now
    return (before.tree, before.content_type, before.gate) != (now.tree, now.content_type, now.gate)


def removed(old: ApiRecord) -> ApiChange:
    """What becomes of an api that the new configuration no longer holds."""
    return ApiChange(
        api=split_api_key(old.wanted.api)[1],
        kind=ChangeKind.REMOVED,
        previous=short(old.wanted.build.version),
    )


def file_changes(old: Iterable[StoredFile], new: Iterable[StoredFile]) -> list[str]:
    """Files that differ, in words, the most telling few by name."""
    before = {file.path: (file.sha256, file.executable) for file in old}
    after = {file.path: (file.sha256, file.executable) for file in new}
    words = [f"{path} changed" for path in sorted(after) if path in before and before[path] != after[path]]
    words += [f"{path} added" for path in sorted(after.keys() - before.keys())]
    words += [f"{path} removed" for path in sorted(before.keys() - after.keys())]
    if len(words) > MOST_FILES_NAMED:
        words[MOST_FILES_NAMED - 1 :] = [f"and {len(words) - MOST_FILES_NAMED + 1} more files"]
    return words


def origin_changes(old: Origin | None, new: Origin | None) -> list[str]:
    """Objects that were overwritten where they are fetched from, the first few by name; empty when none was."""
    if old is None or new is None or old.url != new.url:
        return []
    before = {one.url: one for one in old.objects}
    words = [
        f"{posixpath.basename(one.url)}: {described(before[one.url])} -> {described(one)}"
        for one in new.objects
        if one.url in before and not one.is_same(before[one.url])
    ]
    if len(words) > MOST_OBJECTS_NAMED:
        words[MOST_OBJECTS_NAMED:] = [f"and {len(words) - MOST_OBJECTS_NAMED} more objects"]
    return words


def breaking_changes(old: Signature | None, new: Signature | None) -> Iterator[str]:
    """Differences of two signatures that make a caller's working request fail."""
    if old is None or new is None:
        return
    before = {tensor.name: tensor for tensor in old.inputs}
    for tensor in new.inputs:
        known = before.pop(tensor.name, None)
        if known is None:
            if not tensor.optional:
                yield f'input "{tensor.name}" is new and required'
        elif _described(known) != _described(tensor):
            yield f'input "{tensor.name}" was {_described(known)}, is {_described(tensor)}'
    for name in before:
        yield f'input "{name}" is gone'
    outputs = {tensor.name for tensor in new.outputs}
    for tensor in old.outputs:
        if tensor.name not in outputs:
            yield f'output "{tensor.name}" is gone'


def _described(tensor: TensorSpec) -> str:
    """`float32[N,4]`: every free dimension is written as N, so that renaming one breaks nobody."""
    if tensor.shape is None:
        return tensor.dtype
    return f"{tensor.dtype}[{','.join(str(d) if isinstance(d, int) and d >= 0 else 'N' for d in tensor.shape)}]"


def _version_causes(old: VersionRecord, new: VersionRecord) -> Iterator[str]:
    before, after = old.build, new.build
    yield from _model_causes(old, new)
    if before.handler != after.handler:
        yield f"request_handler {before.handler or 'none'} -> {after.handler or 'none'}"
    packages = list(_package_causes(old, new))
    yield from packages
    if after.project is not None and before.project is not None and before.project != after.project:
        # Where packages are named, the file that asks for them says nothing more.
        told = {f"{REQUIREMENTS} {what}" for what in ("added", "changed", "removed")} if packages else set()
        yield from (words for words in file_changes(old.project, new.project) if words not in told)
    if before.tracker != after.tracker:
        yield "tracker changed"
    env_before, env_after = _variables(before), _variables(after)
    if env_before != env_after:
        names = sorted({n for n in {*env_before, *env_after} if env_before.get(n) != env_after.get(n)})
        yield f"env changed ({', '.join(names)})"
    if before.batching_mode != after.batching_mode:
        yield f"batching {before.batching_mode} -> {after.batching_mode}"
    if old.refresh != new.refresh:
        yield "refreshed"


def _model_causes(old: VersionRecord, new: VersionRecord) -> Iterator[str]:
    before, after = old.build.model, new.build.model
    if before is None or after is None:
        if before is not after:
            yield "model added" if before is None else "model removed"
        return
    if before.tree != after.tree or before.entry != after.entry:
        files = origin_changes(old.origin, new.origin) or file_changes(old.model_files, new.model_files)
        chosen = [note.partition(",")[0] for note in (old.model_note, new.model_note)]
        if all(chosen) and chosen[0] != chosen[1]:
            files = [" -> ".join(chosen)]  # another folder's files: what differs in them says less
        yield f"model changed ({', '.join(files)})" if files else "model changed"
    if before.format != after.format:
        yield f"model_format {before.format} -> {after.format}"
    if before.signature_key != after.signature_key:
        yield f"tf_signature_key {before.signature_key} -> {after.signature_key}"


def _package_causes(old: VersionRecord, new: VersionRecord) -> Iterator[str]:
    if old.build.packages == new.build.packages:
        return
    before = old.packages.versions if old.packages else {}
    after = new.packages.versions if new.packages else {}
    if not after:
        yield f"{REQUIREMENTS}: no packages any more"
    elif not before:
        yield f"{REQUIREMENTS}: {len(after)} packages"
    else:
        changes = version_changes(before, after)
        yield f"{REQUIREMENTS}: {', '.join(changes) or 'the same versions, from other files'}"


def _variables(build: BuildSpec) -> dict[str, str | tuple[str]]:
    """What a handler finds among its variables; of a secret its name, as nothing else of it is to be told."""
    return {**build.env, **{variable: (pin.name,) for variable, pin in build.secrets.items()}}


_ROLLING = ("cpu", "mem", "gpu", "concurrency")


def _setting_causes(old: VersionRecord, new: VersionRecord) -> Iterator[str]:
    def differing(names: Iterable[str], before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
        for name in names:
            if before.get(name) != after.get(name):
                yield f"{name} {_shown(before.get(name))} -> {_shown(after.get(name))}"

    if old.spec and new.spec:  # of versions that an older Cortex stored it may not be known
        compute, compute_now = old.spec.get("compute") or {}, new.spec.get("compute") or {}
        yield from differing((*_ROLLING, *SETTINGS_OF_COMPUTE), compute, compute_now)
        yield from differing([name for name in SETTINGS if name != "rollout"], old.spec, new.spec)
        if "rollout" in old.spec:  # which is younger than others
            yield from differing(("watch",), old.spec["rollout"], new.spec.get("rollout") or {})
    if old.build.cloud != new.build.cloud:
        yield "cloud credentials changed"


def _rolls(cause: str) -> bool:
    """Whether a changed setting makes new replicas."""
    return cause.split(" ", 1)[0] in (*_ROLLING, "cloud")


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
