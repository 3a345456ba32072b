"""Tests of `cortex.metrics.store`."""

import logging
import sqlite3
import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.ids import ApiKey, NodeId, ReplicaId, Version
from cortex.metrics.counts import NOTHING, Counts, Lifetime, total
from cortex.metrics.slices import DAY_S, HOUR_S, MINUTE_S, Slice, window_start
from cortex.metrics.store import (
    MIGRATIONS,
    NAMED_CLASSES,
    SILENT_INSTANCES,
    StatsStore,
    StatsStoreUnusable,
    Window,
)
from cortex.testing.clock import START_WALL_S
from cortex.wire.localnodes import LOCAL_NODE
from cortex.wire.reports import IngressRefusals
from cortex.wire.stats import EXACT_CLASSES, StatsFile, TrackerStats

API = ApiKey("iris/sklearn")
VERSION = Version("a" * 64)
OTHER_VERSION = Version("b" * 64)
NOW_S = START_WALL_S + 40 * DAY_S + 13 * HOUR_S + 30.0


class Crash(BaseException):
    """The process ends here."""


def counted(store: StatsStore, now_s: float = NOW_S) -> Counts:
    return store.window(API, VERSION, now_wall_s=now_s).counts


def classes_of(store: StatsStore, now_s: float = NOW_S) -> dict[str, int]:
    return dict(store.window(API, VERSION, now_wall_s=now_s, classes=True).classes)


# ---- merging --------------------------------------------------------------------------------------------------------


def test_reading_a_file_twice_counts_once(store, build):
    file = build.file(ok=3, client_error=1, latency_sum_ms=4.5)
    assert store.merge([file, file], NOW_S) == 1
    assert store.merge([file], NOW_S) == 0
    assert counted(store) == Counts(ok=3, client_error=1, latency_sum_ms=4.5, latency={10: 3})


def test_only_growth_is_added(store, build):
    store.merge([build.file(ok=3)], NOW_S)
    assert store.merge([build.file(ok=5)], NOW_S) == 1
    assert counted(store) == Counts(ok=5, latency={10: 5})


def test_a_new_attempt_starts_from_zero(store, build):
    store.merge([build.file(ok=3, attempt=1)], NOW_S)
    store.merge([build.file(ok=2, attempt=2)], NOW_S)
    assert counted(store).ok == 5


def test_a_run_whose_attempt_has_the_number_of_an_earlier_one_counts_in_full(store, build):
    store.merge([build.file(ok=5, run="before `down`")], NOW_S)
    store.merge([build.file(ok=3, run="after `up`")], NOW_S)
    store.merge([build.file(ok=5, run="before `down`"), build.file(ok=4, run="after `up`")], NOW_S)
    assert counted(store).ok == 9


def test_counters_that_went_backwards_are_left_out_with_one_warning(store, build, caplog):
    store.merge([build.file(ok=3)], NOW_S)
    with caplog.at_level(logging.WARNING):
        both = [build.file(ok=2, client_error=1), build.file(ok=1, client_error=2)]
        assert store.merge(both, NOW_S) == 0
    assert [record.message for record in caplog.records] == [
        "counters of iris.sklearn.aaaaaaaa.0 (attempt 1) went backwards; left out"
    ]
    store.merge([build.file(ok=4)], NOW_S)
    assert counted(store).ok == 4


def test_what_was_overtaken_on_its_way_adds_nothing_and_is_no_fault(store, build, caplog):
    old = build.classes({"a": 2}, ok=2, rounds=1)
    new = build.classes({"b": 4}, other=2, ok=6, rounds=2)
    with caplog.at_level(logging.WARNING):
        for file in (new, old, new, old):
            store.merge([file], NOW_S)
    assert caplog.records == []
    assert (counted(store).ok, classes_of(store), counted(store).other) == (6, {"b": 4}, 2)


def test_an_implausible_file_is_left_out_and_its_neighbours_count(store, build, caplog):
    with caplog.at_level(logging.WARNING):
        assert store.merge([build.file(ok=-1), build.file(ok=2, attempt=2)], NOW_S) == 1
    assert "a counter is -1" in caplog.text
    assert counted(store).ok == 2


def test_a_crash_within_a_merge_leaves_everything_as_it_was(store, build):
    def files():
        yield build.file(ok=3)
        yield build.file(ok=4, replica="iris.sklearn.aaaaaaaa.1")
        raise Crash

    store.merge([build.file(ok=1)], NOW_S)
    assert counted(store).ok == 1
    with pytest.raises(Crash):
        store.merge(files(), NOW_S)
    assert counted(store).ok == 1
    store.merge([build.file(ok=3)], NOW_S)
    assert counted(store).ok == 3


def test_a_merge_interrupted_anywhere_counts_all_or_nothing(tmp_path, build):
    class Interrupter:
        """Aborts SQLite after so many of its steps."""

        def __init__(self, after: int) -> None:
            self.left = after

        def __call__(self) -> int:
            self.left -= 1
            return self.left == 0

    def both(store: StatsStore) -> list[Window]:
        return [store.window(ApiKey(f"iris/{n}"), now_wall_s=NOW_S, classes=True) for n in range(2)]

    def files(ok: int) -> list[StatsFile]:
        return [build.classes({"a": ok}, ok=ok, attempt=n, api=ApiKey(f"iris/{n}")) for n in range(2)]

    store = StatsStore(tmp_path / "stats.db")
    interrupted, ok, finished = 0, 1, False
    while not finished:
        before = both(store)
        store.database.connection.set_progress_handler(Interrupter(interrupted + 1), 10)
        try:
            store.merge(files(ok), NOW_S)
            finished = True
        except StatsStoreUnusable:
            interrupted += 1
            store.database.connection.set_progress_handler(None, 0)
            fresh = StatsStore(tmp_path / "stats.db")
            assert both(store) == both(fresh) == before
            fresh.close()
            store.merge(files(ok), NOW_S)
        store.database.connection.set_progress_handler(None, 0)
        assert [window.counts.ok for window in both(store)] == [ok, ok]
        assert [window.classes for window in both(store)] == [{"a": ok}, {"a": ok}]
        ok += 1
    assert interrupted > 5
    store.close()


def test_everything_is_there_after_the_store_is_opened_again(tmp_path, build):
    file = tmp_path / "stats.db"
    first = StatsStore(file)
    first.merge([build.classes({"a": 2, "b": 1}, ok=3)], NOW_S)
    first.close()
    second = StatsStore(file)
    second.merge([build.classes({"a": 3, "b": 1}, ok=4)], NOW_S)
    assert second.window(API, VERSION, now_wall_s=NOW_S, classes=True) == Window(
        counts=Counts(ok=4, latency={10: 4}), classes={"a": 3, "b": 1}
    )
    second.close()


def test_growth_counts_in_the_minute_in_which_the_file_was_written(store, build):
    store.merge([build.file(ok=1, wall_s=NOW_S - 5 * MINUTE_S)], NOW_S)
    store.merge([build.file(ok=3)], NOW_S)
    assert store.recent(API, now_wall_s=NOW_S) == (
        Slice(start_s=int(NOW_S) // 60 * 60 - 5 * MINUTE_S, length_s=MINUTE_S, counts=Counts(ok=1, latency={10: 1})),
        Slice(start_s=int(NOW_S) // 60 * 60, length_s=MINUTE_S, counts=Counts(ok=2, latency={10: 2})),
    )


def test_a_file_from_the_future_counts_now(store, build):
    store.merge([build.file(ok=1, wall_s=NOW_S + DAY_S)], NOW_S)
    assert [s.start_s for s in store.recent(API, now_wall_s=NOW_S)] == [int(NOW_S) // 60 * 60]


def test_a_file_written_before_the_window_only_adds_to_the_lifetime(store, build):
    store.merge([build.file(ok=1, wall_s=window_start(NOW_S) - 1.0)], NOW_S)
    assert counted(store) == NOTHING
    assert store.lifetimes()[API].counts.ok == 1
    assert store.versions(API) == ()


def test_recent_leaves_out_what_is_older_than_asked_for(store, build):
    for minute in range(5):
        store.merge([build.file(ok=minute + 1)], NOW_S + minute * MINUTE_S)
    recent = store.recent(API, VERSION, now_wall_s=NOW_S + 4 * MINUTE_S, minutes=2)
    assert [s.counts.ok for s in recent] == [1, 1]


def test_versions_are_counted_apart_and_together(store, build):
    store.merge([build.classes({"a": 1}, ok=1), build.classes({"a": 2}, ok=2, attempt=2, version=OTHER_VERSION)], NOW_S)
    assert store.versions(API) == (VERSION, OTHER_VERSION)
    assert counted(store).ok == 1
    together = store.window(API, now_wall_s=NOW_S, classes=True)
    assert (together.counts.ok, together.classes) == (3, {"a": 3})
    assert [s.counts.ok for s in store.recent(API, now_wall_s=NOW_S)] == [3]


def test_an_unknown_api_has_counted_nothing(store):
    assert store.window(API, now_wall_s=NOW_S, classes=True) == Window()
    assert store.recent(API, now_wall_s=NOW_S) == ()
    assert store.lifetimes() == {}


def test_a_sum_that_was_asked_for_keeps_up_with_merges(store, build):
    for ok in range(1, 4):
        store.merge([build.classes({"a": ok}, ok=ok)], NOW_S)
        assert counted(store).ok == ok
        assert classes_of(store) == {"a": ok}


def test_another_process_writing_is_noticed(tmp_path, build):
    one, two = StatsStore(tmp_path / "stats.db"), StatsStore(tmp_path / "stats.db")
    one.merge([build.file(ok=1)], NOW_S)
    assert counted(one).ok == counted(two).ok == 1
    two.merge([build.file(ok=5)], NOW_S)
    assert counted(one).ok == 5
    one.close()
    two.close()


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),  # replica
            st.sampled_from([VERSION, OTHER_VERSION]),
            st.dictionaries(st.sampled_from("abc"), st.integers(1, 5)),
            st.integers(0, 20 * DAY_S),  # how long ago it was written
            st.booleans(),  # merged again later, out of date
        ),
        max_size=20,
    )
)
@settings(max_examples=40, deadline=None)
def test_sums_are_what_was_served_however_files_come(tmp_path_factory, build, served):
    file = tmp_path_factory.mktemp("store") / "stats.db"
    store = StatsStore(file)
    cumulative: dict[tuple[int, str], Counter[str]] = {}
    ever: Counter[str] = Counter()
    in_window: Counter[str] = Counter()
    for replica, version, classes, age_s, again in served:
        counts = cumulative.setdefault((replica, version), Counter())
        old = dict(counts)
        counts.update(classes)
        ever.update(classes)
        written_s = NOW_S - age_s
        if written_s >= window_start(NOW_S):
            in_window.update(classes)
        name = f"iris.sklearn.{version[:8]}.{replica}"
        new = build.classes(dict(counts), ok=counts.total(), replica=name, version=version, wall_s=written_s, api=API)
        outdated = build.classes(old, ok=sum(old.values()), replica=name, version=version)
        store.merge([new, outdated, new] if again else [new], NOW_S)
        store.window(API, now_wall_s=NOW_S, classes=True)
    fresh = StatsStore(file)
    for version in (None, VERSION, OTHER_VERSION):
        shown = store.window(API, version, now_wall_s=NOW_S, classes=True)
        assert shown == fresh.window(API, version, now_wall_s=NOW_S, classes=True)
        slices = store.recent(API, version, now_wall_s=NOW_S, minutes=15 * 24 * 60)
        assert total(s.counts for s in slices) == shown.counts
    shown = store.window(API, now_wall_s=NOW_S, classes=True)
    assert shown.classes == dict(in_window)
    assert shown.counts == Counts(ok=in_window.total(), latency={10: in_window.total()} if in_window else {})
    if ever:
        assert store.lifetimes()[API] == Lifetime(
            counts=Counts(ok=ever.total(), latency={10: ever.total()}), classes=dict(ever)
        )
    store.close()
    fresh.close()


# ---- classes --------------------------------------------------------------------------------------------------------


@given(names=st.sets(st.text(max_size=20), max_size=10))
@settings(max_examples=30, deadline=None)
def test_any_text_is_a_class(tmp_path_factory, build, names):
    store = StatsStore(tmp_path_factory.mktemp("store") / "stats.db")
    counts = {name: place + 1 for place, name in enumerate(sorted(names))}
    store.merge([build.classes(counts)], NOW_S)
    assert classes_of(store) == counts
    store.close()


def test_classes_are_exact_up_to_the_limit_and_the_frequent_ones_stay_beyond(store, build):
    store.merge([build.classes({f"class {n}": 1 for n in range(EXACT_CLASSES - 1)})], NOW_S)
    assert (counted(store).other, counted(store).undercount) == (0, 0)
    store.merge([build.classes({"rare": 1, "frequent": 7, "class 0": 5}, other=2, attempt=2)], NOW_S)
    classes = classes_of(store)
    assert len(classes) == EXACT_CLASSES
    assert (classes["frequent"], classes["class 0"], "rare" in classes) == (7, 6, False)
    assert (counted(store).other, counted(store).undercount) == (3, 1)


def test_a_class_that_becomes_frequent_late_takes_the_place_of_a_rare_one(store, build, monkeypatch):
    monkeypatch.setattr("cortex.metrics.store.EXACT_CLASSES", 2)
    store.merge([build.classes({"a": 5, "b": 1})], NOW_S)
    assert classes_of(store) == {"a": 5, "b": 1}
    store.merge([build.classes({"a": 5, "b": 1, "late": 9})], NOW_S + DAY_S)
    assert classes_of(store, NOW_S + DAY_S) == {"a": 5, "late": 9}
    assert counted(store, NOW_S + DAY_S).other == 1


@given(
    days=st.lists(
        st.lists(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 9), max_size=6), max_size=4), max_size=4
    ),
    asked=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_without_room_for_all_every_prediction_is_counted_and_none_is_too_low_by_more_than_the_bound(
    tmp_path_factory, build, days, asked
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cortex.metrics.store.EXACT_CLASSES", 3)
        store = StatsStore(tmp_path_factory.mktemp("store") / "stats.db")
        true: Counter[str] = Counter()
        attempt, now_s = 0, NOW_S
        for day in days:
            now_s += DAY_S
            for counts in day:
                attempt += 1
                true.update(counts)
                store.merge([build.classes(counts, attempt=attempt)], now_s)
                if asked:
                    classes_of(store, now_s)
        found, sums = classes_of(store, now_s), counted(store, now_s)
        store.close()
    assert len(found) <= 3
    assert sum(found.values()) + sums.other == true.total()
    assert sums.undercount * 4 <= true.total()
    for name in true:
        assert true[name] - sums.undercount <= found.get(name, 0) <= true[name]


def test_a_class_that_left_the_window_makes_room(store, build, monkeypatch):
    monkeypatch.setattr("cortex.metrics.store.EXACT_CLASSES", 2)
    store.merge([build.classes({"a": 1, "b": 1, "c": 1})], NOW_S)
    later_s = NOW_S + 14 * DAY_S
    store.maintain(later_s)
    store.merge([build.classes({"a": 1, "b": 1, "c": 3})], later_s)
    assert classes_of(store, later_s) == {"c": 2}
    assert counted(store, later_s).other == 0


# ---- ingress --------------------------------------------------------------------------------------------------------


def refused(client: int, server: int, instance: str = "haproxy 1", version: Version = VERSION) -> IngressRefusals:
    return IngressRefusals(instance=instance, api=API, version=version, client_error=client, server_error=server)


def test_what_the_ingress_refused_is_counted_once_and_across_its_restart(store):
    store.merge_ingress([refused(2, 1)], live={"haproxy 1"}, now_wall_s=NOW_S)
    store.merge_ingress([refused(2, 1)], live={"haproxy 1"}, now_wall_s=NOW_S)
    store.merge_ingress([refused(1, 0, "haproxy 2")], live={"haproxy 2"}, now_wall_s=NOW_S)
    assert counted(store) == Counts(refused_client_error=3, refused_server_error=1)


def test_old_and_new_ingress_count_side_by_side_during_a_reload(store):
    both = {"haproxy 1", "haproxy 2"}
    store.merge_ingress([refused(5, 0)], live={"haproxy 1"}, now_wall_s=NOW_S)
    store.merge_ingress([refused(6, 0), refused(1, 0, "haproxy 2")], live=both, now_wall_s=NOW_S)
    store.merge_ingress([refused(6, 0), refused(2, 0, "haproxy 2")], live=both, now_wall_s=NOW_S)
    assert counted(store).refused_client_error == 8


def test_an_instance_that_is_silent_for_a_moment_is_not_counted_anew(store):
    store.merge_ingress([refused(5, 0)], live={"haproxy 1"}, now_wall_s=NOW_S)
    store.merge_ingress([], live={"haproxy 1"}, now_wall_s=NOW_S)
    store.merge_ingress([refused(6, 0)], live={"haproxy 1"}, now_wall_s=NOW_S)
    assert counted(store).refused_client_error == 6


def test_an_instance_that_says_nothing_while_others_do_is_not_counted_anew(store):
    both = {"haproxy 1", "haproxy 2"}
    store.merge_ingress([refused(5, 0), refused(3, 0, "haproxy 2")], live=both, now_wall_s=NOW_S)
    store.merge_ingress([refused(6, 0)], live={"haproxy 1"}, now_wall_s=NOW_S)
    store.merge_ingress([refused(6, 0), refused(4, 0, "haproxy 2")], live=both, now_wall_s=NOW_S)
    assert counted(store).refused_client_error == 10


def test_of_instances_that_are_silent_those_seen_last_are_remembered(store):
    for number in range(SILENT_INSTANCES + 2):
        store.merge_ingress([refused(1, 0, f"haproxy {number}")], live={f"haproxy {number}"}, now_wall_s=NOW_S)
    counts = counted(store).refused_client_error
    store.merge_ingress([refused(1, 0, "haproxy 1")], live={"haproxy 1"}, now_wall_s=NOW_S)
    assert counted(store).refused_client_error == counts, "one of those"
    store.merge_ingress([refused(1, 0, "haproxy 0")], live={"haproxy 0"}, now_wall_s=NOW_S)
    assert counted(store).refused_client_error == counts + 1, "one from before"


def test_growth_of_ingress_counters_belongs_to_the_version_routed_to(store):
    store.merge_ingress([refused(5, 0)], live={"haproxy 1"}, now_wall_s=NOW_S)
    store.merge_ingress([refused(7, 0, version=OTHER_VERSION)], live={"haproxy 1"}, now_wall_s=NOW_S)
    assert counted(store).refused_client_error == 5
    assert store.window(API, OTHER_VERSION, now_wall_s=NOW_S).counts.refused_client_error == 2


def test_ingress_counters_that_went_backwards_are_left_out_with_a_warning(store, caplog):
    store.merge_ingress([refused(5, 5)], live={"haproxy 1"}, now_wall_s=NOW_S)
    with caplog.at_level(logging.WARNING):
        store.merge_ingress([refused(6, 4)], live={"haproxy 1"}, now_wall_s=NOW_S)
    assert "went backwards" in caplog.text
    assert counted(store).refused_client_error == 5


# ---- time passes ----------------------------------------------------------------------------------------------------


def test_maintenance_changes_no_sum_of_the_window(store, build):
    for ok in range(1, 101):
        now_s = NOW_S + ok * 0.4 * HOUR_S
        store.merge([build.classes({"a": ok}, ok=ok)], now_s)
        if ok % 10 == 0:
            store.maintain(now_s)
            assert counted(store, now_s).ok == ok
            assert classes_of(store, now_s) == {"a": ok}


def test_minutes_older_than_a_day_become_hours_on_disk(store, build, tmp_path):
    for minute in range(120):
        store.merge([build.file(ok=minute + 1)], NOW_S + minute * MINUTE_S)
    store.maintain(NOW_S + 2 * DAY_S)
    with sqlite3.connect(tmp_path / "stats.db") as db:
        found = db.execute("SELECT length_s, COUNT(*) FROM slice GROUP BY length_s").fetchall()
    db.close()
    assert found == [(HOUR_S, 2), (DAY_S, 1)]
    later_s = NOW_S + 2 * DAY_S
    assert counted(store, later_s).ok == 120
    history = store.recent(API, now_wall_s=later_s, minutes=3 * 24 * 60)
    assert [(s.length_s, s.counts.ok) for s in history] == [(HOUR_S, 60), (HOUR_S, 60)]


def test_what_left_the_window_is_gone_from_disk(store, build, tmp_path):
    store.merge([build.classes({"a": 1}, ok=1)], NOW_S)
    later_s = NOW_S + 14 * DAY_S
    assert counted(store, later_s) == NOTHING
    store.maintain(later_s)
    with sqlite3.connect(tmp_path / "stats.db") as db:
        for table in ("series", "slice", "class", "class_count", "lifetime", "named_class"):
            assert db.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,), table
        assert db.execute("SELECT COUNT(*) FROM seen_run").fetchone() == (1,)
    db.close()


def test_yesterdays_window_is_not_shown_today(store, build):
    store.merge([build.classes({"a": 1}, ok=1)], NOW_S)
    assert counted(store).ok == 1
    assert counted(store, NOW_S + 13 * DAY_S).ok == 1
    assert counted(store, NOW_S + 14 * DAY_S).ok == 0


# ---- lifetimes ------------------------------------------------------------------------------------------------------


def test_lifetimes_survive_the_window(store, build):
    store.merge([build.file(ok=1)], NOW_S)
    later_s = NOW_S + 13 * DAY_S + 20 * HOUR_S
    store.merge([build.file(ok=2)], NOW_S + 10 * DAY_S)
    store.maintain(later_s)
    assert counted(store, later_s).ok == 1
    assert store.lifetimes()[API].counts.ok == 2


def test_lifetime_counters_of_classes_never_go_down_when_others_become_frequent(store, build):
    first = {f"early {n:02}": 1 for n in range(NAMED_CLASSES)}
    store.merge([build.classes(first)], NOW_S)
    late = first | {f"late {n:02}": 10 for n in range(NAMED_CLASSES)}
    store.merge([build.classes(late)], NOW_S)
    assert store.lifetimes()[API] == Lifetime(classes=first, rest=10 * NAMED_CLASSES)
    store.maintain(NOW_S)
    renamed = Lifetime(classes={f"late {n:02}": 0 for n in range(NAMED_CLASSES)}, rest=10 * NAMED_CLASSES)
    assert store.lifetimes()[API] == renamed
    more = late | {"late 00": 11, "early 00": 3}
    store.merge([build.classes(more, other=4)], NOW_S)
    lifetime = store.lifetimes()[API]
    assert lifetime.classes["late 00"] == 1
    assert lifetime.rest == 10 * NAMED_CLASSES + 2 + 4


def test_lifetimes_hold_no_buckets_of_numbers(store, build):
    store.merge([build.numbers(count=1, total=2.0, least=2.0, greatest=2.0, positive_buckets={35: 1})], NOW_S)
    assert store.lifetimes()[API].counts == Counts(numbers=1, number_sum=2.0)
    assert counted(store) == Counts(numbers=1, number_sum=2.0, least=2.0, greatest=2.0, positive={35: 1})


# ---- what was last seen ---------------------------------------------------------------------------------------------


def test_forgotten_attempts_are_unknown(store, build):
    store.merge([build.file(ok=1), build.file(ok=1, attempt=2)], NOW_S)
    assert store.known() == {LOCAL_NODE: {(build.replica, 1), (build.replica, 2)}}
    store.forget(LOCAL_NODE, [(build.replica, 1)])
    assert store.known() == {LOCAL_NODE: {(build.replica, 2)}}
    assert counted(store).ok == 2


def test_attempts_are_forgotten_on_the_node_that_has_no_file_of_them_any_more(store, build):
    store.merge([build.file(ok=1, run="before")], NOW_S, node=NodeId("a"))
    store.merge([build.file(ok=1, run="after")], NOW_S, node=NodeId("b"))
    store.forget(NodeId("a"), [(build.replica, 1)])
    assert store.known() == {NodeId("b"): {(build.replica, 1)}}
    store.merge([build.file(ok=3, run="after")], NOW_S, node=NodeId("b"))
    assert counted(store).ok == 4


def test_what_a_node_counted_is_known_for_as_long_as_it_would_be_shown_should_it_come_back(store, build):
    lost, heard = NodeId("lost"), NodeId("heard")
    store.merge([build.file(ok=1, run="l")], NOW_S, node=lost)
    store.merge([build.file(ok=1, run="h")], NOW_S, node=heard)
    store.forget_nodes(but={heard}, now_wall_s=NOW_S + 13 * DAY_S)
    assert set(store.known()) == {lost, heard}
    store.forget_nodes(but={heard}, now_wall_s=NOW_S + 15 * DAY_S)
    assert set(store.known()) == {heard}


def test_sync_says_when_everything_is_on_disk(store, build):
    store.merge([build.file(ok=1)], NOW_S)
    assert store.sync()


def test_sync_says_when_a_reader_of_another_process_is_in_the_way(store, build, tmp_path):
    reader = sqlite3.connect(tmp_path / "stats.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM seen_run").fetchall()
    store.merge([build.file(ok=1)], NOW_S)
    assert not store.sync()
    reader.close()
    assert store.sync()


# ---- threads and the file -------------------------------------------------------------------------------------------


def test_threads_may_merge_and_read_at_once(store, build):
    problems: list[BaseException] = []

    def work(replica: int) -> None:
        try:
            for ok in range(1, 21):
                name = f"iris.sklearn.aaaaaaaa.{replica}"
                store.merge([build.classes({"a": ok}, ok=ok, replica=name)], NOW_S)
                window = store.window(API, VERSION, now_wall_s=NOW_S, classes=True)
                assert window.counts.ok == window.classes["a"]
                store.maintain(NOW_S)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert counted(store).ok == 80


def test_a_file_that_is_no_database_is_moved_aside(tmp_path, build, caplog):
    file = tmp_path / "stats.db"
    file.write_bytes(b"not a database at all" * 100)
    with caplog.at_level(logging.ERROR):
        store = StatsStore(file)
    assert "moved aside" in caplog.text
    store.merge([build.file(ok=1)], NOW_S)
    assert counted(store).ok == 1
    assert (tmp_path / "stats.db.damaged").read_bytes().startswith(b"not a database")
    store.close()


def test_a_file_of_a_newer_cortex_is_refused_and_left_alone(tmp_path):
    file = tmp_path / "stats.db"
    StatsStore(file).close()
    db = sqlite3.connect(file)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(StatsStoreUnusable, match="newer Cortex"):
        StatsStore(file)
    assert not (tmp_path / "stats.db.damaged").exists()


def test_an_older_file_is_brought_to_the_newest_schema_and_keeps_its_counts(tmp_path, build, monkeypatch):
    file = tmp_path / "stats.db"
    old = StatsStore(file)
    old.merge([build.file(ok=1)], NOW_S)
    old.close()
    broken = ("CREATE TABLE extra (x)", "CREATE TABLE slice (x)")
    monkeypatch.setattr("cortex.metrics.store.MIGRATIONS", (*MIGRATIONS, *broken))
    with pytest.raises(StatsStoreUnusable, match="already exists"):
        StatsStore(file)
    monkeypatch.setattr(
        "cortex.metrics.store.MIGRATIONS", (*MIGRATIONS, "CREATE TABLE extra (x); CREATE TABLE more (x)")
    )
    for _ in range(2):
        new = StatsStore(file)
        assert counted(new).ok == 1
        new.close()


def test_classes_of_a_file_from_before_they_had_a_weight_weigh_what_they_counted(tmp_path, build, monkeypatch):
    db = sqlite3.connect(tmp_path / "stats.db")
    db.executescript(MIGRATIONS[0])
    db.execute("INSERT INTO series (id, api, version) VALUES (1, ?, ?)", (API, VERSION))
    db.executemany("INSERT INTO class (id, series, name) VALUES (?, 1, ?)", [(1, "old"), (2, "rare")])
    db.executemany("INSERT INTO class_count (class, day_s, count) VALUES (?, ?, ?)", [(1, DAY_S, 5), (2, DAY_S, 1)])
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()
    monkeypatch.setattr("cortex.metrics.store.EXACT_CLASSES", 2)
    store = StatsStore(tmp_path / "stats.db")
    store.merge([build.classes({"new": 3})], 2 * DAY_S)
    assert classes_of(store, 2 * DAY_S) == {"old": 5, "new": 3}
    store.close()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StatsStoreUnusable, match=r"nowhere/stats\.db"):
        StatsStore(tmp_path / "nowhere" / "stats.db")


def test_a_failing_disk_is_a_named_error_and_nothing_is_half_written(store, build, tmp_path):
    store.merge([build.file(ok=1)], NOW_S)
    other = sqlite3.connect(tmp_path / "stats.db")
    (pages,) = other.execute("PRAGMA page_count").fetchone()
    other.close()
    store.database.connection.execute(f"PRAGMA max_page_count = {pages}")  # as if the disk were full
    with pytest.raises(StatsStoreUnusable, match="full"):
        store.merge([build.classes({f"class {n}": 1 for n in range(2000)}, ok=2)], NOW_S)
    assert counted(store).ok == 1
    store.database.connection.execute("PRAGMA max_page_count = 1000000")
    store.merge([build.classes({f"class {n}": 1 for n in range(2000)}, ok=2)], NOW_S)
    assert counted(store).ok == 2
    assert len(classes_of(store)) == 2000


def test_an_unfinished_tracker_without_classes_counts_its_misses(store, build):
    store.merge([build.file(tracker=TrackerStats(misses=3))], NOW_S)
    assert counted(store) == Counts(misses=3)


# ---- apis that are gone ----------------------------------------------------------------------------------------------


def test_what_a_removed_api_has_counted_is_gone_with_everything_of_it(store, build):
    other = ApiKey("iris/other")
    store.merge(
        [build.classes({"a": 2, "b": 1}, ok=3), build.file(ok=5, replica=ReplicaId("iris.other.0000.0"), api=other)],
        NOW_S,
    )
    store.forget_apis([API])
    assert store.window(API, now_wall_s=NOW_S, classes=True) == Window()
    assert store.versions(API) == ()
    assert list(store.lifetimes()) == [other]
    assert store.window(other, now_wall_s=NOW_S).counts.ok == 5


def test_a_replica_of_a_removed_api_that_still_drains_counts_for_none_of_its_name(store, build):
    draining = build.file(ok=3, run="before")
    store.merge([draining], NOW_S)
    store.forget_apis([draining.api])
    store.merge([build.file(ok=4, run="before", last=True), build.file(ok=1, run="after")], NOW_S)
    assert store.window(draining.api, now_wall_s=NOW_S).counts.ok == 1
    assert store.lifetimes()[draining.api].counts.ok == 1


def test_the_first_request_of_a_replica_of_a_removed_api_counts_for_none_of_its_name(store, build):
    """It was in hand when the api was removed: until then the replica had written that it had answered nothing."""
    begun = build.file(ok=0, run="before")
    assert store.merge([begun], NOW_S) == 0
    store.forget_apis([begun.api])
    store.merge([build.file(ok=1, run="before", last=True)], NOW_S)
    assert store.window(begun.api, now_wall_s=NOW_S) == Window()


def test_a_replica_whose_attempt_has_the_number_of_one_of_a_removed_api_counts_in_full(store, build):
    begun = build.file(ok=0, run="before")
    store.merge([begun], NOW_S)
    store.forget_apis([begun.api])
    store.merge([build.file(ok=2, run="after")], NOW_S)
    assert store.window(begun.api, now_wall_s=NOW_S).counts.ok == 2


def test_a_run_that_is_first_seen_while_its_api_is_not_wanted_counts_for_none_of_its_name(store, build):
    store.merge([build.file(ok=1, run="late")], NOW_S, wanted={ApiKey("iris/other")})
    store.merge([build.file(ok=3, run="late"), build.file(ok=2, run="new")], NOW_S, wanted={API})
    assert store.window(API, now_wall_s=NOW_S).counts.ok == 2


def test_what_an_api_of_the_same_name_has_taken_over_counts_from_then_on(store, build):
    file = build.file(ok=4)
    store.merge([file], NOW_S)
    store.forget_apis([API])
    store.merge([build.file(ok=5)], NOW_S)
    attempt = (file.replica, file.attempt)
    assert store.discarded() == {attempt}
    store.count_again([attempt])
    assert store.discarded() == frozenset()
    store.merge([build.file(ok=7)], NOW_S)
    assert store.window(API, now_wall_s=NOW_S).counts.ok == 2
