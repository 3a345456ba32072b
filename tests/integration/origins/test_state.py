"""State of a cluster on a real S3 protocol server, over a line that loses answers, and where it cannot be used."""

from __future__ import annotations

import pytest
from origin_harness import S3, Door, s3_storage

from cortex.state.base import NotLeader, StateInDoubt, StateTooNew
from cortex.state.bucket import BucketStateStore
from cortex.state.leading import Leadership
from cortex.state.sqlite import MIGRATIONS
from cortex.storage.base import StorageDenied, StorageMissing, StorageUnreachable
from cortex.testing.builders import API, a_build, a_deploy, a_wanted_api
from cortex.testing.clock import FakeClock


def opened(endpoint: str, s3: S3, folder: str = "cluster") -> BucketStateStore:
    return BucketStateStore(s3_storage(endpoint, s3.url(folder)), FakeClock())


def test_a_new_head_has_everything_and_the_old_one_changes_nothing_any_more(moto: str, s3: S3) -> None:
    old = opened(moto, s3)
    old.commit_deploy(a_deploy(a_wanted_api(a_build())))
    new = opened(moto, s3)
    assert [record.wanted.api for record in new.apis()] == [API]
    with pytest.raises(NotLeader):
        old.set_meta("a", "old")
    new.set_meta("a", "new")
    assert opened(moto, s3).meta("a") == "new"
    assert opened(moto, s3, "another-cluster").apis() == ()


def test_a_change_whose_answer_is_lost_is_found_to_be_there(moto: str, s3: S3, door: Door) -> None:
    store = opened(door.url, s3)
    door.lose = lambda asked: asked.method == "PUT"
    with pytest.raises(StateInDoubt, match="it is not known whether the change was written"):
        store.set_meta("a", "b")
    door.lose = lambda asked: False
    store.tend()
    assert store.meta("a") == "b"
    store.set_meta("c", "d")
    again = opened(moto, s3)
    assert (again.meta("a"), again.meta("c")) == ("b", "d")


def test_a_change_that_did_not_arrive_is_given_up(moto: str, s3: S3, door: Door) -> None:
    store = opened(door.url, s3)
    door.refuse = lambda asked: (503, b"<Error><Code>SlowDown</Code></Error>") if asked.method == "PUT" else None
    with pytest.raises(StateInDoubt):
        store.set_meta("a", "b")
    door.refuse = lambda asked: None
    store.set_meta("c", "d")
    again = opened(moto, s3)
    assert (again.meta("a"), again.meta("c")) == (None, "d")


def test_what_keeps_a_head_from_beginning_is_named(moto: str, s3: S3, door: Door) -> None:
    with pytest.raises(StorageMissing, match='there is no bucket "no-such-bucket"'):
        BucketStateStore(s3_storage(moto, "s3://no-such-bucket/cluster"), FakeClock())
    door.refuse = lambda asked: (403, b"<Error><Code>AccessDenied</Code><Message>You may not.</Message></Error>")
    with pytest.raises(StorageDenied, match="AccessDenied: You may not"):
        opened(door.url, s3)
    door.refuse = lambda asked: (503, b"") if asked.method == "PUT" else None
    with pytest.raises(StorageUnreachable):
        opened(door.url, s3)
    newer = Leadership(s3_storage(moto, s3.url("cluster")), FakeClock(), schema=len(MIGRATIONS) + 1)
    newer.take()
    newer.begin([])
    with pytest.raises(StateTooNew) as raised:
        opened(moto, s3)
    assert (raised.value.found, raised.value.known) == (len(MIGRATIONS) + 1, len(MIGRATIONS))
