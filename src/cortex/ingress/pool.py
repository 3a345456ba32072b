"""Which empty backend of HAProxy's pool serves which api. Pure: no I/O here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from cortex.ids import ApiKey

NOWHERE = 0
"""A backend that never has servers: what an old HAProxy is told about an api whose backend it does not have."""


class HeldPool(msgspec.Struct, frozen=True):
    """What a worker that was found running has of the pool."""

    pool_size: int
    owners: Mapping[ApiKey, int]
    """Where its routes point."""
    busy: frozenset[int]
    """Backends with servers or requests."""


class Pool(msgspec.Struct, frozen=True):
    """The empty backends that every worker has, and who has which."""

    size: int
    """Backends 1 to `size` exist."""
    owners: Mapping[ApiKey, int] = {}
    vacating: frozenset[int] = frozenset()
    """Backends of apis that left, not to be given away until somebody has seen them empty."""

    @property
    def apis(self) -> dict[int, ApiKey]:
        """Who has each backend that somebody has."""
        return {backend: api for api, backend in self.owners.items()}

    def placed(self, apis: Iterable[ApiKey]) -> Pool:
        """The pool once these apis and no others have backends; larger if too few were left."""
        wanted = tuple(apis)
        assignment = assign_backends(wanted, self.owners, self.vacating, self.size)
        size = grown_pool_size(self.size, assignment)
        if size != self.size:
            assignment = assign_backends(wanted, self.owners, self.vacating, size)
        left = set(self.owners.values()) - set(assignment.backends.values())
        return Pool(size=size, owners=assignment.backends, vacating=self.vacating | left)

    def recovered(self, found: Iterable[HeldPool]) -> Pool:
        """
        The pool as workers have it that were found running.

        Args:
            found: of two that claim one backend for different apis the later wins; the other api gets a new one.
        """
        size, backends, busy = self.size, dict(self.owners), set(self.vacating)
        for held in found:
            size = max(size, held.pool_size)
            backends |= held.owners
            busy |= held.busy | set(held.owners.values())
        owners = {backend: api for api, backend in backends.items()}
        backends = {api: backend for backend, api in owners.items()}
        return Pool(size=size, owners=backends, vacating=frozenset(busy - set(owners)))

    def released(self, used: Collection[int]) -> Pool:
        """The pool once somebody has seen which backends still have something in them."""
        return msgspec.structs.replace(self, vacating=self.vacating & set(used))


class Assignment(msgspec.Struct, frozen=True):
    """The outcome of `assign_backends`."""

    backends: Mapping[ApiKey, int]
    """Every wanted api that has a backend; backends count from 1."""
    free: int
    """Backends left after that."""
    missing: int
    """Wanted apis for which there was no backend."""


def backend_name(backend: int) -> str:
    """The backend's name in HAProxy: `pool-0001`."""
    return f"pool-{backend:04d}"


def near_name(backend: int) -> str:
    """Name in HAProxy of the backend with the same replicas, for peers alone."""
    return f"near-{backend:04}"


def near_number(name: str) -> int | None:
    """The reverse of `near_name`; None for any other backend."""
    prefix, _, digits = name.partition("-")
    return int(digits) if prefix == "near" and digits.isdigit() else None


def backend_number(name: str) -> int | None:
    """The reverse of `backend_name`; None for a backend that is not of the pool."""
    prefix, _, digits = name.partition("-")
    return int(digits) if prefix == "pool" and digits.isdigit() else None


def assign_backends(
    apis: Iterable[ApiKey], current: Mapping[ApiKey, int], busy: Collection[int], pool_size: int
) -> Assignment:
    """
    Give every api a backend: the one it has, else the lowest one that is free.

    Args:
        apis: the wanted apis.
        current: who has which backend now; a backend outside the pool is given up.
        busy: backends that must not be given away yet: requests or servers of a removed api are still in them.
        pool_size: backends 1 to `pool_size` exist.
    """
    wanted = tuple(dict.fromkeys(apis))
    backends: dict[ApiKey, int] = {}
    for api in wanted:
        backend = current.get(api, NOWHERE)
        if NOWHERE < backend <= pool_size:
            backends[api] = backend
    # An api that left keeps its backend from being given away until somebody has seen it empty.
    held = set(backends.values()) | set(current.values()) | set(busy)
    free = [backend for backend in range(1, pool_size + 1) if backend not in held]
    homeless = [api for api in wanted if api not in backends]
    backends.update(zip(homeless, free, strict=False))
    placed = min(len(homeless), len(free))
    return Assignment(backends=backends, free=len(free) - placed, missing=len(homeless) - placed)


def grown_pool_size(pool_size: int, assignment: Assignment) -> int:
    """
    The pool size that HAProxy ought to have: doubled, as often as needed, when less than an eighth of it is free.

    It grows ahead of need, because an HAProxy that is being replaced cannot serve backends that it never had.
    """
    size, free, missing = pool_size, assignment.free, assignment.missing
    while missing or free < size // 8:
        used = min(missing, size)
        missing -= used
        free += size - used
        size *= 2
    return size
