"""Tests of `cortex.state.secrets`."""

import stat

import pytest

from cortex.state.secrets import (
    MAX_VALUE_BYTES,
    REPLACED_GRACE_S,
    SecretMissing,
    SecretRefused,
    SecretStore,
    SecretsUnusable,
)
from cortex.wire.build import SecretPin

NOW = 1_800_000_000.0
LATER = NOW + 2 * REPLACED_GRACE_S


@pytest.fixture
def store(tmp_path):
    return SecretStore(tmp_path / "secrets")


def pin(facts) -> SecretPin:
    return SecretPin(name=facts.name, generation=facts.generation)


def test_a_value_that_was_set_is_found_by_its_pin(store):
    facts = store.set("token", "hunter2", wall_s=NOW)
    assert store.value(pin(facts)) == "hunter2"
    assert store.facts("token") == facts


def test_a_later_store_on_the_same_folder_has_the_same_values(store, tmp_path):
    facts = store.set("token", "zwölf\nZeilen €", wall_s=NOW)
    assert SecretStore(tmp_path / "secrets").value(pin(facts)) == "zwölf\nZeilen €"


def test_an_older_value_stays_until_nobody_needs_it(store):
    older = store.set("token", "old", wall_s=NOW)
    newer = store.set("token", "new", wall_s=NOW + 1)
    store.prune([pin(older)], wall_s=LATER)
    assert (store.value(pin(older)), store.value(pin(newer))) == ("old", "new")
    store.prune([], wall_s=LATER)
    assert not store.has(pin(older))
    assert store.value(pin(newer)) == "new"


def test_a_value_that_was_just_replaced_stays_for_a_deploy_that_is_under_way(store):
    older = store.set("token", "old", wall_s=NOW)
    store.set("token", "new", wall_s=NOW + 1)
    store.prune([], wall_s=NOW + 2)
    assert store.has(pin(older))


def test_the_same_value_set_again_is_another_generation(store):
    """So that a generation tells nothing about its value."""
    one, two = store.set("token", "same", wall_s=NOW), store.set("token", "same", wall_s=NOW)
    assert one.generation != two.generation


def test_a_deleted_secret_has_no_values_even_if_it_is_set_again(store):
    before = store.set("token", "old", wall_s=NOW)
    assert store.delete("token")
    with pytest.raises(SecretMissing, match="was deleted"):
        store.value(pin(before))
    store.set("token", "new", wall_s=NOW)
    with pytest.raises(SecretMissing, match="that this version had was deleted") as caught:
        store.value(pin(before))
    assert caught.value.problem().hint == "run `cortex secret set token`, then `cortex refresh`"


def test_what_is_not_there_is_nothing(store):
    assert store.facts("token") is None
    assert store.all() == ()
    assert not store.delete("token")
    store.prune([], wall_s=NOW)


def test_all_secrets_are_listed_by_name_without_their_values(store):
    for name in ("b", "a.1", "C_2"):
        store.set(name, "hunter2", wall_s=NOW)
    assert [facts.name for facts in store.all()] == ["C_2", "a.1", "b"]
    assert "hunter2" not in repr(store.all())


def test_files_are_readable_by_their_owner_alone(store, tmp_path):
    store.set("token", "hunter2", wall_s=NOW)
    folder = tmp_path / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()] == [0o600]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-x", ".x", "a b", "a" * 129, "ä", "a\n"])
def test_a_name_that_could_be_another_path_is_refused(store, name):
    with pytest.raises(SecretRefused):
        store.set(name, "x", wall_s=NOW)
    with pytest.raises(SecretRefused):
        store.facts(name)


@pytest.mark.parametrize("value", ["", "a\0b", "\ud800", "x" * (MAX_VALUE_BYTES + 1)])
def test_a_value_that_no_variable_can_hold_is_refused_without_being_told(store, value):
    with pytest.raises(SecretRefused) as caught:
        store.set("token", value, wall_s=NOW)
    assert not value or value not in str(caught.value)
    assert store.all() == ()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"current": "x", "values": {}}', b"\xff", b'{"hunter2": '])
def test_a_damaged_file_is_named_without_what_is_in_it(store, tmp_path, content):
    store.set("token", "hunter2", wall_s=NOW)
    (tmp_path / "secrets" / "token").write_bytes(content)
    with pytest.raises(SecretsUnusable, match="secrets/token cannot be used: it is damaged") as caught:
        store.facts("token")
    assert "hunter2" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "secrets").write_text("in the way")
    with pytest.raises(SecretsUnusable, match="secrets"):
        SecretStore(tmp_path / "secrets").set("token", "x", wall_s=NOW)
