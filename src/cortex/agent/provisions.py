"""What a build needs on this node before a process of it can start: found by digest, or made."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cortex.agent.installations import Installations
from cortex.agent.installer import Tell
from cortex.artifacts import samples
from cortex.artifacts.store import ArtifactStore
from cortex.errors import CortexError
from cortex.state.secrets import SecretStore, unpacked_cloud
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

    def __init__(
        self, *, store: ArtifactStore, installations: Installations, secrets: SecretStore, cloud: SecretStore
    ) -> None:
        self._store = store
        self._installations = installations
        self._secrets = secrets
        self._cloud = cloud

    async def provide(self, build: BuildSpec, tell: Tell = lambda _doing: None) -> Provided:
        """
        Have everything there that a build needs; its packages are installed first if they are not.

        Args:
            tell: told what takes long.

        Raises:
            CortexError: something is missing, corrupt, or cannot be installed; says which and what to do.
        """
        model, project, sample = await asyncio.to_thread(self._found, build)
        if build.packages is not None:
            await self._installations.ensure(build.packages, build.runtime, project=build.project, tell=tell)
        secrets = await asyncio.to_thread(self._values, build)
        return Provided(model, project, sample, secrets)

    def python(self, packages: str | None) -> Path:
        """The interpreter that runs a build with these packages."""
        return Path(sys.executable) if packages is None else self._installations.python(packages)

    def _found(self, build: BuildSpec) -> tuple[Path | None, Path | None, Path | None]:
        model = self._store.verify(build.model.tree).path / build.model.entry if build.model is not None else None
        project = self._store.verify(build.project).path if build.project is not None else None
        return model, project, self._sample(build)

    def _sample(self, build: BuildSpec) -> Path | None:
        """What only warns is no reason not to serve: without its body, the replica says that it is untried."""
        if build.sample is None:
            return None
        try:
            return samples.body_file(self._store, build.sample.tree)
        except CortexError as error:
            if build.sample.gate:
                raise
            log.error("%s: its sample cannot be had: %s; %s", build.api, error, error.hint)
            return None

    def _values(self, build: BuildSpec) -> dict[str, str]:
        values = {variable: self._secrets.value(pin) for variable, pin in sorted(build.secrets.items())}
        if build.cloud is None:
            return values
        cloud = unpacked_cloud(self._cloud.value(build.cloud))
        return {**{name: value for name, value in cloud.items() if name not in build.env}, **values}
