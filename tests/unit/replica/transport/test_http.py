"""One connection, with a transport and a service that only remember."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.replica.bodies.codec import BodyTooLarge
from cortex.replica.transport.http import (
    HUGE_BODY_BYTES,
    JSON,
    STALL_S,
    Connection,
    Exchange,
    Heads,
    HeadTooLarge,
    KnownHeads,
    Limits,
    MalformedRequest,
    RequestStalled,
    render_headers,
)


class Transport:
    def __init__(self) -> None:
        self.written = b""
        self.closing = False
        self.half_closed = False
        self.reading = True

    def write(self, data: bytes) -> None:
        assert not self.closing
        self.written += data

    def close(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half_closed = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> Any:
        return None


class Service:
    """Answers nothing by itself; `now` makes it answer at once."""

    def __init__(self) -> None:
        self.heads = Heads("01234567")
        self.limits = Limits()
        self.shapes = KnownHeads()
        self.draining = False
        self.connections: set[Connection] = set()
        self.handled: list[Exchange] = []
        self.left: list[Exchange] = []
        self.dropped = 0
        self.huge = False
        self.now = False

    def handle(self, exchange: Exchange) -> None:
        self.handled.append(exchange)
        if self.now:
            answer(exchange)

    def gone(self, exchange: Exchange) -> None:
        self.left.append(exchange)

    def never_started(self, count: int) -> None:
        self.dropped += count


class Loop:
    def __init__(self) -> None:
        self.later: list[Any] = []

    def call_later(self, delay_s: float, callback: Any, *arguments: Any) -> None:
        self.later.append((delay_s, callback))


def answer(exchange: Exchange, body: bytes = b"{}", status: int = 200, extra: bytes = b"") -> bool:
    exchange.answered = True
    return exchange.connection.respond(exchange, status, JSON, body, extra)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def transport() -> Transport:
    return Transport()


@pytest.fixture
def connection(service: Service, transport: Transport) -> Connection:
    made = Connection(service, Loop())  # type: ignore[arg-type]
    made.connection_made(transport)  # type: ignore[arg-type]
    return made


def post(body: bytes = b"[1]", *headers: str, version: str = "1.1", target: str = "/a") -> bytes:
    lines = [f"POST {target} HTTP/{version}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def heads_of(written: bytes) -> list[bytes]:
    return [part.split(b"\r\n")[0] for part in written.split(b"HTTP/1.1 ")[1:]]


def test_a_request_is_handed_over_whole(connection: Connection, service: Service) -> None:
    connection.data_received(
        post(b'{"x": 1}', "Content-Type: application/json", "X-Request-ID: abc-1", target="/a?b=c")
    )
    (exchange,) = service.handled
    assert exchange.method == b"POST"
    assert exchange.body == b'{"x": 1}'
    assert exchange.query == b"b=c"
    assert exchange.headers[b"content-type"] == b"application/json"
    assert (exchange.id, exchange.id_bytes) == ("abc-1", b"abc-1")


def test_a_request_in_single_bytes_is_the_same_request(connection: Connection, service: Service) -> None:
    for byte in post(b"hello", "x-request-id: abc", target="/long/path?debug"):
        connection.data_received(bytes([byte]))
    (exchange,) = service.handled
    assert (exchange.body, exchange.id, exchange.query) == (b"hello", "abc", b"debug")


def test_a_chunked_body_is_put_together(connection: Connection, service: Service) -> None:
    connection.data_received(
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nx-t: 1\r\n\r\n"
    )
    (exchange,) = service.handled
    assert exchange.body == b"abcde"
    assert b"x-t" not in exchange.headers, "a trailer is no header"


def test_an_answer_carries_length_id_and_version(
    connection: Connection, service: Service, transport: Transport
) -> None:
    connection.data_received(post(b"[1]", "x-request-id: abc"))
    assert answer(service.handled[0], b'{"a":1}')
    head, _, body = transport.written.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert b"content-length: 7" in lines
    assert b"x-request-id: abc" in lines
    assert b"x-cortex-version: 01234567" in lines
    assert b"content-type: application/json" in lines
    assert body == b'{"a":1}'
    assert not transport.closing


@pytest.mark.parametrize("given", ["", "a b", "\u00e9", "x" * 200])
def test_an_insane_request_id_is_replaced(connection: Connection, service: Service, given: str) -> None:
    connection.data_received(post(b"1", f"x-request-id: {given}"))
    assert service.handled[0].id != given
    assert len(service.handled[0].id) == 16


def test_repeated_headers_are_joined(connection: Connection, service: Service) -> None:
    connection.data_received(post(b"1", "X-Forwarded-For: a", "x-forwarded-for: b", "Cookie: c=1", "Cookie: d=2"))
    headers = service.handled[0].headers
    assert headers[b"x-forwarded-for"] == b"a, b"
    assert headers[b"cookie"] == b"c=1; d=2"


def test_headers_do_not_leak_into_the_next_request(connection: Connection, service: Service) -> None:
    service.now = True
    connection.data_received(post(b"1", "x-a: 1"))
    connection.data_received(post(b"2", "x-b: 1"))
    assert b"x-a" not in service.handled[1].headers
    assert b"x-a" in service.handled[0].headers


def test_pipelined_requests_are_answered_in_order(
    connection: Connection, service: Service, transport: Transport
) -> None:
    connection.data_received(post(b"1") + post(b"2") + post(b"3"))
    assert [e.body for e in service.handled] == [b"1"], "one at a time"
    assert not transport.reading, "what waits bounds what is read"
    for number in range(3):
        answer(service.handled[number], b"%d" % number)
    assert [e.body for e in service.handled] == [b"1", b"2", b"3"]
    assert [part[-1:] for part in transport.written.split(b"HTTP/1.1")[1:]] == [b"0", b"1", b"2"]
    assert transport.reading


def test_hundreds_of_pipelined_requests_need_no_deep_stack(connection: Connection, service: Service) -> None:
    connection.data_received(post(b"x"))
    service.now = True
    connection.data_received(post(b"x") * 2000)
    answer(service.handled[0])
    assert len(service.handled) == 2001


def test_connection_close_ends_the_connection_after_the_answer(
    connection: Connection, service: Service, transport: Transport
) -> None:
    connection.data_received(post(b"1", "connection: close"))
    answer(service.handled[0])
    assert b"connection: close" in transport.written
    assert transport.closing


@pytest.mark.parametrize(("header", "closes"), [("x: y", True), ("Connection: keep-alive", False)])
def test_http_1_0_stays_open_only_when_asked(
    connection: Connection, service: Service, transport: Transport, header: str, closes: bool
) -> None:
    connection.data_received(post(b"1", header, version="1.0"))
    answer(service.handled[0])
    assert transport.closing is closes
    assert (b"connection: keep-alive" in transport.written) is not closes


def test_head_answers_have_a_length_and_no_body(connection: Connection, service: Service, transport: Transport) -> None:
    connection.data_received(b"HEAD / HTTP/1.1\r\n\r\n")
    answer(service.handled[0], b"12345")
    assert b"content-length: 5\r\n" in transport.written
    assert transport.written.endswith(b"\r\n\r\n")


def test_204_has_no_length(connection: Connection, service: Service, transport: Transport) -> None:
    connection.data_received(b"OPTIONS / HTTP/1.1\r\n\r\n")
    answer(service.handled[0], b"", 204, b"allow: GET\r\n")
    assert b"content-length" not in transport.written
    assert b"allow: GET\r\n" in transport.written
    assert transport.written.endswith(b"\r\n\r\n")


def test_expect_continue_is_granted_before_the_body(
    connection: Connection, service: Service, transport: Transport
) -> None:
    connection.data_received(b"POST / HTTP/1.1\r\ncontent-length: 2\r\nExpect: 100-Continue\r\n\r\n")
    assert transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.data_received(b"[]")
    assert service.handled[0].body == b"[]"


def test_expect_continue_waits_for_its_turn(connection: Connection, service: Service, transport: Transport) -> None:
    connection.data_received(post(b"1") + b"POST / HTTP/1.1\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n")
    assert transport.written == b""
    answer(service.handled[0])
    assert transport.written.endswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    connection.data_received(b"[]")
    assert service.handled[1].body == b"[]"


def test_a_length_over_the_limit_is_refused_before_the_body(
    connection: Connection, service: Service, transport: Transport
) -> None:
    connection.data_received(
        b"POST / HTTP/1.1\r\ncontent-length: 11\r\nexpect: 100-continue\r\nx-cortex-limits: 1000,10\r\n\r\n"
    )
    (exchange,) = service.handled
    assert isinstance(exchange.refusal, BodyTooLarge)
    assert b"100 Continue" not in transport.written
    answer(exchange, b"{}", 413)
    assert transport.half_closed, "the rest of the body is still read, so that the answer arrives"
    assert not transport.closing
    connection.data_received(b"x" * 11)
    connection.data_received(post(b"1"))
    assert len(service.handled) == 1


def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(connection: Connection, service: Service) -> None:
    connection.data_received(
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nx-cortex-limits: 1000,4\r\n\r\n3\r\nabc\r\n"
    )
    assert service.handled == []
    connection.data_received(b"2\r\nde\r\n")
    assert isinstance(service.handled[0].refusal, BodyTooLarge)
    answer(service.handled[0], b"{}", 413)
    connection.data_received(b"0\r\n\r\n")
    assert len(service.handled) == 1


def test_a_refusal_behind_a_running_request_waits_for_its_turn(connection: Connection, service: Service) -> None:
    connection.data_received(post(b"1"))
    connection.data_received(post(b"12345", "x-cortex-limits: 1000,4"))
    assert len(service.handled) == 1
    answer(service.handled[0])
    assert isinstance(service.handled[1].refusal, BodyTooLarge)


def test_nonsense_is_refused_and_ends_the_connection(
    connection: Connection, service: Service, transport: Transport
) -> None:
    connection.data_received(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
    (exchange,) = service.handled
    assert isinstance(exchange.refusal, MalformedRequest)
    answer(exchange, b"{}", 400)
    connection.data_received(b"more")
    assert len(service.handled) == 1


def test_nonsense_behind_a_request_is_refused_after_it(connection: Connection, service: Service) -> None:
    connection.data_received(post(b"1") + b"nonsense\r\n\r\n")
    assert [e.refusal for e in service.handled] == [None]
    answer(service.handled[0])
    assert isinstance(service.handled[1].refusal, MalformedRequest)


def test_an_endless_head_is_refused(connection: Connection, service: Service) -> None:
    connection.data_received(b"POST / HTTP/1.1\r\n")
    for _ in range(100):
        connection.data_received(b"x-a: " + b"y" * 1000 + b"\r\n")
    (exchange,) = service.handled
    assert isinstance(exchange.refusal, HeadTooLarge)


# ---- pace -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands for the module `time` that connections look at: `now_s` is what they see, and moves when it is set."""
    made = SimpleNamespace(now_s=0.0, gmtime=time.gmtime)
    made.perf_counter = lambda: made.now_s
    monkeypatch.setattr("cortex.replica.transport.http.time", made)
    return made


def given_up(connection: Connection, service: Service, at_s: float, late_s: float = 0.0) -> str:
    """What a look at the pace at a time makes of the request; empty: nothing."""
    connection.check_pace(at_s, late_s)
    if not service.handled:
        return ""
    refusal = service.handled[-1].refusal
    assert isinstance(refusal, RequestStalled)
    return str(refusal)


def test_a_body_of_which_nothing_more_comes_is_given_up_after_a_while(
    connection: Connection, service: Service, transport: Transport, watch: SimpleNamespace
) -> None:
    connection.data_received(post(b"x" * 1000)[:-500])
    assert given_up(connection, service, STALL_S - 1) == ""
    assert given_up(connection, service, STALL_S + 1) == "the request broke off: nothing more came for 30 s"
    answer(service.handled[0], status=408)
    assert heads_of(transport.written) == [b"408 Request Timeout"]
    connection.data_received(b"x" * 500)
    assert len(service.handled) == 1, "what still comes is thrown away"


def test_a_body_that_trickles_is_given_up_and_one_that_is_merely_slow_is_not(
    connection: Connection, service: Service, watch: SimpleNamespace
) -> None:
    connection.data_received(post(b"x" * 10_000_000)[:100])
    watch.now_s = 90
    connection.data_received(b"x" * 64 * 1024)
    assert given_up(connection, service, 92) == "", "64 KiB are worth 64 s more"
    watch.now_s = 99
    connection.data_received(b"x")
    assert given_up(connection, service, 100) == "the request did not arrive in time: 65591 bytes in 100 s"


def test_headers_that_stop_are_given_up_too(connection: Connection, service: Service, watch: SimpleNamespace) -> None:
    connection.data_received(b"POST / HTTP/1.1\r\nx-a: b")
    assert given_up(connection, service, STALL_S + 1).startswith("the request broke off")


def test_time_in_which_nobody_read_is_not_counted(
    connection: Connection, service: Service, watch: SimpleNamespace
) -> None:
    connection.data_received(post(b"x" * 1000)[:-500])
    assert given_up(connection, service, 100, late_s=90) == ""


def test_a_request_behind_one_that_is_worked_on_has_time_until_its_turn(
    connection: Connection, service: Service, watch: SimpleNamespace
) -> None:
    connection.data_received(post(b"1") + post(b"x" * 1000)[:-500])
    connection.check_pace(500, 0.0)
    assert [exchange.refusal for exchange in service.handled] == [None]
    answer(service.handled[0])
    connection.check_pace(501, 0.0)
    assert len(service.handled) == 1
    connection.check_pace(501 + STALL_S, 0.0)
    assert isinstance(service.handled[1].refusal, RequestStalled)


def test_an_idle_connection_is_no_stalled_request(
    connection: Connection, service: Service, watch: SimpleNamespace
) -> None:
    connection.check_pace(1000, 0.0)
    connection.data_received(post(b"1"))
    answer(service.handled[0])
    connection.check_pace(1000, 0.0)
    assert [exchange.refusal for exchange in service.handled] == [None]


@pytest.mark.parametrize(("size", "huge"), [(HUGE_BODY_BYTES, False), (HUGE_BODY_BYTES + 1, True)])
def test_a_huge_body_is_noted(connection: Connection, service: Service, size: int, huge: bool) -> None:
    connection.data_received(post(b"x" * size))
    assert service.huge == huge


def test_an_upgrade_is_answered_in_plain_http_and_then_closed(
    connection: Connection, service: Service, transport: Transport
) -> None:
    connection.data_received(b"GET / HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n\x81\x05hello")
    answer(service.handled[0])
    assert heads_of(transport.written) == [b"200 OK"]
    assert transport.closing


def test_a_peer_that_does_not_read_is_not_read_either(
    connection: Connection, service: Service, transport: Transport
) -> None:
    service.now = True
    connection.pause_writing()
    connection.data_received(post(b"1"))
    assert service.handled == []
    assert not transport.reading
    connection.resume_writing()
    assert len(service.handled) == 1
    assert transport.reading


def test_a_lost_connection_tells_the_service_what_nobody_waits_for(connection: Connection, service: Service) -> None:
    connection.data_received(post(b"1") + post(b"2") + post(b"3"))
    connection.connection_lost(None)
    assert [e.body for e in service.left] == [b"1"]
    assert service.dropped == 2
    assert service.connections == set()
    assert not answer(service.handled[0]), "there is nobody to answer"


def test_the_end_of_input_without_a_request_closes(connection: Connection) -> None:
    assert connection.eof_received() is False


def test_draining_closes_after_the_answer(connection: Connection, service: Service, transport: Transport) -> None:
    connection.data_received(post(b"1"))
    service.draining = True
    answer(service.handled[0])
    assert b"connection: close" in transport.written
    assert transport.closing


def test_a_connection_is_busy_from_a_requests_first_byte_to_its_answer(
    connection: Connection, service: Service
) -> None:
    assert not connection.busy
    connection.data_received(b"PO")
    assert connection.busy
    connection.data_received(post(b"1")[2:])
    assert connection.busy
    answer(service.handled[0])
    assert not connection.busy


def test_large_bodies_are_sent_whole(connection: Connection, service: Service, transport: Transport) -> None:
    connection.data_received(post(b"1"))
    answer(service.handled[0], b"x" * 100_000)
    assert transport.written.endswith(b"\r\n\r\n" + b"x" * 100_000)


def test_limits_are_parsed_and_fall_back_to_the_defaults() -> None:
    limits = Limits()
    assert limits.parse(b"1500,1024") == (1.5, 1024)
    assert limits.parse(b"1500,1024") == (1.5, 1024)
    assert limits.parse(None) == limits.parse(b"nonsense") == Limits.DEFAULT
    for number in range(1000):
        assert limits.parse(b"1000,%d" % number) == (1.0, number)


def test_the_date_is_as_http_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(
        "cortex.replica.transport.http.time.gmtime", lambda: time.struct_time((1994, 11, 6, 8, 49, 37, 6, 310, 0))
    )
    assert b"date: Sun, 06 Nov 1994 08:49:37 GMT" in Heads("0").get(200, JSON)


def test_a_handlers_headers_are_rendered() -> None:
    assert render_headers({"X-A": "1", "set-cookie": "a=b; Path=/"}) == b"X-A: 1\r\nset-cookie: a=b; Path=/\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        {"x-a": "1\r\nx-b: 2"},
        {"x a": "1"},
        {"": "1"},
        {"Content-Length": "3"},
        {"x-a": "\u4e2d"},
        {"connection": "close"},
    ],
)
def test_headers_that_http_cannot_carry_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        render_headers(headers)


def test_connections_are_protocols() -> None:
    assert issubclass(Connection, asyncio.Protocol)


# ---- heads that were seen before ------------------------------------------------------------------------------------


def facts(exchange: Exchange) -> tuple[Any, ...]:
    headers = {name: value for name, value in exchange.headers.items() if name != b"x-request-id"}
    return (
        *(exchange.method, exchange.target, headers, exchange.body, exchange.id, exchange.id_bytes),
        *(exchange.timeout_s, exchange.max_body_bytes, exchange.close),
    )


HEADS = st.lists(
    st.tuples(
        st.sampled_from(["Host", "x-cortex-limits", "content-type", "Cookie", "cookie", "x-a", "X-A", "accept"]),
        st.sampled_from(["a", "1000,10", "application/json", "b=c; d", "", " spaced ", "x-request-id: fake"]),
    ),
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(headers=HEADS, position=st.integers(0, 6), target=st.sampled_from(["/", "/a?debug", "/x-request-id: y"]))
def test_a_recognised_request_is_the_one_that_would_have_been_parsed(
    headers: list[tuple[str, str]], position: int, target: str
) -> None:
    """The same requests, with different ids and bodies, on a service that remembers and on ones that do not."""

    def requests() -> Iterator[bytes]:
        for request_id, body in (("abc-1", b"[1, 2]"), ("other", b"[3, 4]"), ("", b"[5, 6]"), ("a b", b"[7, 8]")):
            lines = [f"{name}: {value}" for name, value in headers]
            lines.insert(position, f"x-request-id: {request_id}")
            yield post(body, *lines, target=target)

    remembering = Service()
    remembering.now = True
    known = Connection(remembering, Loop())  # type: ignore[arg-type]
    known.connection_made(Transport())  # type: ignore[arg-type]
    for data in requests():
        fresh = Service()
        fresh.now = True
        parsed = Connection(fresh, Loop())  # type: ignore[arg-type]
        parsed.connection_made(Transport())  # type: ignore[arg-type]
        parsed.data_received(data)
        known.data_received(data)
        if len(fresh.handled) != 1 or fresh.handled[0].refusal is not None:
            return  # refused, or no HTTP at all: the connection ends with it
        expected, found = facts(fresh.handled[0]), facts(remembering.handled[-1])
        if b"x-request-id" in expected[4].encode() or len(expected[4]) == 16:
            expected, found = (expected[:4], found[:4])  # an id of our own making
        assert found == expected


def test_the_second_request_of_a_kind_is_recognised(
    connection: Connection, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.now = True
    connection.data_received(post(b"[1]", "x-request-id: a", "host: h"))
    connection.parser = None  # nothing is parsed from here on
    connection.data_received(post(b"[2]", "x-request-id: b", "host: h"))
    assert [(e.id, e.body) for e in service.handled] == [("a", b"[1]"), ("b", b"[2]")]


def test_the_requests_of_two_clients_in_turn_are_recognised(connection: Connection, service: Service) -> None:
    service.now = True
    for host in ("a", "b"):
        connection.data_received(post(b"[1]", "x-request-id: x", f"host: {host}"))
    connection.parser = None  # nothing is parsed from here on
    for host in ("a", "b", "a"):
        connection.data_received(post(b"[2]", "x-request-id: y", f"host: {host}"))
    assert [e.headers[b"host"] for e in service.handled] == [b"a", b"b", b"a", b"b", b"a"]


@pytest.mark.parametrize(
    "data",
    [
        post(b"[1]", "host: h"),
        post(b"[1]", "x-request-id: a", "connection: close"),
        post(b"[1]", "x-request-id: a", "expect: 100-continue"),
        post(b"[1]", "x-request-id: a", "upgrade: h2c"),
        post(b"[1]", "x-request-id: a b"),
        post(b"[1]", "x-request-id: a", "x-request-id: b"),
        post(b"[1]", "x-request-id: a") * 2,
        post(b"[1]", "x-request-id: a") + b"POST",
        post(b"[1]", "x-request-id: a", "x-a: " + "y" * 5000),
        post(b"[1]", "x-request-id: a", version="1.0"),
        b"GET / HTTP/1.1\r\nx-request-id: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nx-request-id: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n",
        post(b"\r\n\r\nx-request-id: a\r\n"),
        b"",
    ],
)
def test_nothing_but_plain_requests_is_remembered(connection: Connection, service: Service, data: bytes) -> None:
    service.now = True
    connection.data_received(data)
    assert service.shapes.recognise(data, connection) is None


@pytest.mark.parametrize(
    "data",
    [
        post(b"[1, 2]", "x-request-id: a"),
        post(b"[1]", "x-request-id: a", "x: y"),
        post(b"[1]", "x-request-id: a", target="/b"),
        post(b"[1]", "x-request-id: a")[:-1],
        post(b"[1]", "x-request-id: a") + b"P",
        post(b"[1]", "x-request-id: \t"),
        post(b"[1]", "x-request-id: a\x01b"),
        post(b"[1]", "x-request-id: " + "a" * 129),
    ],
)
def test_what_differs_in_anything_else_is_parsed(connection: Connection, service: Service, data: bytes) -> None:
    service.now = True
    connection.data_received(post(b"[1]", "x-request-id: z"))
    assert service.shapes.recognise(post(b"[9]", "x-request-id: y"), connection) is not None
    assert service.shapes.recognise(data, connection) is None


def test_only_so_many_heads_are_remembered(connection: Connection, service: Service) -> None:
    service.now = True
    for number in range(2000):
        connection.data_received(post(b"1", "x-request-id: a", f"x-trace: {number}"))
    assert service.shapes.recognise(post(b"1", "x-request-id: b", "x-trace: 1999"), connection) is not None
    assert service.shapes.recognise(post(b"1", "x-request-id: b", "x-trace: 0"), connection) is None


def test_a_recognised_request_waits_for_its_turn(connection: Connection, service: Service) -> None:
    for number in range(3):
        connection.data_received(post(b"%d" % number, "x-request-id: a"))
    assert len(service.handled) == 1
    for number in range(3):
        answer(service.handled[number])
    assert [e.body for e in service.handled] == [b"0", b"1", b"2"]
