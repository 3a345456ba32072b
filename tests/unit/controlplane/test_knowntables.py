"""Tests of `cortex.controlplane.knowntables`."""

from __future__ import annotations

import msgspec
import pytest

from cortex.controlplane import knowntables
from cortex.controlplane.knowntables import KnownTables
from cortex.ids import ApiKey
from cortex.testing.builders import a_build, a_route, a_wanted_api, an_agent_report
from cortex.wire.agent import KnownRoutes
from cortex.wire.orders import UNNUMBERED, Orders, RoutesRevision, SetRoute, SetRoutes
from cortex.wire.reports import AgentReport

FIRST, SECOND, THIRD = (RoutesRevision(3, number) for number in (1, 2, 3))


def way(name: str) -> SetRoute:
    return a_route(a_wanted_api(a_build(api=ApiKey(f"iris/{name}"))))


A, B, C = way("a"), way("b"), way("c")


def ordered(*orders: SetRoutes, epoch: int = 3) -> Orders:
    return Orders(epoch=epoch, orders=orders)


def report(revision: RoutesRevision | None, *routes: SetRoute, known: bool = False) -> AgentReport:
    return msgspec.structs.replace(an_agent_report(routes=routes, routes_revision=revision), routes_known=known)


@pytest.fixture
def tables() -> KnownTables:
    return KnownTables()


def test_a_table_that_was_told_once_is_known(tables: KnownTables) -> None:
    told = report(FIRST, A, B)
    assert tables.completed(told) == told
    assert tables.completed(report(FIRST, known=True)) == told


def test_reports_share_a_table(tables: KnownTables) -> None:
    one, other = tables.completed(report(FIRST, A)), tables.completed(report(FIRST, way("a")))
    assert one is not None
    assert other is not None
    assert one.routes is other.routes


def test_a_table_that_was_ordered_is_known_before_any_node_has_it(tables: KnownTables) -> None:
    tables.note_ordered(
        ordered(
            SetRoutes(revision=FIRST, routes=(A, B)),
            SetRoutes(revision=SECOND, base=FIRST, routes=(C,), removed=(A.api,)),
        )
    )
    assert tables.completed(report(SECOND, known=True)) == report(SECOND, B, C)


def test_what_is_based_on_a_table_that_nobody_knows_is_not_known(tables: KnownTables) -> None:
    tables.note_ordered(ordered(SetRoutes(revision=SECOND, base=FIRST, routes=(C,))))
    assert tables.completed(report(SECOND, known=True)) is None


@pytest.mark.parametrize("revision", [None, UNNUMBERED])
def test_a_table_without_a_number_is_as_it_is_told(tables: KnownTables, revision: RoutesRevision | None) -> None:
    tables.completed(report(revision, A))
    assert tables.completed(report(revision, B)) == report(revision, B)


def test_tables_that_were_of_no_use_for_long_are_forgotten(
    tables: KnownTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knowntables, "MOST", 2)
    for told in (report(FIRST, A), report(SECOND, B), report(FIRST, A), report(THIRD, C)):
        tables.completed(told)
    assert [tables.completed(report(one, known=True)) is not None for one in (FIRST, SECOND, THIRD)] == [
        True,
        False,
        True,
    ]


def test_a_node_is_told_of_its_own_last_table_and_of_all_that_we_have_made(tables: KnownTables) -> None:
    assert tables.known(None) == KnownRoutes(epoch=0, revision=None)
    tables.note_ordered(ordered(SetRoutes(revision=FIRST, routes=(A,))))
    assert tables.known(report(RoutesRevision(2, 9), B)) == KnownRoutes(epoch=3, revision=RoutesRevision(2, 9))


@pytest.mark.parametrize(
    ("known", "revision", "covered"),
    [
        (KnownRoutes(), FIRST, False),
        (KnownRoutes(epoch=3), THIRD, True),
        (KnownRoutes(epoch=4), THIRD, False),
        (KnownRoutes(epoch=4, revision=THIRD), THIRD, True),
        (KnownRoutes(epoch=4, revision=SECOND), THIRD, False),
        (KnownRoutes(), UNNUMBERED, False),
        (KnownRoutes(revision=UNNUMBERED), UNNUMBERED, False),
        (KnownRoutes(epoch=3), None, False),
    ],
)
def test_which_tables_a_node_need_not_say(known: KnownRoutes, revision: RoutesRevision | None, covered: bool) -> None:
    assert known.covers(revision) is covered
