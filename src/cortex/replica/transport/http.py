"""
HTTP/1.1 on one connection: bytes to `Exchange`s and back. Knows nothing of models.

HAProxy stands in front and has normalised what arrives; still, anything that reads this socket must get by: requests
are answered in order, a body is held to its limit while it arrives, and a peer that does not read stops being read.
One exchange of a connection is worked on at a time; those pipelined behind it wait in `_waiting`, which a single read
of the kernel's buffer bounds, since reading pauses meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import time
from collections import deque
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, cast

import httptools

from cortex.replica.bodies.codec import BodyTooLarge
from cortex.replica.calls import Call, CallOrigin

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers: HAProxy's own buffer for them is smaller."""
MAX_ID_CHARS = 128
LINGER_S = 2.0
"""
After an early answer the rest of the request is read and thrown away for this long: closing a socket with unread
bytes in it makes the peer's write fail, and the peer may then drop the answer.

Source: RFC 9112, section 9.6, "Tear-down".
"""
STALL_S = 30.0
"""A request of which nothing has come for so long is given up, and so is one that takes so long and is slower than"""
SLOWEST_BYTES_PER_S = 1024
"""this on the whole: it holds a connection that others wait for. The ingress waits for small bodies itself."""
HUGE_BODY_BYTES = 8 * 2**20
"""What bodies from here on took is given back to the system; see `Service.huge`."""
LARGE_REQUEST_BYTES = 256 * 1024
"""A request with such a body is large (`Call.is_large`)."""
LARGE_ANSWER_BYTES = 32 * 1024
"""From here on copying a response's body next to its head costs more than a second write."""

JSON = b"application/json"
_SANE_ID = re.compile(rb"[!-~]+")


class Message(NamedTuple):
    """What is answered."""

    status: int
    content_type: bytes
    body: bytes
    headers: bytes = b""
    """Further header lines, rendered."""


class Exchange(Call):
    """A request that came over HTTP, and where its answer goes."""

    # Defaults live on the class: a request then pays only for what it sets.
    method = b""
    target = b""
    body = b""
    id_bytes = b""
    max_body_bytes = 0
    close = False
    """The connection ends after this answer."""
    below = ""
    """Where below the endpoint it was sent to, without what differs from one api to another."""
    asked: Any = None
    """What its protocol has read of it besides the sample."""
    refusal: Exception | None = None
    """Why the request is answered without being looked at further."""

    headers: Mapping[bytes, bytes] = MappingProxyType({})
    """By lower-case name; repeated ones joined with a comma."""
    content_type: str | None = None
    """As the header says it; None if there is none."""

    def __init__(self, connection: Sink) -> None:
        self.connection = connection

    def take_headers(self, headers: Mapping[bytes, bytes]) -> None:
        self.headers = headers
        content_type = headers.get(b"content-type")
        self.content_type = None if content_type is None else content_type.decode("latin-1")

    def take_body(self, body: bytes) -> None:
        self.body = body
        self.is_large = len(body) >= LARGE_REQUEST_BYTES

    @property
    def path(self) -> bytes:
        return self.target.partition(b"?")[0]

    @property
    def query(self) -> bytes:
        """The raw query string, without the question mark."""
        return self.target.partition(b"?")[2].partition(b"#")[0]

    def headers_text(self) -> dict[str, str]:
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers.items()}

    def origin(self) -> CallOrigin:
        path = self.path.decode("latin-1")
        attributes = {"http.request.method": "POST", "url.path": path, "url.scheme": "http"}
        return CallOrigin(self.below, attributes, self.headers_text())


class Sink(Protocol):
    """Where an answer goes: a connection, or whoever plays one."""

    def respond(self, exchange: Exchange, status: int, content_type: bytes, body: bytes, extra: bytes = b"") -> bool:
        """Answer; False when nobody is there any more. `extra`: rendered header lines."""
        ...

    def peer_has_left(self) -> bool:
        """Whether the other side has closed its end, also if we have not been told so yet."""
        ...

    def peer_is_gone(self) -> bool:
        """Whether it has closed altogether, so that nobody would read an answer."""
        ...


class Limits:
    """What the ingress allows for one request, from `x-cortex-limits: <timeout in ms>,<largest body in bytes>`."""

    DEFAULT = (600.0, 100 * 2**20)
    """As in cortex.yaml, for requests that did not come through the ingress."""

    def __init__(self) -> None:
        self._parsed: dict[bytes, tuple[float, int]] = {}

    def parse(self, value: bytes | None) -> tuple[float, int]:
        """Seconds and bytes. There are few different values, so each is parsed once."""
        if value is None:
            return self.DEFAULT
        known = self._parsed.get(value)
        if known is not None:
            return known
        try:
            timeout_ms, max_body_bytes = value.split(b",")
            limits = (max(0.001, int(timeout_ms) / 1000.0), max(0, int(max_body_bytes)))
        except ValueError:
            limits = self.DEFAULT
        if len(self._parsed) >= 64:
            self._parsed.clear()
        self._parsed[value] = limits
        return limits


class Heads:
    """The first lines of answers, rendered once a second for each status and content type."""

    def __init__(self, version: str) -> None:
        self._version = version.encode("latin-1")
        self.rendered: dict[tuple[int, bytes], bytes] = {}
        """What `get` returned within the last second."""
        self._date = b""
        self.tick()

    def tick(self) -> None:
        """Called about once a second: the date header. Source: RFC 9110, sections 5.6.7 and 6.6.1."""
        now = time.gmtime()
        day, month = _DAYS[now.tm_wday], _MONTHS[now.tm_mon - 1]
        self._date = (
            f"{day}, {now.tm_mday:02} {month} {now.tm_year} {now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02} GMT"
        ).encode()
        self.rendered.clear()

    def get(self, status: int, content_type: bytes) -> bytes:
        """Everything up to the value of content-length."""
        head = self.rendered.get((status, content_type))
        if head is None:
            lines = [b"HTTP/1.1 %d %b" % (status, _reason(status))]
            if content_type:
                lines.append(b"content-type: " + content_type)
            lines += [b"x-cortex-version: " + self._version, b"date: " + self._date, b"content-length: "]
            head = b"\r\n".join(lines)
            if len(self.rendered) < 64:  # handlers choose media types
                self.rendered[status, content_type] = head
        return head


class Shape(NamedTuple):
    """What a request head says when its id is left out. Everything but the id and the body is the same every time."""

    before: bytes
    """What stands in front of the id's value,"""
    after: bytes
    """and behind it, to where the body begins."""
    target: bytes
    headers: Mapping[bytes, bytes]
    """Without `x-request-id`."""
    content_type: str | None
    timeout_s: float
    max_body_bytes: int
    body_bytes: int


class KnownHeads:
    """
    Heads that httptools has parsed before.

    Requests of one client differ in their id and their body only, so a head can be recognised by its bytes: as the one
    that came last, else by cutting out the id's line and looking up the rest. From bytes to exchange that takes 1.2 or
    1.7 µs instead of 4.3, with the headers that the ingress sends. Nothing is recognised that was not parsed once with
    the same bytes; only plain POSTs with a content-length are remembered.
    """

    __slots__ = ("_id_end", "_known", "_latest")

    def __init__(self) -> None:
        self._known: dict[bytes, Shape] = {}
        self._latest = Shape(b"", b"", b"", {}, None, 0.0, 0, -1)
        """Fits nothing, until there is one."""
        self._id_end = 0
        """Where the id's value ended in it."""

    def recognise(self, data: bytes, sink: Sink) -> Exchange | None:
        """The exchange in `data`, if it is exactly one request with a known head."""
        shape, id_end = self._latest, self._id_end
        before, after, target, headers, content_type, timeout_s, max_body_bytes, body_bytes = shape
        body_start = id_end + len(after)
        if len(data) != body_start + body_bytes or not data.startswith(before) or not data.startswith(after, id_end):
            found = self._look_up(data)
            if found is None:
                return None
            (before, after, target, headers, content_type, timeout_s, max_body_bytes, _), id_end = found
            body_start = id_end + len(after)
        given = data[len(before) : id_end]
        if not given.isalnum() and not _is_sane(given):  # nearly always; and not too long, as another was not
            return None
        exchange = Exchange(sink)
        exchange.method = b"POST"
        exchange.target = target
        exchange.headers = headers
        exchange.content_type = content_type
        exchange.timeout_s = timeout_s
        exchange.max_body_bytes = max_body_bytes
        exchange.id_bytes = given
        exchange.id = given.decode("ascii")
        exchange.body = data[body_start:]
        return exchange

    def _look_up(self, data: bytes) -> tuple[Shape, int] | None:
        """The known shape of `data`, which is the latest from now on, and where the id's value ends."""
        end = data.find(b"\r\n\r\n")
        start = data.find(_ID_LINE, 0, end)
        if start < 0:
            return None
        value_end = data.find(b"\r\n", start + 2, end + 2)
        shape = self._known.get(data[:start] + data[value_end:end])
        if (
            shape is None
            or len(data) != end + 4 + shape.body_bytes
            or not _is_sane(data[len(shape.before) : value_end])
        ):
            return None
        self._latest, self._id_end = shape, value_end
        return shape, value_end

    def remember(self, data: bytes, exchange: Exchange) -> None:
        """Remember the head of a request that httptools found in `data`, if it is a plain one and all there is."""
        headers = exchange.headers
        end = data.find(b"\r\n\r\n")
        start = data.find(_ID_LINE, 0, end)
        length = headers.get(b"content-length")
        if (
            start < 0
            or length is None
            or exchange.method != b"POST"
            or exchange.close
            or exchange.refusal is not None
            or not _PLAIN.isdisjoint(headers)
            or headers.get(b"x-request-id") != exchange.id_bytes
            or len(data) != end + 4 + int(length)
            or exchange.is_large
        ):
            return
        value_end = data.find(b"\r\n", start + 2, end + 2)
        key = data[:start] + data[value_end:end]
        if b"\r\n " in key or b"\r\n\t" in key or len(key) > _LONGEST_SHAPE:
            return  # a folded line: where the id's line stands would change what it continues
        if len(self._known) >= _MOST_SHAPES:
            self._known.clear()
        kept = {name: value for name, value in headers.items() if name != b"x-request-id"}
        self._known[key] = Shape(
            data[: start + _ID_LINE_BYTES],
            data[value_end : end + 4],
            exchange.target,
            kept,
            exchange.content_type,
            exchange.timeout_s,
            exchange.max_body_bytes,
            int(length),
        )


_ID_LINE = b"\r\nx-request-id: "
_ID_LINE_BYTES = len(_ID_LINE)
PROBE = b"x-cortex-probe"
"""The ingress lets nobody send it but us."""
_PLAIN = frozenset(
    {b"transfer-encoding", b"expect", b"upgrade", b"connection", b"trailer", b"te", b"traceparent", PROBE}
)
"""With one of these a head says more than who asks for what, or is another one each time."""
_MOST_SHAPES = 512
_LONGEST_SHAPE = 4096


def _is_sane(request_id: bytes) -> bool:
    return (request_id.isalnum() or _SANE_ID.fullmatch(request_id) is not None) and len(request_id) <= MAX_ID_CHARS


class ExchangeTaker(Protocol):
    """Who answers exchanges."""

    heads: Heads
    shapes: KnownHeads
    limits: Limits
    draining: bool
    connections: set[Connection]
    huge: bool
    """A body over `HUGE_BODY_BYTES` has arrived lately."""

    def handle(self, exchange: Exchange) -> None:
        """Answer now or later; must not raise. Everything of the request is there, unless `refusal` is set."""
        ...

    def gone(self, exchange: Exchange) -> None:
        """Nobody waits for this exchange's answer any more."""
        ...

    def never_started(self, count: int) -> None:
        """So many complete requests were dropped with their connection."""
        ...


class MalformedRequest(Exception):
    """What arrived is no HTTP request."""


class RequestStalled(Exception):
    """The request arrives too slowly, or not at all any more."""


class PathNotFound(Exception):
    """There is nothing at the request's path."""


class MethodNotAllowed(Exception):
    """
    A method that means nothing where it was sent.

    Args:
        allowed: those that do, as they stand in `allow`.
    """

    def __init__(self, message: str, allowed: bytes) -> None:
        self.allowed = allowed
        super().__init__(message)


class HeadTooLarge(Exception):
    """Request line and headers are over `MAX_HEAD_BYTES`."""


class Connection(asyncio.Protocol):
    """One connection of the ingress. Also the callbacks of its httptools parser."""

    __slots__ = (
        "_active",
        "_advancing",
        "_begun_s",
        "_body",
        "_current",
        "_ended",
        "_head_bytes",
        "_head_complete",
        "_headers",
        "_heard_s",
        "_last",
        "_lingering",
        "_loop",
        "_paused_reading",
        "_paused_writing",
        "_received_bytes",
        "_send_continue",
        "_service",
        "_shapes",
        "_transport",
        "_waiting",
        "parser",
    )

    def __init__(self, service: ExchangeTaker, loop: asyncio.AbstractEventLoop) -> None:
        self._service = service
        self._shapes = service.shapes
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self.parser: Any = None
        self._current: Exchange | None = None
        """Being received."""
        self._last: Exchange | None = None
        """Completed by the data that is being parsed; the last of several."""
        self._head_complete = False
        self._head_bytes = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._received_bytes = 0
        self._begun_s = 0.0
        """When the request that is being received began; only known when it came in more than one piece."""
        self._heard_s = 0.0
        """When its latest piece came."""
        self._active: Exchange | None = None
        """Being answered."""
        self._waiting: deque[Exchange] = deque()
        """Received behind the active one."""
        self._advancing = False
        self._ended = False
        """No request of this connection is read any more."""
        self._lingering = False
        self._paused_reading = False
        self._paused_writing = False
        self._send_continue = False

    @property
    def busy(self) -> bool:
        """Something of a request has arrived that is not answered yet, or an answer is on its way out."""
        if self._active is not None or self._waiting:
            return True
        transport = self._transport
        if transport is not None and transport.get_write_buffer_size() > 0:
            return True
        return self._current is not None and not self._ended

    def close(self) -> None:
        """Let go of the peer, once it has been sent what there is to send."""
        if self._transport is not None:
            self._transport.close()

    def fileno(self) -> int:
        """The socket's descriptor; -1 when it is closed."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        return -1 if sock is None else cast(int, sock.fileno())

    def peer_has_left(self) -> bool:
        return self._polled(select.POLLRDHUP) != 0

    def peer_is_gone(self) -> bool:
        """A unix socket tells that from half a close by POLLHUP."""
        return self._polled(0) & (select.POLLHUP | select.POLLERR) != 0

    # ---- asyncio.Protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpRequestParser(self)
        self._service.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        service = self._service
        service.connections.discard(self)
        self._transport = None
        self._ended = True
        self.parser = None  # it refers to us
        active, self._active = self._active, None
        dropped = len(self._waiting)
        self._waiting.clear()
        if active is not None:
            service.gone(active)
        if dropped:
            service.never_started(dropped)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return  # lingering: thrown away
        fresh = self._current is None
        if fresh:
            exchange = self._shapes.recognise(data, self)
            if exchange is not None:
                if self._active is None and not self._paused_writing and not self._waiting:  # as in `_arrived`
                    self._active = exchange
                    self._service.handle(exchange)
                else:
                    self._arrived(exchange)
                return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The request asked to speak something else afterwards. We do not: it is the connection's last.
            last = self._waiting[-1] if self._waiting else self._active
            if last is not None:
                last.close = True
                self._ended = True
            elif self._transport is not None:
                self._transport.close()
        except httptools.HttpParserCallbackError:
            raise  # a fault of ours in one of the methods below: uvloop logs it and ends the connection
        except httptools.HttpParserError as error:
            if not self._ended:
                self._refuse_rest(MalformedRequest(f"this is not a well-formed HTTP request: {error}"))
        if self._current is None:
            if fresh and self._last is not None:
                self._shapes.remember(data, self._last)
            self._last = None
            return
        self._heard_s = time.perf_counter()
        if fresh or self._last is not None:
            self._begun_s = self._heard_s
        self._last = None
        if not self._head_complete:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse_rest(HeadTooLarge(f"request line and headers are over {MAX_HEAD_BYTES} bytes"))

    def check_pace(self, now_s: float, late_s: float) -> None:
        """
        Give up a request that arrives too slowly. Called about once a second.

        Args:
            late_s: for so long nobody has read what came: the event loop was in a handler.
        """
        exchange = self._current
        if exchange is None or self._ended or exchange.refusal is not None:
            return
        if self._active is not None or self._paused_reading:  # its turn has not come
            self._begun_s = self._heard_s = now_s
            return
        self._begun_s += late_s
        self._heard_s += late_s
        silent_s, whole_s = now_s - self._heard_s, now_s - self._begun_s
        received_bytes = self._received_bytes if self._head_complete else self._head_bytes
        if silent_s > STALL_S:
            self._refuse_rest(RequestStalled(f"the request broke off: nothing more came for {STALL_S:g} s"))
        elif whole_s > STALL_S + received_bytes / SLOWEST_BYTES_PER_S:
            pace = f"{received_bytes} bytes in {whole_s:.0f} s"
            self._refuse_rest(RequestStalled(f"the request did not arrive in time: {pace}"))

    def eof_received(self) -> bool:
        self._ended = True
        if (self._active is None and not self._waiting) or self.peer_is_gone():
            return False
        # Half closed: the peer has said all it has to say and listens for the answer.
        (self._waiting[-1] if self._waiting else cast(Exchange, self._active)).close = True
        return True

    def pause_writing(self) -> None:
        self._paused_writing = True
        self._pause_reading()

    def resume_writing(self) -> None:
        self._paused_writing = False
        self._advance()

    # ---- httptools ----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._current = Exchange(self)
        self._headers.clear()
        self._head_complete = False
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        exchange = self._current
        assert exchange is not None
        exchange.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_complete:  # else a trailer, which nobody asked for and nobody bounds
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        exchange = self._current
        assert exchange is not None
        parser = self.parser
        headers = _collect(self._headers)
        exchange.take_headers(headers)
        self._head_complete = True
        self._received_bytes = 0
        exchange.method = parser.get_method()
        if not parser.should_keep_alive() or self._service.draining:
            exchange.close = True
        exchange.timeout_s, limit = self._service.limits.parse(headers.get(b"x-cortex-limits"))
        exchange.max_body_bytes = limit
        if PROBE in headers:
            exchange.uncounted = True
        given = headers.get(b"x-request-id")
        if given is not None and _is_sane(given):
            exchange.id_bytes = given
            exchange.id = given.decode("ascii")
        else:
            exchange.id = os.urandom(8).hex()
            exchange.id_bytes = exchange.id.encode()
        length = headers.get(b"content-length")
        if length is not None and int(length) > limit:
            self._refuse(exchange, BodyTooLarge(limit))
        elif b"expect" in headers and headers[b"expect"].lower() == b"100-continue":
            self._continue()

    def on_body(self, chunk: bytes) -> None:
        exchange = self._current
        if exchange is None or exchange.refusal is not None:
            return
        self._received_bytes += len(chunk)
        if self._received_bytes > exchange.max_body_bytes:
            self._body.clear()
            self._refuse(exchange, BodyTooLarge(exchange.max_body_bytes))
        else:
            self._body.append(chunk)
            if self._received_bytes > HUGE_BODY_BYTES:
                self._service.huge = True

    def on_message_complete(self) -> None:
        exchange = self._current
        self._current = None
        self._send_continue = False
        if exchange is None:
            return
        body = self._body
        if body:
            exchange.take_body(body[0] if len(body) == 1 else b"".join(body))
            body.clear()
        if exchange.refusal is not None and exchange.answered:
            return
        self._last = exchange
        self._arrived(exchange)

    # ---- answers ------------------------------------------------------------------------------------------------

    def _arrived(self, exchange: Exchange) -> None:
        """A whole request is there: its turn, or it waits for it."""
        if self._active is None and not self._paused_writing and not self._waiting:
            self._active = exchange
            self._service.handle(exchange)
        else:
            self._waiting.append(exchange)
            self._pause_reading()

    def respond(self, exchange: Exchange, status: int, content_type: bytes, body: bytes, extra: bytes = b"") -> bool:
        """Write the answer of the active exchange, then turn to the next."""
        transport = self._transport
        if transport is None or self._active is not exchange:
            return False
        self._active = None
        service = self._service
        close = exchange.close or service.draining
        if close:
            extra += b"connection: close\r\n"
        elif b"connection" in exchange.headers:
            extra += b"connection: keep-alive\r\n"  # an HTTP/1.0 peer asked, and wants to hear it
        if status == 204 or status == 304:
            head = service.heads.get(status, b"")
            head = head[: head.rindex(b"content-length")]
            data = b"%bx-request-id: %b\r\n%b\r\n" % (head, exchange.id_bytes, extra)
        else:
            heads = service.heads
            head = heads.rendered.get((status, content_type)) or heads.get(status, content_type)
            if exchange.method == b"HEAD":
                data = b"%b%d\r\nx-request-id: %b\r\n%b\r\n" % (head, len(body), exchange.id_bytes, extra)
            elif len(body) < LARGE_ANSWER_BYTES:
                data = b"%b%d\r\nx-request-id: %b\r\n%b\r\n%b" % (
                    head,
                    len(body),
                    exchange.id_bytes,
                    extra,
                    body,
                )
            else:
                transport.write(b"%b%d\r\nx-request-id: %b\r\n%b\r\n" % (head, len(body), exchange.id_bytes, extra))
                data = body
        transport.write(data)
        if close:
            self._end(transport)
        elif self._waiting or self._paused_reading or self._send_continue:
            self._advance()
        return True

    def _advance(self) -> None:
        """Turn to what waits. A loop, not recursion: hundreds of pipelined requests may be answered at once."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._waiting and self._active is None and not self._paused_writing:
                self._active = self._waiting.popleft()
                self._service.handle(self._active)
        finally:
            self._advancing = False
        if self._active is not None or self._paused_writing or self._waiting:
            return
        if self._send_continue:
            self._continue()
        if self._paused_reading and self._transport is not None and not self._transport.is_closing():
            self._paused_reading = False
            self._transport.resume_reading()

    def _refuse(self, exchange: Exchange, reason: Exception) -> None:
        """Answer before the request is complete, if it is its turn, and throw the rest of the request away."""
        exchange.refusal = reason
        exchange.close = True
        self._send_continue = False
        if self._active is None and not self._waiting and self._transport is not None:
            self._lingering = True
            self._active = exchange
            self._service.handle(exchange)

    def _refuse_rest(self, reason: Exception) -> None:
        """What arrives cannot be told apart into requests any more."""
        exchange = self._current or Exchange(self)
        self._current = None
        self._ended = True
        self._body.clear()
        last = self._waiting[-1] if self._waiting else self._active
        if exchange.answered or (last is not None and last.close):
            return
        if not exchange.id:
            exchange.id = os.urandom(8).hex()
            exchange.id_bytes = exchange.id.encode()
        exchange.method = exchange.method or b"?"
        if self._active is None and not self._waiting:
            self._refuse(exchange, reason)
        else:
            exchange.refusal = reason
            exchange.close = True
            self._waiting.append(exchange)

    def _continue(self) -> None:
        """Tell the peer that its body is welcome: in its turn. Source: RFC 9110, section 10.1.1."""
        if self._active is None and not self._waiting and self._transport is not None:
            self._send_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        else:
            self._send_continue = True

    def _end(self, transport: asyncio.Transport) -> None:
        dropped = len(self._waiting)
        if dropped:
            self._waiting.clear()
            self._service.never_started(dropped)
        self._ended = True
        if self._lingering and transport.can_write_eof():
            transport.write_eof()
            if self._paused_reading:
                self._paused_reading = False
                transport.resume_reading()
            self._loop.call_later(LINGER_S, transport.close)
        else:
            transport.close()

    def _pause_reading(self) -> None:
        if not self._paused_reading and self._transport is not None and not self._transport.is_closing():
            self._paused_reading = True
            self._transport.pause_reading()

    def _polled(self, events: int) -> int:
        """Which of these events there are, and errors; of a closed socket all."""
        fd = self.fileno()
        if fd < 0:
            return -1
        poll = select.poll()
        poll.register(fd, events)
        return next((found for _, found in poll.poll(0)), 0)


def _collect(pairs: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by lower-case name. What HAProxy sends is lower-case already, and rarely repeats a name."""
    headers = dict(pairs)
    if len(headers) == len(pairs) and b"".join(headers).islower():
        return headers
    headers = {}
    for name, value in pairs:
        name = name.lower()
        if name in headers:
            headers[name] += (b"; " if name == b"cookie" else b", ") + value
        else:
            headers[name] = value
    return headers


def render_headers(headers: Mapping[str, str]) -> bytes:
    """
    Header lines for a response.

    Raises:
        ValueError: a name or value that HTTP cannot carry, or a name that is ours to set.
    """
    lines = []
    for name, value in headers.items():
        if not _TOKEN.fullmatch(str(name)):
            raise ValueError(f"{name!r} is not a header name")
        if str(name).lower() in _OURS:
            raise ValueError(f"the header {name!r} is set by the server")
        text = str(value).encode("latin-1", "strict")
        if any((byte < 32 and byte != 9) or byte == 127 for byte in text):
            raise ValueError(f"the value of header {name!r} has control characters")
        lines.append(str(name).encode() + b": " + text + b"\r\n")
    return b"".join(lines)


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OURS = frozenset(
    {
        *("connection", "content-length", "content-type", "date", "transfer-encoding"),
        *("x-request-id", "x-cortex-version", "keep-alive", "upgrade", "trailer"),
    }
)
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Status"
