"""
Who is let in, and what is written down of it.

Each route has one line in `RULES`: which role it needs, and, where it changes something, how the audit log calls it.
What is not in there is for administrators alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import msgspec
from fastapi import Request
from starlette.exceptions import HTTPException

from cortex.controlplane.audit import Audit
from cortex.controlplane.tokens import Caller, Tokens
from cortex.errors import CortexError
from cortex.wire.operator import Role

METRICS_PATH = "/metrics"
METRICS = Caller(name="metrics", role=Role.READ)
"""Whoever has the token that opens `/metrics` and nothing else."""
_Message = MutableMapping[str, Any]
_App = Callable[[_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]], Awaitable[None]]


class RouteRule(msgspec.Struct, frozen=True):
    """What a route needs."""

    role: Role
    changes: str = ""
    """How the audit log calls it, with parameters of the path; empty: it changes nothing."""


_READ, _DEPLOY, _ADMIN = RouteRule(Role.READ), Role.DEPLOY, Role.ADMIN

RULES: Mapping[tuple[str, str], RouteRule] = {
    ("GET", "/openapi.json"): _READ,
    ("GET", "/metrics"): _READ,
    ("GET", "/v1/info"): _READ,
    ("GET", "/v1/deployments"): _READ,
    ("GET", "/v1/apis"): _READ,
    ("GET", "/v1/watch"): _READ,
    ("GET", "/v1/apis/{deployment}/{name}"): _READ,
    ("GET", "/v1/apis/{deployment}/{name}/openapi.json"): _READ,
    ("GET", "/v1/apis/{deployment}/{name}/logs"): _READ,
    ("GET", "/v1/apis/{deployment}/{name}/history"): _READ,
    ("GET", "/v1/events"): _READ,
    ("GET", "/v1/secrets"): RouteRule(_DEPLOY),
    ("POST", "/v1/blobs/missing"): RouteRule(_DEPLOY),
    ("PUT", "/v1/blobs/{sha256}"): RouteRule(
        _DEPLOY
    ),  # means nothing by itself; the deploy that it is for is written down
    ("POST", "/v1/deployments/{name}"): RouteRule(_DEPLOY, "deploy {name}"),
    ("DELETE", "/v1/deployments/{name}"): RouteRule(_DEPLOY, "delete {name}"),
    ("DELETE", "/v1/deployments/{name}/apis/{api}"): RouteRule(_DEPLOY, "delete {name}/{api}"),
    ("POST", "/v1/deployments/{name}/apis/{api}/rollback"): RouteRule(_DEPLOY, "rollback {name}/{api}"),
    ("PUT", "/v1/secrets/{name}"): RouteRule(_DEPLOY, "set secret {name}"),
    ("DELETE", "/v1/secrets/{name}"): RouteRule(_DEPLOY, "delete secret {name}"),
    ("GET", "/v1/audit"): RouteRule(_ADMIN),
    ("GET", "/v1/tokens"): RouteRule(_ADMIN),
    ("POST", "/v1/tokens/{name}"): RouteRule(_ADMIN, "create token {name}"),
    ("DELETE", "/v1/tokens/{name}"): RouteRule(_ADMIN, "delete token {name}"),
    ("POST", "/v1/stop"): RouteRule(_ADMIN, "stop"),
}
"""By method and path, as FastAPI names it."""
_RANK = {Role.READ: 0, Role.DEPLOY: 1, Role.ADMIN: 2}


class RoleTooLow(CortexError):
    """The token is good, and may not do this."""

    reference = "role-too-low"

    def __init__(self, caller: Caller, needed: Role) -> None:
        self.caller = caller
        self.needed = needed
        self.hint = f"ask whoever runs this control plane for one: cortex token create NAME --role {needed}"
        super().__init__(f'token "{caller.name}" has the role {caller.role}; this needs {needed}')


class AccessControl:
    """
    Lets callers in or turns them away.

    Args:
        metrics_token: opens `/metrics`, and nothing else.
    """

    def __init__(self, tokens: Tokens, audit: Audit, metrics_token: str | None = None) -> None:
        self._tokens = tokens
        self._audit = audit
        self._metrics = metrics_token

    async def check(self, request: Request) -> None:
        """
        A dependency of every route.

        Raises:
            HTTPException: 401, no token, or one that nobody has.
            RoleTooLow
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        caller = self._tokens.caller(token) if scheme.lower() == "bearer" else None
        if caller is None and self._metrics is not None and request.url.path == METRICS_PATH:
            caller = METRICS if self._tokens.is_same(token, self._metrics) else None
        if caller is None:
            self._audit.turned_away(_origin(request.scope))
            raise HTTPException(401, "the token is missing or wrong: it is in the file `token` of CORTEX_HOME")
        rule = rule_of(request.method, request.scope["route"].path)
        request.state.caller = caller
        request.state.rule = rule
        if _RANK[caller.role] < _RANK[rule.role]:
            request.state.refused = True
            raise RoleTooLow(caller, rule.role)

    def audited(self, app: _App) -> _App:
        """The application, with what it changes written down once it has answered."""

        async def serve(
            scope: _Message,
            receive: Callable[[], Awaitable[_Message]],
            send: Callable[[_Message], Awaitable[None]],
        ) -> None:
            status = 0

            async def send_noted(message: _Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, send_noted)
            finally:
                self._note(scope, status)

        return serve

    def _note(self, scope: _Message, status: int) -> None:
        state: Mapping[str, Any] = scope.get("state") or {}
        caller, rule = state.get("caller"), state.get("rule")
        if caller is None or rule is None or not (rule.changes or state.get("refused")):
            return
        path = scope.get("path", "")
        what = rule.changes.format(**scope.get("path_params", {})) if rule.changes else f"{scope['method']} {path}"
        self._audit.note(
            who=caller.name,
            role=caller.role,
            origin=_origin(scope),
            what=what,
            status=status,
            detail=state.get("outcome", ""),
        )


def rule_of(method: str, path: str) -> RouteRule:
    """What a route needs; of one that nobody thought of, everything."""
    return RULES.get((method, path)) or RouteRule(Role.ADMIN, f"{method} {path}".replace("{", "{{").replace("}", "}}"))


def _origin(scope: Mapping[str, Any]) -> str:
    client = scope.get("client")
    return "" if client is None else str(client[0])
