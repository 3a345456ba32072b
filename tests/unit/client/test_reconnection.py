"""Reading on while the control plane restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cortex.client.errors import OperatorDown, OperatorFailed, OperatorUnreachable
from cortex.client.local import LocalEnvironment
from cortex.client.operator import OperatorClient
from cortex.client.reconnection import GIVE_UP_AFTER_S, Reconnecting
from cortex.settings import load_settings
from cortex.wire.operator import Failure


class FakeClock:
    """Time passes by sleeping only."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []
        self.at: dict[int, Any] = {}
        """By number of the sleep: what happens meanwhile."""

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        self.at.get(len(self.slept), lambda: None)()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def environment(tmp_path: Path, fake: Any, clock: FakeClock) -> LocalEnvironment:
    fake.write_home(tmp_path)
    return LocalEnvironment(load_settings({"CORTEX_HOME": str(tmp_path)}), environ={}, clock=clock)


@pytest.fixture
def calls(environment: LocalEnvironment, clock: FakeClock) -> Reconnecting:
    return Reconnecting(environment, environment.connect(), clock=clock, sleep=clock.sleep)


def test_an_answer_is_handed_through(calls: Reconnecting, clock: FakeClock) -> None:
    assert calls.call(lambda operator: operator.info().environment) == "local"
    assert clock.slept == []


def test_a_dropped_connection_is_asked_again(calls: Reconnecting, clock: FakeClock, fake: Any) -> None:
    fake.hang_up_on.add("GET /v1/info")
    assert calls.call(lambda operator: operator.info().environment) == "local"
    assert clock.slept == [0.1]


def test_a_control_plane_is_found_where_it_came_back(
    calls: Reconnecting, clock: FakeClock, fake: Any, fakes: Any, tmp_path: Path
) -> None:
    successor = fakes.FakeOperator()
    try:
        (tmp_path / "controlplane.json").unlink()
        fake.hang_up_on.add("GET /v1/info")
        fake.failures["GET /v1/info"] = (503, Failure(error="agent-unreachable", message="starting"))
        clock.at[3] = lambda: successor.write_home(tmp_path)
        url = calls.call(lambda operator: (operator.info(), operator.url)[1])
    finally:
        successor.close()
    assert url == f"http://127.0.0.1:{successor.port}"
    assert clock.slept[:4] == [0.1, 0.2, 0.4, 0.8]


def test_it_gives_up_after_a_while(calls: Reconnecting, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_self: object, **_flags: object) -> OperatorClient:
        raise OperatorUnreachable("", "gone")

    monkeypatch.setattr(LocalEnvironment, "connect", unreachable)
    monkeypatch.setattr(LocalEnvironment, "ensure", unreachable)

    def ask(_operator: OperatorClient) -> None:
        raise OperatorUnreachable("", "gone")

    with pytest.raises(OperatorUnreachable):
        calls.call(ask)
    assert GIVE_UP_AFTER_S < clock.now_s < GIVE_UP_AFTER_S + 2


def test_what_the_agent_does_not_restart_is_started(
    environment: LocalEnvironment,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    fake: Any,
    fakes: Any,
    tmp_path: Path,
) -> None:
    (tmp_path / "controlplane.json").unlink()
    monkeypatch.setattr(LocalEnvironment, "ensure", lambda _self: OperatorClient(port=fake.port, token=fakes.TOKEN))
    fake.hang_up_on.add("GET /v1/info")
    broken = OperatorClient(port=1, token="")
    calls = Reconnecting(environment, broken, clock=clock, sleep=clock.sleep)
    assert calls.call(lambda operator: operator.url if operator is not broken else operator.info()) is not None
    assert clock.now_s > 3.0


def test_down_ends_it(calls: Reconnecting, fake: Any, tmp_path: Path) -> None:
    (tmp_path / "controlplane.json").unlink()
    (tmp_path / "down").touch()
    fake.hang_up_on.add("GET /v1/info")
    with pytest.raises(OperatorDown):
        calls.call(lambda operator: operator.info())


def test_other_failures_are_passed_on(calls: Reconnecting, fake: Any) -> None:
    fake.failures["GET /v1/info"] = (500, Failure(error="internal-error", message="oops"))
    with pytest.raises(OperatorFailed):
        calls.call(lambda operator: operator.info())
