"""Tests of `cortex.planning.scale`."""

from hypothesis import given
from hypothesis import strategies as st

from cortex.ids import ApiKey
from cortex.planning.model import ApiSettings, Scale
from cortex.planning.scale import changed, deployed

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
