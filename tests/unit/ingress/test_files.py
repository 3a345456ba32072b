from __future__ import annotations

import pytest

from cortex.ids import ApiKey
from cortex.ingress.configuration import Tier
from cortex.ingress.files import LOG_LIMIT_BYTES, IngressFiles, IngressRecord, WorkerName
from cortex.ingress.routes import IngressRoute, IngressServer

ROUTE = IngressRoute(ApiKey("d/a"), "/d/a", (IngressServer("s", "/s", 8),), 1.0, 2, False, "v")


@pytest.fixture
def files(tmp_path):
    files = IngressFiles(tmp_path / "ingress", tmp_path / "run")
    files.prepare()
    return files


def names(folder):
    return {file.name for file in folder.iterdir()}


def test_a_record_is_read_back(files):
    files.write([], [ROUTE])
    record = files.read()
    assert record.routes == record.routes_today() == (ROUTE,)
    assert len(record.boot_id) == 36


def test_after_a_reboot_paths_are_known_and_servers_are_not():
    (route,) = IngressRecord(routes=(ROUTE,), boot_id="another").routes_today()
    assert (route.path, route.servers) == ("/d/a", ())


@pytest.mark.parametrize("content", [b"", b"{", b'{"workers": 1}', b'{"routes": [{"api": "nonsense"}]}'])
def test_a_record_that_makes_no_sense_is_ignored(files, content):
    assert files.read() == IngressRecord()
    (files.directory / "ingress.json").write_bytes(content)
    assert files.read() == IngressRecord()


def test_a_generation_is_never_used_twice(files):
    assert files.next_generation() == 1
    for name in ("door-3.cfg", "bulk-7.log", "door-ended.log", "ingress.json"):
        (files.directory / name).touch()
    assert files.next_generation() == 8
    assert files.next_generation([11]) == 12


def test_only_files_of_workers_that_are_gone_are_removed(files):
    for name in ("door-3.cfg", "door-3.map", "door-3.log", "door-4.map", "door-ended.log", "ingress.json", "other"):
        (files.directory / name).touch()
    for name in ("h-door-3.sock", "h-door-3.sock.77.tmp", "h-door-4.sock", "h-bulk.sock", "r-0a1b.sock"):
        (files.sockets / name).touch()
    files.remove_leftovers([WorkerName(tier=Tier.DOOR, generation=4)])
    assert names(files.directory) == {"door-4.map", "door-ended.log", "ingress.json", "other"}
    assert names(files.sockets) == {"h-door-4.sock", "h-bulk.sock", "r-0a1b.sock"}
    files.remove_all()
    assert names(files.directory) == {"door-ended.log", "other"}
    assert names(files.sockets) == {"r-0a1b.sock"}


def test_folders_that_are_not_there_have_nothing_to_be_removed(tmp_path):
    IngressFiles(tmp_path / "gone", tmp_path / "gone").remove_all()


def test_the_log_of_a_worker_is_kept_when_it_ended_by_itself_and_cut_when_it_is_long(files):
    name = WorkerName(tier=Tier.DOOR, generation=12)
    log = files.directory / name.log_file
    log.write_bytes(b"x" * LOG_LIMIT_BYTES)
    files.cap_log(name)
    assert log.stat().st_size == LOG_LIMIT_BYTES
    kept = files.keep_log(name)
    files.remove(name)
    assert names(files.directory) == {kept.name} == {"door-ended.log"}
    log.write_bytes(b"x" * (LOG_LIMIT_BYTES + 1))
    files.cap_log(name)
    assert log.stat().st_size == 0


def test_names_of_files_are_short_and_tell_the_worker():
    name = WorkerName(tier=Tier.DOOR, generation=12)
    assert (name.config_file, name.map_file, name.log_file) == ("door-12.cfg", "door-12.map", "door-12.log")
    assert name.admin_socket == "h-door-12.sock"
