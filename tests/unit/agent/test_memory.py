"""What the agent remembers when it starts again."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cortex import processes
from cortex.agent.memory import AgentMemory
from cortex.testing.builders import API, a_route, a_wanted_api


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
