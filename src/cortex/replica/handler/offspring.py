"""
Processes that a handler forks: children as a plain script has them, that never answer in place of their replica.

A fork copies everything: the signal handlers that begin a drain, the event loop, listening sockets and connections. So
each child is made an ordinary process before any code of the handler's goes on in it, and where that code returns to
us, or raises, it ends (`leave`). Programs that are executed need none of this: no descriptor of ours outlives `exec`.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple, NoReturn

import setproctitle

from cortex.replica.observation.tracebacks import format_user_traceback

is_child = False
"""Whether this is a process that a handler forked. Tested wherever a handler's code returns to us."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGQUIT)


class Ours(NamedTuple):
    """What is this process's own, and no child's."""

    title: str
    """Of children, for `ps`."""
    project_dir: str | None
    """Tracebacks name files as they are called in there."""
    descriptors: Mapping[int, str] = {}
    """With what they lead to: users' code may close one, and open a file of its own by that number."""
    sockets: Collection[str] = ()
    """Paths of listening sockets: a child has neither them nor what was accepted from them."""
    loops: Collection[asyncio.AbstractEventLoop] = ()
    """Must not go on in a child."""
    handlers: Collection[Callable[..., object]] = ()
    """Of signals. Those that users' code put in their place are its children's too."""
    forget_output: Callable[[], None] = lambda: None
    """Drops text that was printed here and not written yet."""


_ours: Ours | None = None
"""None: nobody has called `set_apart` yet."""


def set_apart(ours: Ours) -> None:
    """
    From now on make every process that this one forks a child as described above.

    Called again, it goes by what is ours now.
    """
    global _ours
    is_new = _ours is None
    _ours = ours
    if is_new:
        _hook_forks()


def _hook_forks() -> None:
    masks: dict[int, set[int]] = {}
    """By thread that forks: a signal that a child gets before it is one would be taken for its replica's."""

    def hold_signals() -> None:
        masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def release_signals() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop(threading.get_ident()))

    def become_child() -> None:
        global is_child
        is_child = True
        assert _ours is not None
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            _reset(number, _ours.handlers)
        _replace({*_still(_ours.descriptors), *_named(_ours.sockets)})
        _ours.forget_output()
        setproctitle.setproctitle(_ours.title)
        _leave_loops(_ours.loops)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # what came meanwhile comes now

    os.register_at_fork(before=hold_signals, after_in_parent=release_signals, after_in_child=become_child)


def own_descriptors() -> dict[int, str]:
    """
    Descriptors of this process that a child must not have, with what they lead to: sockets, epoll, io_uring, events.
    Called before users' code opens any. Pipes are left out: libuv makes those that it needs anew in a child.
    """
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith(("anon_inode:", "socket:")):
                found[int(name)] = target
    return found


def _still(descriptors: Mapping[int, str]) -> set[int]:
    """Those that lead to the same as before."""
    found = set()
    for descriptor, target in descriptors.items():
        with suppress(OSError):  # closed
            if os.readlink(f"/proc/self/fd/{descriptor}") == target:
                found.add(descriptor)
    return found


def leave(error: BaseException | None) -> NoReturn:
    """End a child whose code has come to its end, as an interpreter would: traceback, flush, exit code."""
    code = 1
    try:
        if error is None:
            code = 0
        elif isinstance(error, SystemExit):
            code = _exit_code(error)
        else:
            print(format_user_traceback(error, None if _ours is None else _ours.project_dir), file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            getattr(stream, "flush_all", stream.flush)()
    finally:
        os._exit(code)


@contextmanager
def ends_here() -> Iterator[None]:
    """Around users' code: a child that it forks gets no further than this."""
    try:
        yield
    except BaseException as error:
        if is_child:
            leave(error)
        raise
    if is_child:
        leave(None)


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def _reset(number: signal.Signals, handlers: Collection[Callable[..., object]]) -> None:
    found = signal.getsignal(number)
    if found == signal.SIG_IGN or (callable(found) and found not in handlers):
        return
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _replace(descriptors: Iterable[int]) -> None:
    """
    Put something harmless over them. Their numbers stay taken: what closes them later closes nobody else's file.

    That is /dev/null, but for epoll one that watches nothing: a loop that finds anything else aborts the process before
    it takes the turn that ends it.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    nothing = select.epoll()
    for descriptor in descriptors:
        is_epoll = os.readlink(f"/proc/self/fd/{descriptor}") == "anon_inode:[eventpoll]"
        os.dup2(nothing.fileno() if is_epoll else null, descriptor, inheritable=False)
    os.close(null)
    nothing.close()


def _named(sockets: Collection[str]) -> set[int]:
    """Every descriptor of these listening sockets, or of a connection to them: that bears its listener's name."""
    found: set[int] = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own
            descriptor = int(name)
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                looked_at = socket.socket(fileno=descriptor)
                try:
                    if looked_at.getsockname() in sockets:
                        found.add(descriptor)
                finally:
                    looked_at.detach()
    return found


def _leave_loops(loops: Iterable[asyncio.AbstractEventLoop]) -> None:
    """
    Have no loop go on in the child: what its own code returns to, be it a task or a callback, is its end.

    Tasks of others are cancelled: they may be about to take a step in this same turn of the loop, and would take it
    twice, in both processes.
    """
    asyncio._set_running_loop(None)
    local = getattr(asyncio.get_event_loop_policy(), "_local", None) if sys.version_info < (3, 12) else None
    if local is not None:  # Python 3.12 forgets the current loop itself
        local._loop, local._set_called = None, False
    for loop in loops:
        if loop.is_running():
            current = asyncio.current_task(loop)
            loop.call_soon(_returned_to_loop, current)
            for task in asyncio.all_tasks(loop):
                if task is not current:
                    task.cancel()


def _returned_to_loop(task: asyncio.Task[object] | None) -> None:
    error: BaseException | None = None
    if task is not None:
        if not task.done():
            error = RuntimeError("a forked child waits for an event loop that stayed with its parent")
        elif not task.cancelled():
            error = task.exception()
    leave(error)
