from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.ids import ApiKey
from cortex.ingress.pool import HeldPool, Pool, assign_backends, backend_name, backend_number, grown_pool_size

A, B, C = ApiKey("d/a"), ApiKey("d/b"), ApiKey("d/c")


def test_an_api_keeps_its_slot_and_a_new_one_gets_the_lowest_free():
    assignment = assign_backends([B, C], {A: 1, B: 2}, busy=(), pool_size=4)
    # A's backend is not given away at once: requests may still be in it.
    assert (dict(assignment.backends), assignment.free, assignment.missing) == ({B: 2, C: 3}, 1, 0)


def test_a_busy_slot_is_not_given_away():
    assignment = assign_backends([A], {}, busy={1, 2}, pool_size=4)
    assert (dict(assignment.backends), assignment.free) == ({A: 3}, 1)


def test_apis_without_a_slot_are_counted():
    assignment = assign_backends([A, B, C], {}, busy={1}, pool_size=2)
    assert (dict(assignment.backends), assignment.free, assignment.missing) == ({A: 2}, 0, 2)


def test_a_slot_outside_the_pool_is_given_up():
    assert dict(assign_backends([A], {A: 9}, busy=(), pool_size=4).backends) == {A: 1}


@pytest.mark.parametrize(
    ("backend", "name"), [(0, "pool-0000"), (1, "pool-0001"), (512, "pool-0512"), (12345, "pool-12345")]
)
def test_slot_names_are_read_back(backend, name):
    assert backend_name(backend) == name
    assert backend_number(name) == backend


@pytest.mark.parametrize("name", ["bulk", "refusals", "pool-", "pool-x", ""])
def test_other_backends_are_no_slots(name):
    assert backend_number(name) is None


@pytest.mark.parametrize(
    ("size", "apis", "grown"),
    [(512, 0, 512), (512, 448, 512), (512, 449, 1024), (512, 2000, 4096), (4, 4, 4), (4, 5, 8)],
)
def test_the_pool_doubles_before_it_is_full(size, apis, grown):
    names = [ApiKey(f"d/a{n}") for n in range(apis)]
    assert grown_pool_size(size, assign_backends(names, {}, (), size)) == grown


@given(
    wanted=st.lists(st.integers(0, 12)),
    current=st.dictionaries(st.integers(0, 12), st.integers(1, 10)),
    busy=st.sets(st.integers(1, 10)),
    size=st.integers(0, 10),
)
def test_no_slot_is_shared_or_taken_from_where_it_is_needed(wanted, current, busy, size):
    apis = [ApiKey(f"d/{n}") for n in wanted]
    # Each backend has one owner.
    owners = {backend: ApiKey(f"d/{n}") for n, backend in current.items()}
    before = {api: backend for backend, api in owners.items()}
    assignment = assign_backends(apis, before, busy, size)
    assert len(assignment.backends) + assignment.missing == len(set(apis))
    assert len(set(assignment.backends.values())) == len(assignment.backends)
    for api, backend in assignment.backends.items():
        assert 1 <= backend <= size
        if before.get(api) != backend:
            assert backend not in busy
            assert backend not in owners


def test_a_slot_that_was_left_is_given_away_once_it_was_seen_empty():
    pool = Pool(size=8).placed([A, B]).placed([B])
    assert (dict(pool.owners), pool.vacating) == ({B: 2}, {1})
    assert dict(pool.placed([B, C]).owners) == {B: 2, C: 3}
    assert pool.released(used={1, 5}).vacating == {1}
    assert dict(pool.released(used=()).placed([B, C]).owners) == {B: 2, C: 1}


def test_a_pool_grows_for_whoever_finds_no_slot():
    pool = Pool(size=2).placed([A, B, C])
    assert (pool.size, dict(pool.owners)) == (4, {A: 1, B: 2, C: 3})


def test_a_pool_is_as_the_youngest_worker_has_it_and_what_others_use_is_kept_free():
    old = HeldPool(pool_size=4, owners={A: 1, B: 2}, busy=frozenset((1, 3)))
    young = HeldPool(pool_size=8, owners={A: 1, C: 2}, busy=frozenset())
    pool = Pool(size=2).recovered([old, young])
    assert (pool.size, dict(pool.owners), pool.vacating) == (8, {A: 1, C: 2}, {3})
