"""The control plane's HTTP API apart from what it calls: its document, and who is let in."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from cortex.controlplane.api.application import build_app
from cortex.controlplane.audit import Audit
from cortex.controlplane.tokens import Tokens
from cortex.testing.clock import FakeClock

TOKEN = "a-token"


def an_operator(*, stopping: bool = False) -> Any:
    """With no file of tokens and no audit log."""
    missing = Path("/nonexistent/cortex-tests")
    return SimpleNamespace(
        stopping=stopping,
        metrics=lambda: "",
        tokens=Tokens(file=missing / "tokens.json", home=TOKEN, clock=FakeClock()),
        audit=Audit(missing / "audit", FakeClock()),
    )


def get(path: str, *, token: str = TOKEN, stopping: bool = False, method: str = "GET") -> httpx.Response:
    import asyncio

    app = build_app(an_operator(stopping=stopping), "for-metrics")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, headers={"authorization": f"Bearer {token}".encode()})

    return asyncio.run(ask())


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(method, path, o) for path, found in document["paths"].items() for method, o in found.items()]


def test_the_document_describes_every_call_by_our_own_types() -> None:
    document = build_app(an_operator()).openapi()
    for method, path, operation in operations(document):
        assert set(operation["responses"]) - {"200", "204"} == {"default"}, (method, path)
        assert [status for status in operation["responses"] if status.startswith("2")], (method, path)
    text = json.dumps(document)
    assert "HTTPValidationError" not in text
    assert "x-cortex" not in text
    for name in {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}:
        assert name in document["components"]["schemas"]
    assert document["paths"]["/v1/info"]["get"]["responses"]["200"]["content"] == {
        "application/json": {"schema": {"$ref": "#/components/schemas/Info"}}
    }
    deploy = document["paths"]["/v1/deployments/{name}"]["post"]
    assert deploy["requestBody"]["content"] == {
        "application/json": {"schema": {"$ref": "#/components/schemas/DeployRequest"}}
    }
    assert list(deploy["responses"]["200"]["content"]) == ["application/x-ndjson"]


@pytest.mark.parametrize("token", ["", "A-token", "a-token2", "ä"])
def test_without_the_token_nobody_is_let_in(token: str) -> None:
    refused = get("/v1/info", token=token)
    assert (refused.status_code, refused.json()["error"]) == (401, "wrong-token")
    assert get("/openapi.json", token=token).status_code == 401
    assert get("/openapi.json").json()["openapi"].startswith("3.")


def test_while_it_stops_nothing_is_taken_in() -> None:
    refused = get("/v1/info", stopping=True)
    assert (refused.status_code, refused.json()["error"]) == (503, "stopping")


def test_an_unknown_path_and_a_wrong_method_are_told_in_our_form() -> None:
    assert get("/v1/nothing").json() == {"error": "not-found", "message": "Not Found", "problems": []}
    assert get("/v1/info", method="DELETE").json()["error"] == "method-not-allowed"


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        ("/metrics", "for-metrics", 200),
        ("/metrics", TOKEN, 200),
        ("/metrics", "", 401),
        ("/metrics", "guessed", 401),
        ("/v1/info", "for-metrics", 401),
        ("/openapi.json", "for-metrics", 401),
    ],
)
def test_the_token_for_metrics_opens_nothing_else(path: str, token: str, status: int) -> None:
    assert get(path, token=token).status_code == status
