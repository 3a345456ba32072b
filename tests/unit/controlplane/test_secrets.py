"""Tests of `cortex.controlplane.secrets` and of what `housekeeping` does about them."""

import msgspec
import pytest

from cortex.controlplane.housekeeping import Housekeeping
from cortex.controlplane.secrets import CloudKeys, SecretInUse, Secrets, UnknownSecret, pinned
from cortex.errors import Problems
from cortex.state.records import StateStore
from cortex.state.secrets import REPLACED_GRACE_S, SecretStore
from cortex.testing import builders
from cortex.testing.builders import a_build, a_deploy, a_wanted_api
from cortex.testing.clock import FakeClock
from cortex.wire.build import SecretPin
from cortex.wire.events import Event
from cortex.wire.operator import SecretStatus


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(tmp_path):
    return SecretStore(tmp_path)


def pin(facts) -> SecretPin:
    return SecretPin(name=facts.name, generation=facts.generation)


def build_with(label="v1", **secrets):
    return msgspec.structs.replace(a_build(label), secrets=secrets)


def a_record(build, serving=None):
    return builders.a_record(a_wanted_api(build, serving=serving))


def test_a_new_version_gets_the_newest_value(store):
    store.set("token", "old", wall_s=1.0)
    newest = store.set("token", "new", wall_s=2.0)
    assert pinned(store, {"TOKEN": "token"}, api="a") == {"TOKEN": pin(newest)}


def test_the_same_version_keeps_the_value_that_it_was_made_with(store):
    old = store.set("token", "old", wall_s=1.0)
    store.set("token", "new", wall_s=2.0)
    assert pinned(store, {"TOKEN": "token"}, [build_with(TOKEN=pin(old))], api="a") == {"TOKEN": pin(old)}


def test_a_value_that_was_deleted_is_replaced_by_the_newest(store):
    old = store.set("token", "old", wall_s=1.0)
    store.delete("token")
    newest = store.set("token", "new", wall_s=2.0)
    assert pinned(store, {"TOKEN": "token"}, [build_with(TOKEN=pin(old))], api="a") == {"TOKEN": pin(newest)}


def test_every_missing_secret_is_told_with_the_line_to_run(store):
    store.set("there", "x", wall_s=1.0)
    with pytest.raises(Problems) as caught:
        pinned(store, {"A": "there", "B": "missing", "C": "gone"}, api="iris")
    assert [(p.reference, p.path, p.subject) for p in caught.value.problems] == [
        ("secret-missing", ("env", "B"), 'api "iris": env: B'),
        ("secret-missing", ("env", "C"), 'api "iris": env: C'),
    ]
    assert caught.value.problems[0].hint.startswith("run `cortex secret set missing`")


@pytest.mark.parametrize("variable", ["LD_PRELOAD", "PYTHONPATH", "OMP_NUM_THREADS", "TF_CONFIG"])
def test_a_variable_that_is_read_at_import_cannot_be_a_secret(store, variable):
    """It would be in the launcher's memory, which all its children share, and in its record on disk."""
    store.set("token", "x", wall_s=1.0)
    with pytest.raises(Problems) as caught:
        pinned(store, {variable: "token"}, api="a")
    assert [p.reference for p in caught.value.problems] == ["secret-read-at-import"]


def test_secrets_are_shown_with_their_users_and_who_has_an_older_value(store, clock):
    old = store.set("token", "old", wall_s=1.0)
    records = [a_record(build_with(TOKEN=pin(old)))]
    told: list[Event] = []
    secrets = Secrets(store=store, known=lambda: records, clock=clock, tell=told.append)
    assert [(s.used_by, s.outdated_in) for s in secrets.all()] == [(("iris/sklearn",), ())]
    status = secrets.set("token", "new")
    assert (status.used_by, status.outdated_in) == (("iris/sklearn",), ("iris/sklearn",))
    assert isinstance(status, SecretStatus)
    (event,) = told
    assert event.text == "token was set; iris/sklearn still have the value before: `cortex refresh` gives them this one"


def test_a_secret_in_use_is_only_deleted_by_force(store, clock):
    facts = store.set("token", "old", wall_s=1.0)
    older = build_with("v0", TOKEN=pin(facts))
    told: list[Event] = []
    secrets = Secrets(store=store, known=lambda: [a_record(build_with(), older)], clock=clock, tell=told.append)
    with pytest.raises(SecretInUse, match="iris/sklearn"):
        secrets.delete("token", force=False)
    assert told == []
    secrets.delete("token", force=True)
    assert secrets.all() == ()
    (event,) = told
    assert event.text == (
        "token was deleted although iris/sklearn had it: none of their replicas can be started any more"
    )


def test_an_unknown_secret_cannot_be_deleted(store, clock):
    secrets = Secrets(store=store, known=list, clock=clock)
    for force in (False, True):
        with pytest.raises(UnknownSecret):
            secrets.delete("token", force=force)


def test_what_no_stored_version_needs_is_cleared_up(store, clock, tmp_path):
    state = StateStore()
    facts = [store.set("token", value, wall_s=clock.wall_s()) for value in ("unused", "served", "wanted", "newest")]
    unused, served, wanted, newest = map(pin, facts)
    new = msgspec.structs.replace(build_with("v2", TOKEN=wanted), packages="b" * 64)
    old = msgspec.structs.replace(build_with("v1", TOKEN=served), packages="a" * 64)
    state.commit_deploy(a_deploy(a_wanted_api(old)))
    state.mark_live(old.api, old.revision, wall_s=0.0)
    state.commit_deploy(a_deploy(a_wanted_api(new)))
    swept, forgotten = [], []
    clock.advance(2 * REPLACED_GRACE_S)
    housekeeping = Housekeeping(
        state=state,
        secrets=store,
        cloud=CloudKeys(SecretStore(tmp_path / "cloud"), clock),
        sweep=swept.append,
        forget_cloud=lambda: forgotten.append(True),
        clock=clock,
    )
    housekeeping.clear_up()
    assert [store.has(one) for one in (unused, served, wanted, newest)] == [False, True, True, True]
    assert {"a" * 64, "b" * 64} <= swept[0]
    assert forgotten
