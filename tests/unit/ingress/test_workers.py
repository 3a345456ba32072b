from __future__ import annotations

import pytest

from cortex.ids import ApiKey
from cortex.ingress.configuration import Tier
from cortex.ingress.routes import IngressRoute, IngressServer
from cortex.ingress.workers import (
    IngressRecord,
    Patience,
    WorkerName,
    next_generation,
    read_record,
    remove_leftovers,
    write_record,
)


def test_the_first_restart_is_at_once_and_further_ones_wait_longer_up_to_a_bound():
    patience = Patience()
    waits = []
    for _ in range(9):
        patience.note_failure(100.0)
        waits.append(round(patience.not_before_s - 100.0, 1))
    assert waits == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_record_is_read_back(tmp_path):
    route = IngressRoute(ApiKey("d/a"), "/d/a", (IngressServer("s", "/s", 8),), 1.0, 2, False, "v")
    write_record(tmp_path / "r.json", [], [route])
    record = read_record(tmp_path / "r.json")
    assert record.routes == (route,)
    assert len(record.boot_id) == 36


@pytest.mark.parametrize("content", [b"", b"{", b'{"workers": 1}', b'{"routes": [{"api": "nonsense"}]}'])
def test_a_record_that_makes_no_sense_is_ignored(tmp_path, content):
    (tmp_path / "r.json").write_bytes(content)
    assert read_record(tmp_path / "r.json") == IngressRecord()
    assert read_record(tmp_path / "missing.json") == IngressRecord()


def test_a_generation_is_never_used_twice(tmp_path):
    assert next_generation(tmp_path, []) == 1
    for name in ("door-3.cfg", "bulk-7.log", "door-ended.log", "ingress.json"):
        (tmp_path / name).touch()
    assert next_generation(tmp_path, []) == 8


def test_only_files_of_workers_that_are_gone_are_removed(tmp_path):
    sockets = tmp_path / "run"
    sockets.mkdir()
    for name in ("door-3.cfg", "door-3.map", "door-3.log", "door-ended.log", "ingress.json", "other"):
        (tmp_path / name).touch()
    for name in ("h-door-3.sock", "h-door-3.sock.77.tmp", "h-bulk.sock", "r-0a1b.sock"):
        (sockets / name).touch()
    remove_leftovers(tmp_path, sockets, [])
    assert {file.name for file in tmp_path.iterdir()} == {"run", "door-ended.log", "ingress.json", "other"}
    assert {file.name for file in sockets.iterdir()} == {"h-bulk.sock", "r-0a1b.sock"}
    remove_leftovers(tmp_path / "gone", tmp_path / "gone", [])


def test_names_of_files_are_short_and_tell_the_worker():
    name = WorkerName(tier=Tier.DOOR, generation=12)
    assert (name.config_file, name.map_file, name.log_file) == ("door-12.cfg", "door-12.map", "door-12.log")
    assert name.admin_socket == "h-door-12.sock"
