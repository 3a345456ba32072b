"""
Client of HAProxy's admin socket: commands in batches, answers as typed rows.

Source: HAProxy 2.8 management guide, 9.1 "CSV format" and 9.3 "Unix Socket commands"; error answers and the form of
the prompt as 2.8.25 was seen to give them.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from cortex import processes
from cortex.ingress.configuration import (
    FRONTEND,
    PROBES,
    TABLE,
    Refusal,
    WorkerLabel,
    parse_label,
)
from cortex.ingress.convergence import Holdings, ServerAddress, ServerState, escaped
from cortex.ingress.errors import AdminUnreachable, CommandsRefused
from cortex.ingress.peers import HOLD_KEY, NOBODY_KEY, PEER_KEY, WATCHED, place_number
from cortex.ingress.pool import backend_name, backend_number, near_name, near_number

_PROMPT = b"\n> "
_SEVERITY = re.compile(r"\[(\d)\]: ")
_MOVED = "by 'stats socket command'"
"""So ends the warning with which HAProxy says that a server has another address now, as it was told."""
_WORST_ACCEPTABLE = 5
"""Syslog severities: 0 to 4 are warnings and errors, 5 and 6 notices and information."""
_FRONTENDS, _BACKENDS, _SERVERS = 1, 2, 4
_IN_MAINTENANCE = 3
"""Bits of `srv_admin_state`: it was put there, by a command or by the server that it follows."""
_TRAFFIC = ("pxname", "svname", "qcur", "scur", "stot")
_ASKED_SINGLY = 64
"""Of 512 backends, HAProxy takes as long to show so many one by one as to show all at once: 2.5 ms."""


class WorkerInfo(msgspec.Struct, frozen=True):
    """Who answers at an admin socket."""

    pid: int
    label: WorkerLabel | None
    """None for a configuration that is not ours."""
    version: str


class FrontendRow(msgspec.Struct, frozen=True):
    """The public side of a worker."""

    connections: int
    """Client connections, idle ones too."""
    listening: bool


class BackendRow(msgspec.Struct, frozen=True):
    """One pool backend, together with the one beside it that is for peers, where there are peers."""

    backend: int
    requests: int
    """In it now: waiting for their body, queued, or at a server."""
    begun: int = 0
    """
    Since the worker started; also what was refused, but no probes, and nothing that came from a peer. May have been
    more at an earlier look.
    """
    queued: int = 0
    """Those in it now that wait for a server."""
    done: Mapping[str, int] = {}
    """Requests that each replica has answered since it came, by server; only `traffic` asks for these two."""
    given: int = 0
    """Those in it now that a replica here has, but for probes."""


class ServerRow(msgspec.Struct, frozen=True):
    """One server."""

    address: ServerAddress
    requests: int
    """At it or queued for it now; idle connections do not count."""
    max_connections: int
    """0: as many as come."""
    in_rotation: bool
    weight: int = 1


class RefusalRow(msgspec.Struct, frozen=True):
    """What the ingress answered itself for one api since the worker started."""

    api: str
    counts: dict[Refusal, int]


class AdminSocket:
    """
    One worker's admin socket. Keeps nothing open between calls, but for what is asked again and again: `refusals` and
    `traffic`.
    """

    def __init__(self, path: Path, *, timeout_s: float = 5.0) -> None:
        self.path = path
        self.has_peers = False
        """Set once the worker is known to have peers: what it has for them is then asked for as well."""
        self.timeout_s = timeout_s
        self._kept: _Conversation | None = None

    def close(self) -> None:
        """Leave nothing open; the next call may open it again."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    async def run(self, commands: Iterable[str]) -> list[str]:
        """
        Carry out commands in order and return their answers, without the trailing newlines.

        All are sent at once; HAProxy works through them and stops at none.

        Raises:
            AdminUnreachable: no connection, or not everything answered in time; names the socket.
            CommandsRefused: some were refused; names each with the answer. The others were carried out.
        """
        batch = list(commands)
        if not batch:
            return []
        answers, _ = await self._exchange(batch)
        _raise_refused(batch, answers)
        return answers

    async def info(self) -> WorkerInfo:
        """
        Who answers, with the pid that the kernel knows the listener by.

        Raises:
            AdminUnreachable: also when the answering process says it is another than the one that listens.
        """
        (answer,), listener_pid = await self._exchange(["show info"])
        facts = dict(line.split(": ", 1) for line in answer.splitlines() if ": " in line)
        pid = int(facts.get("Pid", 0))
        if pid != listener_pid:
            raise AdminUnreachable(self.path, f"process {pid} answers for listener {listener_pid}")
        return WorkerInfo(pid=pid, label=parse_label(facts.get("description", "")), version=facts.get("Version", ""))

    async def entries(self, map_file: str) -> dict[str, str]:
        """The map: value by path."""
        (answer,) = await self.run([f"show map {escaped(map_file)}"])
        entries: dict[str, str] = {}
        for line in answer.splitlines():
            _, path, value = line.split(" ", 2)
            entries.setdefault(path, value)
        return entries

    async def holdings(self, map_file: str) -> Holdings:
        """Everything that `convergence` compares."""
        servers = await self.servers()
        return Holdings(
            entries=await self.entries(map_file),
            servers={
                row.address: ServerState(
                    max_connections=row.max_connections, in_rotation=row.in_rotation, weight=row.weight
                )
                for row in servers
            },
            places=await self.places() if self.has_peers else {},
        )

    async def servers(self, backends: Sequence[int] | None = None) -> list[ServerRow]:
        """Servers of some backends, by default of the whole pool and, where there are any, those for peers."""
        rows: list[ServerRow] = []
        for row in await self._rows(_SERVERS, _proxies(backends, peers=self.has_peers)):
            backend, near = _backend_of(row["pxname"])
            if backend is None or row["svname"] in (HOLD_KEY, NOBODY_KEY):  # which every backend has
                continue
            rows.append(
                ServerRow(
                    address=ServerAddress(backend=backend, key=row["svname"], near=near),
                    requests=_number(row, "scur") + _number(row, "qcur"),
                    max_connections=_number(row, "slim"),
                    in_rotation=not row["status"].startswith(("MAINT", "DRAIN")),
                    weight=_number(row, "weight") if row["svname"].startswith(PEER_KEY) else 1,
                )
            )
        return rows

    async def places(self) -> dict[int, str]:
        """Address of the peer at each place in use."""
        (answer,) = await self.run([f"show servers state {WATCHED}"])
        _, head, *lines = answer.splitlines()
        columns = head.removeprefix("# ").split(" ")
        found: dict[int, str] = {}
        for line in lines:
            facts = dict(zip(columns, line.split(" "), strict=False))
            place = place_number(facts.get("srv_name", ""))
            if place is not None and not int(facts["srv_admin_state"]) & _IN_MAINTENANCE:
                host = facts["srv_addr"]
                found[place] = f"[{host}]:{facts['srv_port']}" if ":" in host else f"{host}:{facts['srv_port']}"
        return found

    async def backends(self, backends: Sequence[int] | None = None) -> list[BackendRow]:
        """Those of the pool with these numbers, by default of the whole pool."""
        probes = _probes(*await self.run([_SHOW_PROBES]))
        found = _Tally(probes, probes)
        for row in await self._rows(_BACKENDS, _proxies(backends, peers=self.has_peers)):
            backend, near = _backend_of(row["pxname"])
            if backend is not None:
                found.note_backend(backend, near, _number(row, "qcur"), _number(row, "scur"), _number(row, "stot"))
        return found.rows()

    async def traffic(self, backends: Sequence[int]) -> list[BackendRow]:
        """What has come to these backends, and what their replicas make of it."""
        if not backends:
            return []
        proxies = _proxies(None if len(backends) > _ASKED_SINGLY else backends, peers=self.has_peers)
        stats = [f"show stat {proxy} {_BACKENDS | _SERVERS} -1" for proxy in proxies]
        commands = [_SHOW_PROBES, *stats, _SHOW_PROBES]
        shown, *answers, shown_again = replies = await self._answers_again(commands)
        _raise_refused(commands, replies)
        asked = set(backends)
        found = _Tally(_probes(shown), _probes(shown_again))
        for proxy, name, *facts in (cells for answer in answers for cells in _cells(answer, _TRAFFIC)):
            backend, near = _backend_of(proxy)
            if backend is None or backend not in asked:
                continue
            queued, requests, begun = (int(fact or 0) for fact in facts)
            if name == "BACKEND":
                found.note_backend(backend, near, queued, requests, begun)
            elif not name.startswith(PEER_KEY):  # what is at a peer is counted there
                found.note_server(backend, f"near/{name}" if near else name, requests, begun - requests)
        return found.rows()

    async def requests(self) -> int:
        """Requests that are not completely answered, wherever they are."""
        return sum(_number(row, "scur") for row in await self._rows(_BACKENDS, ["-1"]))

    async def frontend(self) -> FrontendRow:
        """The public side, with the connections of peers."""
        rows = await self._rows(_FRONTENDS, ["-1" if self.has_peers else FRONTEND])
        return FrontendRow(
            connections=sum(_number(row, "scur") for row in rows),
            listening=any(row["status"] != "STOP" for row in rows if row["pxname"] == FRONTEND),
        )

    async def refusals(self) -> list[RefusalRow]:
        """What the worker answered itself, by api; an api that it never refused has no row."""
        command = f"show table {TABLE}"
        (answer,) = await self._answers_again([command])
        _raise_refused([command], [answer])
        rows: list[RefusalRow] = []
        for facts in _entries(answer):
            counts = {refusal: int(facts.get(f"gpc{n}", 0)) for n, refusal in enumerate(Refusal)}
            if any(counts.values()):
                rows.append(RefusalRow(api=facts["key"], counts=counts))
        return rows

    async def delete(self, servers: Sequence[ServerAddress]) -> list[ServerAddress]:
        """Delete servers that are out of rotation; return those that were, the others still have connections."""
        quiet = await self._quiet(servers)
        if not quiet:
            return []
        commands = [command for address in quiet for command in _deletion(address)]
        answers, _ = await self._exchange(commands)
        # "No such server" counts as deleted: what we want is that it is not there.
        gone = ("Server deleted.", "No such server.")
        gone_by = {command for command, answer in zip(commands, answers, strict=True) if answer.endswith(gone)}
        return [address for address in quiet if _deletion(address)[-1] in gone_by]

    async def _quiet(self, servers: Sequence[ServerAddress]) -> list[ServerAddress]:
        """Those of them that may be asked to go: of peers, which drain, those that nothing runs on any more."""
        peers = {address for address in servers if address.key.startswith(PEER_KEY)}
        if not peers:
            return list(servers)
        rows = await self.servers(sorted({address.backend for address in peers}))
        busy = {row.address for row in rows if row.requests and row.address in peers}
        return [address for address in servers if address not in busy]

    async def _rows(self, kind: int, proxies: Sequence[str]) -> list[dict[str, str]]:
        answers = await self.run([f"show stat {proxy} {kind} -1" for proxy in proxies])
        return [row for answer in answers for row in parse_csv(answer)]

    async def _exchange(self, commands: Sequence[str]) -> tuple[list[str], int]:
        with self._naming_errors():
            async with asyncio.timeout(self.timeout_s):
                conversation = await _Conversation.begun(self.path)
                try:
                    return await conversation.ask(commands), conversation.listener_pid
                finally:
                    conversation.close()

    async def _answers_again(self, commands: Sequence[str]) -> list[str]:
        """The answers to questions that change nothing, over the connection on which was asked before."""
        with self._naming_errors():
            async with asyncio.timeout(self.timeout_s):
                conversation, self._kept = self._kept, None  # who is cut short leaves it to nobody
                if conversation is not None:
                    try:
                        return await self._kept_answers(conversation, commands)
                    except OSError:
                        pass  # it has ended since, which says nothing about whoever listens now
                return await self._kept_answers(await _Conversation.begun(self.path), commands)

    async def _kept_answers(self, conversation: _Conversation, commands: Sequence[str]) -> list[str]:
        try:
            answers = await conversation.ask(commands)
        except BaseException:
            conversation.close()
            raise
        self.close()
        self._kept = conversation
        return answers

    @contextlib.contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise AdminUnreachable(self.path, f"no answer within {self.timeout_s:g} s") from None
        except OSError as error:
            raise AdminUnreachable(self.path, error.strerror or str(error)) from error


class _Conversation:
    """
    A connection to an admin socket, in prompt mode: every answer ends with "\\n> ", also that of "prompt" itself. The
    severity in front of an answer is the only sign of an error.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._preamble: tuple[str, ...] = ("prompt", "set severity-output number")
        """What is yet to be said before the first command."""

    @classmethod
    async def begun(cls, path: Path) -> _Conversation:
        return cls(*await asyncio.open_unix_connection(str(path), limit=1 << 20))

    @property
    def listener_pid(self) -> int:
        return processes.listener_pid(self._writer.get_extra_info("socket"))

    async def ask(self, commands: Sequence[str]) -> list[str]:
        """Raises OSError. After that, and when it is cut short, it is good for nothing more."""
        preamble, self._preamble = self._preamble, ()
        self._writer.write(("\n".join((*preamble, *commands)) + "\n").encode())
        answers: list[str] = []
        received = bytearray()
        while len(answers) < len(preamble) + len(commands):
            chunk = await self._reader.read(1 << 18)
            if not chunk:
                raise ConnectionError("it closed the connection in the middle of an answer")
            received += chunk
            if _PROMPT in received:
                *complete, rest = bytes(received).split(_PROMPT)
                answers += [answer.decode(errors="replace").strip("\n") for answer in complete]
                received = bytearray(rest)
        return answers[len(preamble) :]

    def close(self) -> None:
        self._writer.close()


def parse_csv(answer: str) -> list[dict[str, str]]:
    """Rows of `show stat`, by column name."""
    head, _, body = answer.partition("\n")
    columns = head.removeprefix("# ").split(",")
    return [dict(zip(columns, line.split(","), strict=False)) for line in body.splitlines() if line]


def _cells(answer: str, columns: Sequence[str]) -> Iterator[list[str]]:
    """
    These columns of each row of `show stat`: much less work than `parse_csv` where rows are many and columns few.

    Args:
        columns: in the order in which they stand, among the first of each row.
    """
    head, _, body = answer.partition("\n")
    names = head.removeprefix("# ").split(",")
    places = [names.index(column) for column in columns]
    for line in body.splitlines():
        if line:
            cells = line.split(",", places[-1] + 1)
            yield [cells[place] for place in places]


class _Probes(msgspec.Struct, frozen=True):
    """Of one backend."""

    begun: int = 0
    """Here, and not at a peer."""
    come: int = 0
    """Those from peers as well."""
    ended: int = 0
    """Of these."""


_NO_PROBES = _Probes()
_SHOW_PROBES = f"show table {PROBES}"
"""
Probes come and go between this and the counts that they are taken off. `traffic` asks before and after, and takes off
too many sooner than too few: none is taken for a request, and a request that is missing is there at the next look.
`backends` asks before, and takes off too few: nobody is charged with what a backend had counted for another.
"""


def _probes(answer: str) -> dict[int, _Probes]:
    """By backend, from the answer to `_SHOW_PROBES`. Those from peers have begun elsewhere."""
    found: dict[int, _Probes] = {}
    for facts in _entries(answer):
        backend, near = _backend_of(facts["key"])
        if backend is not None:
            others = found.get(backend, _NO_PROBES)
            come, now = int(facts["conn_cnt"]), int(facts["conn_cur"])
            found[backend] = _Probes(
                begun=others.begun + (0 if near else come), come=others.come + come, ended=others.ended + come - now
            )
    return found


class _Tally:
    """Adds up what HAProxy says of a backend, of the one beside it, and of their servers."""

    def __init__(self, before: Mapping[int, _Probes], after: Mapping[int, _Probes]) -> None:
        self._before = before
        self._after = after
        self._rows: dict[int, BackendRow] = {}
        self._done: dict[int, dict[str, int]] = {}
        self._given: Counter[int] = Counter()

    def note_backend(self, backend: int, near: bool, queued: int, requests: int, begun: int) -> None:
        known = self._rows.get(backend, BackendRow(backend=backend, requests=0))
        begun = 0 if near else begun - self._after.get(backend, _NO_PROBES).begun
        self._rows[backend] = BackendRow(backend, known.requests + requests, known.begun + begun, known.queued + queued)

    def note_server(self, backend: int, name: str, requests: int, done: int) -> None:
        self._done.setdefault(backend, {})[name] = done
        self._given[backend] += requests

    def rows(self) -> list[BackendRow]:
        # Whatever of them was there in between had come by the second look, and not ended by the first.
        probes = {key: row.come - self._before.get(key, _NO_PROBES).ended for key, row in self._after.items()}
        self._given.subtract(probes)
        return [
            msgspec.structs.replace(row, done=self._done.get(backend, {}), given=max(0, self._given[backend]))
            for backend, row in self._rows.items()
        ]


def _deletion(address: ServerAddress) -> list[str]:
    """HAProxy deletes none that is not in maintenance."""
    ends = [f"set server {address} state maint"] if address.key.startswith(PEER_KEY) else []
    return [*ends, f"del server {address}"]


def _proxies(backends: Sequence[int] | None, *, peers: bool) -> list[str]:
    """For `show stat`."""
    if backends is None:
        return ["-1"]
    names = [backend_name(backend) for backend in backends]
    return [*names, *(near_name(backend) for backend in backends)] if peers else names


def _backend_of(name: str) -> tuple[int | None, bool]:
    """Number of a backend of the pool, and whether it is the one for peers."""
    number = near_number(name)
    return (backend_number(name), False) if number is None else (number, True)


def _entries(answer: str) -> Iterator[dict[str, str]]:
    """Entries of `show table`, each with its facts by name."""
    for line in answer.splitlines():
        facts = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "key" in facts:
            yield facts


def _number(row: dict[str, str], column: str) -> int:
    return int(row.get(column) or 0)


def _raise_refused(commands: Sequence[str], answers: Sequence[str]) -> None:
    refused = [(c, message) for c, a in zip(commands, answers, strict=True) if (message := _refusal(a))]
    if refused:
        raise CommandsRefused(refused)


def _refusal(answer: str) -> str | None:
    if match := _SEVERITY.match(answer):
        message = answer[match.end() :]
        if message.endswith(_MOVED):
            return None
        if int(match.group(1)) < _WORST_ACCEPTABLE or message.startswith("Unknown command"):
            return message.splitlines()[0]
    return None
