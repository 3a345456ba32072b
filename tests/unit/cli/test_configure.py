"""`cortex configure`: environments elsewhere are listed, chosen and talked to; their tokens show nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cortex.client.environments import RemoteEnvironment
from cortex.client.operator import OperatorClient

TOKEN = "a-token-for-tests"


@pytest.fixture
def url(fake: Any) -> str:
    """Of a control plane that is not the one of this home."""
    return f"http://127.0.0.1:{fake.port}"


@pytest.fixture
def staging(cortex: Any, fake: Any, url: str) -> Any:
    """The fake control plane, known as `staging`."""
    assert cortex("configure", "add", url, "staging", stdin=TOKEN.encode() + b"\n").code == 0
    fake.requests.clear()
    return fake


def kept(cortex: Any) -> Path:
    file = cortex.home / "environments.json"
    assert isinstance(file, Path)
    return file


# ---- the list -------------------------------------------------------------------------------------------------------


def test_local_is_always_there(cortex: Any) -> None:
    ran = cortex("configure")
    assert ran.code == 0
    assert ran.out.splitlines()[1].split() == ["*", "local", "this", "machine"]
    assert not cortex.home.exists(), "looking changes nothing"


def test_one_that_is_added_is_asked_and_listed_without_its_token(cortex: Any, fake: Any, url: str) -> None:
    ran = cortex("configure", "add", url, "staging", stdin=TOKEN.encode() + b"\n")
    assert (ran.code, ran.out) == (0, "added staging\n")
    assert fake.requests[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert ran.talk.startswith("it answers: cortex 0.1.0, 0 apis, predictions at http://127.0.0.1:8880\n")
    listed = cortex("configure", "list")
    assert "staging" in listed.out
    assert "****ests" in listed.out
    for shown in (ran.out, ran.talk, listed.out, listed.talk, cortex("configure", "-o", "json").out):
        assert TOKEN not in shown


def test_programs_get_the_list_too(cortex: Any, staging: Any, url: str) -> None:
    assert json.loads(cortex("configure", "-o", "json").out) == [
        {"name": "local", "operator": None, "predictions": None, "token": None, "chosen": True},
        {"name": "staging", "operator": url, "predictions": None, "token": "****ests", "chosen": False},
    ]


def test_tokens_are_kept_for_their_owner_alone(cortex: Any, staging: Any) -> None:
    assert TOKEN in kept(cortex).read_text()
    assert kept(cortex).stat().st_mode & 0o777 == 0o600
    assert cortex.home.stat().st_mode & 0o777 == 0o700
    kept(cortex).chmod(0o644)
    cortex("configure")
    assert kept(cortex).stat().st_mode & 0o777 == 0o600


def test_a_token_is_typed_unseen_where_somebody_can(cortex: Any, fake: Any, url: str) -> None:
    ran = cortex("configure", "add", url, "staging", stdin=TOKEN.encode() + b"\n", tty=True)
    assert ran.code == 0
    assert "token of staging (it does not show): " in ran.talk
    assert fake.requests[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_the_list_fits_80_columns(cortex: Any, staging: Any) -> None:
    assert max(map(len, cortex("configure", tty=True).out.splitlines())) <= 80 + len("\x1b[1m\x1b[0m")


@pytest.mark.parametrize(
    ("url", "name"), [("https://staging.example.com:8881", "staging"), ("http://GPU-1/x/", "gpu-1")]
)
def test_a_name_follows_from_the_host(cortex: Any, url: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemoteEnvironment, "connect", lambda _self: OperatorClient(port=1, token=""))  # not asked there
    assert cortex("configure", "add", url, stdin=b"t").out == f"added {name}\n"


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("add",), 2, "cortex configure add URL [NAME]"),
        (("add", "staging"), 1, "it has to begin with http:// or https://"),
        (("add", "https://"), 1, "it names no host"),
        (("add", "https://host:99999"), 1, "port out of range"),
        (("add", "https://me:hunter2@host"), 1, "a user, a query or a fragment has no place in it"),
        (("add", "http://10.0.0.3:8881"), 1, "cortex configure add http://10.0.0.3:8881 NAME"),
        (("add", "http://localhost:9881"), 1, "gives the environment no name"),
        (("add", "https://host", "local"), 1, "that is this machine, always"),
        (("add", "https://host", "My_GPU"), 1, "lower-case letters, digits and -"),
        (("add", "https://host", "staging"), 2, "`cortex configure edit staging` changes it"),
        (("add", "https://host", "x", "hunter2"), 2, "a token is not taken from the command line"),
        (("add", "https://host", "x", "--token"), 2, "--token goes with edit"),
        (("edit", "staging"), 2, "with URL, --predictions or --token"),
        (("edit", "stagin", "https://host"), 1, 'did you mean "staging"?'),
        (("edit", "local", "https://host"), 1, "it cannot be changed or deleted"),
        (("edit", "staging", "--predictions", "host:8880"), 1, "it has to begin with http:// or https://"),
        (("choose",), 2, "cortex configure choose NAME"),
        (("choose", "prod"), 1, "there are: local, staging; `cortex configure add URL prod` adds it"),
        (("choose", "staging", "--predictions", "https://host"), 2, "--predictions goes with add and edit"),
        (("delete", "prod"), 1, 'there is no environment "prod"'),
        (("delete", "local"), 1, "it cannot be changed or deleted"),
        (("list", "staging"), 2, "takes no NAME"),
        (("frobnicate",), 2, "frobnicate"),
    ],
)
def test_what_cannot_be_meant_is_told_and_changes_nothing(
    cortex: Any, staging: Any, argv: tuple[str, ...], code: int, words: str
) -> None:
    before = kept(cortex).read_bytes()
    ran = cortex("configure", *argv, stdin=b"a-token")
    assert (ran.code, ran.out) == (code, "")
    assert words in ran.talk
    assert "hunter2" not in ran.talk
    assert kept(cortex).read_bytes() == before


@pytest.mark.parametrize("piped", [b"", b"\n", b"  \n"])
def test_without_a_token_nothing_is_added(cortex: Any, url: str, piped: bytes) -> None:
    ran = cortex("configure", "add", url, "staging", stdin=piped)
    assert (ran.code, ran.talk) == (1, "nothing was changed: the token is empty\n")
    assert not kept(cortex).exists()


@pytest.mark.parametrize("piped", [b"two words", "schlüssel".encode(), b"a\x07b", b"\xff\xfe"])
def test_what_is_no_token_is_refused(cortex: Any, url: str, piped: bytes) -> None:
    assert cortex("configure", "add", url, "staging", stdin=piped).code == 2
    assert not kept(cortex).exists()


def test_a_file_that_is_no_list_is_named(cortex: Any, staging: Any) -> None:
    kept(cortex).write_text("{")
    ran = cortex("get")
    assert ran.code == 1
    assert ran.talk.startswith(f"error: environments-unreadable\n  {kept(cortex)}: is no list of environments")
    assert cortex("get", "--env", "local").code == 0, "which needs no list"


# ---- what is noticed at once ----------------------------------------------------------------------------------------


def test_one_that_does_not_answer_is_noted_all_the_same(cortex: Any) -> None:
    ran = cortex("configure", "add", "http://127.0.0.1:1", "gone", stdin=b"t")
    assert (ran.code, ran.out) == (0, "added gone\n")
    assert "note: it was noted, but the control plane at http://127.0.0.1:1 does not answer" in ran.talk


def test_a_wrong_token_shows_at_once_and_can_be_replaced(cortex: Any, fake: Any, url: str) -> None:
    assert (
        "does not accept the token of environment staging"
        in cortex("configure", "add", url, "staging", stdin=b"wrong").talk
    )
    refused = cortex("get", "--env", "staging")
    assert refused.code == 1
    assert "hint: `cortex configure edit staging --token` takes the right one" in refused.talk
    assert cortex("configure", "edit", "staging", "--token", stdin=TOKEN.encode()).out == "changed staging\n"
    assert cortex("get", "--env", "staging").code == 0


def test_a_token_in_the_clear_is_warned_about(cortex: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex.cli.configure.ASK_TIMEOUT_S", 0.01)
    talk = cortex("configure", "add", "http://nowhere.invalid:8881", stdin=b"t").talk
    assert "note: http://nowhere.invalid:8881 is not encrypted: whoever is on the way can read the token" in talk


# ---- choosing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["flag before", "flag after", "variable", "chosen"])
def test_the_environment_that_is_named_is_talked_to(cortex: Any, staging: Any, fakes: Any, how: str) -> None:
    staging.apis = [fakes.api()]
    argv = ["get", "-a"]
    if how == "flag before":
        argv = ["--env", "staging", *argv]
    elif how == "flag after":
        argv = [*argv, "--env", "staging"]
    elif how == "variable":
        cortex.environ = {"CORTEX_ENV": "staging"}
    else:
        assert cortex("configure", "choose", "staging").out == "chosen: staging\n"
    ran = cortex(*argv)
    assert ran.code == 0
    assert "sklearn" in ran.out
    assert staging.calls == ["GET /v1/apis"]
    assert not (cortex.home / "controlplane.json").exists(), "nothing was started here"


def test_a_variable_and_a_flag_come_before_what_is_chosen(cortex: Any, staging: Any) -> None:
    cortex("configure", "choose", "staging")
    cortex.environ = {"CORTEX_ENV": "local"}
    assert cortex("get", "-a").talk.startswith("nothing is deployed")
    assert staging.calls == []
    assert cortex("get", "-a", "--env", "staging").code == 0
    assert staging.calls
    shown = cortex("configure")
    assert shown.talk == "* by --env or CORTEX_ENV; without them staging\n"
    assert "CORTEX_ENV is local here, which comes first" in cortex("configure", "choose", "staging").talk


def test_deleting_the_chosen_one_goes_back_to_local(cortex: Any, staging: Any) -> None:
    cortex("configure", "choose", "staging")
    ran = cortex("configure", "delete", "staging", "--env", "local")
    assert (ran.out, ran.talk) == ("deleted staging\n", "it was chosen; now local is\n")
    assert TOKEN not in kept(cortex).read_text()
    assert cortex("get").talk.startswith("nothing is deployed")


def test_a_name_that_nobody_configured_lists_those_that_there_are(cortex: Any, staging: Any) -> None:
    for command in (["get"], ["deploy"], ["logs", "a"], ["info"]):
        (cortex.cwd / "cortex.yaml").write_text("[]")
        ran = cortex(*command, "--env", "prod")
        assert (ran.code, "there are: local, staging" in ran.talk) == (1, True), ran.talk


# ---- what can be done elsewhere -------------------------------------------------------------------------------------


def test_info_is_of_the_environment_that_is_asked(cortex: Any, staging: Any, url: str) -> None:
    out = cortex("info", "--env", "staging").out
    assert out.splitlines()[0].split() == ["environment", "staging"]
    assert "/home/me/.cortex, on its machine" in out
    assert json.loads(cortex("info", "--env", "staging", "-o", "json").out)["operator"] == url


def test_a_difference_of_versions_is_told_without_advice_for_this_machine(cortex: Any, staging: Any) -> None:
    staging.info_fields = {"version": "0.0.9"}
    cortex.environ = {"CORTEX_ENV": "staging", "CORTEX_PORT": "9000"}
    assert cortex("info").talk == "note: its control plane is version 0.0.9, this is 0.1.0\n"


def test_predictions_go_where_they_are_reached_from_here(cortex: Any, staging: Any, fakes: Any, url: str) -> None:
    """The control plane says 127.0.0.1:8880, which here would be another ingress."""
    staging.apis = [fakes.api()]
    staging.answers["/through/iris/sklearn"] = (200, {}, b'"setosa"')
    assert cortex("configure", "edit", "staging", "--predictions", f"{url}/through/").code == 0
    (cortex.cwd / "sample.json").write_text("[1]")
    ran = cortex("predict", "iris/sklearn", "sample.json", "--env", "staging")
    assert (ran.code, ran.out) == (0, '"setosa"\n')
    assert f"{url}/through/iris/sklearn" in cortex("get", "sklearn", "--env", "staging").out


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (("up",), "started"),
        (("up", "--foreground"), "started"),
        (("down",), "stopped"),
        (("down", "--purge", "-y"), "stopped"),
    ],
)
def test_processes_elsewhere_are_neither_started_nor_stopped(
    cortex: Any, staging: Any, argv: tuple[str, ...], what: str
) -> None:
    ran = cortex(*argv, "--env", "staging")
    assert (ran.code, ran.out) == (1, "")
    assert f'environment "staging" is elsewhere: its processes cannot be {what} from here' in ran.talk
    assert "--env local" in ran.talk
    assert staging.calls == []
    assert kept(cortex).exists()


def test_one_that_is_away_is_told_with_what_can_be_done(cortex: Any, staging: Any) -> None:
    cortex("configure", "edit", "staging", "http://127.0.0.1:1")
    ran = cortex("get", "--env", "staging")
    assert ran.code == 1
    assert ran.talk.startswith(
        "error: operator-unreachable\n  the control plane at http://127.0.0.1:1 does not answer: nothing listens there"
    )
    assert "`cortex configure edit staging URL`" in ran.talk
    assert "cortex up" not in ran.talk
