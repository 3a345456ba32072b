"""What a build needs on this node before a process of it can start: found by digest, or made."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cortex.agent.environments import Environments
from cortex.agent.installer import Tell
from cortex.artifacts.store import ArtifactStore
from cortex.state.secrets import SecretStore, unpacked_cloud
from cortex.wire.build import BuildSpec


class Provided(NamedTuple):
    """Everything of a build, on this node."""

    model: Path
    """Its file or folder."""
    project: Path | None
    secrets: Mapping[str, str]
    """
    Values by variable, what leads to clouds among them. They go into the process and nowhere else: never into a log or
    a file.
    """


class Provisions:
    """Finds models, projects, packages and secrets of builds."""

    def __init__(
        self, *, store: ArtifactStore, environments: Environments, secrets: SecretStore, cloud: SecretStore
    ) -> None:
        self._store = store
        self._environments = environments
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
        model, project = await asyncio.to_thread(self._found, build)
        if build.environment is not None:
            await self._environments.ensure(build.environment, build.model.format, project=build.project, tell=tell)
        secrets = await asyncio.to_thread(self._values, build)
        return Provided(model, project, secrets)

    def python(self, environment: str | None) -> Path:
        """The interpreter that runs a build with these packages."""
        return Path(sys.executable) if environment is None else self._environments.python(environment)

    def _found(self, build: BuildSpec) -> tuple[Path, Path | None]:
        self._store.verify(build.model.tree)
        model = self._store.tree_path(build.model.tree) / build.model.entry
        if build.project is None:
            return model, None
        self._store.verify(build.project)
        return model, self._store.tree_path(build.project)

    def _values(self, build: BuildSpec) -> dict[str, str]:
        values = {variable: self._secrets.value(pin) for variable, pin in sorted(build.secrets.items())}
        if build.cloud is None:
            return values
        cloud = unpacked_cloud(self._cloud.value(build.cloud))
        return {**{name: value for name, value in cloud.items() if name not in build.env}, **values}
