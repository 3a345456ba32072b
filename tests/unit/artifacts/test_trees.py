"""The canonical form of a folder."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.artifacts.errors import InvalidDigest, InvalidTree
from cortex.artifacts.trees import checked, folders_of, tree_digest
from cortex.wire.operator import StoredFile

SHA = hashlib.sha256(b"x").hexdigest()
OTHER = hashlib.sha256(b"y").hexdigest()

names = st.text(st.sampled_from("abcé漢.-_ "), min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
files = st.builds(StoredFile, path=paths, sha256=st.sampled_from([SHA, OTHER]), executable=st.booleans())


def is_a_folder(listed: list[StoredFile]) -> bool:
    try:
        checked(listed)
    except InvalidTree:
        return False
    return True


trees = st.lists(files, max_size=8, unique_by=lambda file: file.path).filter(is_a_folder)


def file(path: str, sha256: str = SHA, executable: bool = False) -> StoredFile:
    return StoredFile(path=path, sha256=sha256, executable=executable)


def test_the_digest_is_that_of_the_documented_text() -> None:
    text = f"cortex-tree-1\n100755 {OTHER} a\x00100644 {SHA} b/c\x00"
    assert tree_digest([file("b/c"), file("a", OTHER, True)]) == hashlib.sha256(text.encode()).hexdigest()


def test_an_empty_folder_has_a_digest() -> None:
    assert tree_digest([]) == hashlib.sha256(b"cortex-tree-1\n").hexdigest()


@settings(max_examples=50, deadline=None)
@given(trees, st.randoms(use_true_random=False))
def test_the_order_of_files_does_not_matter(tree: list[StoredFile], random) -> None:
    shuffled = list(tree)
    random.shuffle(shuffled)
    assert tree_digest(shuffled) == tree_digest(tree)
    assert checked(shuffled) == checked(tree)


@settings(max_examples=50, deadline=None)
@given(trees, trees)
def test_two_folders_share_a_digest_only_if_they_are_the_same(one: list[StoredFile], other: list[StoredFile]) -> None:
    assert (tree_digest(one) == tree_digest(other)) == (checked(one) == checked(other))


@settings(max_examples=50, deadline=None)
@given(trees.filter(bool), st.data())
def test_path_mode_and_content_each_change_the_digest(tree: list[StoredFile], data) -> None:
    index = data.draw(st.integers(0, len(tree) - 1))
    old = tree[index]
    for new in (
        file(old.path + "+", old.sha256, old.executable),
        file(old.path, OTHER if old.sha256 == SHA else SHA, old.executable),
        file(old.path, old.sha256, not old.executable),
    ):
        changed = [*tree[:index], new, *tree[index + 1 :]]
        if is_a_folder(changed):
            assert tree_digest(changed) != tree_digest(tree)


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../up", "a/../b", "a//b", "./a", "a/.", "a/", "a\0b", "x" * 256, "a/" * 1100 + "a", "\udcff"],
)
def test_a_path_that_leaves_the_folder_or_cannot_be_is_refused(path: str) -> None:
    with pytest.raises(InvalidTree):
        tree_digest([file(path)])


def test_a_path_listed_twice_is_refused_by_name() -> None:
    with pytest.raises(InvalidTree, match="'a/b' is listed twice"):
        tree_digest([file("a/b"), file("a/b", OTHER)])


def test_a_path_that_is_a_file_and_a_folder_is_refused_by_name() -> None:
    with pytest.raises(InvalidTree, match="'a' is listed as a file and is a folder"):
        tree_digest([file("a/b/c"), file("a")])


@pytest.mark.parametrize("sha256", ["", "abc", SHA.upper(), SHA + "0", SHA[:-1] + "\n"])
def test_a_digest_that_is_none_is_refused(sha256: str) -> None:
    with pytest.raises(InvalidDigest):
        tree_digest([file("a", sha256)])


def test_folders_come_before_what_is_in_them() -> None:
    assert folders_of([file("a/b/c"), file("a/d"), file("e"), file("a-b/f")]) == ("a", "a-b", "a/b")
