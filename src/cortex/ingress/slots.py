"""Which empty backend of HAProxy's pool serves which api. Pure: no I/O here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from cortex.ids import ApiKey

NOWHERE = 0
"""A slot that never has servers: what an old HAProxy is told about an api whose slot it does not have."""


class SlotAssignment(msgspec.Struct, frozen=True):
    """The outcome of `assign_slots`."""

    slots: Mapping[ApiKey, int]
    """Every wanted api that has a slot; slots count from 1."""
    free: int
    """Slots left after that."""
    missing: int
    """Wanted apis for which there was no slot."""


def slot_name(slot: int) -> str:
    """The backend's name in HAProxy: `pool-0001`."""
    return f"pool-{slot:04d}"


def slot_number(name: str) -> int | None:
    """The reverse of `slot_name`; None for a backend that is not of the pool."""
    prefix, _, digits = name.partition("-")
    return int(digits) if prefix == "pool" and digits.isdigit() else None


def assign_slots(
    apis: Iterable[ApiKey], current: Mapping[ApiKey, int], busy: Collection[int], pool_size: int
) -> SlotAssignment:
    """
    Give every api a slot: the one it has, else the lowest one that is free.

    Args:
        apis: the wanted apis.
        current: who has which slot now; a slot outside the pool is given up.
        busy: slots that must not be given away yet: requests or servers of a removed api are still in them.
        pool_size: slots 1 to `pool_size` exist.
    """
    wanted = tuple(dict.fromkeys(apis))
    slots: dict[ApiKey, int] = {}
    for api in wanted:
        slot = current.get(api, NOWHERE)
        if NOWHERE < slot <= pool_size:
            slots[api] = slot
    # An api that left keeps its slot from being given away until somebody has seen it empty.
    held = set(slots.values()) | set(current.values()) | set(busy)
    free = [slot for slot in range(1, pool_size + 1) if slot not in held]
    homeless = [api for api in wanted if api not in slots]
    slots.update(zip(homeless, free, strict=False))
    placed = min(len(homeless), len(free))
    return SlotAssignment(slots=slots, free=len(free) - placed, missing=len(homeless) - placed)


def grown_pool_size(pool_size: int, assignment: SlotAssignment) -> int:
    """
    The pool size that HAProxy ought to have: doubled, as often as needed, when less than an eighth of it is free.

    It grows ahead of need, because an HAProxy that is being replaced cannot serve slots that it never had.
    """
    size, free, missing = pool_size, assignment.free, assignment.missing
    while missing or free < size // 8:
        used = min(missing, size)
        missing -= used
        free += size - used
        size *= 2
    return size
