"""
Models whose rows nobody has looked at yet, or not by the rules or on the runtime that are in force now.

A deploy has its models looked at. This is for what is wanted already: after an upgrade of Cortex or of a runtime, or
when a record was lost. Until then such models are not batched. One at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import msgspec

from cortex.backoff import Backoff
from cortex.clock import Clock
from cortex.errors import CortexError
from cortex.planning.batching import Known, place_of
from cortex.planning.guarding import ToProve
from cortex.state.records import StateStore
from cortex.wire.batching import Mode
from cortex.wire.build import BuildSpec, ModelKey
from cortex.wire.launch import InspectReport

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 10.0
"""After a model could not be looked at; doubled each time."""
LONGEST_PAUSE_S = 3600.0
"""Each try loads the model, and what keeps failing is most likely to fail again."""


class Proving:
    """
    Has models looked at in quiet.

    Args:
        missing: what is to be looked at now. Quick: asks nobody.
        inspect: looks at a build, and at its model's rows as it is said; raises CortexError.
    """

    def __init__(
        self,
        *,
        state: StateStore,
        clock: Clock,
        missing: Callable[[], Iterable[ToProve]],
        inspect: Callable[[BuildSpec, Mode], InspectReport],
    ) -> None:
        self._state = state
        self._clock = clock
        self._missing = missing
        self._inspect = inspect
        self._tries: dict[tuple[ModelKey, str], Backoff] = {}
        """How often in vain, and when again (monotonic)."""

    def step(self) -> float | None:
        """
        Look at the first model that is due.

        Returns:
            Seconds until there may be another one: 0 after one was looked at; None if there is none.

        Raises:
            CortexError: the state cannot be written now.
        """
        missing = {(one.model, one.runtime): one for one in self._missing()}
        self._tries = {key: tried for key, tried in self._tries.items() if key in missing}
        now_s = self._clock.monotonic_s()
        waits_s = []
        for key, one in missing.items():
            tried = self._tries.setdefault(key, Backoff(first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S))
            if wait_s := tried.wait_s(now_s):
                waits_s.append(wait_s)
                continue
            self._look(one)
            # Found out, it is not missing any more. Else: what was tried is another runtime than replicas run on.
            tried.note_failure(self._clock.monotonic_s())
            return 0.0
        return min(waits_s, default=None)

    def _look(self, one: ToProve) -> None:
        build = one.build
        try:
            report = self._inspect(_model_alone(build), one.rows)
        except CortexError as error:
            log.warning("the model of %s could not be looked at, will be tried again: %s", build.api, error)
            return
        if report.batching is None:
            reasons = "; ".join(problem.message for problem in report.problems) or "nothing was said of its rows"
            log.warning("the model of %s could not be looked at, will be tried again: %s", build.api, reasons)
            return
        self._state.record_verdict(one.model, report.batching, place=place_of(build))
        log.info("the model of %s: %s", build.api, Known(self._state.batching()).decision(build, one.runtime).text)


def _model_alone(build: BuildSpec) -> BuildSpec:
    """The build without its handler, which says nothing about rows; nor does a sample that the handler takes."""
    return msgspec.structs.replace(
        build,
        project=None,
        handler=None,
        secrets={},
        tracker=None,
        sample=build.sample if build.handler is None else None,
    )
