"""What CI does with tests that failed: real runs of pytest, of tests that fail on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[3]
ONCE = """
    from pathlib import Path
    mark = Path(__file__).with_suffix(".mark")
    if not mark.exists():
        mark.touch()
        print("said by the first try")
        raise ValueError("the first try")
"""


def ran(folder: Path, source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one file of tests as CI runs them all, with our conftest.py beside it."""
    (folder / "conftest.py").write_bytes((ROOT / "tests" / "conftest.py").read_bytes())
    (folder / "test_it.py").write_text(source)
    # pytest-randomly seeds NumPy too where it can be imported, which takes longer than all that is tested here.
    (folder / "numpy.py").write_text("raise ImportError\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CORTEX_TEST"))}
    environment["PYTEST_ADDOPTS"] = "-p no:schemathesis"  # as our own configuration has it: it takes long to import
    return subprocess.run(
        [sys.executable, ROOT / ".ci" / "retry.py", sys.executable, "-m", "pytest", *arguments, "test_it.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def last_lines(done: subprocess.CompletedProcess[str], count: int = 1) -> list[str]:
    return done.stdout.splitlines()[-count:]


def test_what_passes_is_run_once(tmp_path: Path) -> None:
    done = ran(tmp_path, "def test_a(): pass\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "once more" not in done.stdout
    assert "1 passed" in last_lines(done)[0]


@pytest.mark.parametrize("arguments", [(), ("-n", "2")])
def test_what_fails_once_is_named_with_what_it_said_and_fails_nothing(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    source = f"def test_a(): pass\n\nimport pytest\n@pytest.mark.parametrize('x', ['a b/c'])\ndef test_b(x):{ONCE}"
    done = ran(tmp_path, source, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert last_lines(done) == ["flaky: test_it.py::test_b[a b/c]"]
    told = done.stdout.partition("== once more, each by itself: 1 that failed\n")[2]
    assert "ValueError: the first try" in told
    assert "said by the first try" in told


def test_what_fails_twice_is_red_whatever_else_passes_the_second_time(tmp_path: Path) -> None:
    done = ran(tmp_path, f"def test_a():{ONCE}\ndef test_b():\n    assert 1 == 2\n")
    assert done.returncode == 1
    assert sorted(line for line in done.stdout.splitlines() if line.startswith(("flaky: ", "failed twice: "))) == [
        "failed twice: test_it.py::test_b",
        "flaky: test_it.py::test_a",
    ]


def test_a_fixture_that_fails_once_counts_as_its_test(tmp_path: Path) -> None:
    source = f"import pytest\n@pytest.fixture\ndef broken():\n    yield{ONCE}\ndef test_a(broken): pass\n"
    done = ran(tmp_path, source)
    assert (done.returncode, last_lines(done)) == (0, ["flaky: test_it.py::test_a"])


def test_a_test_that_takes_its_process_down_runs_once_more(tmp_path: Path) -> None:
    source = (
        f"import os\ndef test_a():\n    try:{ONCE.replace('    ', '        ')}\n    except ValueError: os._exit(1)\n"
    )
    done = ran(tmp_path, source, "-n", "1")
    assert (done.returncode, last_lines(done)) == (0, ["flaky: test_it.py::test_a"])


def test_a_test_runs_once_more_with_the_seed_with_which_it_failed(tmp_path: Path) -> None:
    source = "import random\ndef test_a():\n    assert random.random() < 0\n"
    done = ran(tmp_path, source)
    assert done.returncode == 1
    said = [line for line in done.stdout.splitlines() if line.startswith("E       assert 0.")]
    assert len(said) == 2
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("import nothing_of_this_name\n", id="a file that cannot be read"),
        pytest.param("def test_a():\n    assert 1 == 2\n" + "import sys, os\nos._exit(1)\n", id="no end"),
        pytest.param("def test_a():\n    raise KeyboardInterrupt\n", id="interrupted"),
    ],
)
def test_what_is_no_failure_of_a_test_is_red_at_once(tmp_path: Path, source: str) -> None:
    done = ran(tmp_path, source)
    assert done.returncode != 0
    assert "once more" not in done.stdout


@pytest.mark.parametrize("arguments", [(), ("-n", "2")])
def test_a_file_that_cannot_be_read_is_red_whatever_else_fails_once(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "test_broken.py").write_text("import nothing_of_this_name\n")
    done = ran(tmp_path, f"def test_a():{ONCE}\n", *arguments, "test_broken.py")
    assert done.returncode != 0
    assert "flaky: " not in done.stdout


def test_many_failures_are_no_chance(tmp_path: Path) -> None:
    done = ran(
        tmp_path, f"import pytest\n@pytest.mark.parametrize('x', range(11))\ndef test_a(x):{ONCE}\n    assert x < 0"
    )
    assert done.returncode == 1
    assert last_lines(done) == ["== 11 tests failed: too many to be chance, so none is tried again"]
