"""Which processes a replica that is gone has left behind."""

from __future__ import annotations

import pytest

from cortex import processes
from cortex.agent.strays import Seen, left_behind, mark_of_mounts
from cortex.processes import ProcessIdentity

GONE = ProcessIdentity(pid=100, start_ticks=1000, boot_id="b")


def seen(pid: int, *, session: int = 1, mark: str = "") -> Seen:
    return Seen(pid=pid, session=session, start_ticks=2000, command="x", mark=mark)


def alive(mark: str) -> bool:
    return mark == "200.2000"


def test_who_names_a_process_that_is_gone_is_left_behind() -> None:
    found = [seen(1), seen(2, mark="100.1000"), seen(3, mark="200.2000"), seen(4, mark="200.1999")]
    assert [one.pid for one in left_behind(found, (), alive)] == [2, 4]


def test_who_is_of_the_session_of_a_replica_that_is_gone_is_left_behind() -> None:
    found = [seen(1, session=100), seen(2, session=101)]
    assert [one.pid for one in left_behind(found, [GONE], alive)] == [1]


def test_a_session_whose_leader_runs_is_somebody_elses() -> None:
    found = [seen(100, session=100), seen(101, session=100)]
    assert left_behind(found, [GONE], alive) == []


@pytest.mark.parametrize("mark", ["nonsense", "1", "a.b", ""])
def test_what_is_no_mark_names_nobody_who_is_gone(mark: str) -> None:
    assert processes.is_marked_alive(mark)


def test_a_process_knows_its_own_mark_and_no_recycled_one() -> None:
    own = processes.own_mark()
    pid, ticks = own.split(".")
    assert processes.is_marked_alive(own)
    assert not processes.is_marked_alive(f"{pid}.{int(ticks) - 1}")


def mounts(*lines: str) -> str:
    return "".join(f"{line}\n" for line in ("22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw", *lines))


def test_a_view_among_the_mounts_names_its_replica() -> None:
    assert mark_of_mounts(mounts()) == ""
    hidden = "94 92 0:44 / /store/trees/a\\040-\\040b rw - tmpfs cortex-view:100.1000 rw,size=65536k"
    view = "95 94 0:45 / /store/trees/a\\040-\\040b rw - overlay cortex-view:100.1000 rw,lowerdir=/proc/self/fd/5"
    assert mark_of_mounts(mounts(hidden, view)) == "100.1000"


def test_a_view_that_was_made_in_another_ones_namespace_counts() -> None:
    outer, inner = (f"9{n} 22 0:4{n} / /p{n} rw - overlay cortex-view:{n}00.1 rw" for n in (1, 2))
    assert mark_of_mounts(mounts(outer, inner)) == "200.1"


@pytest.mark.parametrize("text", ["", "\n", "nonsense\n", "22 1 8:1 / / rw - \n"])
def test_mounts_that_cannot_be_read_name_nobody(text: str) -> None:
    assert mark_of_mounts(text) == ""
