"""Which models are had again from their origin, and what comes of it."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import msgspec
import pytest

from cortex.artifacts.errors import ArtifactCorrupt, ArtifactMissing, OriginUnreachable
from cortex.artifacts.store import ArtifactStore
from cortex.controlplane.healing import LOOK_EVERY_S, TRY_EVERY_S, Healing, damaged
from cortex.errors import Problem
from cortex.ids import NodeId
from cortex.state.base import ApiRecord, VersionRecord
from cortex.testing.builders import a_build, a_node, a_record, a_replica, a_wanted_api, an_exit
from cortex.wire.events import Event, EventKind, Severity
from cortex.wire.fetch import Fetched, Origin
from cortex.wire.operator import ModelUpload, StoredFile
from cortex.wire.reports import AgentReport, Phase

URL = "s3://models/m.onnx"
BYTES = b"a model"


def report(reference: str | None) -> AgentReport:
    exit_report = an_exit()
    if reference is not None:
        exit_report = msgspec.structs.replace(exit_report, problem=Problem(reference=reference, message="m"))
    replica = a_replica(phase=Phase.EXITED, exit=exit_report)
    return AgentReport(
        node=a_node(NodeId("n")), serial=1, agent="a", epoch=1, pid=1, started_wall_s=0.0, replicas=(replica,)
    )


def record(url: str | None = URL, tree: str | None = None) -> ApiRecord:
    build = a_build()
    if tree is not None:
        build = msgspec.structs.replace(build, model=msgspec.structs.replace(build.model, tree=tree))
    origin = None if url is None else Origin(url=url, objects=())
    return a_record(version=VersionRecord(build=build, origin=origin), wanted=a_wanted_api(build))


@pytest.mark.parametrize(
    ("reference", "url", "is_asked"),
    [
        (ArtifactCorrupt.reference, URL, True),
        (ArtifactMissing.reference, URL, True),
        (ArtifactCorrupt.reference, "https://host/m.onnx?***", False),
        (ArtifactCorrupt.reference, None, False),
        ("out-of-memory", URL, False),
        (None, URL, False),
    ],
)
def test_an_origin_is_asked_for_bytes_that_are_damaged_and_for_nothing_else(
    reference: str | None, url: str | None, is_asked: bool
) -> None:
    kept = record(url)
    assert damaged([report(reference)], [kept]) == ([kept] if is_asked else [])


class Damaged:
    """A store with one damaged model, and an origin that has `content`, or cannot be reached."""

    def __init__(self, folder: Path, content: bytes | None) -> None:
        self.store = ArtifactStore(folder / "store")
        self.tree = self.store.put_tree([self._stored(BYTES)])
        self.file = self.store.tree_path(self.tree) / "m.onnx"
        self.file.chmod(0o644)
        self.file.write_bytes(b"xxxxxxx")
        self.fetched = 0

        def fetch(url: str, *_: object) -> Fetched:
            self.fetched += 1
            if content is None:
                raise OriginUnreachable(url, url, "nobody answers")
            files = (self._stored(content),)
            upload = ModelUpload(files=files, entry="m.onnx", format="onnx", note="")
            return Fetched(origin=Origin(url=url, objects=()), model=upload, read_bytes=1, read_objects=1)

        kept = record(tree=self.tree)
        self.events: list[Event] = []
        self.healing = Healing(
            store=self.store,
            known=lambda: [kept],
            reports=lambda: (report(ArtifactCorrupt.reference),),
            fetch=fetch,
            stopping=threading.Event(),
            tell=self.events.append,
        )

    def _stored(self, content: bytes) -> StoredFile:
        with self.store.writer() as writer:
            writer.write(content)
            writer.commit()
        return StoredFile(path="m.onnx", sha256=hashlib.sha256(content).hexdigest())


def test_the_same_bytes_take_the_place_of_damaged_ones(tmp_path: Path) -> None:
    found = Damaged(tmp_path, BYTES)
    assert found.healing.look() == LOOK_EVERY_S
    assert found.file.read_bytes() == BYTES
    assert found.healing.look() == LOOK_EVERY_S
    assert found.fetched == 1, "what is sound is not fetched"
    first, second = found.events
    assert (first.kind, first.severity) == (EventKind.DAMAGED, Severity.ERROR)
    assert first.text.endswith("; its model is fetched again")
    assert (second.kind, second.text) == (EventKind.REPAIRED, f"its model was put right from {URL}")


@pytest.mark.parametrize("content", [b"another model", None])
def test_other_bytes_or_none_change_nothing(tmp_path: Path, content: bytes | None) -> None:
    found = Damaged(tmp_path, content)
    assert found.healing.look() == TRY_EVERY_S
    with pytest.raises(ArtifactCorrupt):
        found.store.verify(found.tree)
    assert [event.kind for event in found.events] == [EventKind.DAMAGED] * 2
