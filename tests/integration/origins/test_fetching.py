"""Models in object stores, fetched by the real process from a real S3 protocol server."""

from __future__ import annotations

import hashlib
import stat
import struct
import threading
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from origin_harness import S3, Asked, Door, Endless, Fetching, onnx_bytes, wait_until, weights_bytes, zipped

from cortex.artifacts.download import PART_BYTES
from cortex.artifacts.fetching import FetchStopped
from cortex.errors import GiveUp

pytestmark = pytest.mark.slow

MIB = 2**20
BIG_ROWS = 3 * PART_BYTES // 4 + 5
"""Rows of weights that take three parts and a bit."""


@pytest.fixture
def fetch(tmp_path: Path, door: Door) -> Fetching:
    return Fetching.from_s3(tmp_path, door.url)


def refused(fetch: Fetching, model: str, **arguments: object) -> tuple[str, str, str]:
    """Reference, message and hint of the reason why a model cannot be had."""
    with pytest.raises(GiveUp) as caught:
        fetch(model, **arguments)  # type: ignore[arg-type]
    problem = caught.value.problem()
    assert "secret-of-the-key" not in f"{problem}"
    assert fetch.leftovers() == []
    return problem.reference, problem.message, problem.hint


# ---- what is there ----------------------------------------------------------------------------------------------


def test_a_file_is_stored_under_its_own_name(fetch: Fetching, s3: S3) -> None:
    s3.put("iris/model.onnx", onnx_bytes())
    fetched = fetch(s3.url("iris/model.onnx"))
    assert fetch.content(fetched) == {"model.onnx": onnx_bytes()}
    assert (fetched.model.format, fetched.model.entry) == ("onnx", "model.onnx")
    assert (fetched.read_bytes, fetched.read_objects) == (len(onnx_bytes()), 1)


def test_what_an_object_was_is_kept(fetch: Fetching, s3: S3) -> None:
    s3.put("model.onnx", onnx_bytes())
    (one,) = fetch(s3.url("model.onnx")).origin.objects
    assert one.url == s3.url("model.onnx")
    assert one.etag == f'"{hashlib.md5(onnx_bytes()).hexdigest()}"'
    assert one.size_bytes == len(onnx_bytes())
    assert one.modified_wall_s is not None
    assert one.sha256 == hashlib.sha256(onnx_bytes()).hexdigest()


def test_of_version_folders_the_numerically_highest_is_fetched_and_nothing_else(
    fetch: Fetching, s3: S3, door: Door
) -> None:
    for version in ("9", "10", "1568244606", "2"):
        s3.put(f"bert/{version}/saved_model.pb", f"graph {version}".encode())
        s3.put(f"bert/{version}/variables/variables.index", b"index")
    fetched = fetch(s3.url("bert"))
    assert fetch.content(fetched) == {"saved_model.pb": b"graph 1568244606", "variables/variables.index": b"index"}
    assert (fetched.model.format, fetched.model.entry) == ("tensorflow", ".")
    assert fetched.model.note == f"1568244606, the highest version of 4 in {s3.url('bert')}"
    assert {asked.path.partition("?")[0] for asked in door.reads} == {
        f"/{s3.bucket}/bert/1568244606/saved_model.pb",
        f"/{s3.bucket}/bert/1568244606/variables/variables.index",
    }


def test_a_checkpoint_folder_above_an_export_folder_gives_the_export(fetch: Fetching, s3: S3) -> None:
    s3.put_all(
        {
            "run/checkpoint": b"model_checkpoint_path: ...",
            "run/model.ckpt-100.index": b"x",
            "run/graph.pbtxt": b"x",
            "run/export/estimator/1550000000/saved_model.pb": b"graph",
            "run/export/estimator/1550000000/assets/vocab.txt": b"words",
        }
    )
    fetched = fetch(s3.url("run/"))
    assert fetch.content(fetched) == {"assets/vocab.txt": b"words", "saved_model.pb": b"graph"}
    assert "export/estimator/1550000000" in fetched.model.note


def test_empty_objects_that_mark_folders_are_no_files(fetch: Fetching, s3: S3) -> None:
    s3.put_all({"m/": b"", "m/1/": b"", "m/1/saved_model.pb": b"graph", "m/1/variables/": b"", "m/1/variables/v": b"x"})
    assert fetch.content(fetch(s3.url("m"))) == {"saved_model.pb": b"graph", "variables/v": b"x"}


def test_names_that_urls_have_to_escape_are_found(fetch: Fetching, s3: S3) -> None:
    key = "Modelle 2026/größe #1 + 50%/model v2.onnx"
    s3.put(key, onnx_bytes())
    assert list(fetch.content(fetch(s3.url(key)))) == ["model v2.onnx"]


def test_weights_beside_an_onnx_are_fetched_with_it(fetch: Fetching, s3: S3) -> None:
    s3.put_all({"m/model.onnx": onnx_bytes(external="model.onnx.data"), "m/model.onnx.data": weights_bytes()})
    fetched = fetch(s3.url("m/model.onnx"))
    assert fetch.content(fetched)["model.onnx.data"] == weights_bytes()
    assert [one.url for one in fetched.origin.objects] == [s3.url("m/model.onnx"), s3.url("m/model.onnx.data")]


def test_missing_weights_are_named(fetch: Fetching, s3: S3) -> None:
    s3.put("m/model.onnx", onnx_bytes(external="model.onnx.data"))
    assert refused(fetch, s3.url("m/model.onnx"))[:2] == (
        "external-data-missing",
        "model.onnx needs model.onnx.data beside it",
    )


def test_a_zip_is_unpacked_and_not_kept(fetch: Fetching, s3: S3) -> None:
    packed = zipped(
        {"export/7/saved_model.pb": b"graph", "export/7/variables/v": b"x", "export/6/saved_model.pb": b"old"}
    )
    s3.put("bert.zip", packed)
    fetched = fetch(s3.url("bert.zip"))
    assert fetch.content(fetched) == {"saved_model.pb": b"graph", "variables/v": b"x"}
    assert not list(fetch.root.glob(f"blobs/*/{hashlib.sha256(packed).hexdigest()}*"))


def test_a_zip_may_hold_an_onnx_at_its_top(fetch: Fetching, s3: S3) -> None:
    s3.put("m.zip", zipped({"model.onnx": onnx_bytes()}))
    fetched = fetch(s3.url("m.zip"))
    assert (fetched.model.format, fetched.model.entry) == ("onnx", "model.onnx")


def test_a_zip_without_its_ending_is_known_by_its_first_bytes(fetch: Fetching, s3: S3) -> None:
    s3.put("bert", zipped({"saved_model.pb": b"graph"}))
    assert fetch.content(fetch(s3.url("bert"))) == {"saved_model.pb": b"graph"}


# ---- what is wrong with it --------------------------------------------------------------------------------------


def test_a_wrong_bucket_is_told(fetch: Fetching, door: Door) -> None:
    reference, message, hint = refused(fetch, "s3://no-such-bucket-here/model.onnx")
    assert (reference, message) == ("bucket-not-found", f'there is no bucket "no-such-bucket-here" at {door.url}')
    assert "check its spelling" in hint


def test_a_misspelt_key_suggests_the_one_that_is_there(fetch: Fetching, s3: S3) -> None:
    s3.put("iris/sklearn.onnx", onnx_bytes())
    reference, message, hint = refused(fetch, s3.url("iris/sklaern.onnx"))
    assert (reference, message) == ("model-not-found", f"there is no file or folder {s3.url('iris/sklaern.onnx')}")
    assert hint == f'did you mean "{s3.url("iris/sklearn.onnx")}"?'


def test_a_folder_without_any_model_says_what_was_looked_for(fetch: Fetching, s3: S3) -> None:
    s3.put_all({"run/model.ckpt.index": b"x", "run/readme.txt": b"x"})
    reference, message, _ = refused(fetch, s3.url("run"))
    assert reference == "no-model"
    assert message.startswith(f"{s3.url('run')} holds no model; looked for ")
    assert "saved_model.pb" in message
    assert ".onnx" in message


def test_no_permission_names_the_credentials_that_were_used(fetch: Fetching, s3: S3, door: Door) -> None:
    denied = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    door.refuse = lambda asked: (403, denied)
    reference, message, hint = refused(fetch, s3.url("model.onnx"))
    assert reference == "model-access-denied"
    assert message == (f"{s3.url('model.onnx')}: access denied (403; credentials: environment (AWS_ACCESS_KEY_ID))")
    assert "s3:GetObject and s3:ListBucket" in hint
    assert len(door.asked) == 1


def test_no_permission_to_list_says_so_in_the_words_of_the_store(fetch: Fetching, s3: S3, door: Door) -> None:
    denied = b"<Error><Code>AccessDenied</Code><Message>You may not list.</Message></Error>"
    door.refuse = lambda asked: (403, denied) if "list-type" in asked.path else None
    _, message, _ = refused(fetch, s3.url("folder/"))
    assert "access denied (AccessDenied: You may not list; credentials: environment" in message


def test_without_credentials_a_public_bucket_can_be_read(fetch: Fetching, s3: S3) -> None:
    s3.put("model.onnx", onnx_bytes(), acl="public-read")
    fetch.variables |= {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    assert fetch.content(fetch(s3.url("model.onnx"))) == {"model.onnx": onnx_bytes()}


def test_refused_without_credentials_says_that_there_were_none(fetch: Fetching, s3: S3, door: Door) -> None:
    door.refuse = lambda asked: (403, b"")
    fetch.variables |= {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    _, message, hint = refused(fetch, s3.url("model.onnx"))
    assert "asked without credentials, as none were found" in message
    assert "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in hint


def test_a_profile_gives_keys_region_and_endpoint(fetch: Fetching, s3: S3, door: Door, tmp_path: Path) -> None:
    s3.put("model.onnx", onnx_bytes())
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        "[team]\naws_access_key_id = key\naws_secret_access_key = secret-of-the-key\n"
    )
    (tmp_path / ".aws" / "config").write_text(f"[profile team]\nregion = eu-west-1\nendpoint_url = {door.url}\n")
    fetch.variables |= {"AWS_ACCESS_KEY_ID": "", "AWS_ENDPOINT_URL": "", "AWS_PROFILE": "team"}
    assert fetch(s3.url("model.onnx")).read_objects == 1
    door.refuse = lambda asked: (403, b"")
    assert "credentials: profile team" in refused(fetch, s3.url("model.onnx"))[1]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("s3://", "s3:// names no bucket"),
        ("s3:///key.onnx", "s3:///key.onnx names no bucket"),
        ("s3://a bucket/m.onnx", "s3://a bucket/m.onnx names the bucket 'a bucket', which none can be called"),
        ("https://", "https:// names no host"),
        ("https:///m.onnx?sig=SECRET", "https:///m.onnx?*** names no host"),
    ],
)
def test_a_location_that_leads_nowhere_is_told(fetch: Fetching, model: str, message: str) -> None:
    assert refused(fetch, model)[:2] == ("invalid-model-location", message)


def test_nobody_listening_is_told_with_the_address(fetch: Fetching) -> None:
    fetch.variables["AWS_ENDPOINT_URL"] = "http://127.0.0.1:1"
    reference, message, _ = refused(fetch, "s3://bucket/model.onnx")
    assert reference == "model-unreachable"
    assert message == "s3://bucket/model.onnx cannot be fetched: http://127.0.0.1:1: connection refused"


def test_a_model_larger_than_the_disk_is_refused_before_it_is_read(fetch: Fetching) -> None:
    with Endless(2**60) as store:
        fetch.variables["AWS_ENDPOINT_URL"] = store.url
        reference, message, hint = refused(fetch, "s3://bucket/model.onnx")
        assert reference == "disk-full"
        assert message.startswith("s3://bucket/model.onnx has 1048576 TiB to fetch, and ")
        assert "free space there" in hint
        assert store.read_bytes == 0


@pytest.mark.parametrize("name", ["../out/saved_model.pb", "/abs/saved_model.pb", "a/../../saved_model.pb"])
def test_a_zip_with_a_path_that_escapes_is_refused(fetch: Fetching, s3: S3, name: str) -> None:
    s3.put("m.zip", zipped({"saved_model.pb": b"x", name: b"x"}))
    reference, message, _ = refused(fetch, s3.url("m.zip"))
    assert reference == "unusable-zip"
    assert message == f"{s3.url('m.zip')}: holds {name!r}, which would be unpacked outside its own folder"


def test_a_zip_with_a_link_is_refused(fetch: Fetching, s3: S3, tmp_path: Path) -> None:
    file = tmp_path / "m.zip"
    with zipfile.ZipFile(file, "w") as archive:
        link = zipfile.ZipInfo("saved_model.pb")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    s3.put("m.zip", file.read_bytes())
    reference, message, _ = refused(fetch, s3.url("m.zip"))
    assert (reference, message) == (
        "unusable-zip",
        f'{s3.url("m.zip")}: holds the link "saved_model.pb"; only files and folders are unpacked',
    )


def test_a_zip_bomb_is_refused_before_it_is_unpacked(fetch: Fetching, s3: S3) -> None:
    nothing = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = nothing.compress(bytes(2**24)) + nothing.flush(zlib.Z_FULL_FLUSH)  # which stands for itself
    packed = zeros * 66 + nothing.flush()
    s3.put("bomb.zip", zip_of_one("saved_model.pb", packed, 66 * 2**24))
    reference, message, hint = refused(fetch, s3.url("bomb.zip"))
    assert reference == "unusable-zip"
    assert message.startswith(f"{s3.url('bomb.zip')}: has 1.0 MiB and unpacks to 1.0 GiB: no model does")
    assert "unpack it yourself" in hint


def zip_of_one(name: str, packed: bytes, size_bytes: int) -> bytes:
    """A zip written by hand, so that a gigabyte of zeros costs no gigabyte here. Source: PKWARE APPNOTE, 4.3.7 ff."""
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, 0, len(packed), size_bytes, len(name), 0)
    local = b"PK\x03\x04" + fields + name.encode()
    central = b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name.encode()
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(packed), 0)
    return local + packed + central + end


def test_a_damaged_zip_is_named_by_its_url(fetch: Fetching, s3: S3) -> None:
    s3.put("m.zip", zipped({"saved_model.pb": b"graph" * 100})[:-30])
    reference, message, _ = refused(fetch, s3.url("m.zip"))
    assert reference == "unusable-zip"
    assert message.startswith(f"{s3.url('m.zip')}: is no zip archive that can be read")


def test_an_empty_object_is_no_model(fetch: Fetching, s3: S3) -> None:
    s3.put("model.onnx", b"")
    assert refused(fetch, s3.url("model.onnx"))[:2] == (
        "unusable-model",
        f"{s3.url('model.onnx')}: is empty (0 bytes)",
    )


# ---- bad connections --------------------------------------------------------------------------------------------


def put_big(s3: S3) -> bytes:
    """A model whose weights are read in several ranges; returns them."""
    weights = weights_bytes(2.0, BIG_ROWS)
    s3.put("big/model.onnx", onnx_bytes(2.0, external="w.bin", rows=BIG_ROWS))
    s3.put("big/w.bin", weights)
    return weights


def test_every_range_is_bound_to_the_object_that_was_found(fetch: Fetching, s3: S3, door: Door) -> None:
    weights = put_big(s3)
    assert fetch.content(fetch(s3.url("big/model.onnx")))["w.bin"] == weights
    etag = f'"{hashlib.md5(weights).hexdigest()}"'
    ranges = [asked for asked in door.reads if asked.path.endswith("w.bin")]
    assert len(ranges) == 4
    assert {asked.if_match for asked in ranges} == {etag}
    assert all(asked.range for asked in ranges)


def test_an_object_changed_between_ranges_fails_with_both_etags(fetch: Fetching, s3: S3, door: Door) -> None:
    weights = put_big(s3)
    replaced = threading.Event()

    def replace(asked: Asked) -> None:
        if (asked.range or "").startswith(f"bytes={2 * PART_BYTES}-") and not replaced.is_set():
            replaced.set()
            s3.put("big/w.bin", weights[::-1])

    door.before = replace
    reference, message, hint = refused(fetch, s3.url("big/model.onnx"))
    assert reference == "model-changed"
    assert f"it was ETag {hashlib.md5(weights).hexdigest()} of " in message
    assert f"it is ETag {hashlib.md5(weights[::-1]).hexdigest()} of " in message
    assert "deploy again" in hint


def test_an_object_removed_between_ranges_is_gone(fetch: Fetching, s3: S3, door: Door) -> None:
    put_big(s3)
    door.before = lambda asked: s3.delete("big/w.bin") if (asked.range or "").startswith("bytes=8388608-") else None
    reference, message, _ = refused(fetch, s3.url("big/model.onnx"))
    assert (reference, message.rpartition(", ")[2]) == ("model-changed", "it is gone")


def test_a_connection_cut_in_the_middle_is_taken_up_where_it_broke(fetch: Fetching, s3: S3, door: Door) -> None:
    weights = put_big(s3)
    cut: list[Asked] = []

    def cut_once(asked: Asked) -> int | None:
        if asked.range and asked.range.startswith("bytes=8388608-") and not cut:
            cut.append(asked)
            return 3 * MIB
        return None

    door.cut_after = cut_once
    fetched = fetch(s3.url("big/model.onnx"))
    assert fetch.content(fetched)["w.bin"] == weights
    begun = [int(asked.range.removeprefix("bytes=").split("-")[0]) for asked in door.reads if asked.range]
    assert any(PART_BYTES < start < 2 * PART_BYTES for start in begun), begun
    assert begun.count(PART_BYTES) == 1


def test_a_store_that_is_busy_is_asked_again(fetch: Fetching, s3: S3, door: Door) -> None:
    s3.put("model.onnx", onnx_bytes())
    busy = [(503, b"<Error><Code>SlowDown</Code></Error>")] * 2
    door.refuse = lambda asked: busy.pop() if asked.reads_content and busy else None
    assert fetch(s3.url("model.onnx")).read_objects == 1
    assert busy == []


def test_a_slow_store_is_waited_for_and_progress_is_told_meanwhile(fetch: Fetching, s3: S3, door: Door) -> None:
    weights = put_big(s3)
    door.hold.clear()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(fetch, s3.url("big/model.onnx"))
        wait_until(lambda: any(MIB // 8 <= told.done_bytes < told.total_bytes for told in fetch.told) or future.done())
        assert not future.done()
        door.hold.set()
        assert fetch.content(future.result(60))["w.bin"] == weights
    done = [told.done_bytes for told in fetch.told]
    assert done == sorted(done)
    assert fetch.told[-1].done_bytes == fetch.told[-1].total_bytes


def test_whoever_does_not_want_it_any_more_leaves_nothing_behind(fetch: Fetching, s3: S3, door: Door) -> None:
    put_big(s3)
    door.hold.clear()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(fetch, s3.url("big/model.onnx"))
        wait_until(lambda: any(asked.range for asked in door.reads))
        fetch.stop.set()
        with pytest.raises(FetchStopped):
            future.result(60)
    assert fetch.leftovers() == []


# ---- what was read before ---------------------------------------------------------------------------------------


def test_what_did_not_change_is_not_read_again(fetch: Fetching, s3: S3, door: Door) -> None:
    s3.put_all({"m/model.onnx": onnx_bytes(external="w"), "m/w": weights_bytes()})
    before = fetch(s3.url("m"))
    door.asked.clear()
    again = fetch(s3.url("m"), known=(before,))
    assert (again.read_bytes, again.read_objects, door.reads) == (0, 0, [])
    assert (again.model, again.origin) == (before.model, before.origin)


def test_of_several_objects_only_the_changed_one_is_read(fetch: Fetching, s3: S3, door: Door) -> None:
    s3.put_all({"m/model.onnx": onnx_bytes(external="w"), "m/w": weights_bytes()})
    before = fetch(s3.url("m"))
    s3.put("m/w", weights_bytes(3.0))
    door.asked.clear()
    again = fetch(s3.url("m"), known=(before,))
    assert [asked.path for asked in door.reads] == [f"/{s3.bucket}/m/w"]
    assert fetch.content(again)["w"] == weights_bytes(3.0)


def test_a_zip_that_did_not_change_is_not_read_again(fetch: Fetching, s3: S3, door: Door) -> None:
    s3.put("m.zip", zipped({"saved_model.pb": b"graph"}))
    before = fetch(s3.url("m.zip"))
    door.asked.clear()
    again = fetch(s3.url("m.zip"), known=(before,))
    assert (again.read_bytes, door.reads) == (0, [])
    assert again.model == before.model


def test_known_bytes_that_are_not_stored_any_more_are_read_again(fetch: Fetching, s3: S3, tmp_path: Path) -> None:
    s3.put("model.onnx", onnx_bytes())
    before = fetch(s3.url("model.onnx"))
    elsewhere = Fetching(tmp_path / "other", **fetch.variables)
    assert elsewhere(s3.url("model.onnx"), known=(before,)).read_bytes == len(onnx_bytes())


def test_a_stored_file_that_is_damaged_is_fetched_anew(fetch: Fetching, s3: S3) -> None:
    s3.put("model.onnx", onnx_bytes())
    before = fetch(s3.url("model.onnx"))
    (one,) = before.model.files
    for file in [*fetch.root.glob(f"blobs/*/{one.sha256}"), *fetch.root.glob("trees/*/model.onnx")]:
        file.chmod(0o600)
        file.write_bytes(b"rotten")
        file.chmod(0o444)
    again = fetch(s3.url("model.onnx"), known=(before,))
    assert again.read_objects == 1
    assert fetch.content(again) == {"model.onnx": onnx_bytes()}
