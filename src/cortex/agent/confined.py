"""
Becomes an installer, with less than its parent may do. Run by file name, so that it starts in an instant:

    python -I -S confined.py PARENT_PID PROGRAM ARGUMENT…

Standard library only. The process it becomes has no core dumps, gives way to what serves, keeps its files to itself,
and does not outlive the agent that started it.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Source: prctl(2)."""
NICENESS = 10
"""What serves comes first; an installer that has the machine to itself is as fast as ever."""


def main(arguments: list[str]) -> None:
    parent, program, *rest = arguments
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before we could ask to be told
        sys.exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    os.umask(0o077)
    try:
        os.nice(NICENESS)
    except OSError:  # in some containers even that is refused
        pass
    os.execv(program, [program, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
