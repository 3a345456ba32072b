"""What the pages say without being run: up to date, complete, links that lead somewhere, code that is code."""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
from pathlib import Path

import generate
import pytest
from markdown import PAGES, ROOT, Block, blocks_of, name_of

from cortex.cli.main import NAMES
from cortex.errors import CortexError
from cortex.settings import SETTINGS
from cortex.spec import loading

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
KINDS = {"bash", "console", "python", "yaml", "json", "text", "ini", "dockerfile"}
OPTIONS = {"fails", "file", "needs", "not-run", "part"}


@pytest.mark.parametrize("name", generate.PAGES)
def test_pages_made_from_the_code_are_up_to_date(name: str) -> None:
    page = generate.PAGES[name]()
    assert (ROOT / "docs" / name).read_text() == page, "run `python docs/generate.py`"


def test_every_code_of_the_prediction_api_is_described() -> None:
    assert set(generate.PREDICTION) == generate.prediction_codes()


def test_every_reference_is_described_once() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    described = re.findall(r"^\| (?:[45]..? \| |4xx \| )?`([a-z0-9-]+)` \|", page, re.MULTILINE)
    known = set(generate.references()) - generate.BASES
    assert known - set(described) == set(), "a reference in the source that the page does not have"
    assert set(generate.NOT_CLASSES) <= known, "a description of what is not in the source any more"


def test_a_reference_that_nobody_described_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {**generate.references(), "brand-new": generate.Found(["cli/deploy.py"])}
    monkeypatch.setattr(generate, "references", lambda: found)
    with pytest.raises(KeyError, match=r"brand-new \(cli/deploy.py\): say what it means"):
        generate.meanings()


def test_references_are_found_wherever_they_are_given() -> None:
    found = generate.references()
    assert "client/addressing.py" in found["api-not-found"].files, "of a class"
    assert "controlplane/deploy.py" in found["from-another-folder"].files, "by keyword"
    assert "spec/rules.py" in found["reserved-env-name"].files, "by place"


def test_every_decision_is_listed_once_and_in_order() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"^\| \[(\d+)\]\((.+)\) \|", (folder / "README.md").read_text(), re.MULTILINE)
    files = sorted(file.name for file in folder.glob("[0-9]*.md"))
    assert listed == [(str(int(name[:4])), name) for name in files]


def test_every_command_and_setting_is_on_its_page() -> None:
    commands = (ROOT / "docs" / "cli.md").read_text()
    configuration = (ROOT / "docs" / "configuration.md").read_text()
    assert [name for name in NAMES if f"### cortex {name}\n" not in commands] == []
    assert [s.variable for s in SETTINGS if f"`{s.variable}`" not in configuration] == []


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md"]
    assert [name for name in pages if f"]({name})" not in index] == []


def test_a_reader_sees_which_file_a_block_is() -> None:
    hidden = []
    for block in BLOCKS:
        name = block.options.get("file")
        above = "\n".join(block.page.read_text().splitlines()[: block.line - 1]).rpartition("```")[2]
        if name is not None and name not in block.text.partition("\n")[0] and f"`{name}`" not in above:
            hidden.append(f"{block}: {name}")
    assert hidden == [], "name the file in the block's first line or above it: the mark behind the fence is not shown"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path) if path else page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)
    assert broken == []


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_says_what_it_is(block: Block) -> None:
    assert block.language in KINDS | {""}, f"unknown kind of block: {block.language}"
    assert set(block.options) <= OPTIONS, f"unknown options: {block.options}"
    if block.language == "":
        assert "│" in block.text or "──" in block.text, "only drawings need no language"
    if "not-run" in block.options:
        assert block.options["not-run"], "say why: not-run=REASON"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_python_is_python(block: Block) -> None:
    tree = ast.parse(block.text)
    compile(tree, str(block), "exec")


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "bash"], ids=str)
def test_shell_is_shell(block: Block) -> None:
    ran = subprocess.run(["bash", "-n"], input=block.text.encode(), capture_output=True)
    assert (ran.returncode, ran.stderr) == (0, b"")


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "json"], ids=str)
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_yaml_is_a_cortex_yaml(block: Block) -> None:
    if "part" in block.options:
        from ruamel.yaml import YAML

        YAML(typ="safe").load(io.StringIO(block.text))
        return
    try:
        loading.load(block.text, file=str(block))
    except CortexError as error:
        pytest.fail(str(error))
