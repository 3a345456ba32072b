"""When requests begin to be turned away and when that is over, from counters that only grow."""

from __future__ import annotations

from cortex.ids import ApiKey, Version
from cortex.planning.refusing import OVER_AFTER_S, Refusing
from cortex.wire.events import Event, EventKind
from cortex.wire.reports import IngressRefusals

API = ApiKey("iris/a")


def row(overloaded: int = 0, unserved: int = 0, failed: int = 0, *, instance: str = "1", api: ApiKey = API):
    return IngressRefusals(
        instance=instance,
        api=api,
        version=Version("v"),
        server_error=overloaded + unserved + failed,
        failed=failed,
        overloaded=overloaded,
    )


class Watched:
    def __init__(self) -> None:
        self.refusing = Refusing()
        self.now_s = 100.0

    def look(self, *rows: IngressRefusals, after_s: float = 1.0) -> list[tuple[EventKind, str]]:
        self.now_s += after_s
        return [(event.kind, event.text) for event in self.events(*rows)]

    def events(self, *rows: IngressRefusals) -> list[Event]:
        return list(self.refusing.look(rows, now_s=self.now_s))


def test_its_beginning_is_told_once_and_its_end_with_how_many_there_were() -> None:
    watched = Watched()
    assert watched.look(row(0)) == []
    begun = watched.look(row(7))
    assert begun == [(EventKind.REFUSING, "requests are told 503: replicas have more to do than they can (7 so far)")]
    assert watched.look(row(30)) == []
    assert watched.look(row(42), after_s=3.0) == []
    assert watched.look(row(42), after_s=OVER_AFTER_S - 0.1) == []
    over = watched.look(row(42), after_s=0.2)
    assert over == [(EventKind.ACCEPTING, "no request was told 503 for 10 s; 42 were, within 4 s")]
    assert watched.look(row(42), after_s=100.0) == []
    assert [kind for kind, _ in watched.look(row(43))] == [EventKind.REFUSING]


def test_where_no_replica_is_ready_that_is_the_reason() -> None:
    watched = Watched()
    watched.look(row())
    assert watched.look(row(0, 3)) == [(EventKind.REFUSING, "requests are told 503: no replica is ready (3 so far)")]


def test_replicas_that_die_or_take_too_long_turn_nobody_away() -> None:
    watched = Watched()
    watched.look(row())
    assert watched.look(row(0, 0, 50)) == []


def test_what_was_counted_before_the_first_look_is_nobodys_and_an_older_beginning_is_ended() -> None:
    watched = Watched()
    assert watched.look(row(1000)) == []
    assert watched.look(row(1000), after_s=OVER_AFTER_S) == [(EventKind.ACCEPTING, "no request was told 503 for 10 s")]
    assert watched.look(row(1000), after_s=OVER_AFTER_S) == []


def test_a_process_of_the_ingress_that_comes_later_has_counted_from_0() -> None:
    watched = Watched()
    watched.look(row(5))
    assert [kind for kind, _ in watched.look(row(5), row(2, instance="2"))] == [EventKind.REFUSING]
    watched.look(row(5), row(4, instance="2"))
    over = watched.look(row(5), row(4, instance="2"), after_s=OVER_AFTER_S)
    assert over == [(EventKind.ACCEPTING, "no request was told 503 for 10 s; 4 were, within 1 s")]


def test_apis_are_kept_apart() -> None:
    watched = Watched()
    other = ApiKey("iris/b")
    watched.look(row(), row(api=other))
    watched.now_s += 1
    assert [event.api for event in watched.events(row(1), row(api=other))] == [API]
    watched.now_s += 1
    (event,) = watched.events(row(1), row(9, api=other))
    assert (event.api, event.details) == (other, {"overloaded": 9, "unserved": 0})
