"""
What builds need and comes from the control plane: stored folders by digest, and what is never stored here.

Where the artifact store is the control plane's own folder (one machine), every folder is there already. A node with a
store of its own pulls what it lacks, once for all who wait for it. Values of secrets, keys to clouds and indexes of
packages are asked for whenever a process needs them, and are nowhere here but in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from cortex.agent.cache import ArtifactCache
from cortex.agent.installer import Tell
from cortex.agent.joint import JointWork
from cortex.agent.pulling import Patient, Pulling
from cortex.agent.upstream import Upstream
from cortex.artifacts.errors import ArtifactCorrupt, ArtifactMissing
from cortex.artifacts.store import ArtifactStore
from cortex.clock import Clock
from cortex.wire.build import BuildSpec
from cortex.wire.needs import FetchIndexes, FetchSecrets, PackageIndexes, SecretValues

log = logging.getLogger(__name__)


def untold(_doing: str) -> None:
    """For whom nobody listens."""


class Supplies:
    """
    Finds what builds need, or asks for it.

    Args:
        patience_s: how long a control plane that is away is waited for, while nothing comes.
        cache: looks after the store; None: it is the control plane's own folder.
    """

    def __init__(
        self,
        *,
        store: ArtifactStore,
        upstream: Upstream,
        clock: Clock,
        patience_s: float,
        cache: ArtifactCache | None = None,
    ) -> None:
        self._store = store
        self._patient = Patient(upstream=upstream, clock=clock, patience_s=patience_s)
        self._cache = cache
        self._pulling = Pulling(store=store, patient=self._patient, cache=cache) if cache is not None else None
        self._pulls: JointWork[None] = JointWork()

    @property
    def are_here(self) -> bool:
        """Whether the store is the control plane's own folder."""
        return self._pulling is None

    def using(self, *trees: str) -> contextlib.AbstractContextManager[None]:
        """Keep these folders here while the block runs."""
        return self._cache.using(*trees) if self._cache is not None else contextlib.nullcontext()

    async def folders(self, trees: Sequence[str], tell: Tell = untold) -> dict[str, Path]:
        """
        Where stored folders are, each known to hold what its digest says; pulled first if need be.

        Raises:
            CortexError: one cannot be had; says why.
        """
        here = await asyncio.to_thread(self._here, trees)
        for tree in trees:
            if tree not in here:
                await self._pull(tree, tell)
                here[tree] = self._store.tree_path(tree)
        return here

    def _here(self, trees: Sequence[str]) -> dict[str, Path]:
        """Those that need not be pulled."""
        found = {}
        for tree in trees:
            try:
                found[tree] = self._store.verify(tree).path
            except (ArtifactMissing, ArtifactCorrupt) as error:
                if self._pulling is None:
                    raise
                if isinstance(error, ArtifactCorrupt):
                    log.error("%s; it is fetched again", error)
        return found

    async def _pull(self, tree: str, tell: Tell) -> None:
        pulling = self._pulling
        assert pulling is not None
        with self.using(tree):
            await self._pulls.of(tree, lambda all_told: pulling.pull(tree, all_told), tell)

    async def values(self, build: BuildSpec, tell: Tell = untold) -> dict[str, str]:
        """
        The secret variables of a build, what leads to clouds among them.

        Raises:
            ControlPlaneAway: for too long.
            CortexError: one is there no more, or not for this node; says which.
        """
        if not build.secrets and build.cloud is None:
            return {}
        need = FetchSecrets(pins=build.secrets, cloud=build.cloud)
        found = await self._patient.ask(need, SecretValues, tell, "fetching secrets from the control plane")
        return {**{name: value for name, value in found.cloud.items() if name not in build.env}, **found.values}

    async def indexes(self, tell: Tell = untold) -> Mapping[str, str] | None:
        """
        Where packages come from, as the last deploy's shell had it; None when none has handed anything over.

        Raises:
            ControlPlaneAway: for too long.
            CortexError: nothing is to be installed here.
        """
        doing = "asking the control plane where packages come from"
        return (await self._patient.ask(FetchIndexes(), PackageIndexes, tell, doing)).variables
