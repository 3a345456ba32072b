"""Homes that older ones of us made: everything that was deployed goes on, under the same version."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract_harness import Connection, Home, running_home

pytestmark = pytest.mark.slow

HOMES = Path(__file__).parents[1] / "homes"
CLOUD = {"AWS_DEFAULT_REGION": "eu-central-1"}
"""What was handed over when it was made."""
HANDLED = {"by": 2, "score": 10.0, "says": "hello", "token": "the-value"}


@pytest.fixture(params=[2, 5])
def home(request: pytest.FixtureRequest) -> Iterator[Home]:
    """As `homes/make_home.py` left it: `old/handled` serves its second version, its third has failed."""
    with running_home() as home:
        with tarfile.open(HOMES / f"schema_{request.param}.tar.gz") as archive:
            archive.extractall(home.path.parent, filter="fully_trusted")  # hard links and modes as the store has them
        (home.path.parent / "home").rename(home.path)
        home.path.chmod(0o700)
        yield home


def history(home: Home, api: str) -> list[tuple[str, str]]:
    lines = home.cortex("history", api, "-o", "json").json
    return [(line["version"], line["outcome"].partition(":")[0]) for line in lines]


def test_everything_goes_on_after_an_update_and_can_be_deployed_further(home: Home) -> None:
    project = home.path.parent / "project"
    home.cortex("up")
    assert home.once_ready("/old/handled", b'{"row": [1, 2, 3, 4]}').json == HANDLED
    assert home.once_ready("/old/plain", b"[[1, 2, 3, 4]]").json == [[[20.0]]]
    before = [("1390bd7e", "failed"), ("d1783445", "live"), ("1773a776", "replaced")]
    assert history(home, "old/handled") == before
    handled, plain = (home.cortex("get", f"old/{name}", "-o", "json").json for name in ("handled", "plain"))
    assert (handled["status"], handled["version"], handled["serving"]) == ("update failed", "1390bd7e", "d1783445")
    assert (plain["status"], plain["version"], plain["replicas"]["requested"]) == ("live", "2ce64a8d", 2)
    pids = [*home.settled_replicas("old/handled"), *home.settled_replicas("old/plain", 2)]
    assert "api-token" in home.cortex("secret", "list").out

    (project / "cortex.yaml").write_text((project / "cortex.yaml").read_text() + "  timeout: 30s\n")
    home.deploy(project, **CLOUD)  # what serves is what the project holds: its version is made again, and is the same
    assert history(home, "old/handled") == [("d1783445", "live"), before[0], ("d1783445", "replaced"), before[2]]
    assert [*home.settled_replicas("old/handled"), *home.settled_replicas("old/plain", 2)] == pids

    handler = project / "handler.py"
    handler.write_text(handler.read_text().replace('"by": 2', '"by": 4'))
    home.deploy(project, **CLOUD)
    with Connection(home.port) as connection:
        answer = connection.ask("POST", "/old/handled", b'{"row": [1, 2, 3, 4]}')
    assert answer.json == {**HANDLED, "by": 4}
    assert home.settled_replicas("old/plain", 2) == pids[1:]

    home.cortex("rollback", "old/handled")
    assert home.once_ready("/old/handled", b'{"row": [1, 2, 3, 4]}').json == HANDLED

    home.cortex("delete", "old/handled", "--yes")
    ends = {outcome for _version, outcome in history(home, "old/handled")}
    assert ends == {"deleted", "failed", "replaced", "rolled back"}
