"""
The control thread: answers for the replica while its main thread loads a model or sits in a handler.

Also does what must happen once a second whatever the event loop does: counters to their file, a new log file when the
old one is full, and the end of a drain that is over time; and each half second, while requests come, how much there is
to do. The one thing that keeps it from answering is a C extension that holds the interpreter's lock: that is what
"hung" means.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from time import perf_counter

import msgspec

from cortex import polling
from cortex.clock import until_beat_s
from cortex.replica.process.condition import Condition
from cortex.wire import loadpage
from cortex.wire.channel import Channel
from cortex.wire.framing import close_all
from cortex.wire.launch import Ask, AskListener, Drain, ReplicaRequest, SetBatching

HOUSEKEEPING_INTERVAL_S = 1.0
"""Also the most of the counters that a killed replica loses."""
STALLED_S = 2.0
"""
Come round this much too late, the thread knows that the whole process stood still: a suspended machine, a stopped or
starved process. The event loop must not be called hung for that by the first who asks afterwards.
"""
STUCK_POLL_S = 0.1
"""How soon an event loop that came round again after having been stuck gets requests again."""
_REQUESTS = msgspec.json.Decoder(ReplicaRequest)


class Control:
    """
    Serves the control socket on a thread of its own.

    Args:
        listener: inherited listening socket.
        slot: the slot's listening socket, handed out to whoever asks.
        on_drain: called on the control thread with the timeout of a `Drain`.
        on_signal: called on the control thread with the number of a signal; see `hear_signals`.
        every_second: called on the control thread once a second.
        tell_load: called on the control thread with `every_second`, and each `loadpage.INTERVAL_S` for as long as it
            returns that anything has happened.
        complain: takes the text of an unexpected error of ours.
    """

    def __init__(
        self,
        condition: Condition,
        *,
        listener: socket.socket,
        slot: socket.socket,
        on_drain: Callable[[float], None],
        on_signal: Callable[[int], None],
        every_second: Callable[[], None],
        tell_load: Callable[[], bool],
        write_counters: Callable[[], None],
        complain: Callable[[str], None],
    ) -> None:
        listener.setblocking(False)
        self._condition = condition
        self._listener = listener
        self._slot = slot
        self._on_drain = on_drain
        self._on_signal = on_signal
        self._every_second = every_second
        self._tell_load = tell_load
        self._write_counters = write_counters
        self._complain = complain
        self.interval_s = HOUSEKEEPING_INTERVAL_S
        """How often `every_second` is really called; less while the end is near."""
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._signals, self._signalled = socket.socketpair()
        for end in (self._signals, self._signalled):
            end.setblocking(False)
        self._channels: list[Channel] = []
        self._flushed = threading.Condition()
        self._announced = 0
        self._pushed = 0
        self._delivered = 0
        self._stuck = False
        self._thread = threading.Thread(target=self._serve, name="cortex-control", daemon=True)

    @property
    def address(self) -> str:
        """Path of the control socket."""
        return str(self._listener.getsockname())

    def start(self) -> None:
        self._thread.start()

    def announce(self) -> None:
        """Push the status to every connection, soon. From any thread."""
        self._announced += 1
        os.eventfd_write(self._wake_fd, 1)

    def hear_signals(self) -> None:
        """
        Have `on_signal` told of each signal that Python handles. From the main thread.

        Not left to a handler alone: Python calls that between two steps of the main thread, so that a signal which
        comes just before a long wait begins is handled after it. Nor may a handler do much: the code that it interrupts
        may hold any lock of this process.
        """
        signal.set_wakeup_fd(self._signalled.fileno(), warn_on_full_buffer=False)

    def pass_signal(self, number: int) -> None:
        """As the interpreter does it, for the time that an event loop has taken its place. From a signal handler."""
        try:
            self._signalled.send(bytes((number,)))
        except BlockingIOError:
            pass  # there are plenty waiting

    def flush(self, timeout_s: float) -> None:
        """Wait until everything announced so far has been written to the connections, or the time is up."""
        wanted = self._announced
        with self._flushed:
            self._flushed.wait_for(lambda: self._delivered >= wanted, timeout_s)

    def _serve(self) -> None:
        last_s = told_s = time.monotonic()
        awake_s = perf_counter()
        condition = self._condition
        while True:
            try:
                stuck_in_s = condition.until_stuck_s()
                look_in_s = stuck_in_s if stuck_in_s > 0 else STUCK_POLL_S
                resting = condition.rests
                due_s = last_s + self.interval_s
                tell_s = due_s if resting else told_s + until_beat_s(told_s, loadpage.INTERVAL_S)
                wait_s = max(0.0, min(min(due_s, tell_s) - time.monotonic(), look_in_s))
                self._channels = [channel for channel in self._channels if not channel.closed]
                ready = polling.wait(self._watched(), wait_s)
                last_awake_s, awake_s = awake_s, perf_counter()
                if awake_s - last_awake_s > wait_s + STALLED_S:
                    condition.resumed_s = awake_s
                now_s = time.monotonic()
                if now_s >= tell_s or resting is not condition.rests:
                    told_s = now_s
                    was_active, condition.active = condition.active, self._tell_load()
                    condition.rests = not condition.active
                    if condition.active and not was_active and self._wake_fd not in ready:
                        self.announce()
                self._hear(ready)
                self._note_delivery()
                self._tell_if_stuck()
                if now_s >= due_s:
                    last_s = now_s
                    self._every_second()
            except Exception as error:  # whatever it is, the replica must go on answering
                self._complain(f"control thread: {type(error).__name__}: {error}")
                time.sleep(0.1)

    def _watched(self) -> dict[int, int]:
        own = (self._listener.fileno(), self._wake_fd, self._signals.fileno())
        watched = dict.fromkeys(own, select.POLLIN)
        return watched | {channel.fileno(): channel.events for channel in self._channels}

    def _hear(self, ready: set[int]) -> None:
        """Take in whatever has come. Someone new comes last: its descriptor may have the number of one just closed."""
        if self._wake_fd in ready:
            os.eventfd_read(self._wake_fd)
            announced = self._announced
            payload = msgspec.json.encode(self._condition.status())
            for channel in self._channels:
                channel.send(payload)
            self._pushed = announced
        if self._signals.fileno() in ready:
            for number in set(self._signals.recv(4096)):
                self._on_signal(number)
        for channel in self._channels:
            if channel.fileno() in ready:
                channel.flush()
                for payload, fds in channel.receive():
                    close_all(fds)
                    self._answer(channel, payload)
        if self._listener.fileno() in ready and (sock := polling.accept(self._listener)) is not None:
            channel = Channel(sock)
            channel.send(msgspec.json.encode(self._condition.status()))
            self._channels.append(channel)

    def _answer(self, channel: Channel, payload: bytes) -> None:
        try:
            request = _REQUESTS.decode(payload)
        except msgspec.MsgspecError as error:
            self._complain(f"control socket: unreadable request: {error}")
            return
        match request:
            case Ask(counts=counts):
                if counts:
                    self._write_counters()
                    self._condition.counts = max(self._condition.counts, counts)
                channel.send(msgspec.json.encode(self._condition.status()))
            case AskListener():
                channel.send(msgspec.json.encode(self._condition.status()), [self._slot.fileno()])
            case Drain(timeout_s=timeout_s):
                self._on_drain(timeout_s)
            case SetBatching(order=order):
                self._condition.batching.order = order
                self.announce()

    def _tell_if_stuck(self) -> None:
        """At once, both when the event loop sits in a handler for too long and when it has come round."""
        stuck = self._condition.until_stuck_s() <= 0
        if stuck != self._stuck:
            self._stuck = stuck
            self.announce()

    def _note_delivery(self) -> None:
        if self._pushed > self._delivered and all(channel.flushed for channel in self._channels):
            with self._flushed:
                self._delivered = self._pushed
                self._flushed.notify_all()
