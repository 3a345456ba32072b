"""
The code blocks of our pages, and what their first line says is done with them.

| info string | what a test does |
|---|---|
| `bash` | runs it; a `json` or `text` block right below is how its output ends |
| `console` | runs what follows `$ `, and compares what follows that with the output |
| `console fails` | the same, and each command has to end with exit code 1; what it says on stderr counts too |
| `python`, `yaml`, `text`, … with `file=NAME` | writes it to a file that later blocks use |
| `python` | runs it |
| any with `needs=MODULE,…` | runs it where those are installed, else looks at its syntax |
| `yaml` | has to be a cortex.yaml |
| `yaml part` | a part of one: only its syntax is looked at |
| any with `not-run=REASON` | looks at its syntax |

In expected output `…` stands for anything. Versions, durations and the width of gaps are not compared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
)
_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
_ANY = "…"


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    options: dict[str, str] = field(default_factory=dict)
    follows: Block | None = None
    """The block right above, if nothing but blank lines is in between."""

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"

    @property
    def is_run(self) -> bool:
        return "not-run" not in self.options

    @property
    def is_output(self) -> bool:
        """Whether this is what the block above prints."""
        above = self.follows
        return self.language in ("json", "text") and above is not None and above.language == "bash" and above.is_run


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found: list[Block] = []
    end = 0
    for match in _FENCE.finditer(text):
        language, *words = match["info"].split() or [""]
        options = {name: value for name, _, value in (word.partition("=") for word in words)}
        above = found[-1] if found and not text[end : match.start()].strip() else None
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, language, match["text"], options, above))
        end = match.end()
    return found


def commands_of(block: Block) -> list[tuple[str, str]]:
    """Of a console block: each command and what it prints."""
    commands: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], []))
        elif line.startswith("> ") and commands and not commands[-1][1]:
            commands[-1] = (f"{commands[-1][0]}\n{line[2:]}", [])
        else:
            commands[-1][1].append(line)
    return [(command, "\n".join(output)) for command, output in commands]


def pattern_of(expected: str) -> re.Pattern[str]:
    """What output has to match to be what the page says."""
    lines = [_ANY if line.strip() == _ANY else line for line in normal(expected).splitlines()]
    pattern = "\n".join(".*" if line == _ANY else re.escape(line).replace(_ANY, "[^\n]*") for line in lines)
    return re.compile(pattern.replace("\n.*\n", "(\n.*\n|\n)").replace("\n.*", "(\n.*)?"), re.DOTALL)


def normal(text: str) -> str:
    """Without what differs from one run to the next."""
    text = re.sub(r"(?<![.\w])[0-9a-f]{8}\b", "<version>", text)
    text = re.sub(r"\b\d+(\.\d+)? (ms|s)\b", "<time>", text)
    text = re.sub(r"\b\d+[smhd] ago\b", "<time> ago", text)
    text = re.sub(r"\bpid \d+", "pid <pid>", text)
    lines = (re.sub(r"(?<=\S)[ ]{2,}", "  ", line).rstrip() for line in text.splitlines())
    return "\n".join(lines).strip("\n")
