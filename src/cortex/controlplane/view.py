"""
What the control plane shows, and who waits for it to change.

Statuses follow from what each tick acts on (`planning.status`), and are kept for readers; a watcher passes the token of
what it has seen and is answered as soon as there is something else.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable

from cortex.controlplane.awaiting import Awaited
from cortex.ids import ApiKey, NodeId, split_api_key
from cortex.settings import Settings
from cortex.state.base import DeploymentRecord
from cortex.wire.operator import ApiStatus, DeploymentStatus, Status, Watched, rfc3339
from cortex.wire.reports import AgentReport, IngressReport

_MOVING = frozenset((Status.CREATING, Status.UPDATING, Status.STOPPING))


class View:
    """The latest statuses. Written by the control loop's thread, read by the API's."""

    def __init__(self) -> None:
        self._statuses: dict[str, ApiStatus] = {}
        self._changes = Awaited()
        self._life = secrets.token_hex(4)
        """Part of each token: what another process of ours has shown is not what we show."""
        self._lock = threading.Lock()

    def publish(self, statuses: tuple[ApiStatus, ...]) -> None:
        """Replace everything shown; wakes watchers when it differs."""
        new = {f"{status.deployment}/{status.name}": status for status in statuses}
        with self._lock:
            if new == self._statuses:
                return
            self._statuses = new
            self._changes.note()

    def close(self) -> None:
        """From now on nobody waits for a change."""
        self._changes.close()

    def statuses(self, deployment: str | None = None) -> tuple[ApiStatus, ...]:
        """All apis, or one deployment's, sorted by deployment and name."""
        with self._lock:
            found = self._statuses
        return tuple(found[key] for key in sorted(found) if deployment is None or found[key].deployment == deployment)

    def status(self, deployment: str, name: str) -> ApiStatus | None:
        with self._lock:
            return self._statuses.get(f"{deployment}/{name}")

    def is_live(self, api: ApiKey) -> bool:
        """Whether the wanted version of an api serves, and no other."""
        status = self.status(*split_api_key(api))
        return status is not None and status.status is Status.LIVE

    def now(self, deployment: str | None = None) -> Watched:
        serial = self._changes.now  # before: what is shown may be newer than its token, and never older
        return Watched(token=self._token(serial), apis=self.statuses(deployment))

    async def changed(self, token: str, timeout_s: float, deployment: str | None = None) -> Watched:
        """What is shown now, if that is not what `token` stands for; else wait for it to change."""
        serial = self._changes.now
        if self._token(serial) == token:
            await self._changes.after(serial, timeout_s)
        return self.now(deployment)

    def _token(self, serial: int) -> str:
        return f"{self._life}-{serial}"


def deployment_statuses(records: Iterable[DeploymentRecord], apis: Iterable[ApiStatus]) -> tuple[DeploymentStatus, ...]:
    """Every deployment with what is true of its apis together."""
    known = {str(record.name): record for record in records}
    by_name: dict[str, list[ApiStatus]] = {name: [] for name in known}
    for api in apis:
        by_name.setdefault(api.deployment, []).append(api)
    return tuple(
        DeploymentStatus(
            name=name,
            status=_together([api.status for api in found]),
            apis=len(found),
            last_updated=rfc3339(known[name].updated_wall_s) if name in known else None,
            source=known[name].source if name in known else "",
        )
        for name, found in sorted(by_name.items())
    )


def ingress_url(reports: Iterable[AgentReport], settings: Settings, head: NodeId | None) -> str:
    """
    Where predictions are asked for, on the node of the control plane: as reported, or else as it will be.

    Args:
        head: None: no node is; that of another is told.
    """
    urls = (
        door_url(report.ingress) for report in reports if report.ingress is not None and head in (None, report.name)
    )
    return next(urls, f"http://{settings.host}:{settings.port}")


def door_url(ingress: IngressReport) -> str:
    """Where the door of a node is found from this machine."""
    shown = ingress.host
    if shown in ("0.0.0.0", "::", ""):
        shown = ingress.peer_host or ("::1" if shown == "::" else "127.0.0.1")
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{ingress.port}"


def _together(found: list[Status]) -> str:
    if not found:
        return "empty"
    if all(status.is_well for status in found):
        return "live"
    if any(status in _MOVING for status in found):
        return "updating"
    return "error"
