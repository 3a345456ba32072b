"""Zip archives made by an enemy, and honest ones."""

import io
import stat
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.artifacts import zips
from cortex.artifacts.errors import UnusableZip
from cortex.artifacts.zips import ModelZip


def packed(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def entry(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.zip"


def refused(path: Path, content: bytes | None = None) -> UnusableZip:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnusableZip) as caught:
        ModelZip(path, "model.zip")
    assert caught.value.path == path
    return caught.value


def test_an_honest_archive_is_listed_and_unpacked(path: Path, tmp_path: Path) -> None:
    path.write_bytes(packed({"b/saved_model.pb": b"graph", "b/variables/": b"", "b/variables/v": b"1", "a": b"2"}))
    with ModelZip(path, "model.zip") as archive:
        assert archive.names == ("a", "b/saved_model.pb", "b/variables/v")
        archive.unpack(["b/saved_model.pb", "b/variables/v"], tmp_path / "out")
    assert (tmp_path / "out/b/saved_model.pb").read_bytes() == b"graph"
    assert not (tmp_path / "out/a").exists()


def test_names_as_various_tools_write_them_are_understood(path: Path) -> None:
    path.write_bytes(packed({"./": b"", "./1/saved_model.pb": b"x", "2\\saved_model.pb": b"y", "2\\variables\\": b""}))
    with ModelZip(path, "model.zip") as archive:
        assert archive.names == ("1/saved_model.pb", "2/saved_model.pb")


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/etc/cron.d/evil", "..\\evil", "C:\\evil", "C:/evil", "a//b", "a/./b", "\\\\host\\x"],
)
def test_a_name_that_leads_elsewhere_is_refused(path: Path, tmp_path: Path, name: str) -> None:
    error = refused(path, packed({"saved_model.pb": b"x", name: b"evil"}))
    assert "outside its own folder" in str(error)
    assert [file.name for file in tmp_path.iterdir()] == ["model.zip"]


def test_an_entry_without_a_name_is_refused(path: Path) -> None:
    data = packed({"x": b""})
    at = data.index(b"PK\x01\x02") + 46
    assert "without a name" in str(refused(path, data[:at] + b"\0" + data[at + 1 :]))


def test_a_link_is_refused_with_what_to_do(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry("variables", stat.S_IFLNK | 0o777), "/etc")
    error = refused(path)
    assert 'holds the link "variables"' in str(error)
    assert "without `-y`" in error.hint


def test_a_device_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry("null", stat.S_IFCHR | 0o666), "")
    assert "neither a file nor a folder" in str(refused(path))


def test_one_name_twice_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("saved_model.pb", "one")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("saved_model.pb", "other")
    assert 'holds "saved_model.pb" twice' in str(refused(path))


def test_a_file_that_is_also_a_folder_is_refused(path: Path) -> None:
    assert 'holds "a" both as a file and as a folder' in str(refused(path, packed({"a": b"", "a/b": b""})))


def test_an_encrypted_archive_is_refused(path: Path) -> None:
    data = bytearray(packed({"saved_model.pb": b"x"}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    error = refused(path, bytes(data))
    assert "is encrypted" in str(error)
    assert "without a password" in error.hint


def test_a_method_that_hardly_any_tool_writes_is_refused(path: Path) -> None:
    assert "method 14" in str(refused(path, packed({"a": b"x"}, zipfile.ZIP_LZMA)))


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04" + b"\0" * 100, b"not a zip at all" * 10])
def test_what_is_no_zip_is_refused(path: Path, content: bytes) -> None:
    assert "is no zip archive that can be read" in str(refused(path, content))


def test_an_archive_cut_short_is_refused(path: Path) -> None:
    whole = packed({"saved_model.pb": b"x" * 1000})
    refused(path, whole[: len(whole) // 2])


def test_more_entries_than_a_model_has_are_refused(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(zips, "MAX_ENTRIES", 2)
    assert "holds 3 entries" in str(refused(path, packed({"a": b"", "b": b"", "c": b""})))


def test_a_bomb_is_refused_before_anything_is_unpacked(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(zips, "RATIO_FREE_BYTES", 1_000_000)
    error = refused(path, packed({"saved_model.pb": b"\0" * 5_000_000}))
    assert "looks like a bomb" in str(error)
    assert "4.8 MiB" in str(error)


def test_a_bomb_of_overlapping_entries_is_refused(path: Path, monkeypatch) -> None:
    """Many names for the same packed bytes: each ratio is modest, the sum is not."""
    monkeypatch.setattr(zips, "RATIO_FREE_BYTES", 1_000_000)
    one = packed({"f0000": bytes(range(256)) * 100})
    start, end = one.index(b"PK\x01\x02"), one.index(b"PK\x05\x06")
    directory = b"".join(one[start:end].replace(b"f0000", b"f%04d" % i) for i in range(2000))
    trailer = bytearray(one[end:])
    struct.pack_into("<HHII", trailer, 8, 2000, 2000, len(directory), start)
    assert "looks like a bomb" in str(refused(path, one[:start] + directory + bytes(trailer)))


def test_compressible_but_small_archives_pass(path: Path) -> None:
    path.write_bytes(packed({"saved_model.pb": b"\0" * 5_000_000}))
    with ModelZip(path, "model.zip") as archive:
        assert archive.size_of("saved_model.pb") == 5_000_000


def test_an_archive_larger_than_any_model_is_refused(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(zips, "MAX_UNPACKED_BYTES", 1000)
    assert "at most 1000 bytes are unpacked" in str(refused(path, packed({"a": b"x" * 600, "b": b"y" * 600})))


def test_an_entry_that_lies_about_its_size_writes_no_more_than_it_said(path: Path, tmp_path: Path) -> None:
    data = packed({"saved_model.pb": b"x" * 100_000})
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(signature) + offset
        data = data[:at] + struct.pack("<I", 10) + data[at + 4 :]
    path.write_bytes(data)
    with ModelZip(path, "model.zip") as archive, pytest.raises(UnusableZip, match=r"cannot be unpacked|larger than"):
        archive.unpack(["saved_model.pb"], tmp_path / "out")
    assert (tmp_path / "out/saved_model.pb").stat().st_size <= 10


def test_damaged_bytes_are_noticed(path: Path, tmp_path: Path) -> None:
    data = bytearray(packed({"saved_model.pb": b"x" * 1000}, zipfile.ZIP_STORED))
    data[100] ^= 1
    path.write_bytes(data)
    with ModelZip(path, "model.zip") as archive, pytest.raises(UnusableZip, match="Bad CRC-32") as caught:
        archive.unpack(["saved_model.pb"], tmp_path / "out")
    assert "was it copied whole?" in caught.value.hint


def test_a_name_longer_than_a_file_may_have_is_refused(path: Path) -> None:
    assert "more than 255 bytes" in str(refused(path, packed({"x" * 256: b""})))


def test_a_place_that_cannot_be_written_is_named(path: Path, tmp_path: Path) -> None:
    path.write_bytes(packed({"a": b"x"}))
    (tmp_path / "file").write_bytes(b"")
    with ModelZip(path, "model.zip") as archive, pytest.raises(UnusableZip, match=r"cannot be unpacked to .*file/out"):
        archive.unpack(["a"], tmp_path / "file/out")


def test_too_little_room_is_said_before_unpacking(path: Path, tmp_path: Path, monkeypatch) -> None:
    path.write_bytes(packed({"a": b"x" * 2048}))
    usage = zips.shutil.disk_usage(tmp_path)._replace(free=1024)
    monkeypatch.setattr(zips.shutil, "disk_usage", lambda folder: usage)
    with ModelZip(path, "model.zip") as archive, pytest.raises(UnusableZip, match=r"unpacks to 2 KiB, and .* 1 KiB"):
        archive.unpack(["a"], tmp_path / "out")


base = packed({"1/saved_model.pb": b"graph" * 20, "1/variables/variables.index": b"i" * 50, "2/saved_model.pb": b"z"})


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(base) - 1), st.integers(0, 255)), min_size=1, max_size=6), st.data())
def test_whatever_the_bytes_the_only_failure_is_a_named_one(tmp_path_factory, changes, data) -> None:
    damaged = bytearray(base)
    for at, value in changes:
        damaged[at] = value
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, len(base)))]
    top = tmp_path_factory.mktemp("fuzz")
    (top / "model.zip").write_bytes(damaged)
    try:
        with ModelZip(top / "model.zip", "model.zip") as archive:
            archive.unpack(archive.names, top / "out")
    except UnusableZip:
        pass
    assert {entry.name for entry in top.iterdir()} <= {"model.zip", "out"}
