"""What a handler writes beside itself: seen by it alone, gone with it, and never in the stored project."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from replica_harness import LauncherProcess, Replica, eventually, running, spec_for

from cortex.replica.handler.view import COPIED_FILES

pytestmark = pytest.mark.slow

IRIS = Path(__file__).parents[3] / "examples" / "iris" / "models" / "sklearn.onnx"
SAMPLE = [5.1, 3.5, 1.4, 0.2]
AS_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")
WITHOUT_NAMESPACES = (
    *("unshare", "--user", "--map-root-user", "--"),
    *("sh", "-c", 'echo 0 > /proc/sys/user/max_mnt_namespaces && exec "$@"', "sh"),
)
PLACES = {"as we are": (), "as a user": AS_USER, "without namespaces": WITHOUT_NAMESPACES}

HANDLER = """
import os, shutil, sqlite3, subprocess, tempfile

def read():
    return open("state.txt").read()

def append():
    with open("state.txt", "a") as file:
        file.write("appended\\n")
    return read()

def everything():
    os.chmod("state.txt", 0o600)
    open("new.txt", "w").write("new")
    os.mkdir("folder")
    open("sub/beside.txt", "w").write("x")
    os.remove("sub/removed.txt")
    os.rename("sub/moved.txt", "folder/moved.txt")
    with sqlite3.connect("counts.db") as db:
        db.execute("create table if not exists t (n)")
        db.execute("insert into t values (1)")
    subprocess.run("echo by a program >> state.txt", shell=True, check=True)
    return [read(), sorted(os.listdir(".")), sorted(os.listdir("sub")), os.getcwd()]

def fill():
    with open("big", "wb") as file:
        file.write(bytes(8 << 20))

def elsewhere():
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(__file__, os.path.join(folder, "state.txt"))
        with open(os.path.join(folder, "big"), "wb") as file:
            file.write(bytes(8 << 20))
        there = sorted(os.listdir(folder))
    return there == ["big", "state.txt"] and not os.path.exists(folder)

def outside():
    found = []
    for path in (os.environ["KEPT"], os.environ["PROJECT"] + "/../other/file"):
        for attempt in (lambda: open(path, "a").close(), lambda: os.chmod(path, 0o666), lambda: os.remove(path)):
            try:
                attempt()
                found.append("done")
            except OSError as error:
                found.append(error.strerror)
    return found

def post_inference(prediction, metadata, request):
    return globals()[request.query.get("k", "read")]() if not request.warmup else read()
"""


def state(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Inode, mode, time and bytes of everything in a folder."""
    return {
        str(path.relative_to(folder)): (
            (found := path.lstat()).st_ino,
            found.st_mode,
            found.st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted((folder, *folder.rglob("*")))
    }


@pytest.fixture
def project(folder: Path) -> Path:
    """As the artifact store has one: files 0444, folders 0555."""
    made = folder / "trees" / "project"
    (made / "sub").mkdir(parents=True)
    for name, text in {"handler.py": HANDLER, "state.txt": "v1\n", "sub/removed.txt": "", "sub/moved.txt": ""}.items():
        (made / name).write_text(text)
        (made / name).chmod(0o444)
    (folder / "trees" / "other").mkdir()
    (folder / "trees" / "other" / "file").write_text("kept")
    for path in (made / "sub", made):
        path.chmod(0o555)
    return made


@pytest.fixture(scope="module", params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[tuple[str, LauncherProcess]]:
    wrapper = PLACES[request.param]
    if wrapper and subprocess.run([*wrapper, "true"], check=False).returncode != 0:
        pytest.skip("no user namespaces here")
    path = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
    for launcher in running(path, wrapper=wrapper):
        yield request.param, launcher
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def begin(place: tuple[str, LauncherProcess], project: Path, folder: Path) -> Iterator[Callable[..., Replica]]:
    started: list[Replica] = []

    def begin(number: int = 0, *, wait: bool = True, **fields: Any) -> Replica:
        fields = {"env": {"KEPT": str(project / "state.txt"), "PROJECT": str(project)}, **fields}
        spec = spec_for(
            folder,
            IRIS,
            replica=f"t.a.0.{os.path.basename(folder)}{number}",
            project_dir=str(project),
            handler="handler.py",
            read_only=(str(project.parent),),
            **fields,
        )
        replica = place[1].fork(spec)
        started.append(replica)
        return replica.ready() if wait else replica

    yield begin
    for replica in started:
        replica.kill()


def ask(replica: Replica, k: str, status: int = 200) -> Any:
    answer = replica.post(SAMPLE, target=f"/t/a?k={k}")
    assert answer.status == status, answer.body
    return answer.json


def test_a_handler_writes_beside_itself_and_only_it_sees_that(
    place: tuple[str, LauncherProcess], begin: Callable[..., Replica], project: Path
) -> None:
    before = state(project)
    replica, other = begin(0), begin(1)
    assert ask(replica, "append") == "v1\nappended\n"
    text, here, sub, cwd = ask(replica, "everything")
    assert text == "v1\nappended\nby a program\n"
    assert {"counts.db", "folder", "handler.py", "new.txt", "state.txt", "sub"} == set(here)
    assert sub == ["beside.txt"]
    assert (cwd == str(project)) is (place[0] != "without namespaces"), "paths keep their names"
    assert ask(other, "read") == "v1\n"
    assert state(project) == before
    replica.kill()
    assert ask(begin(2), "read") == "v1\n", "the next one finds the project as it was deployed"
    assert state(project) == before


def test_what_is_written_is_limited_and_what_it_fills_up_to_is_said(
    place: tuple[str, LauncherProcess], begin: Callable[..., Replica]
) -> None:
    if place[0] == "without namespaces":
        pytest.skip("a copy lies on the disk")
    replica = begin(view_bytes=2 << 20)
    ask(replica, "fill", 500)
    assert any("CORTEX_VIEW_MB=2; write below TMPDIR" in line.text for line in replica.lines())
    assert ask(replica, "elsewhere") is True
    assert ask(replica, "read") == "v1\n"


def test_nothing_else_of_the_store_can_be_changed(
    place: tuple[str, LauncherProcess], begin: Callable[..., Replica], project: Path
) -> None:
    if place[0] == "without namespaces":
        pytest.skip("there only the project is kept from what is written into it")
    before = state(project.parent)
    replica = begin()
    inside, outside = ask(replica, "outside")[:3], ask(replica, "outside")[3:]
    assert inside == ["done", "done", "done"], "by its own path a file is the view's"
    assert outside == ["Read-only file system"] * 3
    assert state(project.parent) == before


def test_a_project_that_is_not_copied_is_read_only_and_the_error_says_where_to_write(
    place: tuple[str, LauncherProcess], begin: Callable[..., Replica], project: Path
) -> None:
    if place[0] != "without namespaces":
        pytest.skip("there is a view here")
    project.chmod(0o755)
    (project / "many").mkdir()
    for number in range(COPIED_FILES):
        (project / "many" / str(number)).touch()
    before = state(project)
    replica = begin()
    (warning,) = [found for found in replica.status().warnings if found.reference == "project-read-only"]
    assert warning.hint.startswith("write below TMPDIR, which is /")
    for k in ("append", "everything"):
        message = ask(replica, k, 500)["message"]
        assert "read-only here: write below TMPDIR, which is /" in message
    assert ask(replica, "elsewhere") is True
    assert ask(replica, "read") == "v1\n"
    assert state(project) == before


def test_what_a_handler_writes_at_import_is_nobody_elses(
    place: tuple[str, LauncherProcess], project: Path, folder: Path
) -> None:
    project.chmod(0o755)
    (project / "handler.py").chmod(0o644)
    (project / "handler.py").write_text("open('state.txt', 'a').write('at import')\n" + HANDLER)
    before = state(project)
    spec = spec_for(folder, IRIS, project_dir=str(project), handler="handler.py")
    assert place[1].link.inspect(spec).problems == ()
    assert state(project) == before


def test_nobody_elses_mounts_change_and_a_project_in_use_can_be_removed(
    place: tuple[str, LauncherProcess], begin: Callable[..., Replica], project: Path
) -> None:
    replica = begin()
    for pid in ("self", str(place[1].pid)):
        assert str(project) not in Path(f"/proc/{pid}/mountinfo").read_text()
    shutil.rmtree(project.parent)
    assert replica.post(SAMPLE, target="/t/a?k=elsewhere").status == 200


def test_an_api_without_a_handler_needs_no_namespace(place: tuple[str, LauncherProcess], folder: Path) -> None:
    replica = place[1].fork(spec_for(folder, IRIS, replica=f"t.a.0.{os.path.basename(folder)}")).ready()
    namespaces = {os.readlink(f"/proc/{pid}/ns/mnt") for pid in (replica.pid, place[1].pid)}
    assert len(namespaces) == 1
    replica.kill()
    eventually(lambda: not replica.alive(), "it is gone")
