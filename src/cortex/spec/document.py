"""
YAML text as a tree that knows where everything stands, bounded in size, depth and alias expansion.

Built from ruamel.yaml's events rather than by its constructors: these allow duplicate keys or stop at the first, and
aliases that expand without end. Plain scalars are read by the core schema of YAML 1.2: `no`, `on` and `1_000` are
strings, `012` is twelve.

Source:
    YAML 1.2.2, section 10.3.2 "Core Schema, Tag Resolution"; merge keys (`<<`) from YAML 1.1's type repository.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.scanner import Scanner, ScannerError

from cortex.spec.problems import found, nearest, quoted

MAX_BYTES = 1024 * 1024
"""A cortex.yaml of a thousand apis is a tenth of this; what is larger is not a cortex.yaml."""
MAX_DEPTH = 64
MAX_VALUES = 50_000
"""Values after expanding aliases: about two seconds of parsing. Larger samples belong into a file of their own."""
CHARACTERS_PER_VALUE = 100
"""A long text counts as several values, so that aliases cannot repeat it into gigabytes."""
MAX_NUMBER_CHARACTERS = 100

Path = tuple[str | int, ...]

_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_END = re.compile(r"\r\n|\n|\r")
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"([-+]?)(?:\.(inf|Inf|INF)|(\.nan|\.NaN|\.NAN))")
_COMPARED_ANCHORS = 100
_MAX_TAG_CHARACTERS = 100
_TAG_ENDS = frozenset("\0 \t\r\n\x85\u2028\u2029")
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing that is wrong with the text itself."""

    index: int
    """Of a character, counted from 0."""
    reference: str
    message: str
    hint: str = ""
    path: Path = ()
    """Where in the tree, as far as that was known."""


class UnreadableError(Exception):
    """There is no tree. `flaws` are all that were found up to where reading ended, as (line, column, flaw)."""

    def __init__(self, flaws: Sequence[tuple[int, int, Flaw]]) -> None:
        self.flaws = tuple(flaws)
        super().__init__("; ".join(flaw.message for _, _, flaw in flaws))


@dataclass(slots=True, eq=False)
class ScalarNode:
    value: str | int | float | bool | None
    text: str
    """As written, without quotes."""
    plain: bool
    """Written without quotes: a string then only because it looks like nothing else."""
    depth: int = 0

    @property
    def size(self) -> int:
        return 1 + len(self.text) // CHARACTERS_PER_VALUE


@dataclass(slots=True, eq=False)
class ListNode:
    items: list[tuple[int, Node]] = field(default_factory=list)
    """Where each item begins, and the item."""
    size: int = 0
    """Values in it, itself included, with aliases expanded; 0 while it is being read."""
    depth: int = 0


@dataclass(slots=True, eq=False)
class MapNode:
    entries: dict[str, tuple[int, Node]] = field(default_factory=dict)
    """Where each key begins, and its value."""
    size: int = 0
    depth: int = 0


Node = ScalarNode | ListNode | MapNode
_MISSING = ScalarNode(None, "", plain=False)
"""Stands for what an unknown alias was to repeat: nothing more is said about it."""


class Document:
    """One parsed YAML text."""

    def __init__(self, root: Node | None, flaws: Sequence[Flaw], lines: _Lines, *, start: int = 0) -> None:
        """`start` is where the root begins."""
        self.root = root
        """None: the text holds no value at all."""
        self.flaws = tuple(flaws)
        self._lines = lines
        self._start = start

    def position(self, index: int) -> tuple[int, int]:
        """Return (line, column), both from 1, of a character counted from 0."""
        return self._lines.position(index)

    def locate(self, path: Sequence[str | int]) -> tuple[int, int]:
        """Return (line, column) of the key or list item at `path`, or of the nearest one above it that exists."""
        return self.position(self._find(path)[0])

    def written(self, path: Sequence[str | int]) -> str | None:
        """Return the spelling of the plain scalar at `path`; None if there is something else or nothing."""
        _, node, complete = self._find(path)
        return node.text if complete and isinstance(node, ScalarNode) and node.plain else None

    def value(self, as_written: Callable[[Path, object], bool] = lambda path, value: False) -> Any:
        """
        Return the tree as dicts, lists and scalars, aliases expanded.

        Args:
            as_written: tells at which paths which numbers and booleans are wanted as the string that was written.
        """
        return None if self.root is None else _plain(self.root, (), as_written)

    def wrapped(self) -> Document:
        """Return this document as the only item of a list."""
        root = ListNode([(self._start, self.root)] if self.root is not None else [])
        flaws = [replace(flaw, path=(0, *flaw.path)) for flaw in self.flaws]
        return Document(root, flaws, self._lines, start=self._start)

    def node(self, path: Sequence[str | int]) -> Node | None:
        """Return what stands at `path`, None if nothing does."""
        _, node, complete = self._find(path)
        return node if complete else None

    def with_mapping(self, number: int, mapping: MapNode) -> Document:
        """Return this document with another mapping as item `number` of its list; positions stay what they were."""
        assert isinstance(self.root, ListNode)
        items = [*self.root.items]
        items[number] = (items[number][0], mapping)
        return Document(replace(self.root, items=items), self.flaws, self._lines, start=self._start)

    def _find(self, path: Sequence[str | int]) -> tuple[int, Node | None, bool]:
        index, node = self._start, self.root
        for part in path:
            if isinstance(node, MapNode) and isinstance(part, str) and part in node.entries:
                index, node = node.entries[part]
            elif isinstance(node, ListNode) and isinstance(part, int) and 0 <= part < len(node.items):
                index, node = node.items[part]
            else:
                return index, node, False
        return index, node, True


def spelled(node: Node) -> str:
    """Return a value as it may be written behind a key: a plain scalar as it was, everything else as JSON."""
    if isinstance(node, ScalarNode) and node.plain:
        return node.text or "null"
    return json.dumps(_plain(node, (), lambda path, value: False), ensure_ascii=False)


def parse(text: str | bytes) -> Document:
    """
    Return the tree of a YAML text.

    Raises:
        UnreadableError: it is no YAML, not UTF-8, or beyond a limit. What is wrong but leaves a tree, such as a
            duplicate key, is in `Document.flaws`.
    """
    if isinstance(text, bytes):
        text = _decoded(text)
    elif len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _too_large()
    start = 1 if text.startswith("\ufeff") else 0
    lines = _Lines(text, start)
    text = text[start:]
    wrong = _NOT_YAML.search(text)
    if wrong is not None:
        code = f"U+{ord(wrong[0]):04X}"
        raise lines.unreadable(
            Flaw(wrong.start(), "bad-character", f"the character {code} is not allowed in YAML", "delete the character")
        )
    tree = _Tree(lines)
    try:
        tree.read(text)
    except _Stop as stop:
        raise lines.unreadable(*tree.flaws, stop.flaw) from None
    except MarkedYAMLError as error:
        raise lines.unreadable(*tree.flaws, _syntax_flaw(error, text)) from None
    except (YAMLError, ValueError, OverflowError):  # ruamel.yaml lets those of chr() and int() through
        message = "what follows has an escape or a number that is out of range"
        flaw = Flaw(tree.last_index, "yaml-syntax", message, _ESCAPE_HINT)
        raise lines.unreadable(*tree.flaws, flaw) from None
    return Document(tree.root, tree.flaws, lines, start=tree.start)


class _Lines:
    """Line and column of characters, as editors count them."""

    def __init__(self, text: str, start: int = 0) -> None:
        """`start` characters at the beginning do not count: a byte order mark."""
        self._starts = [0] + [match.end() - start for match in _LINE_END.finditer(text)]

    def position(self, index: int) -> tuple[int, int]:
        line = bisect.bisect_right(self._starts, index)
        return line, index - self._starts[line - 1] + 1

    def unreadable(self, *flaws: Flaw) -> UnreadableError:
        return UnreadableError([(*self.position(flaw.index), flaw) for flaw in flaws])


class _Scanner(Scanner):
    """Refuses endless tags: ruamel.yaml decodes them in quadratic time, half a minute for one of a megabyte."""

    def scan_tag(self) -> Any:
        if all(self.reader.peek(ahead) not in _TAG_ENDS for ahead in range(_MAX_TAG_CHARACTERS)):
            raise ScannerError("while scanning a tag", self.reader.get_mark(), "too long", self.reader.get_mark())
        return super().scan_tag()


class _Stop(Exception):
    """Reading ends here."""

    def __init__(self, flaw: Flaw) -> None:
        self.flaw = flaw


@dataclass(slots=True)
class _Open:
    """A list or mapping that is being read."""

    index: int
    node: ListNode | MapNode
    key: str | None = None
    """The key whose value comes next; None if that value is dropped."""
    is_merge: bool = False
    """The key is a plain `<<`."""
    key_index: int = 0
    awaits_value: bool = False
    merges: list[tuple[int, Node]] = field(default_factory=list)
    key_indexes: dict[str, int] = field(default_factory=dict)
    """Where each key stands, to tell where the first of two is."""


class _Tree:
    """Builds the tree from events, with a stack of its own instead of recursion."""

    def __init__(self, lines: _Lines) -> None:
        self.root: Node | None = None
        self.start = 0
        self.flaws: list[Flaw] = []
        self.last_index = 0
        self._lines = lines
        self._stack: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._values = 0
        self._documents = 0

    def read(self, text: str) -> None:
        yaml = YAML(typ="safe", pure=True)
        yaml.Scanner = _Scanner
        for event in yaml.parse(text):
            self.last_index = index = event.start_mark.index
            if isinstance(event, DocumentStartEvent):
                self._documents += 1
                if self._documents > 1:
                    self._flaw(
                        index,
                        "several-documents",
                        "a second YAML document begins here",
                        "keep one file to one document",
                    )
                    return
            elif isinstance(event, ScalarEvent):
                self._value(index, self._scalar(event), event.anchor)
            elif isinstance(event, AliasEvent):
                self._value(index, self._alias(event), None)
            elif isinstance(event, SequenceStartEvent | MappingStartEvent):
                self._open(event)
            elif isinstance(event, SequenceEndEvent | MappingEndEvent):
                self._close()

    def _flaw(self, index: int, reference: str, message: str, hint: str = "") -> None:
        self.flaws.append(Flaw(index, reference, message, hint, self._path()))

    def _stop(self, index: int, reference: str, message: str, hint: str = "") -> _Stop:
        return _Stop(Flaw(index, reference, message, hint, self._path()))

    def _path(self) -> Path:
        """Where reading is: the keys and indexes of everything open."""
        parts: list[str | int] = []
        for open_ in self._stack:
            if isinstance(open_.node, ListNode):
                parts.append(len(open_.node.items))
            elif open_.awaits_value and open_.key is not None:
                parts.append(open_.key)
            else:
                break
        return tuple(parts)

    def _scalar(self, event: Any) -> ScalarNode:
        text = _joined_surrogates(event.value)
        if text is None:
            self._flaw(
                event.start_mark.index, "bad-character", "half of a surrogate pair is not a character", _ESCAPE_HINT
            )
            text = ""
        plain = event.style is None
        tag = self._tag(event)
        if tag == "str" or (tag is None and not plain):
            return ScalarNode(text, text, plain=False)
        value = self._resolved(event, text)
        kind = {bool: "bool", int: "int", float: "float", type(None): "null", str: "str"}[type(value)]
        if tag == "float" and isinstance(value, int) and kind == "int":
            value, kind = float(value), "float"
        if tag is not None and tag != kind:
            self._flaw(
                event.start_mark.index, "unsupported-tag", f"{quoted(text)} is not of type !!{tag}", "remove the tag"
            )
        return ScalarNode(value, text, plain)

    def _resolved(self, event: Any, text: str) -> str | int | float | bool | None:
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        is_int = _INT.fullmatch(text)
        if not is_int and not _FLOAT.fullmatch(text):
            special = _SPECIAL_FLOAT.fullmatch(text)
            return text if special is None else float(special[1] + (special[2] or "nan"))
        if len(text) > MAX_NUMBER_CHARACTERS:
            message = f"expected a number of at most {MAX_NUMBER_CHARACTERS} digits, found {len(text)}"
            self._flaw(event.start_mark.index, "out-of-range", message, "quote it if it is text")
            return 0
        if not is_int:
            return float(text)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)

    def _tag(self, event: Any) -> str | None:
        """Return the name of a tag of YAML's own, None without one or with one that was refused."""
        tag = event.tag
        if tag is None:
            return None
        if tag == "!":
            return "str" if isinstance(event, ScalarEvent) else None
        name = str(tag).removeprefix(_TAG)
        fits = {
            ScalarEvent: ("str", "int", "float", "bool", "null"),
            SequenceStartEvent: ("seq",),
            MappingStartEvent: ("map",),
        }[type(event)]
        if str(tag).startswith(_TAG) and name in fits:
            return name
        shown = f"!!{name}" if str(tag).startswith(_TAG) else str(tag)
        self._flaw(
            event.start_mark.index, "unsupported-tag", f"the tag {quoted(shown)} has no meaning here", "remove the tag"
        )
        return None

    def _alias(self, event: Any) -> Node:
        name, index = str(event.anchor), event.start_mark.index
        node = self._anchors.get(name)
        if node is None:
            meant = nearest(name, self._anchors) if len(self._anchors) < _COMPARED_ANCHORS else None
            hint = f'did you mean "*{meant}"?' if meant else f'quote it if it is text: "*{name}"'
            self._flaw(index, "unknown-alias", f"no anchor {quoted('&' + name)} stands above this alias", hint)
            return _MISSING
        if node.size == 0:
            raise self._stop(
                index,
                "alias-loop",
                f"the alias {quoted('*' + name)} stands inside the value that it repeats",
                "write the value out",
            )
        return node

    def _open(self, event: Any) -> None:
        index = event.start_mark.index
        self._count(index, 1, 0)
        self._tag(event)
        node = ListNode() if isinstance(event, SequenceStartEvent) else MapNode()
        if event.anchor:
            self._anchors[str(event.anchor)] = node
        self._stack.append(_Open(index, node))

    def _close(self) -> None:
        open_ = self._stack.pop()
        node = open_.node
        children = [child for _, child in (node.items if isinstance(node, ListNode) else node.entries.values())]
        children += [child for _, child in open_.merges]
        node.size = 1 + sum(child.size for child in children)
        node.depth = 1 + max((child.depth for child in children), default=0)
        if isinstance(node, MapNode):
            for index, merged in open_.merges:
                self._merge(node, index, merged)
        self._attach(open_.index, node)

    def _value(self, index: int, node: Node, anchor: Any) -> None:
        self._count(index, node.size, node.depth)
        if anchor:
            self._anchors[str(anchor)] = node
        self._attach(index, node)

    def _count(self, index: int, size: int, depth: int) -> None:
        self._values += size
        if self._values > MAX_VALUES:
            raise self._stop(
                index,
                "too-many-values",
                f"expected at most {MAX_VALUES} values with aliases expanded, found more",
                _FILE_HINT,
            )
        if len(self._stack) + depth >= MAX_DEPTH:
            raise self._stop(
                index, "too-deep", f"expected at most {MAX_DEPTH} levels of nesting, found more", _FILE_HINT
            )

    def _attach(self, index: int, node: Node) -> None:
        """Put a finished value where it belongs: the root, the next item, the next key or the value of the last key."""
        if not self._stack:
            self.root, self.start = node, index
            return
        parent = self._stack[-1]
        if isinstance(parent.node, ListNode):
            parent.node.items.append((index, node))
        elif not parent.awaits_value:
            parent.key, parent.key_index, parent.awaits_value = self._key(parent, index, node), index, True
            parent.is_merge = parent.key == "<<" and isinstance(node, ScalarNode) and node.plain
        else:
            parent.awaits_value = False
            if parent.is_merge:
                parent.merges.append((index, node))
            elif parent.key is not None:
                parent.node.entries[parent.key] = (parent.key_index, node)

    def _key(self, parent: _Open, index: int, node: Node) -> str | None:
        """Return the key to keep the next value under, None to drop it."""
        if not isinstance(node, ScalarNode) or not isinstance(node.value, str):
            if node is not _MISSING:
                self._refuse_key(index, node)
            return None
        first = parent.key_indexes.setdefault(node.value, index)
        if first != index:
            line, column = self._lines.position(first)
            message = f"{quoted(node.value)} stands here a second time; the first is at line {line}, column {column}"
            path = (*self._path(), node.value)
            self.flaws.append(Flaw(index, "duplicate-key", message, "delete one of the two", path))
            return None
        return node.value

    def _refuse_key(self, index: int, node: Node) -> None:
        if not isinstance(node, ScalarNode):
            what = found([] if isinstance(node, ListNode) else {})
            hint = 'quote the whole value if it is text that begins with "{" or "["'
        else:
            what = found(node.value, node.text)
            hint = f'quote it: "{node.text}"' if node.text else 'write a key in front of the ":"'
        self._flaw(index, "key-not-text", f"expected a string as key, found {what}", hint)

    def _merge(self, into: MapNode, index: int, node: Node) -> None:
        sources = [item for _, item in node.items] if isinstance(node, ListNode) else [node]
        for source in sources:
            if source is _MISSING:
                continue
            if not isinstance(source, MapNode):
                self._flaw(
                    index,
                    "bad-merge",
                    '"<<" takes a mapping or a list of mappings',
                    "write, for example, <<: *defaults",
                )
                return
            for key, entry in source.entries.items():
                into.entries.setdefault(key, entry)


def _plain(node: Node, path: Path, as_written: Callable[[Path, object], bool]) -> Any:
    if isinstance(node, ListNode):
        return [_plain(item, (*path, number), as_written) for number, (_, item) in enumerate(node.items)]
    if isinstance(node, MapNode):
        return {key: _plain(value, (*path, key), as_written) for key, (_, value) in node.entries.items()}
    if isinstance(node.value, bool | int | float) and as_written(path, node.value):
        return node.text
    return node.value


def _decoded(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise _too_large()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            message, hint = "the file is UTF-16", "save it as UTF-8"
        else:
            message, hint = f"the byte 0x{data[error.start]:02X} is not UTF-8", "save the file as UTF-8"
        start = 1 if before.startswith("\ufeff") else 0
        raise _Lines(before, start).unreadable(Flaw(len(before) - start, "not-utf8", message, hint)) from None


def _too_large() -> UnreadableError:
    message = f"expected at most {MAX_BYTES // 1024} KiB, found more"
    return _Lines("").unreadable(Flaw(0, "file-too-large", message, _FILE_HINT))


def _joined_surrogates(text: str) -> str | None:
    """Return text with pairs of surrogates (`"\\ud83d\\ude00"`, as JSON escapes them) joined; None if one is alone."""
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        return None


@dataclass(frozen=True, slots=True)
class _Rule:
    """What to say when ruamel.yaml says `pattern`, matched against "context: problem"."""

    pattern: str
    message: str
    """`{0}` is what the pattern's group found, `{line}` the line where the construct began."""
    hint: str = ""
    reference: str = "yaml-syntax"
    at_start: bool = False
    """The mistake is where the construct began rather than where it was noticed."""


_FILE_HINT = "put a large sample into a file of its own: sample: sample.json"
_ESCAPE_HINT = "use single quotes, or write two backslashes for one"
_INDENT_HINT = "indent with spaces: keys of one mapping, and the dashes of one list, stand exactly below each other"
_RULES = (
    _Rule(r"found character '\\t'", "a tab stands where YAML wants spaces", "replace it by spaces", "tab"),
    _Rule(r"found character '(.+?)' that cannot start", 'a value cannot begin with "{0}"', "quote the value"),
    _Rule(
        r"mapping values are not allowed",
        'a ":" is not expected here',
        "check the indentation of this line and the one above, or quote the value if the colon is part of it",
    ),
    _Rule(
        r"simple key: could not find expected ':'",
        'a ":" is missing after this key',
        'write "key: value", with a space after the colon',
        at_start=True,
    ),
    _Rule(
        r"quoted scalar: found unexpected",
        "the quote that opens here is not closed",
        "add the closing quote",
        at_start=True,
    ),
    _Rule(
        r"unknown escape character ['\"](.+?)['\"]$",
        'a backslash before "{0}" has no meaning in double quotes',
        _ESCAPE_HINT,
    ),
    _Rule(r"expected escape sequence of (\d+)", "this escape needs {0} hexadecimal digits", _ESCAPE_HINT),
    _Rule(
        r"expected ',' or '(.)', but got '<stream end>'",
        'the bracket that opens here is not closed: "{0}" is missing',
        'add "{0}"',
        at_start=True,
    ),
    _Rule(
        r"expected ',' or '(.)'",
        'expected "," or "{0}" for the bracket that opens in line {line}',
        'add the comma or the "{0}", or quote the value',
    ),
    _Rule(
        r"expected <block end>, but found '<scalar>'",
        "text follows after a value has ended",
        "quote the whole value; inside single quotes a quote is written twice",
    ),
    _Rule(
        r"expected <block end>, but found '-'",
        'a "- " is not expected here: the block that began in line {line} goes on with keys',
        _INDENT_HINT,
    ),
    _Rule(
        r"expected <block end>",
        "the indentation of this line fits nothing in the block that began in line {line}",
        _INDENT_HINT,
    ),
    _Rule(
        r"expected the node content, but found '<stream end>'",
        "the file ends where a value has to follow",
        "write the value, or close the bracket that is open",
    ),
    _Rule(r"expected the node content, but found '<", "a value has to stand here", "write the value, or quote it"),
    _Rule(r"expected the node content, but found '(.+)'", 'expected a value, found "{0}"', "quote it if it is text"),
    _Rule(r"expected '<document start>'", "expected the end of the file, found more text", _INDENT_HINT),
    _Rule(r"document end marker", 'text follows after "..." has ended the document', "delete what follows"),
    _Rule(r"scanning an (?:anchor|alias)", 'a name has to follow "&" and "*"', "quote the value if it is text"),
    _Rule(
        r"block scalar",
        'the text of "|" or ">" begins on the next line, indented evenly',
        "quote the value if it is not a block of text",
        at_start=True,
    ),
    _Rule(
        r"sequence entries are not allowed", 'a "- " cannot begin here', "put each item of a list on a line of its own"
    ),
    _Rule(r"mapping keys are not allowed", 'a "?" cannot begin here', "quote the value if it is text"),
    _Rule(
        r"\btag\b",
        "a tag has no meaning here",
        'remove it, or quote the value if it begins with "!"',
        "unsupported-tag",
    ),
    _Rule(
        r"directive|incompatible YAML", "YAML directives have no meaning here", 'delete the line that begins with "%"'
    ),
)


def _syntax_flaw(error: MarkedYAMLError, text: str) -> Flaw:
    """Say in plain words what ruamel.yaml's parser stumbled over."""
    said = f"{error.context}: {error.problem}"
    noticed = error.problem_mark or error.context_mark
    began = error.context_mark or error.problem_mark
    for rule in _RULES:
        match = re.search(rule.pattern, said)
        if match is not None:
            mark = began if rule.at_start else noticed
            facts = {"line": began.line + 1 if began else 1}
            message = rule.message.format(*match.groups(), **facts)
            hint = rule.hint.format(*match.groups(), **facts)
            return Flaw(mark.index if mark else len(text), rule.reference, message, hint)
    return Flaw(noticed.index if noticed else len(text), "yaml-syntax", str(error.problem))
