"""What a replica tells of its load while others come and go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cortex.replica.calls import Call
from cortex.replica.prediction.seats import LoneSeat, Workload
from cortex.replica.process.loads import LoadWriter
from cortex.wire.loadpage import SUFFIX, LoadPageReader

WORDS = ["", "comes", "goes", "comes goes", "goes comes"]


class InFlight:
    """Requests in hand, while whose number is read something happens: the event loop is another thread."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.requests = 0
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        self.before()
        found = self.requests
        self.after()
        return found

    def probe_comes(self) -> None:
        self.workload.uncounted_begun += 1
        self.requests += 1

    def probe_goes(self) -> None:
        probe = Call()
        probe.uncounted = True
        self.requests -= 1
        self.workload.note_end(probe)


@pytest.mark.parametrize("before", WORDS)
@pytest.mark.parametrize("after", WORDS)
def test_probes_that_come_and_go_while_requests_are_counted_are_none(tmp_path: Path, before: str, after: str) -> None:
    workload = Workload(LoneSeat(), LoneSeat())
    in_flight = InFlight(workload)
    writer = LoadWriter(str(tmp_path / "r"), workload, in_flight)
    page = LoadPageReader(f"{tmp_path / 'r'}{SUFFIX}")
    steps = {"comes": in_flight.probe_comes, "goes": in_flight.probe_goes}
    for _ in range(9):
        steps["comes"]()

    def happening(words: str) -> Callable[[], None]:
        def happen() -> None:
            for word in words.split():
                steps[word]()

        return happen

    in_flight.before, in_flight.after = happening(before), happening(after)
    writer.write()
    in_flight.before = in_flight.after = happening("")
    found = page.read()
    assert found is not None
    assert found.in_flight == 0

    in_flight.requests += 1
    writer.write()
    found = page.read()
    page.close()
    assert found is not None
    assert found.in_flight == 1, "a request that is none of them is there at the next look"
