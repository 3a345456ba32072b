"""
An inspection without a node: a process that looks at one model and says what it is.

    python -P -m cortex.replica.inspector

It reads an `Inspect` as a line of JSON from stdin, forks the same child that a launcher would, and writes an
`InspectReport` to stdout. Whoever asks keeps stdin open: when it ends, nobody waits any more, and the child is ended.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

import msgspec

from cortex import polling, processes
from cortex.errors import CortexError
from cortex.replica.launcher import preload
from cortex.replica.process import isolation
from cortex.wire.launch import Inspect, InspectReport

_STDIN, _STDOUT, _STDERR = 0, 1, 2


def main() -> int:
    """Returns the exit code: 0 if a report was written, whatever it says."""
    output = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)  # whatever libraries print is no part of the report
    with open(_STDIN, "rb", buffering=0, closefd=False) as stdin:  # nothing is taken in that `poll` would wait for
        request = msgspec.json.decode(stdin.readline(), type=Inspect)
    report: InspectReport | None
    try:
        preload(request.spec.runtime)
    except CortexError as error:  # models of this kind cannot be run here
        report = InspectReport(problems=(error.problem(),))
    else:
        report = _look(request)
    if report is None:
        return 1
    with open(output, "wb") as stream:
        stream.write(msgspec.json.encode(report))
    return 0


def _look(request: Inspect) -> InspectReport | None:
    """Fork the child and wait for its report; None if nobody waits for it any more."""
    from cortex.replica.inspected import Inspection

    isolation.set_title("cortex-inspector", request.spec.home)
    processes.become_subreaper()
    inspection = Inspection(request, fork=os.fork, asked_by=None, now_s=time.monotonic())
    ended = os.pidfd_open(inspection.pid)
    is_wanted = True
    while True:
        descriptors = [ended, inspection.fd, _STDIN if is_wanted else None]
        watched = {descriptor: select.POLLIN for descriptor in descriptors if descriptor is not None}
        left_s = inspection.deadline_s - time.monotonic()
        ready = polling.wait(watched, None if inspection.killed else left_s)
        if inspection.fd in ready:
            inspection.receive()
        if ended in ready:
            break
        if _STDIN in ready and not os.read(_STDIN, 4096):
            is_wanted = False
        if not inspection.killed and (not is_wanted or left_s <= 0):
            inspection.kill()
    _, status = os.waitpid(inspection.pid, 0)
    while left := processes.children():  # what it has started, and what that has
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    inspection.exit_code = os.waitstatus_to_exitcode(status)
    report = inspection.finish()
    return report if is_wanted else None


if __name__ == "__main__":
    sys.exit(main())
