"""What was decided and what happened, in events: one function for each kind of thing. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cortex.errors import Problem
from cortex.ids import ApiKey, Version, short
from cortex.planning import scaling_words, wording
from cortex.planning.actions import RecordExit, RecordStop, room_text
from cortex.planning.autoscale import Bound, ScalingDecision
from cortex.planning.batching import disagreement_text
from cortex.planning.model import Scale, WantedApi
from cortex.planning.scale import ASKED_WHILE_ASLEEP
from cortex.planning.slots import SeenApi
from cortex.wire.build import mem_text
from cortex.wire.events import Detail, Event, EventKind, Severity
from cortex.wire.localnodes import LOCAL_NODE
from cortex.wire.operator import ApiChange, ApiStatus, ChangeKind, Receipt, Status, Verdict
from cortex.wire.reports import AgentReport, ExitReport

LONGEST_WAKE_S = 3600.0
"""What is ready so long after somebody asked was not woken by that."""
OUTLIVED_BY_S = 2.0
"""An agent that is so much older than we are was not started by us."""
START_SECONDS = "start_seconds"
"""Among the details of what tells that a version serves, or woke: what the longest start of its replicas took."""
MOST_LINES = 10
"""Of what a replica wrote last, in an event's details."""

_HOLDING = frozenset((Bound.MAXIMUM, Bound.PROCESSOR, Bound.REQUESTS, Bound.ROOM))
"""Bounds that something could be done about. The others are how the rule goes about it, and pass."""
_CRASHES = frozenset((Status.CRASHING, Status.OUT_OF_MEMORY))

_CHANGED = {
    ChangeKind.ADDED: "added",
    ChangeKind.NEW_VERSION: "new version",
    ChangeKind.ROLLED: "new replicas",
    ChangeKind.SETTINGS: "settings changed",
}


# ---- deploys ---------------------------------------------------------------------------------------------------------


def deployed(api: ApiKey, change: ApiChange) -> Event | None:
    """What a deploy changed of an api; None where that is nothing."""
    if change.kind is ChangeKind.REMOVED:
        return deleted(api, change.previous, "left out of its cortex.yaml")
    what = _CHANGED.get(change.kind)
    if what is None:
        return None
    causes = ", ".join(change.causes)
    before = f" after {change.previous}" if change.kind is ChangeKind.NEW_VERSION and change.previous else ""
    return Event(
        kind=EventKind.DEPLOYED,
        api=api,
        text=f"{what}{before}: {causes}" if causes else f"{what}{before}",
        version=change.version,
        details={"change": change.kind, "causes": change.causes, "previous": change.previous},
    )


def deleted(api: ApiKey, version: str, why: str) -> Event:
    """Args: `version`: 8 digits of the one that was wanted."""
    return Event(kind=EventKind.DELETED, api=api, text=why, version=version)


def live(wanted: WantedApi, starts_s: Iterable[float | None] = (), *, wall_s: float) -> Event:
    """
    The wanted version serves at full size.

    Args:
        wanted: as it was before that was known.
        starts_s: what the starts of its replicas took, as far as that is known.
        wall_s: now.
    """
    details: dict[str, Detail] = {}
    took_s = max(0.0, wall_s - wanted.deployed_wall_s) if wanted.deployed_wall_s else None
    after = f", {_seconds(took_s)} after it was asked for" if took_s is not None else ""
    if took_s is not None:
        details["seconds"] = round(took_s, 3)
    _add_start(details, starts_s)
    return Event(
        kind=EventKind.LIVE,
        api=wanted.api,
        text=f"serves{after}",
        version=short(wanted.build.version),
        details=details,
    )


def _add_start(details: dict[str, Detail], starts_s: Iterable[float | None]) -> None:
    known = [start_s for start_s in starts_s if start_s is not None]
    if known:
        details[START_SECONDS] = round(max(known), 3)


def failed(wanted: WantedApi, problem: Problem) -> Event:
    """The wanted version is given up."""
    serving = wanted.serving
    goes_on = serving is not None and serving.revision != wanted.build.revision
    then = f"; {short(serving.version)} goes on serving" if serving is not None and goes_on else ""
    return Event(
        kind=EventKind.FAILED,
        api=wanted.api,
        text=f"could not go live: {_first_line(problem.message)}{then}",
        severity=Severity.ERROR,
        version=short(wanted.build.version),
        details={"problem": problem.reference, "serving": short(serving.version) if serving and goes_on else ""},
    )


def proved(api: ApiKey, version: Version, receipt: Receipt) -> Event:
    """What was seen of the change-over to a version."""
    severity = {Verdict.PASSED: Severity.INFO, Verdict.FAILED: Severity.ERROR}.get(receipt.verdict, Severity.WARNING)
    return Event(
        kind=EventKind.PROVED,
        api=api,
        text=receipt.text,
        severity=severity,
        version=short(version),
        details={"verdict": receipt.verdict, "requests": receipt.requests, "failed": receipt.failed},
    )


def rolled_back(api: ApiKey, version: Version, left: Version, *, reason: str = "") -> Event:
    """
    An older version is wanted again.

    Args:
        version: that one.
        left: what was wanted before.
        reason: why, where nobody asked for it.
    """
    return Event(
        kind=EventKind.ROLLED_BACK,
        api=api,
        text=f"by itself, from {short(left)}: {_first_line(reason)}" if reason else f"from {short(left)}",
        severity=Severity.WARNING if reason else Severity.INFO,
        version=short(version),
        details={"left": short(left), "automatic": bool(reason)},
    )


def excused(api: ApiKey, version: Version, excuse: str) -> Event:
    """Args: `version`: what had gone back."""
    return Event(kind=EventKind.EXCUSED, api=api, text=excuse, version=short(version))


# ---- the number of replicas ------------------------------------------------------------------------------------------


def scaled(decision: ScalingDecision) -> Event:
    """The number follows the load."""
    before, now = decision.asked.replicas, decision.replicas
    return _scaled(decision.api, before, now, scaling_words.reason(decision))


def rescaled(api: ApiKey, before: Scale | None, now: Scale) -> Event | None:
    """What a deploy or a rollback changed of the number; None where that is nothing."""
    if before is None or before == now:
        return None
    if before.asleep and not now.asleep:
        return _scaled(api, 0, now.replicas, now.reason)
    return None if before.replicas == now.replicas else _scaled(api, before.replicas, now.replicas, now.reason)


def _scaled(api: ApiKey, before: int, now: int, reason: str) -> Event:
    replicas = "replica" if now == 1 else "replicas"
    return Event(
        kind=EventKind.SCALED,
        api=api,
        text=f"{before} -> {now} {replicas}: {reason}",
        details={"from": before, "to": now, "reason": reason},
    )


def bounded(decision: ScalingDecision) -> Event | None:
    """
    Whether a bound that something could be done about keeps an api from what its load asks for; None where that cannot
    be told now: nothing is known of its load, or it is on its way there.
    """
    bound = decision.bound
    if bound is Bound.UNKNOWN:
        return None
    if decision.wanted > decision.replicas:
        if bound not in _HOLDING:
            return None
        return Event(
            kind=EventKind.HELD,
            api=decision.api,
            text=scaling_words.held(decision),
            severity=Severity.WARNING,
            details={"bound": bound, "replicas": decision.replicas, "wanted": decision.wanted},
            same=f"{bound} {decision.replicas}",
        )
    return Event(
        kind=EventKind.RELEASED,
        api=decision.api,
        text=f"its load asks for {decision.wanted}, and it has {decision.replicas}",
        details={"replicas": decision.replicas, "wanted": decision.wanted},
        same="released",
    )


def slept(api: ApiKey, reason: str) -> Event:
    return Event(kind=EventKind.SLEPT, api=api, text=reason)


# ---- replicas --------------------------------------------------------------------------------------------------------


def crashed(ended: RecordExit, wanted: WantedApi) -> Event:
    """A replica ended unasked: how, over what, and its last words."""
    report = ended.exit
    build = next((one for one in wanted.builds if one.revision == ended.revision), wanted.build)
    how = _how_it_ended(report, ended.peak_rss_bytes, build.resources.mem_bytes)
    served = f" while it served request {report.request}" if report.request else ""
    when = "" if ended.was_ready else " before it was ready"
    last = f"; it wrote last: {report.last_lines[-1].strip()}" if report.last_lines and report.problem is None else ""
    return Event(
        kind=EventKind.CRASHED,
        api=ended.api,
        text=f"{how}{served}{when}{last}",
        severity=Severity.WARNING,
        version=short(build.version),
        replica=ended.replica,
        details={
            "attempt": ended.attempt,
            "was_ready": ended.was_ready,
            "exit_code": report.code,
            "signal": report.signal,
            "out_of_memory": report.oom,
            "peak_bytes": ended.peak_rss_bytes,
            "request": report.request,
            "last_lines": report.last_lines[-MOST_LINES:],
        },
        same=f"{short(ended.revision)} {ended.was_ready} {_first_line(report.text)}",
        once=f"exit {ended.replica} {ended.attempt} {report.wall_s:.3f}",
    )


def batching_stopped(record: RecordStop) -> Event:
    stop = record.stop
    on = stop.runtime or "a runtime that it did not name"
    return Event(
        kind=EventKind.BATCHING_STOPPED,
        api=stop.api,
        text=f"rows disagreed ({disagreement_text(stop.disagreement)}) on {on}: its model is asked row by row now",
        severity=Severity.WARNING,
        replica=stop.replica,
        same=f"{record.model.tree} {stop.runtime}",
        once=f"stop {stop.replica} {stop.started_wall_s:.3f}",
    )


def conditions(wanted: WantedApi, seen: SeenApi, status: ApiStatus, *, now_wall_s: float) -> Iterator[Event]:
    """What is true of an api now that is an event when it begins or ends."""
    yield from _crashing(wanted, status)
    yield from _room(wanted, seen)
    yield from _woken(wanted, seen, now_wall_s)


def _crashing(wanted: WantedApi, status: ApiStatus) -> Iterator[Event]:
    version = short(wanted.build.version)
    if status.status in _CRASHES and wanted.live_wall_s is not None:
        text = _first_line(status.reason or "")
        yield Event(
            kind=EventKind.CRASHING,
            api=wanted.api,
            text=text,
            severity=Severity.ERROR,
            version=version,
            same=version,
            details={"crashes": status.crashes},
        )
    elif status.status.is_well:
        text = f"its replicas stay up: {status.replicas.ready} of {status.replicas.requested} ready"
        yield Event(kind=EventKind.RECOVERED, api=wanted.api, text=text, version=version, same="recovered")


def _room(wanted: WantedApi, seen: SeenApi) -> Iterator[Event]:
    placing = [slot for slot in seen.slots if slot.placing]
    if not placing:
        yield Event(kind=EventKind.ROOM, api=wanted.api, text="every replica that is wanted has room", same="room")
        return
    asked = room_text(placing[0].lease.request.resources if placing[0].lease else wanted.build.resources)
    number = "1 replica has" if len(placing) == 1 else f"{len(placing)} replicas have"
    yield Event(
        kind=EventKind.MACHINE_FULL,
        api=wanted.api,
        text=f"{number} no room; each asks for {asked}: {wording.room(placing)}",
        severity=Severity.WARNING,
        details={"waiting": len(placing), "asked": asked},
        same=asked,
    )


def _woken(wanted: WantedApi, seen: SeenApi, now_wall_s: float) -> Iterator[Event]:
    """How long the first replica took that somebody has woken."""
    scale = wanted.scale
    if scale.asleep or scale.reason != ASKED_WHILE_ASLEEP:
        return
    starts_s = [slot.report.start_s for slot in seen.slots if slot.ready and slot.report is not None]
    ages = [slot.report.phase_age_s for slot in seen.slots if slot.ready and slot.report is not None]
    took_s = now_wall_s - max(ages, default=0.0) - scale.since_wall_s
    if ages and -1.0 < took_s < LONGEST_WAKE_S:
        details: dict[str, Detail] = {"seconds": round(max(0.0, took_s), 3)}
        _add_start(details, starts_s)
        yield Event(
            kind=EventKind.WOKE,
            api=wanted.api,
            text=f"somebody asked while it slept; ready after {_seconds(max(0.0, took_s))}",
            version=short(wanted.build.version),
            details=details,
            once=f"woke {wanted.api} {scale.since_wall_s:.3f}",
        )


# ---- Cortex itself ---------------------------------------------------------------------------------------------------


def started(
    report: AgentReport, former: AgentReport | None, *, version: str, pid: int, started_wall_s: float, up_s: float
) -> Iterator[Event]:
    """
    Which processes of ours were started, as far as a report tells. Told again and again, and kept once each.

    Args:
        former: the last report of another agent that we have seen; None: we have seen no other.
        version, pid, started_wall_s, up_s: ours.
    """
    outlived = report.up_s is not None and report.up_s > up_s + OUTLIVED_BY_S
    again = " again: the one before had ended, what served went on" if outlived else ""
    yield _started(
        "control plane",
        "",
        f"the control plane {version} (pid {pid}) was started{again}",
        f"{pid} {started_wall_s:.3f}",
        again=outlived,
    )
    node = "" if report.name == LOCAL_NODE else f" of {report.name}"
    ended = f" again: the one before (pid {former.pid}) had ended, what served went on" if former is not None else ""
    text = f"the agent{node} (pid {report.pid}) was started{ended}"
    yield _started("agent", node, text, report.agent, again=former is not None)
    ingress = report.ingress
    if ingress is not None and ingress.restarts:
        text = (
            f"the ingress{node} (pid {ingress.pid}) was started again: "
            "the one before had ended, and its connections with it"
        )
        yield _started("ingress", node, text, f"{report.agent} {ingress.restarts}", again=True)


def _started(who: str, node: str, text: str, run: str, *, again: bool) -> Event:
    """`node`, where it is one of several: what happens to processes of different nodes is not the same again."""
    severity = Severity.WARNING if again else Severity.INFO
    return Event(
        kind=EventKind.STARTED,
        text=text,
        severity=severity,
        details={"process": who},
        same=f"{who}{node} {again}",
        once=f"{who} {run}",
    )


def hung(who: str, pid: int, why: str) -> Event:
    return Event(
        kind=EventKind.HUNG,
        text=f"{who} (pid {pid}) {why} and was killed; it is started again",
        severity=Severity.WARNING,
        details={"process": who.removeprefix("the ")},
        same=who,
    )


def secret_set(name: str, *, outdated_in: Sequence[str]) -> Event:
    """Args: `outdated_in`: apis whose version has an older value."""
    users = f"; {', '.join(outdated_in)} still have the value before: `cortex refresh` gives them this one"
    text = f"{name} was set{users if outdated_in else ''}"
    return Event(kind=EventKind.SECRET, text=text, details={"name": name, "outdated_in": tuple(outdated_in)})


def secret_deleted(name: str, *, users: Sequence[str]) -> Event:
    """Args: `users`: apis that it was taken from."""
    text = f"{name} was deleted"
    if users:
        text += f" although {', '.join(users)} had it: none of their replicas can be started any more"
    severity = Severity.WARNING if users else Severity.INFO
    return Event(kind=EventKind.SECRET, text=text, severity=severity, details={"name": name, "users": tuple(users)})


def damaged(text: str, *, api: ApiKey | None = None) -> Event:
    """Args: `text`: of what, and what is done about it."""
    return Event(kind=EventKind.DAMAGED, api=api, text=_first_line(text), severity=Severity.ERROR)


def repaired(api: ApiKey, text: str) -> Event:
    return Event(kind=EventKind.REPAIRED, api=api, text=text)


# ---- words -----------------------------------------------------------------------------------------------------------


def _how_it_ended(report: ExitReport, peak_bytes: int, asked_bytes: int | None) -> str:
    how = _first_line(report.text)
    if not report.oom:
        return how
    peak = f", peak {mem_text(peak_bytes)}" if peak_bytes else ""
    request = f"request {mem_text(asked_bytes)}" if asked_bytes is not None else "no memory request"
    return f"{how}{peak}, {request}"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _seconds(seconds: float) -> str:
    """`0.18 s`, `12 s`, `3m 05s`."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m {rest:02d}s"
