"""
What an agent asks the control plane, over a connection that it has dialed for that (`wire.link`).

One question at a time, one frame; it is answered with one frame, or in parts: frames of bytes that begin with `PART`,
and `PartsEnd` after the last. Instead of an answer, or of the parts that are left, there may be `NeedRefused`. What was
asked may be asked again, as an answer may be lost: answering twice has to do no harm.

Each question derives from `Need` and has a tag, each answer from `NeedReply`.
"""

from __future__ import annotations

import msgspec

from cortex.errors import Problem

PART = b"\0"
"""No JSON begins with it."""
MAX_PART_BYTES = 2**20
"""Of one frame; longer parts are cut."""


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent lacks, or has to hand over."""


class NeedReply(msgspec.Struct, frozen=True, kw_only=True):
    """What answers it."""


class PartsEnd(NeedReply, frozen=True, kw_only=True, tag="parts_end"):
    """The parts before were all."""


class NeedRefused(NeedReply, frozen=True, kw_only=True, tag="need_refused"):
    """It was not answered, or not to the end; says why."""

    problem: Problem
