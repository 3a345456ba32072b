"""Requests that schemathesis makes from an OpenAPI document, and what was answered."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract_harness import Home

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
NO_FAULT = ("not_a_server_error",)
TRUE_DOCUMENT = (
    *NO_FAULT,
    *("status_code_conformance", "content_type_conformance"),
    *("response_headers_conformance", "response_schema_conformance"),
)
"""Every answer is one that the document promises."""

Effort = tuple[str, str]
"""How long it goes on, as arguments of schemathesis."""


def for_seconds(seconds: float) -> Effort:
    return "--max-time", str(max(1, round(seconds)))


def examples(number: int) -> Effort:
    """So many random requests for each operation, besides the systematic ones."""
    return "--max-examples", str(number)


@dataclass
class SchemaFuzzed:
    """What came of it."""

    passed: bool
    """No check failed and nothing went wrong."""
    talk: str
    """What schemathesis printed."""
    statuses: Counter[int] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    """Answers of 5xx, but for 507: a disk may really be full."""


def call(home: Home, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    """One call of the control plane, with the token."""
    connection = http.client.HTTPConnection("127.0.0.1", home.operator_port, timeout=60)
    try:
        data = None if body is None else body.encode("utf-8", "surrogatepass")
        headers = {"authorization": f"Bearer {token(home)}", "content-type": "application/json"}
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def token(home: Home) -> str:
    return (home.path / "token").read_text().strip()


def fuzz_control_plane(home: Home, effort: Effort, *, seed: int | None = None) -> SchemaFuzzed:
    """All calls but `stop`, which does what it says. What is deployed may be gone afterwards."""
    document = json.loads(call(home, "GET", "/openapi.json")[1])
    _make_worthwhile(document, json.loads(call(home, "GET", "/v1/apis")[1]))
    return _fuzz(
        json.dumps(document).encode(),
        f"http://127.0.0.1:{home.operator_port}",
        effort,
        NO_FAULT,
        ["--header", f"Authorization: Bearer {token(home)}", "--exclude-path", "/v1/stop"],
        seed,
    )


def _make_worthwhile(document: dict[str, Any], apis: Sequence[dict[str, Any]]) -> None:
    """Let reading calls be about what is deployed every other time: random names are never found. And let none wait."""
    deployed = {"deployment": [api["deployment"] for api in apis], "name": [api["name"] for api in apis]}
    for path, operations in document["paths"].items():
        for parameter in operations.get("get", {}).get("parameters", ()):
            if path.startswith("/v1/apis/") and parameter["name"] in deployed:
                parameter["schema"] = {
                    "anyOf": [{"enum": sorted(set(deployed[parameter["name"]]))}, {"type": "string"}]
                }
            elif parameter["name"] == "wait_s":
                parameter["schema"]["maximum"] = 0.1


def fuzz_api(home: Home, api: str, effort: Effort, *, seed: int | None = None) -> SchemaFuzzed:
    """An api by the document that the control plane makes of it, which has to be true in every detail."""
    _, document = call(home, "GET", f"/v1/apis/{api}/openapi.json")
    return _fuzz(document, f"http://127.0.0.1:{home.port}", effort, TRUE_DOCUMENT, [], seed)


def _fuzz(
    document: bytes, url: str, effort: Effort, checks: Sequence[str], more: Sequence[str], seed: int | None
) -> SchemaFuzzed:
    with tempfile.TemporaryDirectory(prefix="cortex-fuzz-") as folder:
        report = Path(folder) / "events.ndjson"
        (Path(folder) / "document.json").write_bytes(document)
        ran = subprocess.run(
            [
                *(str(SCHEMATHESIS), "run", "document.json", "--url", url, *more),
                *("--checks", ",".join(checks), "--phases", "examples,coverage,fuzzing", "--continue-on-failure"),
                *(*effort, "--request-timeout", "90", "--no-shrink"),
                *("--report-ndjson-path", str(report), "--suppress-health-check", "all"),
                *(("--seed", str(seed)) if seed is not None else ()),
            ],
            env={**os.environ, "SCHEMATHESIS_HOOKS": "", "NO_COLOR": "1"},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        fuzzed = SchemaFuzzed(ran.returncode == 0, ran.stdout.decode("utf-8", "replace"))
        events = report.read_text("utf-8").splitlines() if report.exists() else []
    for line in events:
        for status, request in _answers(json.loads(line)):
            fuzzed.statuses[status] += 1
            if status >= 500 and status != 507:
                fuzzed.bad.append(f"{status} {request}")
    return fuzzed


def _answers(value: object) -> Iterator[tuple[int, str]]:
    """Every (status, request) in an event, wherever it stands: the events' form changes between releases."""
    if isinstance(value, dict):
        response = value.get("response")
        if isinstance(response, dict) and isinstance(response.get("status_code"), int):
            asked: Any = response.get("request") or value.get("request") or value.get("case") or {}
            shown = {name: asked.get(name) for name in ("method", "uri", "url", "path") if isinstance(asked, dict)}
            yield response["status_code"], json.dumps({k: v for k, v in shown.items() if v})
        for item in value.values():
            yield from _answers(item)
    elif isinstance(value, list):
        for item in value:
            yield from _answers(item)
