"""What a build needs on this node before a process of it can start: found by digest, or made."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cortex.agent.installations import Installations
from cortex.agent.installer import Tell
from cortex.agent.supplies import Supplies, untold
from cortex.artifacts import samples
from cortex.errors import CortexError
from cortex.wire.build import BuildSpec

log = logging.getLogger(__name__)


class Provided(NamedTuple):
    """Everything of a build, on this node."""

    model: Path | None
    """Its file or folder, if it has one."""
    project: Path | None
    sample: Path | None
    """The file with its sample's body, if that can be had."""
    secrets: Mapping[str, str]
    """
    Values by variable, what leads to clouds among them. They go into the process and nowhere else: never into a log or
    a file.
    """


class Provisions:
    """Finds models, projects, packages and secrets of builds."""

    def __init__(self, *, supplies: Supplies, installations: Installations) -> None:
        self._supplies = supplies
        self._installations = installations

    async def provide(self, build: BuildSpec, tell: Tell = untold) -> Provided:
        """
        Have everything there that a build needs: what is not on this node comes from the control plane, and packages
        are installed.

        Args:
            tell: told what takes long.

        Raises:
            CortexError: something is missing, corrupt, or cannot be installed; says which and what to do.
        """
        with self.using(build):
            (model, project), sample = await asyncio.gather(self._found(build, tell), self._sample(build, tell))
            if build.packages is not None:
                await self._installations.ensure(build.packages, build.runtime, project=build.project, tell=tell)
            return Provided(model, project, sample, await self._supplies.values(build, tell))

    def using(self, build: BuildSpec) -> contextlib.AbstractContextManager[None]:
        """Keep what a build needs on this node while the block runs."""
        return self._supplies.using(*build.trees)

    def python(self, packages: str | None) -> Path:
        """The interpreter that runs a build with these packages."""
        return Path(sys.executable) if packages is None else self._installations.python(packages)

    async def _found(self, build: BuildSpec, tell: Tell) -> tuple[Path | None, Path | None]:
        model = build.model
        wanted = [tree for tree in (model.tree if model is not None else None, build.project) if tree is not None]
        folders = await self._supplies.folders(wanted, tell)
        return (
            folders[model.tree] / model.entry if model is not None else None,
            folders[build.project] if build.project is not None else None,
        )

    async def _sample(self, build: BuildSpec, tell: Tell) -> Path | None:
        """What only warns is no reason not to serve: without its body, the replica says that it is untried."""
        if build.sample is None:
            return None
        try:
            return samples.body_in((await self._supplies.folders([build.sample.tree], tell))[build.sample.tree])
        except CortexError as error:
            if build.sample.gate:
                raise
            log.error("%s: its sample cannot be had: %s; %s", build.api, error, error.hint)
            return None
