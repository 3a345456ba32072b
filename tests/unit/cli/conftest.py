"""A terminal that is not there, a control plane that is fake, and command lines run in one process with both."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cortex.cli.main import main
from cortex.cli.terminal import Terminal

HERE = Path(__file__).resolve().parent
NOW = 1_800_000_000.0


@pytest.fixture(scope="session")
def fakes() -> ModuleType:
    """`fake_operator.py` of the client's tests, with its builders."""
    name = "cortex_fake_operator"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE.parent / "client" / "fake_operator.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def fake(fakes: Any) -> Iterator[Any]:
    operator = fakes.FakeOperator()
    yield operator
    operator.close()


class FakeClock:
    """Stands still until somebody sleeps."""

    def __init__(self) -> None:
        self.monotonic = 50.0
        self.wall = NOW
        self.on_sleep: list[Callable[[], None]] = []
        """What happens during each sleep, one after the other."""

    def monotonic_s(self) -> float:
        return self.monotonic

    def wall_s(self) -> float:
        return self.wall

    def sleep(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds
        if self.on_sleep:
            self.on_sleep.pop(0)()


class FakeStream(io.TextIOWrapper):
    """A text stream over bytes in memory, that may claim to be a terminal."""

    def __init__(self, content: bytes = b"", *, tty: bool = False, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(content), encoding=encoding, errors="replace", newline="", write_through=True)
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty

    @property
    def content(self) -> str:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode(self.encoding)


@dataclass
class Ran:
    code: int
    out: str
    talk: str


@dataclass
class Outside:
    """What a command line runs in; change it before calling."""

    home: Path
    cwd: Path
    clock: FakeClock = field(default_factory=FakeClock)
    environ: dict[str, str] = field(default_factory=dict)
    width: int = 80

    def terminal(
        self, *, tty: bool = False, stdin: bytes = b"", answers: bool | None = None, encoding: str = "utf-8"
    ) -> Terminal:
        return Terminal(
            stdin=FakeStream(stdin, tty=tty if answers is None else answers),
            stdout=FakeStream(tty=tty, encoding=encoding),
            stderr=FakeStream(tty=tty, encoding=encoding),
            environ={"CORTEX_HOME": str(self.home), "TERM": "xterm", "PATH": os.environ["PATH"], **self.environ},
            cwd=self.cwd,
            clock=self.clock,
            sleep=self.clock.sleep,
            fixed_width=self.width,
            fixed_height=24,
        )

    def __call__(self, *argv: str, tty: bool = False, stdin: bytes = b"", encoding: str = "utf-8") -> Ran:
        """Run a command line."""
        terminal = self.terminal(tty=tty, stdin=stdin, encoding=encoding)
        code = main(argv, terminal)
        return Ran(code, content_of(terminal.stdout), content_of(terminal.stderr))


def content_of(stream: Any) -> str:
    assert isinstance(stream, FakeStream)
    return stream.content


@pytest.fixture
def cortex(tmp_path: Path) -> Outside:
    """Runs `cortex …` in an empty folder, with a home that is not there."""
    cwd = tmp_path / "here"
    cwd.mkdir()
    return Outside(home=tmp_path / "home", cwd=cwd)


@pytest.fixture
def running(cortex: Outside, fake: Any) -> Any:
    """The fake control plane, running in the home of `cortex`."""
    fake.write_home(cortex.home)
    return fake


@pytest.fixture(autouse=True)
def pages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Samples that endpoints' own pages offer. None does until a test says so, and no endpoint is asked."""
    offered: dict[str, Any] = {}
    monkeypatch.setattr("cortex.client.prediction.answered_sample", lambda endpoint, **_: offered.get(endpoint))
    return offered


@pytest.fixture
def golden() -> Callable[..., None]:
    """Compares text with a file beside the tests; `WRITE_GOLDEN=1 pytest …` writes the files anew."""

    def compare(name: str, text: str, replace: Mapping[str, str] | None = None) -> None:
        for changing, fixed in (replace or {}).items():
            text = text.replace(changing, fixed)
        file = HERE / "golden" / f"{name}.txt"
        if os.environ.get("WRITE_GOLDEN"):
            file.write_text(text)
        assert text == file.read_text()

    return compare
