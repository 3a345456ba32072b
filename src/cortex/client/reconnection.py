"""Going on across restarts of the control plane."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from cortex.backoff import Backoff
from cortex.client.environments import Environment
from cortex.client.errors import OperatorFailed, OperatorUnreachable, WrongToken
from cortex.client.operator import OperatorClient
from cortex.clock import Clock

T = TypeVar("T")

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0
LEFT_TO_OTHERS_S = 3.0
"""How long a restart is left to the agent before we start what is missing ourselves."""
GIVE_UP_AFTER_S = 60.0


class Reconnecting:
    """
    Repeats calls until the control plane answers again, wherever it comes back.

    Args:
        sleep: waits; passed in by tests.
        say: told when a call was broken off and is made again; None: nobody needs to know.
    """

    def __init__(
        self,
        environment: Environment,
        operator: OperatorClient,
        *,
        clock: Clock,
        sleep: Callable[[float], None] = time.sleep,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._environment = environment
        self._operator = operator
        self._clock = clock
        self._sleep = sleep
        self._say = say

    def call(self, ask: Callable[[OperatorClient], T]) -> T:
        """
        Return what `ask` returns, which may be called again after it failed halfway.

        Raises:
            OperatorDown: `cortex down` was run meanwhile.
            OperatorUnreachable: a minute after the first failure it still fails.
        """
        since_s: float | None = None
        backoff = Backoff(first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S)
        while True:
            try:
                return ask(self._operator)
            except (OperatorUnreachable, WrongToken, OperatorFailed) as error:
                if isinstance(error, OperatorFailed) and error.status != 503:  # it is there, but its agent is not
                    raise
                now_s = self._clock.monotonic_s()
                if since_s is None:
                    since_s = now_s
                    if self._say is not None:
                        self._say("the control plane has gone: going on when it is back")
                away_s = now_s - since_s
                if away_s > GIVE_UP_AFTER_S:
                    raise
                self._find(away_s)
            self._sleep(backoff.note_failure(now_s))

    def _find(self, away_s: float) -> None:
        """Look for where the control plane is now. Its token may be new, or not written yet."""
        try:
            if away_s < LEFT_TO_OTHERS_S:
                self._operator = self._environment.connect()
            else:
                self._operator = self._environment.ensure()
        except OperatorUnreachable:
            pass
