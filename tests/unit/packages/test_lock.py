"""Tests of `cortex.packages.lock`."""

import pytest

from cortex.packages import lock
from cortex.packages.requirements import RequirementLine
from cortex.wire.packages import LockedPackage, PackageLock

RESOLVED = """\
pillow==11.0.0 \\
    --hash=sha256:bb \\
    --hash=sha256:aa
Some_Thing==1.2 ; python_version >= '3.11' \\
    --hash=sha256:cc
never==1 ; python_version < '3' \\
    --hash=sha256:dd
archive @ https://example.com/archive-1.zip \\
    --hash=sha256:ee
"""
ARCHIVE = LockedPackage(name="archive", url="https://example.com/archive-1.zip", hashes=("sha256:ee",))
PILLOW = LockedPackage(name="pillow", version="11.0.0", hashes=("sha256:aa", "sha256:bb"))
THING = LockedPackage(name="some-thing", version="1.2", hashes=("sha256:cc",))


def a_lock(*packages: LockedPackage) -> PackageLock:
    return PackageLock(python="3.11", platform="linux-x86_64", packages=packages)


def test_what_the_installer_resolved_is_read_sorted_and_for_this_python():
    assert lock.parse_resolution(RESOLVED) == (ARCHIVE, PILLOW, THING)


@pytest.mark.parametrize("text", ["pillow\n", "pillow>=1 --hash=sha256:aa\n", "pillow==1\n", "what is this\n"])
def test_what_is_not_pinned_is_no_lock(text):
    with pytest.raises(lock.UnreadableLock):
        lock.parse_resolution(text)


def test_a_lock_is_installed_by_version_and_digests():
    assert lock.installable(a_lock(ARCHIVE, PILLOW)) == (
        "archive @ https://example.com/archive-1.zip \\\n    --hash=sha256:ee\n"
        "pillow==11.0.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
    )


def test_a_lock_survives_being_stored_and_always_has_the_same_bytes():
    content = lock.encoded(a_lock(ARCHIVE, PILLOW))
    assert lock.decoded(content) == a_lock(ARCHIVE, PILLOW)
    assert lock.encoded(lock.decoded(content)) == content


def test_a_damaged_lock_is_told_as_such():
    with pytest.raises(lock.UnreadableLock):
        lock.decoded(b"{}")


def test_only_files_that_the_user_accepts_are_locked():
    line = RequirementLine(text="pillow==11.0.0", name="pillow", where="requirements.txt:1", hashes=("sha256:bb",))
    (found, other) = lock.with_accepted_hashes((PILLOW, THING), (line,))
    assert (found.hashes, other) == (("sha256:bb",), THING)


def test_a_package_none_of_whose_files_is_accepted_is_refused_with_the_line():
    line = RequirementLine(text="pillow==11.0.0", name="pillow", where="requirements.txt:1", hashes=("sha256:ff",))
    with pytest.raises(lock.HashRefused, match=r"no file of pillow 11\.0\.0 has a digest that requirements\.txt:1"):
        lock.with_accepted_hashes((PILLOW,), (line,))


def test_versions_that_differ_are_told_in_words():
    old = {"pillow": "10.4.0", "gone": "1", "same": "1"}
    new = {"pillow": "11.0.0", "new": "2", "same": "1"}
    assert lock.version_changes(old, new) == ["pillow 10.4.0 -> 11.0.0", "new 2 added", "gone removed"]


def test_of_many_versions_that_differ_the_rest_is_counted():
    words = lock.version_changes({}, {f"p{n}": "1" for n in range(9)})
    assert len(words) == lock.MOST_NAMED
    assert words[-1] == "and 5 more packages"


def test_an_archive_is_known_by_where_it_comes_from():
    assert lock.versions(a_lock(ARCHIVE, PILLOW)) == {
        "archive": "https://example.com/archive-1.zip",
        "pillow": "11.0.0",
    }
