"""Watching new versions: what is compared, when, and what becomes of an api that fails far more than before."""

from __future__ import annotations

import msgspec
import pytest

from cortex.controlplane.watching import Watching
from cortex.ids import ApiKey, Version
from cortex.planning.model import WantedApi
from cortex.planning.watching import Answers
from cortex.state.records import StateStore
from cortex.testing.builders import API, a_build, a_deploy, a_wanted_api
from cortex.testing.clock import FakeClock
from cortex.wire.events import Event, EventKind

V1, V2 = a_build("v1"), a_build("v2")


class World:
    """A version that was live for a while, then another one, and whatever both answer."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.state = StateStore()
        self.counted: dict[Version, Answers] = {V1.version: Answers(1000, 10), V2.version: Answers()}
        self.before: tuple[Answers, ...] = (Answers(100, 1),) * 10
        self.usable = True
        self.committed = 0
        self.events: list[Event] = []
        self.watching = Watching(
            state=self.state, counted=self, clock=self.clock, committed=self._commit, tell=self.events.append
        )
        for build in (V1, V2):
            self.state.commit_deploy(a_deploy(msgspec.structs.replace(a_wanted_api(build), watch_s=60.0)))
            self.state.mark_live(API, build.revision, wall_s=self.clock.wall_s())

    def _commit(self) -> None:
        self.committed += 1

    def answers(self, api: ApiKey, version: Version) -> Answers | None:
        assert api == API
        return self.counted[version] if self.usable else None

    def minutes(self, api: ApiKey, version: Version, *, until_wall_s: float, minutes: int) -> tuple[Answers, ...]:
        assert (api, version, minutes) == (API, V1.version, 60)
        return self.before

    def look(self, *answered: tuple[int, int], version: Version = V2.version, every_s: float = 5.0) -> float | None:
        """Take a step, and one more after each of these answers (served, failed)."""
        pause_s = self.watching.step()
        for served, failed in answered:
            known = self.counted[version]
            self.counted[version] = Answers(known.served + served, known.failed + failed)
            self.clock.advance(every_s)
            pause_s = self.watching.step()
        return pause_s

    @property
    def wanted(self) -> WantedApi:
        record = self.state.api(API)
        assert record is not None
        return record.wanted


@pytest.fixture
def world() -> World:
    return World()


def test_a_version_of_which_half_fails_goes_back_and_is_told_why(world: World) -> None:
    world.look((25, 12), (25, 12), (25, 12))
    reason = "36 of 75 requests failed in its first 15 s, of the version before 10 of 1000"
    assert (world.wanted.build, world.wanted.serving) == (V1, V2)
    assert world.wanted.rolled_back is not None
    assert (world.wanted.rolled_back.passed, world.wanted.rolled_back.reason) == ((V2.revision,), reason)
    assert world.committed == 1
    assert world.state.history(API)[0].cause == f"back from {V2.version[:8]}: {reason}"
    world.state.mark_live(API, V1.revision, wall_s=world.clock.wall_s())
    assert world.state.history(API)[1].outcome == f"rolled back: {reason}"
    assert world.state.watched() == ()
    (event,) = world.events
    assert (event.kind, event.text) == (EventKind.ROLLED_BACK, f"by itself, from {V2.version[:8]}: {reason}")


def test_a_version_that_does_as_well_stays_and_the_watch_ends(world: World) -> None:
    assert world.look(*[(25, 0)] * 11) == 5.0
    assert world.wanted.previous == V1.revision
    assert world.look((25, 1)) is None
    assert (world.wanted.build, world.wanted.previous, world.wanted.watched_until_wall_s) == (V2, None, None)
    assert world.look((25, 25)) is None
    assert (world.wanted.build, world.committed) == (V2, 0)


def test_what_was_counted_before_it_was_live_says_nothing(world: World) -> None:
    world.counted[V2.version] = Answers(500, 500)
    world.look(*[(25, 0)] * 5)
    assert world.wanted.build == V2


def test_looks_in_between_make_no_more_intervals(world: World) -> None:
    world.look(*[(4, 4)] * 12, every_s=1.0)
    assert world.wanted.build == V2
    world.look((15, 15))
    assert world.wanted.build == V1


def test_without_a_base_nothing_is_judged(world: World) -> None:
    world.before = (Answers(19, 0),)
    world.look(*[(25, 25)] * 5)
    assert world.wanted.build == V2


def test_a_base_that_is_counted_only_after_the_watch_began_is_one(world: World) -> None:
    world.before, counted = (Answers(19, 0),), world.before
    world.look((25, 12))
    world.before = counted
    world.look((25, 12), (25, 12))
    assert world.wanted.build == V1


def test_while_nobody_can_count_nothing_is_judged_and_the_watch_ends_all_the_same(world: World) -> None:
    world.usable = False
    assert world.look() == 5.0
    world.clock.advance(60.0)
    world.look()
    assert (world.wanted.build, world.wanted.previous) == (V2, None)


def test_a_watch_ends_whatever_becomes_of_the_wall_clock(world: World) -> None:
    world.look((25, 0))
    world.clock.jump_wall(-86400.0)
    world.look(*[(25, 0)] * 12)
    assert world.wanted.previous is None


def test_counts_that_became_less_at_midnight_say_nothing(world: World) -> None:
    world.look((25, 12), (25, 12))
    world.counted[V2.version] = Answers(10, 0)
    world.look((0, 0))
    assert world.wanted.build == V2


def test_another_version_is_watched_anew(world: World) -> None:
    world.look((25, 12), (25, 12))
    v3 = a_build("v3")
    world.counted[v3.version] = Answers()
    world.state.commit_deploy(a_deploy(a_wanted_api(v3)))
    world.look()
    world.state.mark_live(API, v3.revision, wall_s=world.clock.wall_s())
    world.before = ()
    with pytest.raises(AssertionError):  # it is compared with the second version, not the first
        world.look()


def test_when_the_version_before_fails_as_well_it_is_no_fault_of_the_new_one(world: World) -> None:
    world.look((25, 12), (25, 12), (25, 12))
    world.state.mark_live(API, V1.revision, wall_s=world.clock.wall_s())
    assert world.look((10, 5), version=V1.version) == 5.0
    assert world.look((10, 4), version=V1.version) is None
    back = world.wanted.rolled_back
    assert back is not None
    assert back.excuse == "no fault of that version: 9 of 20 requests failed since, too"
    assert world.state.history(API)[1].outcome.endswith(f"; {back.excuse}")
    _, event = world.events
    assert (event.kind, event.text, event.version) == (EventKind.EXCUSED, back.excuse, V2.version[:8])
    assert (world.wanted.build, world.committed) == (V1, 2)


@pytest.mark.parametrize("after", [[(20, 1)], [(1, 1)] * 3 + [(0, 0)] * 118])
def test_when_it_does_not_or_says_too_little_the_blame_stays(world: World, after: list[tuple[int, int]]) -> None:
    world.look((25, 12), (25, 12), (25, 12))
    world.state.mark_live(API, V1.revision, wall_s=world.clock.wall_s())
    assert world.look(*after, version=V1.version) is None
    back = world.wanted.rolled_back
    assert back is not None
    assert back.excuse == ""
