"""
Going back: an older version of an api comes back as it ran, without being looked at again.

What it was made of is a stored row. So nothing is fetched, and nothing waits for a deploy that is under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from cortex.clock import Clock
from cortex.controlplane import changes
from cortex.controlplane.versions import revision_of, with_settings_of
from cortex.errors import CortexError
from cortex.ids import ApiKey, Revision, Version, route_path, short, split_api_key
from cortex.planning import happenings
from cortex.state.base import ApiRecord, RollbackChange, VersionLine, VersionRecord
from cortex.state.records import KEPT_VERSIONS, StateStore
from cortex.state.secrets import SecretStore
from cortex.wire.build import BuildSpec, SecretPin
from cortex.wire.events import TellEvent, told_to_nobody
from cortex.wire.operator import (
    ApiChange,
    ChangeKind,
    HistoryLine,
    RollbackRequest,
    RollbackResult,
    date_and_time,
    rfc3339,
)

Has = Callable[[SecretPin], bool]
"""Whether a value of a secret is still there."""


class UnknownVersion(CortexError):
    """An api has no version that begins so. `candidates` are those that can come back, 8 digits each."""

    reference = "unknown-version"

    def __init__(self, api: str, version: str, candidates: Sequence[str]) -> None:
        self.api = api
        self.version = version
        self.candidates = tuple(candidates)
        self.hint = _candidates_text(api, candidates)
        super().__init__(f'api "{api}" has no version "{version}"')


class AmbiguousVersion(CortexError):
    """Several versions of an api begin with these digits. `candidates` are all of them, as many digits as tell them."""

    reference = "ambiguous-version"

    def __init__(self, api: str, version: str, candidates: Sequence[str]) -> None:
        self.api = api
        self.version = version
        self.candidates = tuple(candidates)
        self.hint = f"say which: {', '.join(candidates)}"
        super().__init__(f'{len(candidates)} versions of api "{api}" begin with "{version}"')


class VersionGone(CortexError):
    """A version that an api had cannot come back. `obstacle` says why."""

    reference = "version-gone"

    def __init__(self, api: str, version: str, obstacle: str, candidates: Sequence[str]) -> None:
        self.api = api
        self.version = version
        self.obstacle = obstacle
        self.candidates = tuple(candidates)
        self.hint = _candidates_text(api, candidates)
        super().__init__(f'version {version} of api "{api}" cannot come back: {obstacle}')


class NothingOlder(CortexError):
    """No older version of an api was live, or none that it did not go back from."""

    reference = "nothing-older"

    def __init__(self, api: str, version: str, candidates: Sequence[str]) -> None:
        self.api = api
        self.version = version
        self.candidates = tuple(candidates)
        self.hint = _candidates_text(api, candidates)
        super().__init__(f'api "{api}" has no version from before {version} to go back to')


class Rollbacks:
    """
    Takes apis back.

    Args:
        committed: called after the wanted state has changed.
        ingress_url: where predictions are asked for.
    """

    def __init__(
        self,
        *,
        state: StateStore,
        secrets: SecretStore,
        clock: Clock,
        committed: Callable[[], None],
        ingress_url: Callable[[], str],
        tell: TellEvent = told_to_nobody,
    ) -> None:
        self._state = state
        self._tell = tell
        self._secrets = secrets
        self._clock = clock
        self._committed = committed
        self._ingress_url = ingress_url

    def roll_back(self, api: ApiKey, request: RollbackRequest) -> RollbackResult | None:
        """
        Have an older version serve; None when there is no such api.

        Raises:
            UnknownVersion, AmbiguousVersion, VersionGone, NothingOlder: nothing was changed.
            CortexError: the state, or the secrets, cannot be used.
        """
        while (record := self._state.api(api)) is not None:
            kept = self._kept(api)
            target = chosen(record, kept, self._state.history(api), request.version, self._secrets.has)
            came_back = as_of_now(target, record)
            change = self._change(record, came_back)
            if came_back.build.revision == record.wanted.build.revision:
                return RollbackResult(change=change, already=True)
            left = short(record.wanted.build.version)
            written = self._state.roll_back(
                RollbackChange(
                    version=came_back,
                    instead_of=record.wanted.build.revision,
                    cause=f"rolled back from {left}",
                    force=request.force,
                    wall_s=self._clock.wall_s(),
                )
            )
            if written:
                self._tell(happenings.rolled_back(api, came_back.build.version, record.wanted.build.version))
                now = self._state.api(api)
                rescaled = happenings.rescaled(api, record.wanted.scale, now.wanted.scale) if now is not None else None
                if rescaled is not None:
                    self._tell(rescaled)
                self._committed()
                return RollbackResult(change=change)
        return None

    def history(self, api: ApiKey) -> tuple[HistoryLine, ...]:
        """Every time that a version of an api was deployed, newest first, and what is true of each version now."""
        record, kept = self._state.api(api), {one.build.version: one for one in self._kept(api)}
        told: set[Version] = set()
        lines = []
        for line in self._state.history(api):
            is_newest = line.deleted_wall_s is None and line.version not in told
            told |= {line.version} if is_newest else set()
            lines.append(_told(line, record, kept.get(line.version), self._secrets.has, is_newest=is_newest))
        return tuple(lines)

    def _kept(self, api: ApiKey) -> list[VersionRecord]:
        return _newest_of_each(one for one in self._state.versions() if one.build.api == api)

    def _change(self, record: ApiRecord, target: VersionRecord) -> ApiChange:
        build = target.build
        return ApiChange(
            api=split_api_key(build.api)[1],
            kind=ChangeKind.ROLLED_BACK,
            causes=changes.differences(record.version, target),
            version=short(build.version),
            previous=short(record.wanted.build.version),
            endpoint=self._ingress_url() + route_path(build.api),
            breaking=tuple(changes.breaking_changes(record.version.inspection.signature, target.inspection.signature)),
            notes=tuple(self._of_secrets(build)),
        )

    def _of_secrets(self, build: BuildSpec) -> Iterator[str]:
        """Which variables have a value of before again."""
        name = "/".join(split_api_key(build.api))
        for variable, pin in sorted(build.secrets.items()):
            had, now = self._secrets.facts_of(pin), self._secrets.facts(pin.name)
            if had is not None and now is not None and had.generation != now.generation:
                yield (
                    f"{variable} has the value of {date_and_time(had.set_wall_s)} again: "
                    f"`cortex refresh {name}` takes today's"
                )


def take_back(
    state: StateStore,
    tell: TellEvent,
    api: ApiKey,
    revision: Revision,
    to: Revision,
    *,
    reason: str,
    wall_s: float,
) -> bool:
    """
    Have the version that was live before serve again, unasked; False where that cannot be, or is of no use any more.

    Args:
        revision: what is wanted, and fails.
        to: what was live before.
        reason: why, in words; told to users.

    Raises:
        StateError: the state cannot be written.
    """
    record = state.api(api)
    version = next((one for one in state.versions() if one.build.api == api and one.build.revision == to), None)
    if record is None or version is None:
        state.end_watch(api, revision)
        return False
    change = RollbackChange(
        version=as_of_now(version, record),
        instead_of=revision,
        cause=f"back from {short(record.wanted.build.version)}: {reason}",
        force=record.wanted.force,
        reason=reason,
        wall_s=wall_s,
    )
    if not state.roll_back(change):
        return False
    tell(happenings.rolled_back(api, version.build.version, record.wanted.build.version, reason=reason))
    return True


# ---- which version ---------------------------------------------------------------------------------------------------


def chosen(
    record: ApiRecord, kept: Sequence[VersionRecord], history: Iterable[VersionLine], asked: str, has: Has
) -> VersionRecord:
    """
    The version that an api goes back to.

    While a new version is on its way, or has failed, it is the one that serves; else the last one that was live
    before the one that serves, or that it is on its way back to, and from which it did not go back itself.

    Args:
        kept: of each version of the api what it last ran as.
        history: of the api.
        asked: first digits of a version; empty: as said above.
        has: whether a value of a secret is still there.

    Raises:
        UnknownVersion, AmbiguousVersion, VersionGone, NothingOlder
    """
    wanted = record.wanted
    api = "/".join(split_api_key(wanted.api))
    can = [one for one in kept if not obstacle(one, record, has)]
    candidates = [short(one.build.version) for one in can if one.build.revision != wanted.build.revision]
    if asked:
        return _named(kept, history, asked, lambda one: obstacle(one, record, has), api=api, candidates=candidates)
    serving = wanted.serving
    if serving is not None and serving.revision != wanted.build.revision and wanted.rolled_back is None:
        return _as_kept(kept, serving)
    turn = next((one.turn for one in kept if one.build.version == wanted.build.version), 0)
    in_use = {build.version for build in wanted.builds}
    older = (one for one in can if one.turn < turn and one.withdrawn_wall_s is None and one.build.version not in in_use)
    target = max(older, key=lambda one: one.turn, default=None)
    if target is None:
        raise NothingOlder(api, short(wanted.build.version), candidates)
    return target


def obstacle(version: VersionRecord, record: ApiRecord, has: Has) -> str:
    """Why a version that is kept cannot come back; empty: it can."""
    in_use = {build.revision for build in record.wanted.builds}
    if not version.turn and version.build.revision not in in_use:
        return "it never was live"
    gone = sorted({pin.name for pin in version.build.secrets.values() if not has(pin)})
    if gone:
        return f"the value of the secret {', '.join(gone)} that it had was deleted"
    return ""


def as_of_now(version: VersionRecord, record: ApiRecord) -> VersionRecord:
    """A version as it shall run: as it ran, with the settings of today, and with what leads to clouds today."""
    version = msgspec.structs.replace(version, spec=with_settings_of(version.spec, record.version.spec))
    if version.build.revision in {build.revision for build in record.wanted.builds}:
        return version
    cloud = next((one.cloud for one in record.wanted.builds if one.cloud is not None), None)
    build = msgspec.structs.replace(version.build, cloud=cloud if version.build.handler is not None else None)
    if build.cloud != version.build.cloud:
        build = msgspec.structs.replace(build, revision=revision_of(build))
    if build.sample is not None:
        sample = msgspec.structs.replace(build.sample, timeout_s=record.wanted.timeout_s)
        build = msgspec.structs.replace(build, sample=sample)
    return msgspec.structs.replace(version, build=build)


def _named(
    kept: Sequence[VersionRecord],
    history: Iterable[VersionLine],
    asked: str,
    why_not: Callable[[VersionRecord], str],
    *,
    api: str,
    candidates: Sequence[str],
) -> VersionRecord:
    """The version that begins with these digits."""
    rows = {one.build.version: one for one in kept}
    found = {version for version in rows if version.startswith(asked)}
    found |= {line.version for line in history if line.version.startswith(asked) and line.deleted_wall_s is None}
    if not found:
        raise UnknownVersion(api, asked, candidates)
    if len(found) > 1:
        raise AmbiguousVersion(api, asked, _told_apart(found))
    version = found.pop()
    row = rows.get(version)
    why = _NOT_KEPT if row is None else why_not(row)
    if row is None or why:
        raise VersionGone(api, short(version), why, candidates)
    return row


_NOT_KEPT = f"it is not kept: only the last {KEPT_VERSIONS} versions that were live are"


def _as_kept(kept: Iterable[VersionRecord], build: BuildSpec) -> VersionRecord:
    return next(one for one in kept if one.build.version == build.version)


def _newest_of_each(versions: Iterable[VersionRecord]) -> list[VersionRecord]:
    """Of each version what was live last, and of one that never was what there is."""
    found: dict[Version, VersionRecord] = {}
    for one in sorted(versions, key=lambda one: -one.turn):
        found.setdefault(one.build.version, one)
    return list(found.values())


def _told_apart(versions: Iterable[Version]) -> list[str]:
    """As many digits of each as it takes, at least 8."""
    digests = sorted(versions)
    digits = next(n for n in range(8, 65) if len({digest[:n] for digest in digests}) == len(digests))
    return [digest[:digits] for digest in digests]


def _candidates_text(api: str, candidates: Sequence[str]) -> str:
    if not candidates:
        return f"none can come back: `cortex history {api}` says why"
    return f"these can come back: {', '.join(candidates)}; `cortex history {api}` lists all"


# ---- history ---------------------------------------------------------------------------------------------------------


def _told(
    line: VersionLine, record: ApiRecord | None, kept: VersionRecord | None, has: Has, *, is_newest: bool
) -> HistoryLine:
    """
    One line, as it is shown.

    Args:
        kept: what there is of its version.
        is_newest: of its version; then it says what is true of that now.
    """
    serving = record.wanted.serving if record is not None else None
    why = ""
    if record is None or line.deleted_wall_s is not None:
        why = "its api was deleted"
    elif is_newest:
        why = _NOT_KEPT if kept is None else obstacle(kept, record, has)
    return HistoryLine(
        version=short(line.version),
        deployed=rfc3339(line.deployed_wall_s),
        cause=line.cause,
        outcome=line.outcome,
        serving=is_newest and serving is not None and serving.version == line.version,
        wanted=is_newest and record is not None and record.wanted.build.version == line.version,
        rolled_back=line.outcome.startswith("rolled back"),
        obstacle=why,
        receipt=line.receipt,
    )
