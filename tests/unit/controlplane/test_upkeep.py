"""What becomes of stored files that nobody looks at: the unneeded go, and the rotten are found."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from pathlib import Path

import pytest

from cortex.artifacts.store import ArtifactStore
from cortex.clock import SettledWall
from cortex.controlplane.upkeep import EVERY_S, NOT_QUIET_PAUSE_S, Upkeep
from cortex.state.records import StateStore
from cortex.testing.builders import a_build, a_deploy, a_wanted_api
from cortex.testing.clock import FakeClock
from cortex.testing.fake_agent import FakeAgents
from cortex.wire.batching import BatchingVerdict, Proof


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def stopping() -> threading.Event:
    return threading.Event()


@pytest.fixture
def upkeep(store: ArtifactStore, stopping: threading.Event) -> Upkeep:
    return Upkeep(
        state=StateStore(),
        store=store,
        clock=FakeClock(),
        keep_bytes=0,
        reports=lambda: (),
        stopping=stopping,
    )


def rot(store: ArtifactStore, content: bytes) -> str:
    """Store bytes and change one of them, so that neither size nor time shows it. Returns their digest."""
    digest = hashlib.sha256(content).hexdigest()
    store.put(digest, [content])
    path = store.root / "blobs" / digest[:2] / digest
    before = path.stat()
    path.chmod(0o644)
    path.write_bytes(b"?" + content[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.chmod(0o444)
    return digest


def test_a_scrub_sets_aside_what_rotted_unseen_and_says_what_to_do(store, upkeep, caplog) -> None:
    digest = rot(store, b"weights")
    with caplog.at_level(logging.ERROR):
        upkeep.scrub()
    (record,) = caplog.records
    assert digest[:8] in record.getMessage()
    assert "deploy again" in record.getMessage()
    assert store.missing([digest]) == (digest,)


def test_a_scrub_of_sound_files_says_nothing(store, upkeep, caplog) -> None:
    store.put(hashlib.sha256(b"weights").hexdigest(), [b"weights"])
    upkeep.scrub()
    assert caplog.records == []


def test_a_scrub_ends_when_the_control_plane_does(store, upkeep, stopping) -> None:
    digests = {rot(store, b"one"), rot(store, b"two")}
    stopping.set()
    upkeep.scrub()
    assert set(store.missing(digests)) == set()


def test_what_is_known_of_rows_goes_with_the_models(store) -> None:
    state, kept, gone = StateStore(), a_build("v1"), a_build("v2")
    state.commit_deploy(a_deploy(a_wanted_api(kept)))
    for build in (kept, gone):
        state.record_verdict(build.model_key, BatchingVerdict(proof=Proof(rules=1, proved=True)), place="here")
    agents = FakeAgents(FakeClock())
    upkeep = Upkeep(
        state=state, store=store, clock=FakeClock(), keep_bytes=0, reports=agents.reports, stopping=threading.Event()
    )
    assert upkeep.collect() == EVERY_S
    assert [record.model for record in state.batching()] == [kept.model_key]


def test_what_was_just_uploaded_is_kept_when_the_clock_is_set_forward_or_back(store) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    store.put(digest, [b"weights"])
    clock = FakeClock(wall_s=store.blob_path(digest).stat().st_ctime)
    agents = FakeAgents(clock)
    upkeep = Upkeep(
        state=StateStore(), store=store, clock=clock, keep_bytes=0, reports=agents.reports, stopping=threading.Event()
    )
    for jump_s in (86_400.0, -2 * 86_400.0, 86_400.0 * 30):
        clock.jump_wall(jump_s)
        upkeep.collect()
        assert store.blob_path(digest).exists()
    clock.advance(SettledWall.SETTLES_AFTER_S)
    upkeep.collect()
    assert store.missing([digest]) == (digest,), "by then it has been there for long enough"


def test_nothing_is_collected_before_an_agent_has_said_what_runs(upkeep) -> None:
    assert upkeep.collect() == NOT_QUIET_PAUSE_S
