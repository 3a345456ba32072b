"""What planning takes for granted where nothing is said, as of what older versions have stored."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cortex.ids import ReplicaId
from cortex.planning.crashes import Row
from cortex.planning.model import (
    ApiProgress,
    ApiSettings,
    Lease,
    LeaseRequest,
    LeaseState,
    Rules,
    RunRecord,
    Scale,
    SlotRecord,
    Snapshot,
)
from cortex.testing.builders import API
from cortex.wire.build import Resources

SETTINGS = {
    "api": "iris/sklearn",
    "min_replicas": 1,
    "idle_timeout_s": 300.0,
    "max_replicas": 100,
    "target_cpu_utilization": 80,
    "target_in_flight": None,
    "downscale_window_s": None,
    "path": "",
    "timeout_s": 600.0,
    "max_body_bytes": 104857600,
    "retry": True,
    "force": False,
    "deployed_wall_s": 0.0,
    "watch_s": 120.0,
}
REQUEST = LeaseRequest(replica=ReplicaId("iris.sklearn.00000000.0"), api=API, resources=Resources())
SLOT = {"attempt": 0, "failed_starts": 0, "crash_pressure": 0.0, "last_exit": None, "last_exit_age_s": 0.0}
ROW = {"count": 0, "since_wall_s": 0.0, "ages_s": (), "crashing": False}


@pytest.mark.parametrize(
    ("kind", "said", "taken"),
    [
        (
            Scale,
            {},
            {"replicas": 1, "asleep": False, "last_up_wall_s": None, "reason": "", "since_wall_s": 0.0},
        ),
        (ApiSettings, {"api": "iris/sklearn"}, SETTINGS),
        (
            ApiProgress,
            {"api": "iris/sklearn"},
            {
                **SETTINGS,
                "serving_was_live": False,
                "rollout_replicas": 1,
                "failed": None,
                "live_wall_s": None,
                "rolled_back": None,
                "previous": None,
                "watched_until_wall_s": None,
                "in_proof": None,
            },
        ),
        (SlotRecord, {}, SLOT),
        (Row, {}, ROW),
        (
            RunRecord,
            {"api": "iris/sklearn", "revision": "0"},
            {
                "api": "iris/sklearn",
                "revision": "0",
                "slots": {},
                "crashes": 0,
                "last_exit": None,
                "last_exit_age_s": 0.0,
                "row": ROW,
            },
        ),
        (Rules, {}, {"drain_timeout_s": 60.0, "hold_timeout_s": 5.0}),
    ],
)
def test_what_is_not_said_is_what_was_always_so(kind: type[msgspec.Struct], said: Any, taken: Any) -> None:
    assert msgspec.to_builtins(msgspec.convert(said, kind)) == taken


def test_room_is_asked_for_and_seen_with_nothing_more_than_is_said() -> None:
    assert (REQUEST.surge, REQUEST.minimum) == (False, False)
    lease = Lease(request=REQUEST, state=LeaseState.PENDING)
    assert (lease.node, lease.devices, lease.reason, lease.lacks) == (None, (), "", None)
    seen = Snapshot(now_s=1.0)
    assert (seen.nodes, seen.leases, seen.settled) == ((), (), True)
