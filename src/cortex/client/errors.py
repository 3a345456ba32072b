"""What can go wrong between a command and the control plane, with the next step in each case."""

from __future__ import annotations

from pathlib import Path

from cortex.errors import CortexError, Problem
from cortex.wire.operator import Failure


class OperatorUnreachable(CortexError):
    """The control plane should answer and does not. `url` is where it was asked, empty when that is unknown."""

    reference = "operator-unreachable"
    hint = "`cortex up` starts what is missing; if that does not help, `cortex down`, then `cortex up`"

    def __init__(self, url: str, reason: str, *, hint: str = "", environment: str = "") -> None:
        self.url = url
        self.reason = reason
        if environment:
            self.hint = (
                f"environment {environment} is elsewhere: `cortex info` on its machine shows whether it runs; "
                f"`cortex configure edit {environment} URL` changes where it is looked for"
            )
        if hint:
            self.hint = hint
        where = f" at {url}" if url else ""
        super().__init__(f"the control plane{where} does not answer: {reason}")


class OperatorDown(CortexError):
    """`cortex down` was run in this home: nothing serves, and nothing starts by itself."""

    reference = "down"
    hint = "`cortex up` starts it again with everything that was deployed"

    def __init__(self, home: Path) -> None:
        self.home = home
        super().__init__(f"cortex is down ({home})")


class NodesRunning(CortexError):
    """The machine runs as another number of nodes."""

    reference = "nodes-running"

    def __init__(self, running: int, wanted: int) -> None:
        self.hint = f"`cortex down`, then `cortex up --nodes {wanted}` changes that; what was deployed is kept"
        nodes = "1 node" if running == 1 else f"{running} nodes"
        super().__init__(f"cortex runs as {nodes} here, not as {wanted}")


class NeverUp(CortexError):
    """Nothing was ever started in this home: a mistyped one looks just so."""

    reference = "never-up"
    hint = "`cortex deploy` starts it here; --home or CORTEX_HOME names another home"

    def __init__(self, home: Path) -> None:
        self.home = home
        super().__init__(f"nothing was ever started in {home}")


class FolderGone(CortexError):
    """The folder in which a command runs was removed."""

    reference = "folder-gone"
    hint = "go to another folder: cd"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(f"the folder that you are in was removed: {folder}")


class WrongToken(CortexError):
    """The control plane does not take our token: the file was replaced, or another home's control plane answers."""

    reference = "wrong-token"

    def __init__(self, url: str, *, environment: str = "") -> None:
        self.url = url
        if environment:
            self.hint = f"`cortex configure edit {environment} --token` takes the right one"
            super().__init__(f"the control plane at {url} does not accept the token of environment {environment}")
            return
        self.hint = "`cortex down`, then `cortex up` makes a new token"
        super().__init__(f"the control plane at {url} does not accept the token in this home")


class OperatorFailed(CortexError):
    """The control plane answered with an error. `problems` is empty when `failure` itself says everything."""

    reference = "operator-failed"

    def __init__(self, status: int, failure: Failure) -> None:
        self.status = status
        self.failure = failure
        self.problems = failure.problems
        super().__init__(failure.message)

    def problem(self) -> Problem:
        return Problem(reference=self.failure.error, message=self.failure.message)


class UnknownAnswer(CortexError):
    """An answer that is not of this API: another program's server, or a control plane of another version."""

    reference = "unknown-answer"

    def __init__(self, url: str, detail: str) -> None:
        self.url = url
        self.hint = "after an upgrade, `cortex down`, then `cortex up` where it runs starts the new version"
        super().__init__(f"{url} gave an answer that this version cannot read: {detail}")


class UnknownEnvironment(CortexError):
    """An environment that nobody configured. `candidates` are those that there are."""

    reference = "unknown-environment"

    def __init__(self, name: str, candidates: tuple[str, ...]) -> None:
        from cortex.spec.problems import nearest

        self.name = name
        self.candidates = candidates
        meant = nearest(name, candidates)
        also = f'did you mean "{meant}"?\n' if meant else ""
        self.hint = f"{also}there are: {', '.join(candidates)}; `cortex configure add URL {name}` adds it"
        super().__init__(f'there is no environment "{name}"')


class ControlPlaneNotUp(CortexError):
    """The control plane was started and did not come up. `output` are the last lines that it wrote."""

    reference = "start-failed"

    def __init__(self, reason: str, *, output: str, log: Path, hint: str = "") -> None:
        self.output = output
        self.log = log
        self.hint = hint or f"all that it wrote: {log}"
        super().__init__(f"the control plane did not start: {reason}")

    def problem(self) -> Problem:
        return Problem(reference=self.reference, message=str(self), hint=self.hint, traceback=self.output)


class StopFailed(CortexError):
    """Processes that would not end. `pids` are those that still run."""

    reference = "stop-failed"

    def __init__(self, pids: tuple[int, ...]) -> None:
        self.pids = pids
        names = ", ".join(map(str, pids))
        self.hint = f"`ps {names.replace(',', '')}` shows what they do"
        super().__init__(f"these processes did not end, not even when killed: {names}")
