"""Secrets, as users meet them: set on the command line, found by handlers, and nowhere else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_harness import Connection, Home, eventually, rows_model, running_home, write_project

pytestmark = pytest.mark.slow

OLD, NEW = "first-value-of-the-secret", "second-value-of-the-secret"
PROJECT = {
    "cortex.yaml": """\
        - kind: deployment
          name: s
        - kind: api
          name: x
          model: m.onnx
          request_handler: handler.py
          env: {TOKEN: {secret: api-token}, PLAIN: in-the-open}
        """,
    "handler.py": """\
        import os
        print("imported with", os.environ["TOKEN"])
        def pre_inference(sample, metadata, request):
            print("called with", os.environ["TOKEN"])
            os.system("echo a subprocess got $TOKEN")
            if sample == "show":
                request.state["token"] = os.environ["TOKEN"]
            if sample == "fail":
                raise ValueError("https://x/?token=" + os.environ["TOKEN"])
            return [[1, 2, 3, 4]]
        def post_inference(prediction, metadata):
            return [os.environ["TOKEN"][:6], os.environ["PLAIN"], os.getpid()]
        """,
    "m.onnx": rows_model(),
}


@pytest.fixture
def home() -> Iterator[Home]:
    with running_home() as home:
        yield home


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_project(tmp_path / "project", PROJECT)


def ask(home: Home, body: bytes = b"1") -> Any:
    with Connection(home.port) as connection:
        return connection.ask("POST", "/s/x", body).json


def test_a_missing_secret_fails_the_deploy_with_the_line_to_run(home, folder):
    ran = home.deploy(folder, code=1)
    assert "error: secret-missing" in ran.err
    assert 'api "x": env: TOKEN' in ran.err
    assert "cortex.yaml:7:" in ran.err
    assert "run `cortex secret set api-token`" in ran.err
    home.cortex("secret", "set", "api-token", stdin=OLD.encode())
    home.deploy(folder)
    assert ask(home)[:2] == ["first-", "in-the-open"]


def test_a_version_keeps_its_value_through_crashes_and_deploys_until_a_refresh(home, folder):
    home.cortex("secret", "set", "api-token", stdin=OLD.encode())
    home.deploy(folder)
    pid = ask(home)[2]
    ran = home.cortex("secret", "set", "api-token", stdin=NEW.encode())
    assert "s/x keeps the value it had until `cortex refresh`" in ran.err
    os.kill(pid, signal.SIGKILL)
    after = eventually(
        lambda: (answer := ask(home)) and isinstance(answer, list) and answer[2] != pid and answer, "back"
    )
    assert after[0] == "first-"
    assert "nothing changed" in home.deploy(folder).out
    assert ask(home)[0] == "first-"
    assert "s/x*" in home.cortex("secret", "list").out
    home.cortex("refresh", "--path", folder)
    assert ask(home)[0] == "second"
    assert "*" not in home.cortex("secret", "list").out


def test_a_new_version_gets_the_newest_value(home, folder):
    home.cortex("secret", "set", "api-token", stdin=OLD.encode())
    home.deploy(folder)
    home.cortex("secret", "set", "api-token", stdin=NEW.encode())
    (folder / "handler.py").write_text((folder / "handler.py").read_text() + "# changed\n")
    home.deploy(folder)
    assert ask(home)[0] == "second"


def test_a_secret_in_use_is_not_deleted_unless_forced(home, folder):
    home.cortex("secret", "set", "api-token", stdin=OLD.encode())
    home.deploy(folder)
    ran = home.cortex("secret", "delete", "api-token", code=1)
    assert "in use: s/x" in ran.err
    home.cortex("secret", "delete", "api-token", "--force")
    pid = ask(home)[2]  # what runs keeps it
    os.kill(pid, signal.SIGKILL)
    eventually(
        lambda: (
            (status := home.cortex("get", "s/x", "-o", "json").json)["replicas"]["ready"] == 0
            and 'the secret "api-token" was deleted' in str(status)
        ),
        "the replica cannot come back, and why is said",
    )
    home.cortex("secret", "set", "api-token", stdin=NEW.encode())
    home.cortex("refresh", "--path", folder)
    assert ask(home)[0] == "second"


def test_a_variable_that_is_read_at_import_cannot_be_a_secret(home, folder):
    home.cortex("secret", "set", "api-token", stdin=OLD.encode())
    text = (folder / "cortex.yaml").read_text().replace("TOKEN:", "LD_PRELOAD:")
    (folder / "cortex.yaml").write_text(text)
    ran = home.deploy(folder, code=1)
    assert "error: secret-read-at-import" in ran.err


def test_a_value_is_in_the_secret_store_and_nowhere_else(home, folder):
    """In no file of the home, no output of any command, no answer, no command line, whatever the handler does."""
    said = []

    def cortex(*argv: str | Path, **options: Any) -> None:
        ran = home.cortex(*argv, **options)
        said.extend([ran.out, ran.err])

    cortex("secret", "set", "api-token", stdin=OLD.encode() + b"\n")
    cortex("deploy", folder)
    cortex("secret", "set", "api-token", stdin=NEW.encode() + b"\n")
    cortex("refresh", "--path", folder, "-o", "json")
    cortex("deploy", folder, "--dry-run", "-o", "json")
    said.append(str(ask(home, b'"fail"')))
    sample = folder.parent / "sample.json"
    sample.write_text('"show"')
    cortex("predict", "s/x", sample, "--debug")
    sample.write_text(f'["a sample that quotes", "{NEW}"]')
    cortex("predict", "s/x", sample, "--debug")
    (folder / "broken.py").write_text("import os\nraise ValueError(os.environ['TOKEN'])\n")
    (folder / "dies.py").write_text("import os\nos.write(2, os.environ['TOKEN'].encode())\nos._exit(3)\n")
    text = (folder / "cortex.yaml").read_text()
    for handler in ("broken.py", "dies.py"):
        (folder / "cortex.yaml").write_text(text.replace("handler.py", handler))
        cortex("deploy", folder, code=1)
    said.append(str(home.operator().api("s", "x")))
    cortex("get", "s/x", "-v", "-o", "json")
    cortex("get", "-a", "-o", "json")
    cortex("logs", "s/x", "--no-follow", "--since", "1h")
    cortex("history", "s/x", "-o", "json")
    cortex("secret", "list", "-o", "json")
    cortex("secret", "delete", "api-token", code=1)
    cortex("secret", "set", "api-token", NEW, code=2)
    cortex("info")
    assert any("called with ****" in text for text in said)
    assert any("a subprocess got ****" in text for text in said)
    assert any("debug: sample: ['a sample that quotes', '****']" in text for text in said)
    assert any("ValueError: ****" in text for text in said)
    titles = [title for _, title in home.processes()]
    assert titles
    cortex("down")
    holding = home.files_with(OLD.encode(), NEW.encode())
    assert holding == [home.path / "secrets" / "api-token"]
    assert holding[0].stat().st_mode & 0o777 == 0o600
    assert [text for text in (*said, *titles) if OLD in text or NEW in text] == []


# ---- what leads to clouds --------------------------------------------------------------------------------------------

KEY = "AWS_ACCESS_KEY_ID"
ROW = b"[1, 2, 3, 4]"
USES_KEYS = {
    "cortex.yaml": """\
        - kind: deployment
          name: s
        - kind: api
          name: x
          model: m.onnx
          request_handler: handler.py
        """,
    "handler.py": """\
        import os
        KEY = os.environ["AWS_ACCESS_KEY_ID"]
        print("the region is", os.environ["AWS_REGION"], "and the key", KEY)
        def post_inference(prediction, metadata):
            return [KEY, os.getpid()]
        """,
    "m.onnx": rows_model(),
}


def test_handlers_get_the_keys_of_the_last_deploy_of_their_api_whoever_started_what(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project", USES_KEYS)
    shell = {KEY: "key-of-another-shell", "AWS_REGION": "moon-1"}
    with running_home() as home:
        home.cortex("up", **shell)
        ran = home.deploy(project, code=1, **dict.fromkeys(shell, ""))
        assert f"KeyError: '{KEY}'" in ran.err, "handed over by no deploy"
        for key in ("key-of-the-first", "key-of-the-second"):
            home.deploy(project, **{**shell, KEY: key})
            assert ask(home, ROW)[0] == key
        assert {oct(file.stat().st_mode & 0o777) for file in home.files_with(b"key-of-the-second")} == {"0o600"}
        pid = ask(home, ROW)[1]
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: (found := ask(home, ROW))[1] != pid and found[0], "it is back") == "key-of-the-second"
        home.cortex("down")
        home.cortex("up")
        eventually(lambda: home.cortex("get", "s/x", "-o", "json").json["status"] == "live", "it is restored")
        assert ask(home, ROW)[0] == "key-of-the-second"
        for environ in Path("/proc").glob("*/environ"):
            try:
                content = environ.read_bytes()
            except OSError:
                continue
            if str(home.path).encode() in content:
                assert b"key-of-" not in content, environ.with_name("cmdline").read_bytes()
        assert "the region is moon-1 and the key ****" in home.logs("s/x")
        home.cortex("delete", "s", "-y")
        assert not list((home.path / "secrets" / ".cloud").iterdir())
