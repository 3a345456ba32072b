"""The command line: what is called with which values, help, wrong usage."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest

from cortex.cli.main import NAMES
from cortex.settings import Settings

GET = {
    "api": None,
    "deployment": None,
    "all_deployments": False,
    "summary": False,
    "verbose": False,
    "watch": False,
    "output": "text",
}
LOGS = {
    "api": "a",
    "deployment": None,
    "follow": True,
    "tail": None,
    "since": None,
    "replica": None,
    "version": None,
    "request": None,
    "output": "text",
}
DEPLOY = {
    "path": None,
    "dry_run": False,
    "prune": False,
    "force": False,
    "prove": False,
    "yes": False,
    "no_wait": False,
    "timeout": 600.0,
    "output": "text",
}
REFRESH = {"api": None, "path": None, "force": False, "no_wait": False, "timeout": 600.0, "output": "text"}
PREDICT = {"api": "a", "sample": "x.json", "deployment": None, "debug": False}
DELETE = {"target": None, "api": None, "yes": False, "output": "text"}
DOWN = {"purge": False, "drain": 30.0, "yes": False}
INIT = {"model": "m.onnx", "folder": None, "model_format": None, "signature": None, "force": False}
CONFIGURE = {"action": "list", "words": (), "predictions": None, "token": False, "output": "text"}
UP = {"foreground": False, "path": None, "nodes": None, "output": "text"}

TABLE: list[tuple[str, str, dict[str, Any]]] = [
    ("init m.onnx", "init", INIT),
    ("init", "init", INIT | {"model": None}),
    ("init m --signature predict", "init", INIT | {"model": "m", "signature": "predict"}),
    ("init m.onnx p --force", "init", INIT | {"folder": "p", "force": True}),
    ("init m.bin --model-format onnx", "init", INIT | {"model": "m.bin", "model_format": "onnx"}),
    ("deploy", "deploy", DEPLOY),
    ("deploy examples/iris", "deploy", DEPLOY | {"path": "examples/iris"}),
    (
        "deploy --dry-run --force --prune --no-wait",
        "deploy",
        DEPLOY | {"dry_run": True, "force": True, "prune": True, "no_wait": True},
    ),
    ("deploy --timeout 90s -o json", "deploy", DEPLOY | {"timeout": 90.0, "output": "json"}),
    ("deploy --prove --yes", "deploy", DEPLOY | {"prove": True, "yes": True}),
    ("deploy --timeout=1h30m", "deploy", DEPLOY | {"timeout": 5400.0}),
    ("refresh", "refresh", REFRESH),
    ("refresh a --path x.yaml --force", "refresh", REFRESH | {"api": "a", "path": "x.yaml", "force": True}),
    ("refresh --no-wait --timeout 5", "refresh", REFRESH | {"no_wait": True, "timeout": 5.0}),
    ("get", "get", GET),
    ("get a", "get", GET | {"api": "a"}),
    ("get iris/a -v", "get", GET | {"api": "iris/a", "verbose": True}),
    ("get -d iris -w", "get", GET | {"deployment": "iris", "watch": True}),
    ("get -as", "get", GET | {"all_deployments": True, "summary": True}),
    ("get --output json", "get", GET | {"output": "json"}),
    ("logs a", "logs", LOGS),
    ("logs iris/a --no-follow --since 10m", "logs", LOGS | {"api": "iris/a", "follow": False, "since": 600.0}),
    ("logs a -f -n 5 --version 3fa1c09d", "logs", LOGS | {"tail": 5, "version": "3fa1c09d"}),
    ("logs a --no-follow --follow", "logs", LOGS),
    ("logs a --replica aaaa.0 --request r-1", "logs", LOGS | {"replica": "aaaa.0", "request": "r-1"}),
    ("logs a -o json", "logs", LOGS | {"output": "json"}),
    ("logs a -d iris", "logs", LOGS | {"deployment": "iris"}),
    ("predict a x.json", "predict", PREDICT),
    ("predict a", "predict", PREDICT | {"sample": None}),
    ("predict a - --debug", "predict", PREDICT | {"sample": "-", "debug": True}),
    ("predict --debug -d iris a x.json", "predict", PREDICT | {"deployment": "iris", "debug": True}),
    ("history a", "history", {"api": "a", "deployment": None, "verbose": False, "output": "text"}),
    ("delete", "delete", DELETE),
    ("delete iris -y", "delete", DELETE | {"target": "iris", "yes": True}),
    ("delete --api a --yes", "delete", DELETE | {"api": "a", "yes": True}),
    ("up", "up", UP),
    ("up --foreground /app", "up", UP | {"foreground": True, "path": "/app"}),
    ("up --nodes 3", "up", UP | {"nodes": 3}),
    ("down", "down", DOWN),
    ("down --purge -y --drain 5s", "down", DOWN | {"purge": True, "yes": True, "drain": 5.0}),
    ("info", "info", {"output": "text"}),
    ("info -o json", "info", {"output": "json"}),
    ("configure", "configure", CONFIGURE),
    ("configure list -o json", "configure", CONFIGURE | {"output": "json"}),
    (
        "configure edit gpu https://h --predictions https://p --token",
        "configure",
        CONFIGURE | {"action": "edit", "words": ("gpu", "https://h"), "predictions": "https://p", "token": True},
    ),
    ("version", "version", {"output": "text"}),
    ("completion zsh", "completion", {"shell": "zsh"}),
    ("completion", "completion", {"shell": None}),
    ("schema", "schema", {}),
]  # fmt: skip


class Recorder:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.settings: Settings | None = None
        for name in NAMES:
            monkeypatch.setattr(import_module(f"cortex.cli.{name}").COMMAND, "function", self._recording(name))

    def _recording(self, name: str) -> Any:
        def record(_terminal: object, *settings: Settings, **values: Any) -> int:
            self.calls.append((name, values))
            self.settings = settings[0] if settings else None
            return 0

        return record


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


@pytest.mark.parametrize(("line", "command", "values"), TABLE, ids=[line for line, _, _ in TABLE])
def test_a_command_line_means(cortex: Any, recorded: Recorder, line: str, command: str, values: dict[str, Any]) -> None:
    ran = cortex(*line.split())
    assert (ran.code, ran.talk, recorded.calls) == (0, "", [(command, values)])


@pytest.mark.parametrize("line", ["--port 9000 get", "get --port 9000", "--port 8000 get --port 9000"])
def test_settings_are_flags_before_and_after_the_command(cortex: Any, recorded: Recorder, line: str) -> None:
    cortex(*line.split())
    assert recorded.settings is not None
    assert (recorded.settings.port, recorded.settings.port_given) == (9000, True)
    assert recorded.settings.home == cortex.home


@pytest.mark.parametrize("name", NAMES)
def test_no_beginning_of_a_command_runs_it(cortex: Any, recorded: Recorder, name: str) -> None:
    for end in range(len(name)):
        if name[:end] not in NAMES:
            ran = cortex(name[:end])
            assert (ran.code, ran.out, recorded.calls) == (2, "", [])
            assert f"`cortex {name}`" in ran.talk or not end


def test_a_variable_that_does_nothing_is_a_warning_of_each_command_once(cortex: Any, recorded: Recorder) -> None:
    cortex.environ = {"CORTEX_PROT": "9000", "CORTEX_NODES_MIN": "2", "CORTEX_REPLICA": "iris.a.0123.0"}
    ran = cortex("get", "-o", "json")
    assert (ran.code, ran.out, recorded.calls) == (0, "", [("get", GET | {"output": "json"})])
    assert ran.talk == (
        "warning: not-in-effect\n"
        "  CORTEX_NODES_MIN does nothing yet: there are no clusters yet\n\n"
        "warning: unknown-variable\n"
        "  CORTEX_PROT is no setting of Cortex, and does nothing\n"
        "  hint: did you mean CORTEX_PORT?\n\n"
    )


@pytest.mark.usefixtures("recorded")
def test_a_variable_that_does_nothing_is_told_where_another_is_wrong(cortex: Any) -> None:
    cortex.environ = {"CORTEX_PROT": "9000", "CORTEX_PORT": "http"}
    ran = cortex("up")
    assert ran.code == 2
    assert [line for line in ran.talk.splitlines() if line[:1].isalpha()] == [
        "warning: unknown-variable",
        "error: wrong-setting",
    ]


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("line", ["--help", "get --help", "--version", "schema", "completion zsh"])
def test_what_needs_no_settings_says_nothing_of_variables(cortex: Any, line: str) -> None:
    cortex.environ = {"CORTEX_PROT": "9000"}
    assert cortex(*line.split()).talk == ""


def test_flags_beat_environment_variables(cortex: Any, recorded: Recorder) -> None:
    cortex.environ = {"CORTEX_PORT": "7000", "CORTEX_OPERATOR_PORT": "7001"}
    cortex("get", "--port", "9000")
    assert recorded.settings is not None
    assert (recorded.settings.port, recorded.settings.operator_port) == (9000, 7001)


WRONG: list[tuple[str, str, str]] = [
    ("depoy", 'there is no command "depoy"', "did you mean `cortex deploy`?"),
    ("de", 'there is no command "de"', "did you mean `cortex deploy` or `cortex delete`?"),
    ("do", 'there is no command "do"', "did you mean `cortex down`?"),
    ("dow --purge -y", 'there is no command "dow"', "did you mean `cortex down`?"),
    ("DOWN", 'there is no command "DOWN"', "did you mean `cortex down`?"),
    ("xyzzy", 'there is no command "xyzzy"', "`cortex --help` lists all commands"),
    ("get --verbos", "--verbos", "did you mean --verbose?"),
    ("undeploy", 'there is no command "undeploy"', "hint: here it is `cortex delete`\n"),
    ("list", 'there is no command "list"', "hint: here it is `cortex get`\n"),
    (
        "help get",
        'there is no command "help"',
        "hint: here it is `cortex --help`, and `cortex COMMAND --help` for one command\n",
    ),
    ("get --al", "there is no option --al", "hint: did you mean --all-deployments?\n"),
    ("logs a --no-folow", "there is no option --no-folow", "hint: did you mean --no-follow?\n"),
    ("logs a --folow", "there is no option --folow", "hint: did you mean --follow?\n"),
    ("deploy --no-force", "there is no option --no-force", "hint: `cortex deploy --help` shows what it takes\n"),
    ("down --prune", "there is no option --prune", "hint: `cortex down --help` shows what it takes\n"),
    ("deploy --no-prune", "there is no option --no-prune", "hint: `cortex deploy --help` shows what it takes\n"),
    ("deploy --wait", "there is no option --wait", "hint: `cortex deploy --help` shows what it takes\n"),
    ("get -e prod", "there is no option -e", "hint: here it is `--env NAME`\n"),
    ("-V", "there is no option -V", "hint: here it is `cortex --version`\n"),
    ("delete -c", "there is no option -c", "hint: no cache is kept that would be deleted: leave it out\n"),
    ("deploy -f", "there is no option -f", "hint: here it is `--force`; a yaml file is named without a flag"),
    ("refresh -f", "there is no option -f", "hint: here it is `--force`\n"),
    ("get sklearn -d iris/a", "'iris/a' is no name of a deployment", ""),
    ("get iris/a -d other", "API names deployment iris, and -d other", ""),
    ("delete iris/a --api b", "--api names api b, and the argument a", ""),
    ("get a b", "unexpected extra argument", "`cortex get --help` shows what it takes"),
    ("get a/b/c", "'a/b/c' is neither NAME nor DEPLOYMENT/NAME", "`cortex get --help`"),
    ("get -a a", "--all-deployments leaves nothing to choose", ""),
    ("get -s a", "--summary is about deployments", ""),
    ("get -o yaml", "yaml", "`cortex get --help`"),
    ("logs", "Missing argument 'API or DEPLOYMENT'", "`cortex logs --help`"),
    ("logs a --since soon", '"soon" is not a duration', ""),
    ("logs a --since 1d", 'did you mean "24h"?', ""),
    ("deploy --timeout x", '"x" is not a duration', ""),
    ("in", 'there is no command "in"', "did you mean `cortex init` or `cortex info`?"),
    ("up /app", "PATH goes with --foreground", ""),
    ("get --port 0", "CORTEX_PORT must be a port from 1 to 65535, not '0'", ""),
    ("delete --api iris/a other", "--api names deployment iris, and the argument other", ""),
    ("delete", "say which deployment", ""),
    ("completion tcsh", "tcsh", ""),
]


@pytest.mark.parametrize(("line", "message", "hint"), WRONG, ids=[line for line, _, _ in WRONG])
@pytest.mark.usefixtures("running")
def test_wrong_usage_exits_with_2_and_says_what_is_meant(cortex: Any, line: str, message: str, hint: str) -> None:
    ran = cortex(*line.split())
    assert (ran.code, ran.out) == (2, "")
    assert ran.talk.startswith(("error: wrong-usage\n", "error: wrong-setting\n"))
    assert message in ran.talk
    assert hint in ran.talk


def test_cortex_alone_prints_the_help(cortex: Any) -> None:
    ran = cortex()
    assert (ran.code, ran.talk) == (0, "")
    assert ran.out.startswith("Usage: cortex [OPTIONS] COMMAND …")
    assert cortex("--help").out == cortex("-h").out == ran.out


def test_the_version_alone(cortex: Any) -> None:
    assert cortex("--version").out == "0.1.0\n"


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_with_examples_in_80_columns(cortex: Any, name: str) -> None:
    ran = cortex(name, "--help")
    assert (ran.code, ran.talk) == (0, "")
    assert f"Usage: cortex {name}" in ran.out
    assert "\nExamples:\n  $ " in ran.out
    assert max(len(line) for line in ran.out.splitlines()) <= 80


def test_help_works_with_settings_that_are_wrong(cortex: Any) -> None:
    cortex.environ = {"CORTEX_PORT": "x"}
    assert cortex("get", "--help").code == 0
    assert cortex("schema").code == 0
    assert cortex("get").code == 2


def test_looking_does_not_import_what_is_heavy(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api()]
    (cortex.cwd / "cortex.yaml").write_text("- kind: deployment\n  name: iris\n- kind: api\n  name: a\n  model: m\n")
    program = (
        "import sys\n"
        "from cortex.cli.main import run\n"
        "import atexit\n"
        "heavy = ('rich', 'pydantic', 'ruamel', 'psutil', 'fastapi', 'numpy', 'subprocess', 'asyncio')\n"
        "atexit.register(lambda: print([name for name in heavy if name in sys.modules], file=sys.stderr))\n"
        "sys.argv = ['cortex', 'get']\n"
        "run()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=cortex.cwd,
        env={**os.environ, "CORTEX_HOME": str(cortex.home)},
        check=False,
    )
    assert ran.stderr == "[]\n"
    assert ran.stdout.startswith("api       status   ready")
