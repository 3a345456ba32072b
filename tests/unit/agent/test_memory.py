"""What the agent remembers when it starts again."""

from __future__ import annotations

import errno
from pathlib import Path

import msgspec
import pytest

from cortex import processes
from cortex.agent.memory import AgentMemory
from cortex.ids import ApiKey
from cortex.testing.builders import API, a_build, a_route, a_wanted_api
from cortex.wire.orders import UNNUMBERED, RoutesRevision, SetRoutes


def test_a_later_agent_knows_the_epoch_and_the_routes(tmp_path: Path) -> None:
    memory, route = AgentMemory(tmp_path / "state.json"), a_route(a_wanted_api())
    memory.epoch = 7
    memory.set_route(route)
    memory.write()
    later = AgentMemory(tmp_path / "state.json")
    later.recall()
    assert (later.epoch, later.routes) == (7, (route,))


def test_of_each_api_the_last_route_counts_until_it_is_removed(tmp_path: Path) -> None:
    memory, wanted = AgentMemory(tmp_path / "state.json"), a_wanted_api()
    memory.set_route(a_route(wanted))
    memory.set_route(a_route(wanted))
    assert memory.routes == (a_route(wanted),)
    memory.remove_route(API)
    assert memory.routes == ()


ROUTE = a_route(a_wanted_api())
OTHER = a_route(a_wanted_api(a_build(api=ApiKey("iris/other"))))
FIRST, SECOND, THIRD = (RoutesRevision(1, number) for number in (1, 2, 3))


def test_a_table_is_replaced_as_a_whole_or_by_what_changes_in_it(tmp_path: Path) -> None:
    memory = AgentMemory(tmp_path / "state.json")
    assert memory.set_routes(SetRoutes(revision=FIRST, routes=(ROUTE,)))
    assert memory.set_routes(SetRoutes(revision=SECOND, base=FIRST, routes=(OTHER,)))
    assert (memory.revision, memory.routes) == (SECOND, (ROUTE, OTHER))
    assert memory.set_routes(SetRoutes(revision=SECOND, base=FIRST, routes=(OTHER,)))
    assert memory.set_routes(SetRoutes(revision=THIRD, base=SECOND, removed=(ROUTE.api,)))
    memory.write()
    later = AgentMemory(tmp_path / "state.json")
    later.recall()
    assert (later.revision, later.routes) == (THIRD, (OTHER,))


def test_changes_to_a_table_that_is_not_there_are_refused(tmp_path: Path) -> None:
    memory = AgentMemory(tmp_path / "state.json")
    memory.set_routes(SetRoutes(revision=SECOND, routes=(ROUTE,)))
    for base in (FIRST, THIRD):
        assert not memory.set_routes(SetRoutes(revision=RoutesRevision(1, 4), base=base, routes=(OTHER,)))
    assert (memory.revision, memory.routes) == (SECOND, (ROUTE,))
    memory.set_route(OTHER)
    assert memory.revision == UNNUMBERED
    assert not memory.set_routes(SetRoutes(revision=THIRD, base=SECOND))


def test_routes_that_an_agent_before_tables_has_left_bear_no_number(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_bytes(msgspec.json.encode({"epoch": 3, "routes": [ROUTE]}))
    memory = AgentMemory(file)
    memory.recall()
    assert (memory.epoch, memory.revision, memory.routes) == (3, UNNUMBERED, (ROUTE,))


def test_a_file_that_cannot_be_read_is_as_none(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_bytes(b"{")
    memory = AgentMemory(file)
    memory.recall()
    assert (memory.epoch, memory.routes) == (0, ())


def test_what_a_full_disk_did_not_take_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state.json"
    memory = AgentMemory(file)
    memory.epoch = 7

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(processes, "write_whole", full)
        memory.write()
        memory.write_again()
    assert not file.exists()
    memory.write_again()
    later = AgentMemory(file)
    later.recall()
    assert later.epoch == 7
