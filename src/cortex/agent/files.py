"""The files of a replica on its node, and those that it leaves when it ends."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from cortex import processes
from cortex.agent import logs
from cortex.agent.life.effects import NoteEnd, ReplicaRecord
from cortex.agent.life.events import RemainsRead
from cortex.artifacts import samples
from cortex.ids import ReplicaId, socket_stem
from cortex.settings import NodeLayout
from cortex.wire import older
from cortex.wire.framing import UNREADABLE
from cortex.wire.inhand import SUFFIX as IN_HAND_SUFFIX
from cortex.wire.inhand import left_in_hand
from cortex.wire.loadpage import SUFFIX as LOAD_SUFFIX
from cortex.wire.orders import StartReplica
from cortex.wire.places import Places
from cortex.wire.stats import EXIT_FILE_SUFFIX, LastWords

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """Where the files of one attempt lie."""

    layout: NodeLayout
    replica: ReplicaId
    attempt: int

    @cached_property
    def stem(self) -> str:
        return socket_stem(self.replica)

    @property
    def slot(self) -> Path:
        return self.layout.slot_socket(self.stem)

    @property
    def control(self) -> Path:
        return self.layout.control_socket(self.stem)

    @property
    def record(self) -> Path:
        return _records(self.layout) / f"{self.stem}.json"

    @property
    def log(self) -> Path:
        return self.layout.replica_logs / f"{self.replica}.log"

    @property
    def stats(self) -> Path:
        return self.layout.stats / f"{self.replica}.{self.attempt}.json"

    @property
    def scratch(self) -> Path:
        return self.layout.scratch / f"{self.stem}.{self.attempt}"

    @property
    def last_words(self) -> Path:
        """They stay until the next attempt: a successor of ours may ask again."""
        return Path(f"{self.stats}{EXIT_FILE_SUFFIX}")

    @property
    def in_hand(self) -> Path:
        return Path(f"{self.stats}{IN_HAND_SUFFIX}")

    @property
    def load(self) -> Path:
        return Path(f"{self.stats}{LOAD_SUFFIX}")

    def remove_remains(self) -> None:
        """What a process leaves that is gone."""
        self.load.unlink(missing_ok=True)
        self.last_words.unlink(missing_ok=True)
        self.in_hand.unlink(missing_ok=True)

    def remove_scratch(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)

    def remove(self) -> None:
        """All but the slot, which may be another one's. The record last: until then a successor finds the rest."""
        self.remove_remains()
        self.control.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)


def files_of(layout: NodeLayout, order: StartReplica) -> Files:
    return Files(layout, order.replica, order.attempt)


# ---- records ---------------------------------------------------------------------------------------------------------


def write_record(files: Files, record: ReplicaRecord) -> None:
    """Raises OSError: the disk is full, or does not take files."""
    files.record.parent.mkdir(mode=0o700, exist_ok=True)
    processes.write_identity(files.record, record)


def read_records(layout: NodeLayout) -> list[ReplicaRecord]:
    """Of the replicas that a former agent looked after. What cannot be read is removed."""
    folder = _records(layout)
    processes.remove_unfinished(folder)
    records = []
    for file in sorted(folder.glob("*.json")):
        try:
            records.append(_record_of(file.read_bytes()))
        except (OSError, *UNREADABLE) as error:
            log.error("a replica's record cannot be read and is dropped: %s: %s", file, error)
            file.unlink(missing_ok=True)
    return records


def _record_of(data: bytes) -> ReplicaRecord:
    """Read a record, also of a Cortex that came before. Raises MsgspecError."""
    try:
        return msgspec.json.decode(data, type=ReplicaRecord)
    except msgspec.ValidationError:
        raw = msgspec.json.decode(data, type=dict[str, Any])
        order = msgspec.convert(raw.get("order"), dict[str, Any])
        build = msgspec.convert(order.get("build"), dict[str, Any])
        try:
            build = older.build_of_now(build, samples.tree_of)
        except ValueError as error:
            raise msgspec.ValidationError(str(error)) from error
        return msgspec.convert({**raw, "order": {**order, "build": build}}, ReplicaRecord)


def _records(layout: NodeLayout) -> Path:
    return layout.node / "replicas"


# ---- what is left ----------------------------------------------------------------------------------------------------


def read_remains(files: Files, places: Places, *, with_lines: bool) -> RemainsRead:
    """What a replica that is gone has left. Its log is completed, and its scratch folder removed."""
    in_hand = left_in_hand(files.in_hand)
    logs.take_leftover(files.log, files.attempt, places, in_hand.running)
    files.remove_scratch()
    return RemainsRead(
        words=processes.read_record(files.last_words, LastWords),
        in_hand=in_hand,
        last_lines=logs.last_lines(files.log, files.attempt) if with_lines else (),
    )


def note_end(files: Files, end: NoteEnd) -> None:
    logs.note_end(files.log, files.attempt, end.text, end.requests, end.wall_s)


def clear_away(layout: NodeLayout, used: Iterable[Files]) -> None:
    """Remove the files of replicas that nobody knows any more, but for what they counted and their logs."""
    used = tuple(used)
    slots = {files.slot for files in used}
    for path in layout.sockets.glob("r-*.sock"):
        if path not in slots:
            path.unlink(missing_ok=True)
    left = {file for files in used for file in (files.last_words, files.in_hand, files.load)}
    for suffix in (EXIT_FILE_SUFFIX, IN_HAND_SUFFIX, LOAD_SUFFIX):
        for file in layout.stats.glob(f"*{suffix}"):
            if file not in left:
                file.unlink(missing_ok=True)
    processes.remove_unfinished(layout.stats, f"*{EXIT_FILE_SUFFIX}")
    folders = {files.scratch for files in used}
    for folder in layout.scratch.glob("*"):
        if folder not in folders:
            shutil.rmtree(folder, ignore_errors=True)
