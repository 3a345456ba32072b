"""`cortex cluster`: a cluster.yaml in, what it becomes out, and nothing that is not there yet."""

from __future__ import annotations

import sys
from typing import Any

import pytest

GOOD = "name: prod\nprovider: aws\nregion: eu-central-1\nstorage: s3://models/cortex\nnodes_max: 4\n"
BOTH = ("export",), ("up", "--dry-run")


def write(cortex: Any, text: str = GOOD, name: str = "cluster.yaml") -> None:
    (cortex.cwd / name).write_text(text)


@pytest.mark.parametrize("action", BOTH, ids=" ".join)
def test_export_and_a_dry_run_print_the_same_and_nothing_else(cortex: Any, action: tuple[str, ...]) -> None:
    write(cortex)
    ran, exported = cortex("cluster", *action), cortex("cluster", "export")
    assert (ran.code, ran.talk, ran.out) == (0, "", exported.out)
    assert "max_workers: 3\n" in ran.out
    assert not cortex.home.exists()


def test_another_file_or_a_folder_with_one_may_be_named(cortex: Any) -> None:
    (cortex.cwd / "there").mkdir()
    write(cortex, GOOD.replace("prod", "test"), "there/cluster.yaml")
    for name in ("there", "there/", "there/cluster.yaml"):
        ran = cortex("cluster", "export", name)
        assert (ran.code, ran.out.splitlines()[3]) == (0, "cluster_name: cortex-test")
        assert "there/cluster.yaml" in ran.out


def test_a_flag_comes_before_a_variable_and_that_before_the_file(cortex: Any) -> None:
    write(cortex)
    cortex.environ = {"CORTEX_NODES_MIN": "2", "CORTEX_NODES_MAX": "6"}
    assert "# 2 (from environment) to 6 (from environment) nodes" in cortex("cluster", "export").out
    ran = cortex("cluster", "up", "--dry-run", "--nodes-max", "8")
    assert "# 2 (from environment) to 8 (from flag) nodes" in ran.out
    assert ran.talk == "", "they have an effect here, and no warning says otherwise"


def test_a_misspelt_variable_is_told_with_one_that_has_an_effect_here(cortex: Any) -> None:
    write(cortex)
    cortex.environ = {"CORTEX_NODE_MIN": "2"}
    ran = cortex("cluster", "export")
    assert ran.code == 0
    assert "did you mean CORTEX_NODES_MIN?" in ran.talk


@pytest.mark.parametrize("action", BOTH, ids=" ".join)
def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_printed(cortex: Any, action: tuple[str, ...]) -> None:
    write(cortex, "name: Prod\nprovider: aws\nstorage: models\nnode_max: 3\n")
    cortex.environ = {"CORTEX_NODES_MIN": "x"}
    ran = cortex("cluster", *action)
    assert (ran.code, ran.out) == (1, "")
    assert [line.strip().partition("   ")[0] for line in ran.talk.splitlines() if "cluster.yaml:" in line] == [
        "cluster.yaml:1:1",
        "cluster.yaml:1:1",
        "cluster.yaml:3:1",
        "cluster.yaml:4:1",
    ]
    assert "CORTEX_NODES_MIN: expected a number of nodes" in ran.talk


def test_bounds_on_the_command_line_that_cannot_be_meant_are_told(cortex: Any) -> None:
    write(cortex)
    crossed = cortex("cluster", "export", "--nodes-min", "5")
    assert (crossed.code, crossed.out) == (1, "")
    assert "--nodes-min 5 is more than nodes_max 4" in crossed.talk
    assert "cluster.yaml:5:1" in crossed.talk
    assert cortex("cluster", "export", "--nodes-min", "0").code == 2


def test_what_is_worth_knowing_goes_to_stderr(cortex: Any) -> None:
    (cortex.cwd / "key").write_text("")
    write(cortex, "name: prod\nprovider: machines\nhosts: [a]\nstorage: /mnt/cortex\nssh_key: key\n")
    assert cortex("cluster", "export").talk == ""
    (cortex.cwd / "key").unlink()
    ran = cortex("cluster", "export")
    assert (ran.code, ran.talk.splitlines()[0]) == (0, "note: file-not-there")
    assert "cluster.yaml:5:1" in ran.talk


def test_without_a_file_the_smallest_one_is_shown(cortex: Any) -> None:
    ran = cortex("cluster", "export")
    assert (ran.code, ran.out) == (1, "")
    assert "cluster.yaml: there is no such file" in ran.talk
    assert "provider: aws" in ran.talk


def test_a_file_that_cannot_be_read_fails_as_explained(cortex: Any) -> None:
    (cortex.cwd / "there" / "cluster.yaml").mkdir(parents=True)
    ran = cortex("cluster", "export", "there")
    assert (ran.code, ran.talk.splitlines()[1]) == (1, "  there/cluster.yaml: is a directory")


def test_a_cluster_is_not_started_yet_and_that_is_said(cortex: Any) -> None:
    write(cortex)
    ran = cortex("cluster", "up")
    assert (ran.code, ran.out) == (1, "")
    assert "this release does not start clusters yet" in ran.talk
    assert "--dry-run" in ran.talk


@pytest.mark.parametrize("action", ["down", "info", "scale"])
def test_what_will_follow_is_not_offered_and_said_to_be_not_there(cortex: Any, action: str) -> None:
    ran = cortex("cluster", action)
    assert (ran.code, ran.out) == (2, "")
    assert f"`cortex cluster {action}` is not there yet" in ran.talk
    assert action not in cortex("cluster", "--help").out.replace("--dry-run", "").split()


def test_another_word_is_told_with_those_that_there_are(cortex: Any) -> None:
    ran = cortex("cluster", "make")
    assert ran.code == 2
    assert "'export', 'up'" in ran.talk


def test_neither_ray_nor_a_clouds_library_is_imported(cortex: Any) -> None:
    before = set(sys.modules)
    write(cortex)
    assert cortex("cluster", "export").code == 0
    loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert loaded.isdisjoint({"ray", "boto3", "botocore", "kubernetes", "google", "azure", "obstore"})
