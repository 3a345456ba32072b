"""How the replicas of a build fare."""

from __future__ import annotations

import random
from enum import StrEnum

from cortex.errors import Problem
from cortex.testing.fake_agent import FakeLife
from cortex.wire.orders import StartReplica

SLOWEST_START_S = 3.0


class BuildKind(StrEnum):
    """How the replicas of a build fare."""

    GOOD = "good"
    SLOW = "slow"
    """Takes seconds to start."""
    STUBBORN = "stubborn"
    """Does not end when drained, only when killed."""
    BROKEN = "broken"
    """Cannot start, and says that trying again is useless."""
    FAILING = "failing"
    """Ends while starting, every time."""
    HANGING = "hanging"
    """Never becomes ready."""
    FLAKY = "flaky"
    """Fails its first start in each slot."""
    HALF_BAD = "half bad"
    """Starts in the first slot only."""
    CRASHING = "crashing"
    """Becomes ready, and ends by itself soon after."""


SOUND = frozenset({BuildKind.GOOD, BuildKind.SLOW, BuildKind.STUBBORN})


def life_of(kind: BuildKind, order: StartReplica, roll: random.Random, *, healed: bool) -> FakeLife:
    """
    What becomes of a replica that is started.

    Args:
        healed: what failed for a while does not any more.
    """
    boom = Problem(reference="model-broken", message="the model cannot be read", traceback="ValueError: bad")
    good = FakeLife(ready_after_s=roll.uniform(0.01, 0.2), drain_s=roll.choice([0.0, 0.1, 1.0]))
    match kind:
        case BuildKind.BROKEN:
            return FakeLife(start_error=boom, permanent=True)
        case BuildKind.FAILING:
            return FakeLife(start_error=boom, ready_after_s=roll.uniform(0.01, 0.5))
        case BuildKind.HANGING:
            return FakeLife(never_ready=True)
        case BuildKind.SLOW:
            return FakeLife(ready_after_s=roll.uniform(0.5, SLOWEST_START_S))
        case BuildKind.STUBBORN:
            return FakeLife(ready_after_s=0.05, ignores_sigterm=True)
        case BuildKind.FLAKY if order.attempt == 1 and not healed:
            return FakeLife(start_error=boom)
        case BuildKind.HALF_BAD if not order.replica.endswith(".0") and not healed:
            return FakeLife(start_error=boom)
        case BuildKind.CRASHING if not healed:
            return FakeLife(ready_after_s=0.05, crash_after_s=roll.uniform(0.05, 2.0))
    return good
