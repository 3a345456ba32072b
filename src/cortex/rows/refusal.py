"""How a rule says no."""

from __future__ import annotations

from typing import NoReturn


class NotProved(Exception):
    """A rule's refusal. The text completes `<operator>: …`."""


def refuse(reason: str) -> NoReturn:
    raise NotProved(reason)
