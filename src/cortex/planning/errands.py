"""
On which node an errand is run. Pure.

An errand is what a deploy has done on a node and needs no lease: a build is looked at, packages are found or installed.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from cortex.wire.build import Resources
from cortex.wire.reports import Node

NOTHING = Resources(cpu_millis=0)


class ErrandPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A node, and what matters there to one errand."""

    node: Node
    requested: Resources = NOTHING
    """What leases hold of it."""
    is_out: bool = False
    """Nothing is to begin there: it is lost, or about to leave."""
    failures: int = 0
    """How often this errand has failed there."""
    is_heard: bool = True
    """It has reported since we started."""
    is_short: bool = False
    """Hardly any of its memory is left."""
    has_packages: bool = False
    """Those that are asked for are installed there."""
    errands: int = 0
    """How many are under way there."""
    of_api: int = 0
    """How many replicas of the api have room there."""
    replicas: int = 0
    """How many of any."""


def best_place(places: Iterable[ErrandPlace], asked: Resources) -> ErrandPlace | None:
    """
    Where an errand is run; None: no node has what is asked for.

    Memory and GPUs must be there, and better not be held by others. Cpu only says how long it takes. Where packages are
    installed comes before where there is least to do, so that they are built once.
    """
    fit = [place for place in places if _has(place.node, asked)]
    return min(
        fit,
        key=lambda place: (
            place.is_out,
            place.failures,
            not place.is_heard,
            place.is_short,
            not _has(place.node, asked, beside=place.requested),
            not place.has_packages,
            place.errands,
            place.of_api,
            place.replicas,
            place.node.node,
        ),
        default=None,
    )


def _has(node: Node, asked: Resources, *, beside: Resources = NOTHING) -> bool:
    mem_bytes, gpus = asked.mem_bytes or 0, asked.gpus
    has_memory = not mem_bytes or mem_bytes + (beside.mem_bytes or 0) <= node.mem_bytes
    return has_memory and (not gpus or gpus + beside.gpus <= node.gpus)
