"""
Messages between the control plane and a process that asks an api for as long as a change-over is proved
(`controlplane.prober`), lines of JSON.

On its stdin one `ProbeRequest`; the pipe stays open for as long as it is to ask. On its stdout one `ProbeAnswer` after
the other.
"""

from __future__ import annotations

import msgspec

NO_ANSWER = 0
"""As a status: the connection was refused, broke off, or gave no answer in time."""


class ProbeSample(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent."""

    file: str
    content_type: str


class ProbeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to ask, and what."""

    host: str
    port: int
    path: str
    token: str
    """That makes the ingress take a request for a probe."""
    samples: tuple[ProbeSample, ...]
    """Sent in turn."""
    name: str
    """With which ids of requests begin."""
    timeout_s: float
    most_per_s: float = 100.0
    """Requests."""

    def __repr__(self) -> str:
        return f"ProbeRequest({self.path})"


class ProbeAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one request."""

    begun_s: float
    """Monotonic seconds of the machine, as is the next."""
    ended_s: float
    status: int = NO_ANSWER
    version: str = ""
    """8 digits, as the answer says."""
    code: str = ""
    """Of an error what its JSON calls it; of no answer why, in words."""
    sample: int = 0
    """Which one was sent."""
    request: str = ""
    """Its id."""
    counted: bool = False
    """It was answered, and not taken for a probe: the ingress that runs knows none."""
