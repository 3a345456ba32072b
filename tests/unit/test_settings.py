"""Tests of `cortex.settings`."""

import os
import re
import tempfile
from pathlib import Path

import pytest

from cortex.settings import (
    NOT_IN_EFFECT_YET,
    SETTINGS,
    ControlLayout,
    NodeLayout,
    Settings,
    UnusableHome,
    WrongSetting,
    load_settings,
    variables_of,
    without_effect,
)


@pytest.fixture
def folder():
    """One whose path is short enough for sockets: of a longer one they would lie elsewhere, and stay there."""
    with tempfile.TemporaryDirectory(prefix="cx", dir="/tmp") as path:
        yield Path(path)


def test_without_anything_set_the_defaults_hold():
    settings = load_settings({"HOME": "/nowhere"})
    assert (settings.port, settings.operator_port, settings.host) == (8880, 8881, "127.0.0.1")
    assert not settings.port_given


def test_a_flag_beats_the_environment_and_the_environment_the_default():
    settings = load_settings({"CORTEX_PORT": "9000", "CORTEX_HOST": "0.0.0.0"}, port="9001")
    assert (settings.port, settings.port_given, settings.host) == (9001, True, "0.0.0.0")


def test_an_empty_variable_counts_as_absent():
    assert load_settings({"CORTEX_PORT": ""}).port == 8880


@pytest.mark.parametrize("value", ["0", "65536", "http", "-1", "8 0", "８０"])
def test_a_port_that_is_none_is_refused_by_the_name_of_its_variable(value):
    with pytest.raises(WrongSetting, match="CORTEX_PORT must be a port from 1 to 65535"):
        load_settings({"CORTEX_PORT": value})


@pytest.mark.parametrize("value", ["0", "-5", "soon", "nan", "inf"])
def test_a_start_timeout_that_is_no_time_is_refused(value):
    with pytest.raises(WrongSetting, match="CORTEX_START_TIMEOUT"):
        load_settings({"CORTEX_START_TIMEOUT": value})


@pytest.mark.parametrize(("value", "expected"), [("0", 0), ("0.5", 5 * 10**8), ("10", 10**10)])
def test_a_size_is_given_in_gigabytes(value, expected):
    assert load_settings({"CORTEX_ARTIFACTS_GB": value}).artifact_bytes == expected


@pytest.mark.parametrize("value", ["-1", "10Gi", "nan", "inf"])
def test_a_size_that_is_none_is_refused(value):
    with pytest.raises(WrongSetting, match="CORTEX_ARTIFACTS_GB"):
        load_settings({"CORTEX_ARTIFACTS_GB": value})


@pytest.mark.parametrize("value", ["0", "-1", "0.5", "64Mi"])
def test_a_view_that_holds_nothing_is_refused(value):
    assert load_settings({"CORTEX_VIEW_MB": "2"}).view_bytes == 2 * 2**20
    with pytest.raises(WrongSetting, match="CORTEX_VIEW_MB"):
        load_settings({"CORTEX_VIEW_MB": value})


def test_a_child_process_gets_the_same_settings(tmp_path):
    settings = load_settings(
        {
            "CORTEX_HOME": str(tmp_path),
            "CORTEX_HOST": "0.0.0.0",
            "CORTEX_PORT": "9000",
            "CORTEX_OPERATOR_PORT": "9001",
            "CORTEX_ARTIFACTS_GB": "2.5",
            "CORTEX_VIEW_MB": "5",
        }
    )
    assert load_settings(variables_of(settings)) == settings


def test_every_setting_has_a_field_a_flag_a_variable_and_help():
    for setting in SETTINGS:
        assert setting.field in Settings.__struct_fields__
        assert setting.flag.startswith("--")
        assert setting.variable.startswith("CORTEX_")
        assert setting.help.endswith(".")


def test_a_home_is_made_private(folder):
    layout = NodeLayout(folder / "home")
    layout.prepare()
    for made in (layout.home, layout.sockets, layout.artifacts, layout.logs):
        assert made.stat().st_mode & 0o777 == 0o700


def test_control_plane_and_node_share_a_home_as_they_always_did(folder):
    control, node = ControlLayout(folder / "home"), NodeLayout(folder / "home")
    for name in ("home", "artifacts", "logs", "probe_token_file", "sockets"):
        assert getattr(control, name) == getattr(node, name)
    control.prepare()
    node.prepare()
    made = sorted(str(path.relative_to(control.home)) for path in control.home.rglob("*"))
    assert made == ["artifacts", "environments", "logs", "logs/replicas", "node", "run", "secrets", "stats"]


def test_a_home_on_a_long_path_puts_its_sockets_elsewhere():
    layout = NodeLayout(Path("/" + "x" * 200))
    assert len(os.fsencode(layout.slot_socket("0123456789ab"))) <= 97
    assert layout.sockets != NodeLayout(Path("/" + "y" * 200)).sockets


def test_a_file_in_the_place_of_the_home_is_named(tmp_path):
    (tmp_path / "home").write_text("")
    with pytest.raises(UnusableHome, match="in the way"):
        NodeLayout(tmp_path / "home").prepare()


def test_a_link_in_the_place_of_the_sockets_is_refused(folder):
    home = folder / "home"
    home.mkdir(mode=0o700)
    (folder / "elsewhere").mkdir()
    layout = NodeLayout(home)
    layout.sockets.symlink_to(folder / "elsewhere")
    with pytest.raises(UnusableHome, match="link"):
        layout.prepare()


@pytest.mark.parametrize("name", ["my home", "it's", "a$b", "a,b", "ä"])
def test_sockets_of_a_home_that_haproxy_cannot_write_down_lie_elsewhere(name):
    home = Path("/tmp") / name
    assert NodeLayout(Path("/tmp/plain-1.2_3")).sockets == Path("/tmp/plain-1.2_3/run")
    sockets = NodeLayout(home).sockets
    assert not sockets.is_relative_to(home)
    assert sockets == NodeLayout(home).sockets != NodeLayout(Path("/tmp") / f"{name}2").sockets


# ---- variables without effect ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CORTEX_HOEM", "CORTEX_HOME"),
        ("cortex_home", "CORTEX_HOME"),
        ("CORTEX_PRT", "CORTEX_PORT"),
        ("CORTEX_OPERATER_PORT", "CORTEX_OPERATOR_PORT"),
        ("CORTEX_OPERATORPORT", "CORTEX_OPERATOR_PORT"),
        ("CORTEX_TIMEOUT", "CORTEX_START_TIMEOUT"),
        ("CORTEX_ENVIRONMENT", "CORTEX_ENV"),
        ("CORTEX_ARTIFACT_GB", "CORTEX_ARTIFACTS_GB"),
        ("CORTEX_NODE_MIN", "CORTEX_NODES_MIN, which does nothing yet"),
    ],
)
def test_a_misspelt_variable_is_told_with_the_one_that_was_meant(name, meant):
    (problem,) = without_effect({name: "1", "HOME": "/h", "CORTEX_PORT": "9000"})
    assert (problem.reference, problem.message, problem.hint) == (
        "unknown-variable",
        f"{name} is no setting of Cortex, and does nothing",
        f"did you mean {meant}?",
    )


def test_a_variable_that_has_an_effect_where_it_is_asked_is_no_matter_there_and_may_be_meant():
    also = ("CORTEX_NODES_MIN", "CORTEX_NODES_MAX")
    assert without_effect({"CORTEX_NODES_MIN": "1"}, also=also) == ()
    (problem,) = without_effect({"CORTEX_NODE_MIN": "1"}, also=also)
    assert problem.hint == "did you mean CORTEX_NODES_MIN?"


def test_an_unknown_variable_is_told_with_where_the_known_ones_are():
    (problem,) = without_effect({"CORTEX_LOG_LEVEL": "debug"})
    assert problem.hint == "`cortex --help` lists all settings with their variables"


@pytest.mark.parametrize("name", sorted(NOT_IN_EFFECT_YET))
def test_a_variable_of_a_later_version_is_told_with_what_is_so_instead(name):
    (problem,) = without_effect({name: "1"})
    assert problem.reference == "not-in-effect"
    assert problem.message.startswith(f"{name} does nothing yet: ")


def test_a_setting_is_never_said_to_do_nothing():
    assert not {setting.variable for setting in SETTINGS} & set(NOT_IN_EFFECT_YET)
    assert without_effect({setting.variable: "1" for setting in SETTINGS}) == ()


@pytest.mark.parametrize(
    "environ",
    [
        {"CORTEX_PROT": ""},
        {"CORTEX_DEPLOYMENT": "iris", "CORTEX_API": "a", "CORTEX_VERSION": "01234567", "CORTEX_REPLICA": "iris.a.0.0"},
        {"CORTEX_PROCESS": "1-2-3", "_CORTEX_COMPLETE": "zsh_complete", "CORTEXT": "1"},
        {"CORTEX_GOLDEN": "write", "CORTEX_SIM_SEED": "7"},
        {"CORTEX_SERVICE_HOST": "10.0.0.1", "CORTEX_SERVICE_PORT_HTTP": "80", "CORTEX_PORT_80_TCP_ADDR": "10.0.0.1"},
        {"CORTEX_WEB_PORT": "tcp://10.0.0.1:80", "CORTEX_WEB_SERVICE_PORT": "80"},
        variables_of(load_settings({})),
    ],
    ids=["empty", "a handler's", "a process's", "a test's", "a service's", "another service's", "a child's"],
)
def test_nothing_is_said_of_variables_that_nobody_meant_as_settings(environ):
    assert without_effect(environ) == ()


def test_the_address_of_a_service_called_cortex_is_no_port_of_ours():
    settings = load_settings({"CORTEX_PORT": "tcp://10.0.0.1:80"})
    assert (settings.port, settings.port_given) == (load_settings({}).port, False)


def test_every_variable_that_the_source_reads_is_a_setting_or_one_of_our_own():
    """What a process of ours passes to another, or a test is told, is never warned of."""
    root = Path(__file__).parents[2]
    files = [file for folder in ("src", "tests", "bench") for file in (root / folder).rglob("*.py")]
    read = re.compile(r"""(?:environ\S*(?:\.get\(|\[)|getenv\(|_VARIABLE = )["'](CORTEX_[A-Z_]+)""")
    found = {name for file in files for name in read.findall(file.read_text())}
    assert {"CORTEX_GOLDEN", "CORTEX_PROCESS", "CORTEX_ENV"} <= found
    assert without_effect(dict.fromkeys(found, "1")) == ()


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, 300.0), ("5m", 300.0), ("90s", 90.0), ("45", 45.0), ("1h", 3600.0)]
)
def test_a_downscale_window_is_a_duration_and_reaches_children_as_it_is(value, seconds):
    found = load_settings({} if value is None else {"CORTEX_DOWNSCALE_WINDOW": value})
    assert found.downscale_window_s == seconds
    assert load_settings(variables_of(found)).downscale_window_s == seconds


@pytest.mark.parametrize("value", ["soon", "-5m", "0", "5 minutes"])
def test_what_is_no_duration_is_no_downscale_window(value):
    with pytest.raises(WrongSetting, match="CORTEX_DOWNSCALE_WINDOW must be a duration such as 30s or 5m"):
        load_settings({"CORTEX_DOWNSCALE_WINDOW": value})
