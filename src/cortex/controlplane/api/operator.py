"""What the API calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from cortex.artifacts.store import ArtifactStore
from cortex.controlplane.audit import Audit
from cortex.controlplane.secrets import Secrets
from cortex.controlplane.tokens import Tokens
from cortex.ids import ApiKey, DeploymentName
from cortex.wire.agent import LogLines, ReadLogs
from cortex.wire.operator import (
    ApiStatus,
    DeploymentStatus,
    DeployProgress,
    DeployRequest,
    DeployResult,
    EventPage,
    HistoryLine,
    Info,
    Removed,
    RollbackRequest,
    RollbackResult,
    StopRequest,
    Watched,
)


class Operator(Protocol):
    """The control plane as the API sees it; `facade.ControlPlane` is it."""

    store: ArtifactStore
    secrets: Secrets
    tokens: Tokens
    audit: Audit

    @property
    def stopping(self) -> bool:
        """Whether it is on its way down: nothing is taken in any more."""
        ...

    def info(self) -> Info: ...
    def deploy(
        self, name: str, request: DeployRequest, emit: Callable[[DeployProgress], None], left: threading.Event
    ) -> DeployResult: ...
    def delete(self, deployment: DeploymentName, api: ApiKey | None) -> Removed | None: ...
    def roll_back(self, api: ApiKey, request: RollbackRequest) -> RollbackResult | None: ...
    def deployments(self) -> tuple[DeploymentStatus, ...]: ...
    def apis(self, deployment: str | None) -> tuple[ApiStatus, ...]: ...
    def api(self, deployment: str, name: str) -> ApiStatus | None: ...
    async def watch(self, token: str, timeout_s: float, deployment: str | None) -> Watched: ...
    def revisions(self, api: ApiKey, version: str) -> tuple[str, ...]: ...
    def logs(self, request: ReadLogs) -> LogLines: ...
    async def events(
        self, *, deployment: str | None, api: ApiKey | None, limit: int, after: str, wait_s: float
    ) -> EventPage | None: ...
    def history(self, api: ApiKey) -> tuple[HistoryLine, ...]: ...
    def stop(self, request: StopRequest) -> Info: ...
    def metrics(self) -> str: ...
