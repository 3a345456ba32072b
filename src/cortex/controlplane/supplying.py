"""
What nodes are given of what the control plane has: stored folders, values of secrets, indexes of packages.

A node gets what something on it needs, and nothing else: a replica that has room there, or what is being looked at or
installed for a deploy, which may not be stored yet. Whatever else is asked for is refused, and logged by its name.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cortex.artifacts.errors import StoreUnavailable
from cortex.artifacts.hashing import CHUNK_BYTES
from cortex.artifacts.store import ArtifactStore
from cortex.controlplane.needs import Handlers
from cortex.engines.base import Engine
from cortex.errors import CortexError
from cortex.ids import NodeId, revision_of, short
from cortex.state.records import StateStore
from cortex.state.secrets import SecretStore, unpacked_cloud
from cortex.wire.build import BuildSpec, SecretPin
from cortex.wire.needs import (
    FetchBlob,
    FetchIndexes,
    FetchSecrets,
    FetchTree,
    PackageIndexes,
    SecretValues,
    TreeListing,
)

log = logging.getLogger(__name__)

KNOWN_WITHIN_S = 20.0
"""After our start: until then it should be known what has room where."""
LOOK_EVERY_S = 0.05
MOST_LISTINGS = 16


class NotNeededThere(CortexError):
    """A node asked for something that nothing on it needs."""

    reference = "not-needed-there"

    def __init__(self, node: NodeId, what: str) -> None:
        self.node = node
        self.what = what
        super().__init__(f"nothing that has room on node {node}, or is being looked at, needs {what}")


class Allowance(NamedTuple):
    """What may be asked for."""

    trees: frozenset[str] = frozenset()
    secrets: frozenset[SecretPin] = frozenset()
    clouds: frozenset[SecretPin] = frozenset()
    installs: bool = False
    """Packages."""

    def __or__(self, other: Allowance) -> Allowance:
        return Allowance(
            self.trees | other.trees,
            self.secrets | other.secrets,
            self.clouds | other.clouds,
            self.installs or other.installs,
        )


def allowance_of(builds: Iterable[BuildSpec]) -> Allowance:
    """What processes of these builds need."""
    builds = tuple(builds)
    return Allowance(
        trees=frozenset(tree for build in builds for tree in build.trees),
        secrets=frozenset(pin for build in builds for pin in build.secrets.values()),
        clouds=frozenset(build.cloud for build in builds if build.cloud is not None),
        installs=any(build.packages is not None for build in builds),
    )


class UnderWay:
    """What is looked at or installed just now, whatever may come of it."""

    def __init__(self) -> None:
        self._counts: Counter[Allowance] = Counter()
        self._guard = threading.Lock()

    @contextmanager
    def needs(self, allowance: Allowance) -> Iterator[None]:
        """Nodes may ask for it while the block runs."""
        with self._guard:
            self._counts[allowance] += 1
        try:
            yield
        finally:
            with self._guard:
                self._counts[allowance] -= 1
                self._counts += Counter()  # without those at 0

    @property
    def allowance(self) -> Allowance:
        with self._guard:
            found = tuple(self._counts)
        total = Allowance()
        for one in found:
            total |= one
        return total


class Needed:
    """
    What each node may ask for.

    Args:
        settled: whether it is known what has room where, which it is not just after our start.
        stopping: nobody is kept waiting any more.
    """

    def __init__(
        self,
        *,
        state: StateStore,
        engine: Engine,
        under_way: UnderWay,
        settled: Callable[[], bool],
        stopping: threading.Event,
    ) -> None:
        self._state = state
        self._engine = engine
        self._under_way = under_way
        self._settled = settled
        self._stopping = stopping
        self._by_room: dict[NodeId, tuple[Hashable, Allowance]] = {}

    def allows(self, node: NodeId, asked: Callable[[Allowance], bool]) -> bool:
        """Whether something on a node needs what is asked. Just after our start it may take a while to know."""
        for _ in range(round(KNOWN_WITHIN_S / LOOK_EVERY_S)):
            settled = self._settled()  # before the look, which then is the last
            if asked(self._of(node)):
                return True
            if settled or self._stopping.wait(LOOK_EVERY_S):
                break
        return False

    def _of(self, node: NodeId) -> Allowance:
        return self._with_room_on(node) | self._under_way.allowance

    def _with_room_on(self, node: NodeId) -> Allowance:
        now = (self._state.revision, self._engine.revision)
        known, allowance = self._by_room.get(node, (None, Allowance()))
        if known != now:
            revisions = {
                (lease.request.api, revision_of(lease.request.replica))
                for lease in self._engine.leases()
                if lease.node == node
            }
            builds = (kept.build for kept in self._state.versions())
            allowance = allowance_of(build for build in builds if (build.api, short(build.revision)) in revisions)
            self._by_room[node] = (now, allowance)
        return allowance


class Supplying:
    """
    Answers what nodes need of what builds consist of.

    Args:
        secrets: of users.
        cloud: what deploys handed over for handlers.
        indexes: where packages come from; None: nobody has said.
    """

    def __init__(
        self,
        *,
        store: ArtifactStore,
        secrets: SecretStore,
        cloud: SecretStore,
        indexes: Callable[[], Mapping[str, str] | None],
        needed: Needed,
    ) -> None:
        self._store = store
        self._secrets = secrets
        self._cloud = cloud
        self._indexes = indexes
        self._needed = needed
        self._files: dict[str, Mapping[str, Path]] = {}
        """Of the folders that were asked for lately: where the bytes of each digest are."""
        self._guard = threading.Lock()

    @property
    def handlers(self) -> Handlers:
        return {
            FetchTree: self.tree,
            FetchBlob: self.blob,
            FetchSecrets: self.values,
            FetchIndexes: self.indexes,
        }

    def tree(self, need: FetchTree, node: NodeId) -> TreeListing:
        """Raises NotNeededThere, ArtifactMissing, ArtifactCorrupt, StoreUnavailable."""
        self._check(node, lambda allowed: need.tree in allowed.trees, f"the files of digest {short(need.tree)}…")
        listing = self._store.listing(need.tree)
        folder = self._store.tree_path(need.tree)
        with self._guard:
            while len(self._files) >= MOST_LISTINGS:
                self._files.pop(next(iter(self._files)))
            self._files[need.tree] = {file.sha256: folder / file.path for file in listing}
        return TreeListing(files=tuple(listing), sizes_bytes=tuple(listing.values()))

    def blob(self, need: FetchBlob, node: NodeId) -> Iterator[bytes]:
        """Raises NotNeededThere, ArtifactMissing, StoreUnavailable; also while it is read."""
        what = f"the file of digest {short(need.sha256)}…"
        self._check(node, lambda allowed: need.tree in allowed.trees, what)
        if need.tree not in self._files:
            self.tree(FetchTree(tree=need.tree), node)
        file = self._files.get(need.tree, {}).get(need.sha256)
        if file is None:
            raise self._refused(node, what)
        return self._bytes(file, need.offset)

    def _bytes(self, file: Path, offset: int) -> Iterator[bytes]:
        try:
            with file.open("rb") as stream:
                stream.seek(offset)
                while chunk := stream.read(CHUNK_BYTES):
                    yield chunk
        except OSError as error:
            raise StoreUnavailable(self._store.root, error) from error

    def values(self, need: FetchSecrets, node: NodeId) -> SecretValues:
        """Raises NotNeededThere, SecretMissing, SecretsUnusable."""
        for pin in need.pins.values():
            self._check(node, lambda allowed, pin=pin: pin in allowed.secrets, f'the secret "{pin.name}"')  # type: ignore[misc]
        if need.cloud is not None:
            self._check(node, lambda allowed: need.cloud in allowed.clouds, f"keys to clouds of {need.cloud.name}")
        values = {variable: self._secrets.value(pin) for variable, pin in sorted(need.pins.items())}
        cloud = unpacked_cloud(self._cloud.value(need.cloud)) if need.cloud is not None else {}
        return SecretValues(values=values, cloud=cloud)

    def indexes(self, need: FetchIndexes, node: NodeId) -> PackageIndexes:
        """Raises NotNeededThere."""
        self._check(node, lambda allowed: allowed.installs, "indexes of packages")
        found = self._indexes()
        return PackageIndexes(variables=None if found is None else dict(found))

    def _check(self, node: NodeId, asked: Callable[[Allowance], bool], what: str) -> None:
        if not self._needed.allows(node, asked):
            raise self._refused(node, what)

    def _refused(self, node: NodeId, what: str) -> NotNeededThere:
        log.warning("node %s asked for %s, and was refused: nothing there needs it", node, what)
        return NotNeededThere(node, what)
