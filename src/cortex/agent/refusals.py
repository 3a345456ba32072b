"""
What the ingress answered itself, told in the log of the api: who only saw a connection close finds the reason there.

One line an api at most every minute, since a flood of refused requests shall not be a flood of lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from cortex.clock import Clock
from cortex.ids import ApiKey, split_api_key
from cortex.ingress.configuration import Refusal
from cortex.ingress.counters import ApiRefusals
from cortex.wire.logline import LoggedLine, encode_line

QUIET_S = 60.0
MAX_FILE_BYTES = 2**20
"""Two of these are kept."""

_SAID: dict[Refusal, str] = {
    Refusal.BAD_REQUEST: "400 bad-request: not valid HTTP, or the body broke off",
    Refusal.METHOD_NOT_ALLOWED: "405 method-not-allowed",
    Refusal.REQUEST_TIMEOUT: "408 request-timeout: the request did not arrive in time",
    Refusal.BODY_TOO_LARGE: "413 body-too-large: over max_body in cortex.yaml",
    Refusal.REPLICA_LOST: "502 replica-lost: the replica died with the request",
    Refusal.NO_READY_REPLICA: "503 no-ready-replica",
    Refusal.OVERLOADED: "503 overloaded: every replica was busy and the queue full",
    Refusal.TIMEOUT: "504 timeout",
    Refusal.INGRESS_FAULT: "500 ingress-fault: HAProxy ran out of something",
}


class RefusalLog:
    """
    Writes `<deployment>.<api>.ingress.0.log` beside the logs of replicas.

    Counters that are there at the first look were told by whoever looked before us, so only what is added counts.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._seen: dict[tuple[str, ApiKey], Counter[Refusal]] | None = None
        self._untold: dict[ApiKey, Counter[Refusal]] = {}
        self._told_s: dict[ApiKey, float] = {}

    def note(self, found: Iterable[ApiRefusals]) -> None:
        """Take in cumulative counters, and write what is due."""
        now = {(row.instance, row.api): Counter(row.counts) for row in found}
        seen, self._seen = self._seen, now
        if seen is None:
            return
        for key, counts in now.items():
            added = counts - seen.get(key, Counter())
            if added:
                self._untold.setdefault(key[1], Counter()).update(added)
        now_s = self._clock.monotonic_s()
        for api in tuple(self._untold):
            if now_s - self._told_s.get(api, -QUIET_S) >= QUIET_S:
                self._told_s[api] = now_s
                self._write(api, refusals_text(self._untold.pop(api)))

    def _write(self, api: ApiKey, text: str) -> None:
        deployment, name = split_api_key(api)
        path = self._folder / f"{deployment}.{name}.ingress.0.log"
        line = LoggedLine(wall_s=self._clock.wall_s(), stream="log", level="WARNING", text=text)
        try:
            if path.exists() and path.stat().st_size > MAX_FILE_BYTES:
                path.replace(path.with_name(f"{path.name}.1"))
            with path.open("ab") as stream:
                stream.write(encode_line(line) + b"\n")
        except OSError:
            pass  # a full disk loses lines; the counters go on


def refusals_text(counts: Counter[Refusal]) -> str:
    """`the ingress answered itself: 3 × 413 body-too-large: …; 1 × 503 …`."""
    told = (f"{counts[refusal]} × {_SAID[refusal]}" for refusal in Refusal if counts[refusal])
    return f"the ingress answered itself: {'; '.join(told)}"
