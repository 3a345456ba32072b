"""Every block of the pages that can be run is, from top to bottom, in an environment of the page's own."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract_harness import CORTEX, Home, running_home
from markdown import PAGES, ROOT, Block, blocks_of, commands_of, name_of, normal, pattern_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DEADLINE_S = 150
PREPARED = {"docs/handlers.md": {"token.txt": "a-token-of-somebody\n"}}
"""Files that a page takes for granted."""


def is_run(page: Path) -> bool:
    return any(block.is_run and block.language in ("bash", "console", "python") for block in blocks_of(page))


class Reader:
    """Somebody who does what a page says, in a folder that goes on from block to block."""

    def __init__(self, folder: Path, home: Home) -> None:
        self.folder = folder
        self.home = home

    def run(self, script: str, *, where: str, fails: bool = False) -> str:
        """What a piece of shell prints to stdout; it has to succeed, or to fail as explained and say so."""
        memory = self.home.path.parent / "where"
        script = f"trap 'pwd > {memory}' EXIT\nset -eo pipefail\n{self._here(script)}\n"
        environment = self.home.environment()
        environment["PATH"] = f"{CORTEX.parent}{os.pathsep}{environment['PATH']}"
        environment["COLUMNS"] = "80"
        ran = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=environment,
            input=b"typed-by-somebody\n",
            capture_output=True,
            timeout=DEADLINE_S,
        )
        assert ran.returncode == fails, f"{where}:\n{ran.stdout.decode()}\n{ran.stderr.decode()}"
        self.folder = Path(memory.read_text().strip())
        return self._there((ran.stdout + (ran.stderr if fails else b"")).decode())

    def _here(self, text: str) -> str:
        """The ports that pages speak of are not those of a test; .venv may be elsewhere."""
        text = re.sub(r"\b8880\b", str(self.home.port), text)
        text = re.sub(r"\b8881\b", str(self.home.operator_port), text)
        return re.sub(r"(?<![\w/])\.venv/bin/", f"{CORTEX.parent}/", text)

    def _there(self, text: str) -> str:
        return text.replace(f":{self.home.port}", ":8880").replace(str(self.home.path), "~/.cortex")


@pytest.fixture
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reader]:
    page: Path = request.param
    if page == ROOT / "README.md":
        folder = tmp_path / "cortex"
        folder.mkdir()
        for entry in ROOT.iterdir():
            (folder / entry.name).symlink_to(entry)
    elif page.parent.parent == ROOT / "examples":
        folder = shutil.copytree(page.parent, tmp_path / page.parent.name)
    else:
        folder = tmp_path / "here"
        folder.mkdir()
        (folder / "examples").symlink_to(ROOT / "examples")
    with running_home() as home:
        yield Reader(folder, home)


@pytest.mark.parametrize(
    ("reader", "page"), [(page, page) for page in PAGES if is_run(page)], ids=name_of, indirect=["reader"]
)
def test_what_a_page_says_works(reader: Reader, page: Path) -> None:
    output = ""
    for block in blocks_of(page):
        if block.is_output:
            expected = pattern_of(block.text)
            assert re.search(expected.pattern + r"\Z", normal(output), re.DOTALL), _differs(block, output)
        if not block.is_run or not is_there(block.options.get("needs", "")):
            continue  # test_pages has looked at its syntax
        for name, content in PREPARED.get(name_of(page), {}).items():
            (reader.folder / name).write_text(content)
        if "file" in block.options:
            file = reader.folder / block.options["file"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
        elif block.language == "console":
            for command, expected_text in commands_of(block):
                output = reader.run(command, where=str(block), fails="fails" in block.options)
                assert pattern_of(expected_text).fullmatch(normal(output)), _differs(block, output, command)
        elif block.language == "bash":
            output = run_lines(reader, block)
        elif block.language == "python":
            run_python(reader, block)


def run_lines(reader: Reader, block: Block) -> str:
    """Run a block; where a comment behind a command is JSON, that is what the command prints."""
    if not re.search(r"  # [\"{\[]", block.text):
        return reader.run(block.text, where=str(block))
    output = ""
    for line in block.text.splitlines():
        output = reader.run(line, where=f"{block}: {line}")
        comment = re.search(r"  # ([\"{\[].*)$", line)
        if comment:
            said, printed = ("".join(text.split()) for text in (comment[1], output))
            assert pattern_of(said).fullmatch(normal(printed)), _differs(block, output, line)
    return output


def is_there(modules: str) -> bool:
    return all(importlib.util.find_spec(module) for module in modules.split(",") if module)


def run_python(reader: Reader, block: Block) -> None:
    script = reader.folder / ".block.py"
    script.write_text(block.text)
    reader.run(f"{sys.executable} -W ignore .block.py", where=str(block))
    script.unlink()


def _differs(block: Block, output: str, command: str = "") -> str:
    return f"{block} says otherwise{f' of `{command}`' if command else ''}. What was printed:\n{output}"
