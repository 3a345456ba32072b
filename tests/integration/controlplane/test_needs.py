"""What an agent asks its control plane: `agent.upstream` and `controlplane.needs`, over a real socket."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from cortex.agent.dialing import RefusedByControlPlane, dial_unix, introduce
from cortex.agent.upstream import ControlPlaneAway, LinkedUpstream
from cortex.binding import bind_unix
from cortex.clock import SystemClock
from cortex.controlplane.links import Incarnations, Links
from cortex.controlplane.needs import Needs
from cortex.errors import CortexError, GiveUp, Problem
from cortex.ids import NodeId
from cortex.wire.framing import framed, receive_frame, send_frame
from cortex.wire.link import NEEDS, Hello, TurnedAway, Welcome
from cortex.wire.needs import MAX_PART_BYTES, Need, NeedReply

T = TypeVar("T")
N1 = NodeId("n1")
HELLO = Hello(node=N1, agent="a", way=NEEDS)
DEADLINE_S = 60.0


class FetchWord(Need, frozen=True, kw_only=True, tag="fetch_word"):
    number: int


class Word(NeedReply, frozen=True, kw_only=True, tag="word"):
    word: str


class FetchBook(Need, frozen=True, kw_only=True, tag="fetch_book"):
    offset: int = 0


class NoSuchWord(CortexError):
    reference = "no-such-word"
    hint = "ask for another"


class Library:
    """A control plane that knows some words and a long book."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[tuple[Need, NodeId]] = []
        self.words: Mapping[int, str] = {1: "one", 2: "two"}
        self.pages: Callable[[], Iterator[bytes]] = lambda: iter(())
        self._links: list[Links] = []

    def open(self) -> None:
        needs = Needs({FetchWord: self._word, FetchBook: self._book})
        links = Links(path=self.path, epoch=lambda: 7, incarnations=Incarnations(), ways={NEEDS: needs.serve})
        links.start()
        self._links.append(links)

    def close(self) -> None:
        while self._links:
            self._links.pop().close()

    def _word(self, need: FetchWord, node: NodeId) -> Word:
        self.asked.append((need, node))
        if need.number not in self.words:
            raise NoSuchWord(f"there is no word {need.number}")
        return Word(word=self.words[need.number])

    def _book(self, need: FetchBook, node: NodeId) -> Iterator[bytes]:
        self.asked.append((need, node))
        return self.pages()


@pytest.fixture
def path() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
    yield folder / "links.sock"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def library(path: Path) -> Iterator[Library]:
    library = Library(path)
    yield library
    library.close()


def play(
    path: Path, story: Callable[[LinkedUpstream], Awaitable[T]], *, patience_s: float = DEADLINE_S, hello: Hello = HELLO
) -> T:
    async def run() -> T:
        upstream = LinkedUpstream(
            introduce=partial(introduce, dial_unix(path)), hello=hello, clock=SystemClock(), patience_s=patience_s
        )
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await story(upstream)
        finally:
            await upstream.close()

    return asyncio.run(run())


async def book(upstream: LinkedUpstream) -> bytes:
    return b"".join([part async for part in upstream.stream(FetchBook())])


def test_a_question_is_answered_by_the_function_of_its_kind_which_hears_whose_it_is(library: Library) -> None:
    library.open()
    assert play(library.path, lambda upstream: upstream.ask(FetchWord(number=2), Word)) == Word(word="two")
    assert library.asked == [(FetchWord(number=2), N1)]


def test_questions_asked_at_once_do_not_wait_for_each_other(library: Library) -> None:
    library.open()

    async def story(upstream: LinkedUpstream) -> list[Word]:
        slow = upstream.stream(FetchBook())
        library.pages = lambda: iter([b"first", b"second"])
        await anext(slow)
        words = [upstream.ask(FetchWord(number=1 + number % 2), Word) for number in range(10)]
        found = await asyncio.gather(*words)
        assert [part async for part in slow] == [b"second"]
        return found

    assert [word.word for word in play(library.path, story)] == ["one", "two"] * 5


def test_what_is_refused_says_why_and_the_next_question_is_answered(library: Library) -> None:
    library.open()

    async def story(upstream: LinkedUpstream) -> Word:
        with pytest.raises(GiveUp) as refused:
            await upstream.ask(FetchWord(number=3), Word)
        assert refused.value.problem() == Problem(
            reference="no-such-word", message="there is no word 3", hint="ask for another"
        )
        return await upstream.ask(FetchWord(number=1), Word)

    assert play(library.path, story) == Word(word="one")


def test_a_fault_of_whoever_answers_is_refused_and_the_next_question_is_answered(library: Library) -> None:
    library.open()

    async def story(upstream: LinkedUpstream) -> Word:
        def spoilt() -> Iterator[bytes]:
            yield b"part"
            raise ValueError("torn page")

        library.pages = spoilt
        parts = upstream.stream(FetchBook())
        assert await anext(parts) == b"part"
        with pytest.raises(GiveUp, match="torn page"):
            await anext(parts)
        return await upstream.ask(FetchWord(number=1), Word)

    assert play(library.path, story) == Word(word="one")


def test_a_question_that_the_control_plane_does_not_know_is_refused(library: Library) -> None:
    class FetchSong(Need, frozen=True, kw_only=True, tag="fetch_song"):
        pass

    library.open()
    with pytest.raises(GiveUp, match="fetch_song"):
        play(library.path, lambda upstream: upstream.ask(FetchSong(), Word))


def test_what_is_long_comes_in_parts_that_are_not_too_long(library: Library) -> None:
    pages = [b"a" * (2 * MAX_PART_BYTES + 1), b"", b"b"]
    library.pages = lambda: iter(pages)
    library.open()
    assert play(library.path, book) == b"".join(pages)


def test_whoever_wants_no_more_parts_leaves_and_others_are_answered(library: Library) -> None:
    library.pages = lambda: (b"x" * MAX_PART_BYTES for _ in range(1000))
    library.open()

    async def story(upstream: LinkedUpstream) -> Word:
        async for _part in upstream.stream(FetchBook()):
            break
        return await upstream.ask(FetchWord(number=1), Word)

    assert play(library.path, story) == Word(word="one")


def test_a_control_plane_that_is_away_is_waited_for(library: Library) -> None:
    async def story(upstream: LinkedUpstream) -> Word:
        asked = asyncio.ensure_future(upstream.ask(FetchWord(number=1), Word))
        await asyncio.sleep(0)
        library.open()
        return await asked

    assert play(library.path, story) == Word(word="one")


def test_a_control_plane_that_stays_away_is_given_up(library: Library) -> None:
    with pytest.raises(ControlPlaneAway):
        play(library.path, lambda upstream: upstream.ask(FetchWord(number=1), Word), patience_s=0.0)


def answer_once(listener: socket.socket) -> None:
    """A control plane that answers one question, and is gone."""
    line, _ = listener.accept()
    with line:
        line.settimeout(DEADLINE_S)
        receive_frame(line)
        send_frame(line, msgspec.json.encode(Welcome(epoch=1)))
        receive_frame(line)
        send_frame(line, msgspec.json.encode(Word(word="one")))


def test_the_next_control_plane_answers_on_a_connection_of_its_own(path: Path) -> None:
    async def story(upstream: LinkedUpstream) -> list[Word]:
        found = []
        for _ in range(3):
            with bind_unix(path) as listener:
                asked = asyncio.ensure_future(upstream.ask(FetchWord(number=1), Word))
                await asyncio.to_thread(answer_once, listener)
                found.append(await asked)
        return found

    assert play(path, story) == [Word(word="one")] * 3


def test_an_agent_of_another_version_is_turned_away_with_both_named(library: Library) -> None:
    library.open()
    hello = msgspec.structs.replace(HELLO, version="9.9.9", protocol=99)
    with pytest.raises(RefusedByControlPlane, match=r"9\.9\.9 \(protocol 99\).*its control plane Cortex"):
        play(library.path, lambda upstream: upstream.ask(FetchWord(number=1), Word), hello=hello)


def test_a_way_that_nobody_knows_is_turned_away(library: Library) -> None:
    library.open()
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(DEADLINE_S)
        line.connect(str(library.path))
        send_frame(line, msgspec.json.encode(msgspec.structs.replace(HELLO, way="songs")))
        reply = msgspec.json.decode(receive_frame(line)[0], type=TurnedAway)
        assert "songs" in reply.reason
        assert line.recv(1) == b""


@pytest.mark.parametrize("said", [framed(b"no json"), b"", b"\xff\xff\xff\xff"], ids=["no hello", "gone", "no frame"])
def test_who_does_not_say_who_it_is_is_left_and_harms_nobody(library: Library, said: bytes) -> None:
    library.open()
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(DEADLINE_S)
        line.connect(str(library.path))
        line.sendall(said)
        line.shutdown(socket.SHUT_WR)
        assert line.recv(1) == b""
    assert play(library.path, lambda upstream: upstream.ask(FetchWord(number=1), Word)) == Word(word="one")
