"""What leases are in Ray, and what a look at it says of them."""

from __future__ import annotations

import pytest

from cortex.engines.ray.groups import (
    AskedGroup,
    GroupFinding,
    WantedGroup,
    attempt_of,
    bundle_of,
    by_replica,
    changes,
    finding,
    group_name,
    is_right,
    machines,
    most_demand,
    node_of,
    placed_on,
    read_selector,
    replica_and_attempt,
    selector_text,
    target,
)
from cortex.engines.ray.messages import Bundle, Group, NewGroup, Selector
from cortex.ids import NodeId, ReplicaId
from cortex.planning.model import Lease, LeaseRequest, LeaseState
from cortex.testing.builders import API
from cortex.testing.fake_ray import a_raylet
from cortex.wire.build import Resources
from cortex.wire.reports import Node

A, B = NodeId("a"), NodeId("b")
REPLICA = ReplicaId("iris.sklearn.1a2b3c4d.0")
THERE = {A: a_raylet("a", raylet="aa"), B: a_raylet("b", raylet="bb")}
ROOM = Resources(cpu_millis=500, mem_bytes=1000, gpus=1)


def a_lease(state: LeaseState = LeaseState.GRANTED, node: NodeId | None = A, *, only: NodeId | None = None) -> Lease:
    request = LeaseRequest(replica=REPLICA, api=API, resources=ROOM, node=only)
    return Lease(request=request, state=state, node=node if state is LeaseState.GRANTED else None)


def a_group(
    state: str = "CREATED",
    raylet: str = "aa",
    *,
    attempt: int = 1,
    selector: Selector | None = None,
    bundle: Bundle | None = None,
) -> Group:
    return Group(
        id=f"id-{attempt}",
        name=group_name(REPLICA, attempt),
        state=state,
        raylet=raylet,
        bundle=bundle or bundle_of(ROOM),
        selector=selector,
    )


def on(*raylets: str) -> Selector:
    return Selector(raylets=raylets)


def not_on(*raylets: str) -> Selector:
    return Selector(raylets=raylets, others=True)


# ---- names ----------------------------------------------------------------------------------------------------------


def test_a_name_says_which_replica_and_which_attempt_it_is_of() -> None:
    assert group_name(REPLICA, 12) == "cx:iris.sklearn.1a2b3c4d.0:12"
    assert replica_and_attempt(group_name(REPLICA, 12)) == (REPLICA, 12)


@pytest.mark.parametrize("name", ["", "cx:", "cx::1", "cx:replica", "cx:replica:", "cx:replica:one", "pg:replica:1"])
def test_a_group_with_another_name_is_none_of_ours(name: str) -> None:
    assert replica_and_attempt(name) is None
    assert attempt_of(name) == 0


def test_of_each_replica_the_latest_attempt_comes_first() -> None:
    first, tenth = a_group(attempt=2), a_group(attempt=10)
    foreign = Group(id="x", name="somebody's", state="CREATED", raylet="aa", bundle=Bundle())
    assert by_replica([first, foreign, tenth]) == {REPLICA: [tenth, first]}


@pytest.mark.parametrize(("selector", "text"), [(on("aa"), "in(aa)"), (not_on("aa", "bb"), "!in(aa,bb)")])
def test_a_selector_is_written_as_ray_has_it_and_read_again(selector: Selector, text: str) -> None:
    assert selector_text(selector) == text
    assert read_selector(text) == selector


@pytest.mark.parametrize("text", ["", "aa", "!aa", "in(aa", "exists()"])
def test_what_is_no_list_of_raylets_is_no_selector_of_ours(text: str) -> None:
    assert read_selector(text) is None


# ---- machines -------------------------------------------------------------------------------------------------------


def test_a_raylet_that_was_started_again_takes_the_place_of_the_one_before() -> None:
    older, younger = a_raylet("a", raylet="zz", started_ms=1), a_raylet("a", raylet="aa", started_ms=2)
    assert machines([younger, older]) == machines([older, younger]) == {A: younger}


def test_a_node_has_the_room_that_ray_says_in_our_units() -> None:
    raylet = a_raylet("a", cpus=1.5, memory=2e9, gpus=2.0)
    assert node_of(raylet) == Node(node=A, cpu_millis=1500, mem_bytes=2_000_000_000, gpus=2)


# ---- groups ---------------------------------------------------------------------------------------------------------


def test_a_bundle_holds_what_is_asked_for_in_rays_units() -> None:
    assert bundle_of(ROOM) == Bundle(cpus=0.5, memory=1000.0, gpus=1.0)
    assert bundle_of(ROOM, cpu_millis=200).cpus == 0.2


def test_a_bundle_of_nothing_holds_a_byte_since_ray_takes_no_empty_one() -> None:
    assert bundle_of(Resources(cpu_millis=0)) == Bundle(memory=1.0)


@pytest.mark.parametrize(
    ("lease", "where"),
    [
        (a_lease(), on("aa")),
        (a_lease(node=NodeId("gone")), None),
        (a_lease(LeaseState.PENDING), not_on("aa", "bb", "cc")),
        (a_lease(LeaseState.PENDING, only=A), None),
        (a_lease(LeaseState.LOST), None),
    ],
    ids=["placed", "placed on a node that is gone", "without room", "without room where it has to be", "lost"],
)
def test_where_the_group_of_a_lease_is_to_be(lease: Lease, where: Selector | None) -> None:
    assert target(lease, THERE, ["cc", "bb", "aa"]) == where


def test_the_more_raylets_a_waiting_group_names_the_fewer_wait_at_once() -> None:
    assert most_demand(0) == most_demand(1) > 50_000
    assert most_demand(1000) == 74
    assert most_demand(10**9) == 1


ASKED = AskedGroup(raylet="aa", since_s=0.0)
PLACED = AskedGroup(raylet="aa", since_s=0.0, placed=True)


@pytest.mark.parametrize(
    ("asked", "groups", "found"),
    [
        (None, [], GroupFinding.WAITS),
        (ASKED, [], GroupFinding.WAITS),
        (ASKED, [a_group("PENDING", "")], GroupFinding.WAITS),
        (ASKED, [a_group()], GroupFinding.HELD),
        (PLACED, [a_group()], GroupFinding.HELD),
        (PLACED, [a_group("PENDING", "", attempt=2), a_group()], GroupFinding.HELD),
        (PLACED, [], GroupFinding.LOST),
        (PLACED, [a_group("RESCHEDULING", "aa")], GroupFinding.LOST),
        (PLACED, [a_group("CREATED", "bb")], GroupFinding.LOST),
        (AskedGroup(raylet="old", since_s=0.0, placed=True), [a_group("RESCHEDULING", "old")], GroupFinding.WAITS),
    ],
    ids=[
        "nothing asked yet",
        "asked and not seen yet",
        "Ray has not placed it yet",
        "placed",
        "still there",
        "asked again while it is there",
        "gone",
        "lost its node",
        "moved",
        "its raylet was started again",
    ],
)
def test_what_a_look_says_of_a_lease(asked: AskedGroup | None, groups: list[Group], found: GroupFinding) -> None:
    assert finding(a_lease(), asked, groups, THERE) is found


def test_a_lease_on_a_node_that_is_gone_is_lost() -> None:
    assert finding(a_lease(node=NodeId("gone")), PLACED, [a_group()], THERE) is GroupFinding.LOST


@pytest.mark.parametrize(
    ("group", "node"),
    [
        (a_group("CREATED", "bb", selector=not_on("aa")), B),
        (a_group("CREATED", "zz", selector=not_on("aa")), None),
        (a_group("PENDING", "", selector=not_on("aa")), None),
        (a_group("CREATED", "bb", selector=on("bb")), None),
    ],
    ids=["on a node that came", "on one that is not ours", "nowhere yet", "asked of one node while there was room"],
)
def test_a_lease_without_room_is_where_ray_has_placed_it_on_a_node_that_came(group: Group, node: NodeId | None) -> None:
    assert placed_on([group], THERE) == node


@pytest.mark.parametrize(
    ("group", "wanted", "right"),
    [
        (a_group("CREATED", "aa"), on("aa"), True),
        (a_group("CREATED", "aa"), on("bb"), False),
        (a_group("CREATED", "aa"), not_on("bb"), False),
        (a_group("PENDING", "", selector=on("aa")), on("aa"), True),
        (a_group("PREPARED", "", selector=on("aa")), on("aa"), True),
        (a_group("RESCHEDULING", "", selector=on("aa")), on("aa"), False),
        (a_group("PENDING", "", selector=on("bb")), on("aa"), False),
        (a_group("PENDING", ""), on("aa"), False),
        (a_group("PENDING", "", selector=not_on("aa", "gone")), not_on("aa"), True),
        (a_group("PENDING", "", selector=not_on("aa")), not_on("aa", "came"), False),
        (a_group("PENDING", "", selector=not_on("aa")), on("aa"), False),
        (a_group(bundle=Bundle(cpus=0.0, memory=1000.0, gpus=1.0)), on("aa"), True),
        (a_group(bundle=Bundle(cpus=0.6, memory=1000.0, gpus=1.0)), on("aa"), False),
        (a_group(bundle=Bundle(cpus=0.5, memory=999.0, gpus=1.0)), on("aa"), False),
        (a_group(bundle=Bundle(cpus=0.5, memory=1000.0, gpus=2.0)), on("aa"), False),
    ],
    ids=[
        "there",
        "elsewhere",
        "there, and a new node is wanted",
        "waits for the node",
        "about to be there",
        "has lost its node",
        "waits for another",
        "waits for any",
        "demand that also names a node that went",
        "demand that does not know a node that came",
        "demand, and there is room",
        "holds less of the processor",
        "holds more of the processor",
        "holds other memory",
        "holds other GPUs",
    ],
)
def test_whether_a_group_is_what_is_wanted(group: Group, wanted: Selector, right: bool) -> None:
    assert is_right(group, ROOM, wanted) is right


WANTED = {REPLICA: WantedGroup(resources=ROOM, cpu_millis=300, selector=on("aa"))}


def test_a_group_that_is_lacking_is_made_under_a_name_that_no_other_has() -> None:
    made = NewGroup(name=group_name(REPLICA, 1), bundle=bundle_of(ROOM, cpu_millis=300), selector=on("aa"))
    assert changes(WANTED, {}, spare=()) == ([], {REPLICA: made})
    _, beside = changes(WANTED, {REPLICA: [a_group("PENDING", "", attempt=9)]}, spare=())
    assert beside[REPLICA].name == group_name(REPLICA, 10)


def test_of_several_groups_of_a_replica_one_that_is_right_stays() -> None:
    groups = {REPLICA: [a_group("PENDING", "", attempt=3, selector=on("bb")), a_group(attempt=2), a_group(attempt=1)]}
    assert changes(WANTED, groups, spare=()) == (["id-3", "id-1"], {})


def test_groups_that_nobody_wants_are_removed_unless_they_are_spared() -> None:
    groups = {REPLICA: [a_group()]}
    assert changes({}, groups, spare=()) == (["id-1"], {})
    assert changes({}, groups, spare={REPLICA}) == ([], {})
