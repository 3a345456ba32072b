"""Tests of `cortex.planning.scale`."""

from hypothesis import given
from hypothesis import strategies as st

from cortex.ids import ApiKey
from cortex.planning.autoscale import Scalable, ScalingDecision, decide
from cortex.planning.model import ApiSettings, Scale
from cortex.planning.scale import autoscaled, changed, deployed, remembered

numbers = st.integers(1, 12)


@st.composite
def bounds(draw: st.DrawFn) -> ApiSettings:
    least = draw(numbers)
    return ApiSettings(api=ApiKey("iris/a"), min_replicas=least, max_replicas=draw(st.integers(least, 12)))


def within(scale: Scale, settings: ApiSettings) -> bool:
    return settings.min_replicas <= scale.replicas <= settings.max_replicas


@given(bounds(), bounds(), numbers, st.lists(numbers, max_size=4))
def test_whatever_is_decided_and_deployed_the_number_is_within_the_bounds(before, now, first, decided):
    scale = deployed(None, None, before, first=first, wall_s=0.0)
    for at_s, replicas in enumerate(decided, start=1):
        scale = changed(scale, before, replicas, reason="busy", wall_s=float(at_s))
        assert within(scale, before)
    assert within(deployed(scale, before, now, first=first, wall_s=9.0), now)


@given(bounds(), numbers, numbers)
def test_a_deploy_with_the_same_bounds_changes_nothing(settings, first, decided):
    scale = deployed(None, None, settings, first=first, wall_s=0.0)
    scale = changed(scale, settings, decided, reason="busy", wall_s=1.0)
    assert deployed(scale, settings, settings, first=first, wall_s=2.0) is scale


@given(bounds(), numbers, numbers)
def test_it_is_known_since_when_a_number_holds_and_when_it_last_grew(settings, first, decided):
    before = deployed(None, None, settings, first=first, wall_s=0.0)
    after = changed(before, settings, decided, reason="busy", wall_s=1.0)
    moved = after.replicas != before.replicas
    assert (after.since_wall_s, after.reason) == ((1.0, "busy") if moved else (0.0, ""))
    assert after.last_up_wall_s == (1.0 if after.replicas > before.replicas else None)


def decision(replicas: int, now: int = 2) -> ScalingDecision:
    """That there shall be so many, because bounds say so."""
    api = Scalable(api=ApiKey("iris/a"), replicas=now, min_replicas=replicas, max_replicas=replicas)
    return decide([api], {}, {}, None, now_s=0.0)[api.api]


def test_a_decision_that_follows_the_load_says_why():
    before = Scale(replicas=2, since_wall_s=1.0)
    after = autoscaled(before, ApiSettings(api=ApiKey("iris/a")), decision(5), wall_s=9.0)
    assert (after.replicas, after.last_up_wall_s, after.since_wall_s) == (5, 9.0, 9.0)
    assert after.reason.endswith("kept at min_replicas 5")


def test_a_decision_for_what_there_is_and_one_for_an_api_that_sleeps_change_nothing():
    settings = ApiSettings(api=ApiKey("iris/a"))
    awake, asleep = Scale(replicas=2, reason="before"), Scale(replicas=2, asleep=True)
    assert autoscaled(awake, settings, decision(2), wall_s=9.0) is awake
    assert autoscaled(asleep, settings, decision(5), wall_s=9.0) is asleep


def test_after_a_restart_what_there_was_is_kept_for_a_window_and_the_last_up_is_known():
    memory = remembered(Scale(replicas=7, last_up_wall_s=1000.0), wall_s=1060.0, now_s=50.0)
    assert (memory.more, memory.last_up_s) == (((7, 50.0),), -10.0)
    never = remembered(Scale(replicas=7), wall_s=1060.0, now_s=50.0)
    assert never.last_up_s == float("-inf")


def test_a_wall_clock_that_was_set_back_makes_no_up_of_the_future():
    assert remembered(Scale(replicas=1, last_up_wall_s=1000.0), wall_s=10.0, now_s=50.0).last_up_s == 50.0
