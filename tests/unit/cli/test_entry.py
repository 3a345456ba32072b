"""What the console scripts do before anything heavy is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

INTERRUPTED_WHILE_IMPORTING = """
import os, signal, sys
from cortex.cli import entry

class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == "cortex.cli.main":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, CtrlC())
sys.argv = ["cortex", "--version"]
%s
entry.run()
"""


def ran(before: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE_IMPORTING % before], capture_output=True, text=True, check=False
    )


def test_ctrl_c_while_the_command_is_imported_is_a_word_and_130() -> None:
    process = ran()
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "\ninterrupted\n")


def test_an_interrupt_that_a_shell_has_ignored_stays_ignored() -> None:
    process = ran("signal.signal(signal.SIGINT, signal.SIG_IGN)")
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_open_on_nothing(closed: str) -> None:
    program = (
        "import os, sys; from cortex.cli import entry; entry.open_streams(); print('x'); "
        "[os.fstat(number) for number in range(3)]; os._exit(None in (sys.stdin, sys.stdout, sys.stderr))"
    )
    command = f'exec "$0" -c "$1" {closed}'
    process = subprocess.run(["sh", "-c", command, sys.executable, program], capture_output=True, check=False)
    assert (process.returncode, process.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_output_that_cannot_be_written_is_no_matter_of_the_home() -> None:
    program = "from cortex.cli import entry; entry.run()"
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-c", program, "schema"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
        assert process.returncode == 1
        assert process.stderr.startswith("error: output-failed\n  stdout cannot be written: no space left on device")
        assert subprocess.call([sys.executable, "-c", program, "no-such-command"], stderr=full) == 2


def test_nothing_but_ours_is_loaded_before_ctrl_c_is_taken() -> None:
    """What is loaded by then can still end in a traceback."""
    program = (
        "import sys\nbefore = set(sys.modules)\nimport cortex.cli.entry\nprint(*sorted(set(sys.modules) - before))"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in process.stdout.split()} - set(sys.stdlib_module_names)
    assert loaded == {"cortex"}
    assert "cortex.errors" not in process.stdout.split()


def test_the_scripts_begin_here() -> None:
    from importlib.metadata import entry_points

    scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
    assert {scripts["cortex"], scripts["cx"]} == {"cortex.cli.entry:run"}
