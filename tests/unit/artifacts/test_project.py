"""What of a project is shipped, and what is said about the rest."""

import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.artifacts import project as project_module
from cortex.artifacts.errors import FileChanged, IgnoreFileInvalid, ProjectTooLarge, ProjectTooManyFiles
from cortex.artifacts.hashing import HashCache
from cortex.artifacts.project import ProjectFile, collect_project, why_left_out
from cortex.artifacts.trees import checked
from cortex.errors import Problems

Write = Callable[[Mapping[str, bytes]], Path]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def shipped(top: Path, *leave_out: str) -> list[str]:
    return [file.path for file in collect_project(top, leave_out=map(Path, leave_out)).files]


def problems_of(top: Path) -> list[tuple[str, str]]:
    with pytest.raises(Problems) as caught:
        collect_project(top)
    return [(problem.reference, problem.message) for problem in caught.value.problems]


def test_files_are_listed_with_digest_size_and_mode(write: Write) -> None:
    top = write({"handlers/iris.py": b"code", "run.sh": b"echo", "data.csv": b""})
    (top / "run.sh").chmod(0o700)
    project = collect_project(top)
    assert project.files == (
        ProjectFile(path="data.csv", sha256=sha256(b""), executable=False, size_bytes=0),
        ProjectFile(path="handlers/iris.py", sha256=sha256(b"code"), executable=False, size_bytes=4),
        ProjectFile(path="run.sh", sha256=sha256(b"echo"), executable=True, size_bytes=4),
    )
    assert project.total_bytes == 8
    assert project.warnings == ()
    assert project.stored == checked(project.stored)


def test_what_python_node_git_and_the_yaml_leave_is_left_out(write: Write) -> None:
    top = write(
        dict.fromkeys(
            [
                *("cortex.yaml", ".cortexignore", ".env", ".git/config", "a/.hidden/x", "handler.py"),
                *("__pycache__/h.pyc", "a/__pycache__/x.pyc", "old.pyc", "node_modules/x.js", "a/node_modules/y.js"),
                *("pkg.egg-info/PKG-INFO", "a/b.egg-info", "env/pyvenv.cfg", "env/lib/x.py", "a/venv/pyvenv.cfg"),
                *("README.md", "a/notes.md", "nb.ipynb", "tests/test_a.py", "a/tests/test_b.py", "a/keep.py"),
                *("examples/cortex.yaml", "mytests/x.py", "requirements.txt", "md"),
            ],
            b"",
        )
    )
    kept = ["a/keep.py", "examples/cortex.yaml", "handler.py", "md", "mytests/x.py", "requirements.txt"]
    assert shipped(top) == kept


def test_a_project_in_a_hidden_folder_or_a_virtual_environment_is_still_a_project(tmp_path: Path) -> None:
    top = tmp_path / ".work"
    top.mkdir()
    (top / "handler.py").write_bytes(b"")
    (top / "pyvenv.cfg").write_bytes(b"")
    assert shipped(top) == ["handler.py", "pyvenv.cfg"]


def test_the_models_and_files_named_by_the_caller_are_left_out(write: Write, tmp_path: Path) -> None:
    top = write(
        dict.fromkeys(["m/a.onnx", "m/a.onnx.data", "m/b.onnx", "bert/1/saved_model.pb", "prod.yaml", "h.py"], b"")
    )
    named = ("m/a.onnx", str(top / "m/a.onnx.data"), "./bert/", "prod.yaml", "../elsewhere", "/nowhere")
    assert shipped(top, *named) == ["h.py", "m/b.onnx"]


def test_a_model_that_is_the_project_itself_does_not_leave_everything_out(write: Write) -> None:
    top = write({"model.onnx": b"", "handler.py": b""})
    assert shipped(top, ".", "..", str(top), "model.onnx") == ["handler.py"]


def test_a_model_named_through_a_link_is_left_out_wherever_it_is_seen(write: Write) -> None:
    top = write({"models/v3/saved_model.pb": b"", "h.py": b""})
    (top / "current").symlink_to("models/v3")
    (top / "again").symlink_to("models/v3")
    (top / "one.pb").symlink_to("models/v3/saved_model.pb")
    assert shipped(top, "current") == ["h.py"]


# --- .cortexignore ---


def test_the_ignore_file_is_read_as_git_reads_its_own(write: Write) -> None:
    ignore = b"# comment\n\n*.csv\n!keep.csv\n/build\ndata/**\n!data/small.txt\nlogs/\n\\#odd\n"
    names = ["a.csv", "x/b.csv", "x/keep.csv", "build/x", "x/build/y", "data/big", "data/small.txt", "logs/l", "x/logs"]
    top = write({".cortexignore": ignore, **dict.fromkeys([*names, "#odd", "even"], b"")})
    assert shipped(top) == ["data/small.txt", "even", "x/build/y", "x/keep.csv", "x/logs"]


def test_an_ignore_file_from_windows_is_understood(write: Write) -> None:
    top = write({".cortexignore": b"\xef\xbb\xbfa.txt\r\nb.txt\r\n", "a.txt": b"", "b.txt": b"", "c.txt": b""})
    assert shipped(top) == ["c.txt"]


@pytest.mark.parametrize(
    ("ignore", "added"),
    [
        ("!*.md", ["README.md", "sub/a.md"]),
        ("!README.md", ["README.md"]),
        ("!*.ipynb", ["nb.ipynb"]),
        ("!tests", ["sub/tests/u.py", "tests/deep/f.json", "tests/t.py"]),
        ("!/tests/", ["tests/deep/f.json", "tests/t.py"]),
        ("!tests/**", ["tests/README.md", "tests/deep/f.json", "tests/t.py"]),
        ("!tests/deep/", ["tests/deep/f.json"]),
        ("!tests/t.py", ["tests/t.py"]),
        ("!sub/tests/u.py", ["sub/tests/u.py"]),
        ("!tests/\ntests/t.py", ["sub/tests/u.py", "tests/deep/f.json"]),
        ("!tests/**\n*.md", ["tests/deep/f.json", "tests/t.py"]),
    ],
)
def test_a_negated_pattern_ships_what_is_left_out_by_default(write: Write, ignore: str, added: list[str]) -> None:
    names = ["README.md", "sub/a.md", "nb.ipynb", "sub/tests/u.py", "h.py"]
    names += ["tests/README.md", "tests/t.py", "tests/deep/f.json"]
    top = write({".cortexignore": ignore.encode(), **dict.fromkeys(names, b"")})
    assert shipped(top) == sorted([*added, "h.py"])


def test_no_pattern_ships_hidden_files_environments_or_models(write: Write) -> None:
    names = [".env", ".git/config", "venv/pyvenv.cfg", "venv/x.py", "__pycache__/x", "node_modules/x", "m.onnx", "h.py"]
    top = write({".cortexignore": b"!*\n!.env\n!.git/\n!venv/\n!m.onnx\n", **dict.fromkeys(names, b"")})
    assert shipped(top, "m.onnx") == ["h.py"]


def test_only_the_ignore_file_beside_the_yaml_counts(write: Write) -> None:
    top = write({"sub/.cortexignore": b"*", "sub/a": b""})
    assert shipped(top) == ["sub/a"]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"ok\n[[:alpha:]]x\n", 2, "write a-z or 0-9"),
        (b"ok\nok\n\xff\n", 3, "is not UTF-8 text"),
        (b"ok\n!\n", 2, "is no gitignore pattern"),
        (b"[z-a]", 1, "is no gitignore pattern"),
    ],
)
def test_an_ignore_file_that_is_not_understood_names_the_line(
    write: Write, content: bytes, line: int, reason: str
) -> None:
    top = write({".cortexignore": content})
    with pytest.raises(IgnoreFileInvalid, match=reason) as caught:
        collect_project(top)
    assert (caught.value.path, caught.value.line) == (top / ".cortexignore", line)


def test_an_ignore_file_that_is_a_folder_is_named(write: Write) -> None:
    top = write({".cortexignore/x": b""})
    with pytest.raises(IgnoreFileInvalid, match=r"\.cortexignore: cannot be read"):
        collect_project(top)


def test_folders_that_are_left_out_are_not_looked_into(write: Write, monkeypatch) -> None:
    top = write(
        {".cortexignore": b"data/\n"}
        | dict.fromkeys(["data/x/y", "node_modules/a/b", ".venv/c/d", "tests/e/f", "m/1/g", "src/h"], b"")
    )
    looked_into = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked_into.append(path) or scandir(path))
    collect_project(top, leave_out=[Path("m")])
    assert [os.path.relpath(path, top) for path in looked_into] == [".", "src"]


names = st.sampled_from(["a", "b", "c.py", "d.txt", "foo", "bar"])
folders = st.recursive(
    st.dictionaries(names, st.none(), max_size=4),
    lambda inner: st.dictionaries(names, st.none() | inner, max_size=4),
    max_leaves=12,
)
atoms = st.sampled_from(
    [
        "a",
        "b",
        "*",
        "**",
        "*.py",
        "foo",
        "[ab]",
        "?",
        "d.txt",
        "c.py",
        "f*",
        "\\*",
        "[!a]",
        "[a-c]*",
        "*o*",
        "a\\ ",
        "d.*",
    ]
)
patterns = st.builds(
    lambda negated, rooted, parts, folder: ("!" if negated else "") + rooted + "/".join(parts) + folder,
    st.booleans(),
    st.sampled_from(["", "", "/"]),
    st.lists(atoms, min_size=1, max_size=3),
    st.sampled_from(["", "", "/", "/ "]),
)


@pytest.fixture(scope="module")
def empty_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("repository") / "git"
    subprocess.run(["git", "init", "--quiet", "--bare", path], check=True)
    return path


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("git") is None, reason="compares with git, which is not installed")
@settings(max_examples=80, deadline=None)
@given(folders, st.lists(patterns, min_size=1, max_size=5))
def test_the_ignore_file_leaves_out_what_git_would(empty_repository: Path, tree: dict, lines: list[str]) -> None:
    def make(folder: Path, entries: dict | None) -> None:
        if entries is None:
            folder.write_bytes(b"")
            return
        folder.mkdir()
        for name, inner in entries.items():
            make(folder / name, inner)

    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary, "project")
        make(top, tree)
        ignore = top / ".cortexignore"
        ignore.write_text("\n".join(lines))
        git = ["git", f"--git-dir={empty_repository}", f"--work-tree={top}", "-C", top]
        listing = [*git, "ls-files", "-z", "--others", f"--exclude-from={ignore}"]
        kept = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split("\0")
        assert shipped(top) == sorted(set(kept) - {"", ".cortexignore"})


# --- links, and what is no file ---


def test_links_inside_the_project_are_followed(write: Write) -> None:
    top = write({"lib/shared.py": b"code", "lib/sub/x.py": b"x"})
    (top / "handlers").mkdir()
    (top / "handlers/shared.py").symlink_to("../lib/shared.py")
    (top / "handlers/absolute.py").symlink_to(top / "lib/shared.py")
    (top / "handlers/lib").symlink_to("../lib/sub")
    project = collect_project(top)
    assert [file.path for file in project.files] == [
        "handlers/absolute.py",
        "handlers/lib/x.py",
        "handlers/shared.py",
        "lib/shared.py",
        "lib/sub/x.py",
    ]
    assert project.files[2].sha256 == sha256(b"code")
    assert project.warnings == ()


def test_links_that_leave_the_project_are_errors_told_at_once(write: Write, tmp_path: Path) -> None:
    top = write({"h.py": b""})
    (tmp_path / "secret").write_bytes(b"x")
    (top / "a").symlink_to("../secret")
    (top / "b").symlink_to("/etc")
    (top / "c").symlink_to("/not/here")
    (top / "d").symlink_to("h.py")
    found = problems_of(top)
    assert sorted(reference for reference, _ in found) == ["link-leaves-project"] * 3
    assert any("a is a link to ../secret, outside the project" in message for _, message in found)


def test_a_link_that_leaves_the_project_may_be_left_out(write: Write) -> None:
    top = write({".cortexignore": b"data\nmore/\n", "h.py": b"", "README.md": b""})
    (top / "data").symlink_to("/etc")
    (top / "more").symlink_to("/etc")
    (top / "link.md").symlink_to("/etc/passwd")
    assert shipped(top) == ["h.py"]


def test_links_to_nowhere_and_in_circles_are_left_out_with_a_warning(write: Write) -> None:
    top = write({"a/b/x.py": b""})
    (top / "gone").symlink_to("not-here")
    (top / "self").symlink_to("self")
    (top / "a/b/up").symlink_to("..")
    (top / "a/top").symlink_to("..")
    project = collect_project(top)
    assert [file.path for file in project.files] == ["a/b/x.py"]
    told = {warning.message.partition(" is ")[0]: warning.reference for warning in project.warnings}
    assert told == {"gone": "link-broken", "self": "link-broken", "a/b/up": "link-loops", "a/top": "link-loops"}


def test_links_to_one_another_do_not_multiply_without_end(write: Write, monkeypatch) -> None:
    monkeypatch.setattr(project_module, "MAX_ENTRIES", 500)
    top = write({f"d{i}/x": b"" for i in range(12)})
    for i in range(11):
        for copy in range(3):
            (top / f"d{i}/to{copy}").symlink_to(f"../d{i + 1}")
    with pytest.raises(ProjectTooManyFiles, match="more than 500 files and folders"):
        collect_project(top)


def test_sockets_and_pipes_are_passed_over(write: Write) -> None:
    top = write({"h.py": b""})
    os.mkfifo(top / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(top / "sock"))
    assert shipped(top) == ["h.py"]


def test_names_that_are_not_utf8_are_errors(write: Write) -> None:
    top = write({"h.py": b"", ".cortexignore": b"data/"})
    for name in (b"caf\xe9.py", b"data/\xff", b".\xff"):
        path = os.path.join(os.fsencode(top), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT))
    os.mkdir(os.path.join(os.fsencode(top), b"\xfe"))
    assert sorted(problems_of(top)) == [
        ("file-name-not-utf8", "\\xfe is not a UTF-8 name"),
        ("file-name-not-utf8", "caf\\xe9.py is not a UTF-8 name"),
    ]


def test_names_of_any_language_and_with_line_breaks_are_fine(write: Write) -> None:
    assert shipped(write({"ä/漢字.py": b"", "a\nb": b"", " ": b"", "back\\slash": b""})) == [
        " ",
        "a\nb",
        "back\\slash",
        "ä/漢字.py",
    ]


def test_what_cannot_be_read_is_named_all_at_once(write: Write, unprivileged) -> None:
    top = write(
        {"a.py": b"", "sub/b.py": b"", "c.py": b"", ".cortexignore": b"skipped\n", "skipped": b"", "x/d.py": b""}
    )
    for name in ("a.py", "c.py", "skipped"):
        (top / name).chmod(0)
    unprivileged()
    assert problems_of(top) == [
        ("unreadable-file", "a.py cannot be read (Permission denied)"),
        ("unreadable-file", "c.py cannot be read (Permission denied)"),
    ]
    (top / "sub").chmod(0)
    (top / "x").chmod(0o400)
    assert sorted(problems_of(top)) == [
        ("unreadable-file", "sub cannot be read (Permission denied)"),
        ("unreadable-file", "x/d.py cannot be read (Permission denied)"),
    ]


def test_a_file_that_keeps_changing_is_named(write: Write, monkeypatch) -> None:
    top = write({"log.txt": b"", "h.py": b""})
    hash_file = project_module.hash_file

    def changing(path: Path, cache: HashCache | None) -> object:
        if path.name == "log.txt":
            raise FileChanged(path)
        return hash_file(path, cache)

    monkeypatch.setattr(project_module, "hash_file", changing)
    assert problems_of(top) == [("file-changed", "log.txt changed while it was read")]


def test_a_file_that_goes_away_is_not_part_of_the_project(write: Write, monkeypatch) -> None:
    top = write({"a.py.swp": b"", "h.py": b""})
    hash_file = project_module.hash_file

    def after_removal(path: Path, cache: HashCache | None) -> object:
        (top / "a.py.swp").unlink(missing_ok=True)
        return hash_file(path, cache)

    monkeypatch.setattr(project_module, "hash_file", after_removal)
    assert shipped(top) == ["h.py"]


# --- size ---


def test_a_project_over_the_limit_lists_its_five_largest(write: Write) -> None:
    top = write({f"f{size}": b"x" * size for size in (10, 70, 30, 50, 20, 60, 40)} | {"skip.md": b"x" * 1000})
    with pytest.raises(ProjectTooLarge) as caught:
        collect_project(top, size_limit_bytes=279)
    assert caught.value.total_bytes == 280
    assert caught.value.largest == (("f70", 70), ("f60", 60), ("f50", 50), ("f40", 40), ("f30", 30))
    assert "70 bytes  f70" in str(caught.value)
    assert len(collect_project(top, size_limit_bytes=280).files) == 7


def test_the_limit_is_checked_before_anything_is_read(write: Write, monkeypatch) -> None:
    top = write({})
    with (top / "huge.bin").open("wb") as huge:
        huge.truncate(101 * 2**20)
    monkeypatch.setattr(project_module, "hash_file", lambda path, cache: pytest.fail("read"))
    with pytest.raises(ProjectTooLarge, match=r"has 101 MiB, at most 100 MiB are shipped"):
        collect_project(top)


def test_a_cache_spares_reading_unchanged_files(write: Write, monkeypatch) -> None:
    top = write({"a": b"1", "b": b"2"})
    cache = HashCache(now_wall_s=1e10)
    before = collect_project(top, cache=cache)
    (top / "b").write_bytes(b"changed")
    read = []
    hash_descriptor = project_module.hash_file.__globals__["hash_descriptor"]
    monkeypatch.setitem(
        project_module.hash_file.__globals__, "hash_descriptor", lambda fd: read.append(fd) or hash_descriptor(fd)
    )
    after = collect_project(top, cache=cache)
    assert len(read) == 1
    assert [file.path for file in after.stored if file not in before.stored] == ["b"]


# --- reasons ---


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("handlers/h.py", None),
        ("./handlers//h.py", None),
        ("not/there.py", None),
        (".hidden/h.py", ".hidden is left out: its name begins with a dot"),
        ("drafts/h.py", "drafts is left out by line 2 of .cortexignore: drafts/"),
        ("handlers/old_h.py", "handlers/old_h.py is left out by line 3 of .cortexignore: old_*"),
        ("env/h.py", "env is left out: it is a virtual environment"),
        ("bert/h.py", "bert is left out: cortex.yaml and the models it names are not shipped"),
        ("node_modules/h.py", "node_modules is left out: handlers are Python"),
        ("h.pyc", "h.pyc is left out: Python makes it again"),
        ("tests/h.py", "tests is left out by default (tests/); `!/tests` in .cortexignore ships it"),
        ("docs/a.md", "docs/a.md is left out by default (*.md); `!/docs/a.md` in .cortexignore ships it"),
        ("sub/tests/kept.py", None),
    ],
)
def test_why_a_file_is_not_shipped(write: Write, path: str, reason: str | None) -> None:
    ignore = b"# mine\ndrafts/\nold_*\n!sub/tests/kept.py\n"
    top = write({".cortexignore": ignore, "env/pyvenv.cfg": b""})
    assert why_left_out(top, path, leave_out=[Path("bert")]) == reason


@settings(max_examples=40, deadline=None)
@given(folders, st.lists(patterns, max_size=3))
def test_a_reason_is_given_for_exactly_what_is_not_shipped(tree: dict, lines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        files = []

        def make(path: str, entries: dict | None) -> None:
            if entries is None:
                (top / path).write_bytes(b"")
                files.append(path)
                return
            (top / path).mkdir(exist_ok=True)
            for name, inner in entries.items():
                make(f"{path}/{name}".lstrip("/"), inner)

        make("", {**tree, "tests": tree, "x.md": None})
        (top / ".cortexignore").write_text("\n".join(lines))
        assert shipped(top) == sorted(path for path in files if why_left_out(top, path) is None)
