"""When an api begins to turn requests away, and when that is over. Pure: counters and instants in, events out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from cortex.ids import ApiKey
from cortex.wire.events import Event, EventKind, Severity
from cortex.wire.reports import IngressRefusals

OVER_AFTER_S = 10.0
"""Without a request that is turned away: then it is over."""


@dataclass
class _Refusing:
    """What is known of one api."""

    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(Requests that replicas had no room for, those that no replica was ready for), by process of the ingress."""
    begun_s: float | None = None
    last_s: float | None = None
    """None: it is known to be over."""
    crowded: int = 0
    unserved: int = 0

    @property
    def total(self) -> int:
        return self.crowded + self.unserved


class Refusing:
    """
    All apis. What it remembers begins anew with this process: what was counted before the first look is nobody's.
    """

    def __init__(self) -> None:
        self._apis: dict[ApiKey, _Refusing] = {}
        self._looked = False

    def look(self, rows: Iterable[IngressRefusals], *, now_s: float) -> Iterator[Event]:
        """Take in cumulative counters. Args: `now_s`: monotonic."""
        first, self._looked = not self._looked, True
        for row in rows:
            one = self._apis.get(row.api)
            if one is None:
                # What an earlier process of ours has told to have begun may be over.
                one = self._apis[row.api] = _Refusing(last_s=now_s if first else None)
            yield from _counted(one, row, now_s, first=first)
        for api, one in self._apis.items():
            if one.last_s is not None and now_s - one.last_s >= OVER_AFTER_S:
                yield _over(api, one)
                one.begun_s = one.last_s = None
                one.crowded = one.unserved = 0


def _counted(one: _Refusing, row: IngressRefusals, now_s: float, *, first: bool) -> Iterator[Event]:
    now = (row.overloaded, max(0, row.server_error - row.failed - row.overloaded))
    before = one.seen.get(row.instance, now if first else (0, 0))
    one.seen[row.instance] = now
    crowded, unserved = max(0, now[0] - before[0]), max(0, now[1] - before[1])
    if not crowded and not unserved:
        return
    one.crowded, one.unserved, one.last_s = one.crowded + crowded, one.unserved + unserved, now_s
    if one.begun_s is None:
        one.begun_s = now_s
        why = "replicas have more to do than they can" if crowded else "no replica is ready"
        yield Event(
            kind=EventKind.REFUSING,
            api=row.api,
            text=f"requests are told 503: {why} ({crowded + unserved} so far)",
            severity=Severity.WARNING,
            details={"overloaded": crowded, "unserved": unserved},
            same="refusing",
        )


def _over(api: ApiKey, one: _Refusing) -> Event:
    text = f"no request was told 503 for {OVER_AFTER_S:g} s"
    if one.total and one.begun_s is not None and one.last_s is not None:
        text += f"; {one.total} were, within {max(1.0, one.last_s - one.begun_s):.0f} s"
    return Event(
        kind=EventKind.ACCEPTING,
        api=api,
        text=text,
        details={"overloaded": one.crowded, "unserved": one.unserved},
        same="accepting",
    )
