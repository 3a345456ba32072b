"""A cluster's storage in a bucket that cannot be used: what is said, and that something is said soon."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from origin_harness import S3, Door, s3_storage

from cortex.storage.base import (
    InvalidStorage,
    Storage,
    StorageDenied,
    StorageError,
    StorageMissing,
    StorageUnreachable,
)
from cortex.storage.opening import open_storage

CALLS: dict[str, Callable[[Storage], object]] = {
    "create": lambda storage: storage.create("a/b", b"1"),
    "read": lambda storage: storage.read("a/b"),
    "keys": lambda storage: storage.keys("a"),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def said(call: Callable[[], object], expected: type[StorageError]) -> str:
    with pytest.raises(StorageError) as raised:
        call()
    assert type(raised.value) is expected
    text = f"{raised.value}\n{raised.value.hint}"
    assert "secret-of-the-key" not in text
    return text


@each_call
def test_a_bucket_that_is_not_there_is_named(moto: str, call: Callable[[Storage], object]) -> None:
    storage = s3_storage(moto, "s3://no-such-bucket/cluster")
    text = said(lambda: call(storage), StorageMissing)
    assert f'there is no bucket "no-such-bucket" at {moto}' in text


@each_call
def test_a_refusal_names_credentials_and_what_they_need(s3: S3, door: Door, call: Callable[[Storage], object]) -> None:
    answer = b"<Error><Code>AccessDenied</Code><Message>You may not.</Message></Error>"
    door.refuse = lambda asked: (403, answer)
    text = said(lambda: call(s3_storage(door.url, s3.url("cluster"))), StorageDenied)
    assert "AccessDenied: You may not" in text
    assert "environment (AWS_ACCESS_KEY_ID)" in text
    assert f"s3:PutObject, s3:DeleteObject and s3:ListBucket on s3://{s3.bucket}" in text


def test_credentials_that_have_expired_are_named(s3: S3, door: Door) -> None:
    answer = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
    door.refuse = lambda asked: (400, answer)
    text = said(lambda: s3_storage(door.url, s3.url()).read("a/b"), StorageDenied)
    assert "these credentials have expired: get new ones" in text


@each_call
def test_an_address_where_nobody_is_is_named(call: Callable[[Storage], object]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        text = said(lambda: call(s3_storage(endpoint, "s3://b/c")), StorageUnreachable)
    assert endpoint in text


@pytest.mark.slow
@pytest.mark.timeout(60)
@each_call
def test_who_takes_a_connection_and_never_answers_holds_nobody_for_long(call: Callable[[Storage], object]) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        text = said(lambda: call(s3_storage(endpoint, "s3://b/c")), StorageUnreachable)
    assert "no answer in time" in text


def test_of_a_creation_whose_answer_is_lost_it_is_not_known_whether_it_was_done(s3: S3, door: Door) -> None:
    storage = s3_storage(door.url, s3.url("cluster"))
    door.lose = lambda asked: asked.method == "PUT"
    said(lambda: storage.create("a/b", b"1"), StorageUnreachable)
    door.lose = lambda asked: False
    assert storage.read("a/b") == b"1"
    assert not storage.create("a/b", b"1")


def test_what_names_no_storage_is_refused(tmp_path: Path) -> None:
    for named in ("http://bucket/a", "s3://", "s3:///prefix", "a/relative/path"):
        with pytest.raises(InvalidStorage) as raised:
            open_storage(named, {"AWS_SKIP_SIGNATURE": "true"})
        assert "s3://bucket/prefix" in raised.value.hint
    assert open_storage(f"file://{tmp_path}", {}).place == str(tmp_path)
