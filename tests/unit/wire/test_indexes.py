"""Tests of `cortex.wire.indexes`."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cortex.wire.indexes import index_variables, passwords, read_handed_over, with_handed_over


def test_what_says_where_packages_come_from_is_taken_and_nothing_else():
    shell = {
        "UV_INDEX_URL": "https://a/simple",
        "UV_INDEX_INTERN_PASSWORD": "p",
        "PIP_EXTRA_INDEX_URL": "https://b/simple",
        "HTTPS_PROXY": "http://proxy:3128",
        "AWS_SECRET_ACCESS_KEY": "no",
        "UV_CACHE_DIR": "/not/theirs",
        "PATH": "/bin",
    }
    assert index_variables(shell).keys() == {
        "UV_INDEX_URL",
        "UV_INDEX_INTERN_PASSWORD",
        "PIP_EXTRA_INDEX_URL",
        "HTTPS_PROXY",
    }


@pytest.mark.parametrize(
    ("name", "value", "handed_over"),
    [
        ("UV_FIND_LINKS", "wheels,/abs,https://x/y", "/here/wheels,/abs,https://x/y"),
        ("PIP_FIND_LINKS", "wheels ~/mine", "/here/wheels ~/mine"),
        ("UV_INDEX_URL", "https://a/simple", "https://a/simple"),
    ],
)
def test_relative_folders_are_those_of_the_shell(name, value, handed_over):
    assert index_variables({name: value}, Path("/here")) == {name: handed_over}


def test_what_was_handed_over_takes_the_place_of_all_that_a_process_had():
    own = {"UV_INDEX_URL": "https://old", "HTTP_PROXY": "http://old", "PATH": "/bin"}
    assert with_handed_over(own, {"PIP_INDEX_URL": "https://new"}) == {"PATH": "/bin", "PIP_INDEX_URL": "https://new"}
    assert with_handed_over(own, {}) == {"PATH": "/bin"}
    assert with_handed_over(own, None) == own


def test_nothing_but_these_variables_is_taken_from_who_hands_over():
    assert with_handed_over({}, {"LD_PRELOAD": "/evil.so", "UV_OFFLINE": "1"}) == {"UV_OFFLINE": "1"}


def test_passwords_are_found_in_urls_and_in_variables_of_their_own():
    environ = {
        "UV_INDEX_URL": "https://me:pa%24s@a/simple",
        "PIP_EXTRA_INDEX_URL": "https://b/simple https://x:second@c/simple",
        "UV_INDEX": "intern=https://x:third@d/simple",
        "UV_INDEX_INTERN_PASSWORD": "fourth",
        "UV_INDEX_INTERN_USERNAME": "me",
        "http_proxy": "http://u:fifth@proxy:1",
        "OTHER": "https://u:unrelated@x",
    }
    assert set(passwords(environ)) == {"pa%24s", "pa$s", "second", "third", "fourth", "fifth"}


def test_a_file_that_says_nothing_is_as_good_as_none(tmp_path):
    file = tmp_path / "indexes.json"
    assert read_handed_over(file) is None
    file.write_bytes(b"{")
    assert read_handed_over(file) is None
    file.write_bytes(msgspec.json.encode({"UV_OFFLINE": "1"}))
    assert read_handed_over(file) == {"UV_OFFLINE": "1"}
