"""Which empty backend of HAProxy's pool serves which api. Pure: no I/O here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from cortex.ids import ApiKey

NOWHERE = 0
"""A slot that never has servers: what an old HAProxy is told about an api whose slot it does not have."""


class HeldSlots(msgspec.Struct, frozen=True):
    """What a worker that was found running has of the pool."""

    pool_size: int
    owners: Mapping[ApiKey, int]
    """Where its routes point."""
    busy: frozenset[int]
    """Slots with servers or requests."""


class Pool(msgspec.Struct, frozen=True):
    """The empty backends that every worker has, and who has which."""

    size: int
    """Slots 1 to `size` exist."""
    owners: Mapping[ApiKey, int] = {}
    vacating: frozenset[int] = frozenset()
    """Slots of apis that left, not to be given away until somebody has seen them empty."""

    def placed(self, apis: Iterable[ApiKey]) -> Pool:
        """The pool once these apis and no others have slots; larger if too few were left."""
        wanted = tuple(apis)
        assignment = assign_slots(wanted, self.owners, self.vacating, self.size)
        size = grown_pool_size(self.size, assignment)
        if size != self.size:
            assignment = assign_slots(wanted, self.owners, self.vacating, size)
        left = set(self.owners.values()) - set(assignment.slots.values())
        return Pool(size=size, owners=assignment.slots, vacating=self.vacating | left)

    def recovered(self, found: Iterable[HeldSlots]) -> Pool:
        """
        The pool as workers have it that were found running.

        Args:
            found: of two that claim one slot for different apis the later wins; the other api gets a new one.
        """
        size, slots, busy = self.size, dict(self.owners), set(self.vacating)
        for held in found:
            size = max(size, held.pool_size)
            slots |= held.owners
            busy |= held.busy | set(held.owners.values())
        owners = {slot: api for api, slot in slots.items()}
        slots = {api: slot for slot, api in owners.items()}
        return Pool(size=size, owners=slots, vacating=frozenset(busy - set(owners)))

    def released(self, used: Collection[int]) -> Pool:
        """The pool once somebody has seen which slots still have something in them."""
        return msgspec.structs.replace(self, vacating=self.vacating & set(used))


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
