"""Who may call the control plane: tokens, roles, and what is written down of them."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest

from cortex.controlplane.api.access import RULES, rule_of
from cortex.controlplane.api.application import build_app
from cortex.controlplane.audit import KEPT_S, Audit
from cortex.controlplane.secrets import Secrets
from cortex.controlplane.tokens import HOME, Caller, Tokens, TokensUnusable, TokenThere, UnknownToken, UnusableTokenName
from cortex.state.secrets import SecretStore
from cortex.testing.clock import FakeClock
from cortex.wire.operator import (
    ApiChange,
    AuditLine,
    ChangeKind,
    CreatedToken,
    DeployRequest,
    DeployResult,
    Role,
    SecretValue,
    TokenRequest,
    TokenStatus,
)

HOME_TOKEN = "the-home-token"
METRICS_TOKEN = "for-metrics"
NOW = 1_800_000_000.0


class Plane:
    """An operator with real tokens, secrets and audit log; `call` makes one call."""

    stopping = False

    def __init__(self, home: Path) -> None:
        self.clock = FakeClock(wall_s=NOW)
        self.tokens = Tokens(file=home / "tokens.json", home=HOME_TOKEN, clock=self.clock)
        self.audit = Audit(home / "audit", self.clock)
        self.secrets = Secrets(store=SecretStore(home / "secrets"), known=lambda: (), clock=self.clock)
        self.result = DeployResult(changes=(ApiChange(api="a", kind=ChangeKind.ADDED),), committed=True)
        self.home = home

    def deploy(self, _name: str, _request: DeployRequest, _emit: Any, _left: Any) -> DeployResult:
        return self.result

    def metrics(self) -> str:
        return ""

    def info(self) -> dict[str, str]:
        return {}

    def call(self, method: str, path: str, token: str, body: Any = None, scheme: str = "Bearer") -> httpx.Response:
        app = build_app(self, METRICS_TOKEN)  # type: ignore[arg-type]

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=app, client=("192.0.2.7", 4711))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                content = None if body is None else msgspec.json.encode(body)
                headers = {"authorization": f"{scheme} {token}"}
                return await client.request(method, path, headers=headers, content=content)

        return asyncio.run(ask())

    def create(self, name: str, role: Role) -> str:
        return self.tokens.create(name, role).token

    def audited(self) -> list[tuple[str, str, int]]:
        return [(line.who, line.what, line.status) for line in self.audit.lines(100)]


@pytest.fixture
def plane(tmp_path: Path) -> Plane:
    return Plane(tmp_path)


# ---- roles -----------------------------------------------------------------------------------------------------------


def routes() -> Iterator[tuple[str, str]]:
    """Every route that there is."""
    app = build_app(SimpleNamespace(stopping=False, tokens=None, audit=None))  # type: ignore[arg-type]
    yield "GET", "/openapi.json"
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            yield method.upper(), path


def test_every_route_has_a_rule_and_every_rule_a_route() -> None:
    assert set(routes()) == set(RULES)


def test_every_route_that_changes_something_is_written_down() -> None:
    silent = {call for call in RULES if call[0] != "GET" and not RULES[call].changes}
    assert silent == {("POST", "/v1/blobs/missing"), ("PUT", "/v1/blobs/{sha256}")}


def test_what_nobody_thought_of_is_for_administrators() -> None:
    assert rule_of("POST", "/v1/new/{thing}").role is Role.ADMIN


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("method", "path"), sorted(RULES))
def test_a_token_may_what_its_role_may_and_nothing_else(plane: Plane, role: Role, method: str, path: str) -> None:
    order = [Role.READ, Role.DEPLOY, Role.ADMIN]
    asked = path.replace("{sha256}", "0" * 64).replace("{", "").replace("}", "")
    token = plane.create("somebody", role)
    if order.index(role) < order.index(RULES[method, path].role):
        refused = plane.call(method, asked, token)
        assert (refused.status_code, refused.json()["error"]) == (403, "role-too-low")
        assert f"this needs {RULES[method, path].role}" in refused.json()["message"]
        assert plane.audited()[-1][0] == "somebody"
    elif (method, path) in {("GET", "/v1/tokens"), ("GET", "/v1/secrets"), ("GET", "/v1/info"), ("GET", "/v1/audit")}:
        assert plane.call(method, asked, token).status_code == 200


def test_the_home_token_may_everything_and_the_metrics_token_read_metrics(plane: Plane) -> None:
    assert plane.tokens.caller(HOME_TOKEN) == Caller(name=HOME, role=Role.ADMIN)
    assert plane.call("GET", "/v1/tokens", HOME_TOKEN).status_code == 200
    assert plane.call("GET", "/metrics", METRICS_TOKEN).status_code == 200
    assert plane.call("GET", "/v1/info", METRICS_TOKEN).status_code == 401


@pytest.mark.parametrize(
    ("token", "scheme"),
    [
        ("", "Bearer"),
        ("x", "Bearer"),
        (HOME_TOKEN, "Basic"),
        (HOME_TOKEN + "x", "Bearer"),
        (HOME_TOKEN.upper(), "Bearer"),
    ],
)
def test_without_a_token_that_is_known_nobody_is_let_in(plane: Plane, token: str, scheme: str) -> None:
    refused = plane.call("GET", "/v1/info", token, scheme=scheme)
    assert (refused.status_code, refused.json()["error"]) == (401, "wrong-token")


# ---- tokens ----------------------------------------------------------------------------------------------------------


def test_a_token_is_told_once_and_kept_as_a_digest(plane: Plane) -> None:
    made = plane.call("POST", "/v1/tokens/ci", HOME_TOKEN, TokenRequest(role=Role.DEPLOY))
    created = msgspec.json.decode(made.content, type=CreatedToken)
    file = plane.home / "tokens.json"
    assert created.token not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    listed = msgspec.json.decode(plane.call("GET", "/v1/tokens", HOME_TOKEN).content, type=tuple[TokenStatus, ...])
    assert [(one.name, one.role, one.created) for one in listed] == [("ci", Role.DEPLOY, "2027-01-15T08:00:00Z")]
    assert plane.tokens.caller(created.token) == Caller(name="ci", role=Role.DEPLOY)


def test_a_deleted_token_is_turned_away_with_the_next_call(plane: Plane) -> None:
    token = plane.create("ci", Role.READ)
    assert plane.call("GET", "/v1/info", token).status_code == 200
    assert plane.call("DELETE", "/v1/tokens/ci", HOME_TOKEN).status_code == 204
    assert plane.call("GET", "/v1/info", token).status_code == 401
    assert plane.call("DELETE", "/v1/tokens/ci", HOME_TOKEN).json()["error"] == "unknown-token"


def test_tokens_outlive_the_control_plane(plane: Plane) -> None:
    token = plane.create("ci", Role.READ)
    assert Plane(plane.home).tokens.caller(token) == Caller(name="ci", role=Role.READ)


@pytest.mark.parametrize("name", ["", HOME, "CI", "-a", "a-", "ä", "a" * 43, "a b"])
def test_a_name_that_no_token_can_have_is_refused(plane: Plane, name: str) -> None:
    with pytest.raises(UnusableTokenName):
        plane.tokens.create(name, Role.READ)


def test_a_name_is_given_once(plane: Plane) -> None:
    plane.create("ci", Role.READ)
    with pytest.raises(TokenThere):
        plane.create("ci", Role.ADMIN)
    with pytest.raises(UnknownToken):
        plane.tokens.delete("others")


def test_with_a_damaged_file_nobody_but_the_home_token_is_let_in_and_it_says_why(plane: Plane) -> None:
    token = plane.create("ci", Role.ADMIN)
    (plane.home / "tokens.json").write_text("{")
    assert plane.tokens.caller(token) is None
    assert plane.tokens.caller(HOME_TOKEN) is not None
    with pytest.raises(TokensUnusable, match="is no list of tokens"):
        plane.tokens.all()
    assert plane.call("GET", "/v1/tokens", HOME_TOKEN).json()["error"] == "tokens-unusable"


# ---- the audit log ---------------------------------------------------------------------------------------------------


def test_what_is_changed_is_written_down_with_who_and_from_where(plane: Plane) -> None:
    token = plane.create("ci", Role.DEPLOY)
    plane.call("POST", "/v1/deployments/iris", token, DeployRequest(deployment="iris", source="/x"))
    plane.call("PUT", "/v1/secrets/api-token", token, SecretValue(value="hunter2"))
    plane.call("GET", "/v1/secrets", token)
    deploy, secret = plane.audit.lines(100)
    assert deploy == AuditLine(
        time="2027-01-15T08:00:00.000Z",
        who="ci",
        role="deploy",
        origin="192.0.2.7",
        what="deploy iris",
        status=200,
        detail="a added",
    )
    assert (secret.what, secret.status) == ("set secret api-token", 200)
    assert all(b"hunter2" not in file.read_bytes() for file in (plane.home / "audit").iterdir())


def test_a_deploy_that_changed_nothing_is_told_apart(plane: Plane) -> None:
    request = DeployRequest(deployment="iris", source="/x")
    plane.result = DeployResult(changes=(ApiChange(api="a", kind=ChangeKind.UNCHANGED),), committed=True)
    plane.call("POST", "/v1/deployments/iris", HOME_TOKEN, request)
    plane.call("POST", "/v1/deployments/iris", HOME_TOKEN, msgspec.structs.replace(request, dry_run=True))
    assert [line.detail for line in plane.audit.lines(100)] == ["nothing changed", "dry run"]


def test_calls_without_a_token_are_counted_and_told_once_a_minute(plane: Plane) -> None:
    for _ in range(100):
        plane.call("GET", "/v1/info", "guessed")
    assert len(plane.audit.lines(1000)) == 1
    plane.clock.advance(61.0)
    plane.call("GET", "/v1/info", "guessed")
    assert "100 times" in plane.audit.lines(1000)[-1].what


def test_lines_are_appended_and_files_older_than_90_days_removed(plane: Plane) -> None:
    plane.call("DELETE", "/v1/secrets/none", HOME_TOKEN)
    first = next((plane.home / "audit").iterdir())
    before = first.read_bytes()
    plane.clock.advance(86400.0)
    plane.call("DELETE", "/v1/secrets/none", HOME_TOKEN)
    assert first.read_bytes() == before
    assert len(list((plane.home / "audit").iterdir())) == 2
    plane.clock.advance(KEPT_S)
    plane.call("DELETE", "/v1/secrets/none", HOME_TOKEN)
    assert not first.exists()
    assert [status for _, _, status in plane.audited()] == [404, 404]


def test_a_call_is_answered_although_it_cannot_be_written_down_and_is_written_later(plane: Plane) -> None:
    (plane.home / "audit").write_text("in the way")
    assert plane.call("PUT", "/v1/secrets/a", HOME_TOKEN, SecretValue(value="x")).status_code == 200
    (plane.home / "audit").unlink()
    plane.call("DELETE", "/v1/secrets/a", HOME_TOKEN)
    assert [what for _, what, _ in plane.audited()] == ["set secret a", "delete secret a"]


def test_a_line_that_was_cut_off_does_not_hide_the_others(plane: Plane) -> None:
    plane.call("DELETE", "/v1/secrets/a", HOME_TOKEN)
    file = next((plane.home / "audit").iterdir())
    with file.open("ab") as lines:
        lines.write(b'{"time": "2027-01\n')
    plane.call("DELETE", "/v1/secrets/b", HOME_TOKEN)
    assert [what for _, what, _ in plane.audited()] == ["delete secret a", "delete secret b"]
