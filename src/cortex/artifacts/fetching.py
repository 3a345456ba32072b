"""Starts the process that fetches a model, and hears what it says. The process itself: `fetcher`."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping

import msgspec

from cortex import oom
from cortex.errors import CortexError, GiveUp, Problem
from cortex.oom import Rung
from cortex.wire.cloud import leads_to_clouds, without_clouds
from cortex.wire.fetch import Fetched, FetchEvent, FetchProgress, FetchRefused, FetchRequest

COMMAND = (sys.executable, "-P", "-m", "cortex.artifacts.fetcher")
"""`-P`: nothing in the current folder is ours to import."""
LOOK_EVERY_S = 0.1
"""How soon it is noticed that nobody wants the model any more."""
END_GRACE_S = 3.0
"""To remove a half-written file. Whoever waits for an answer of a store is ended after it."""
LAST_WORDS_BYTES = 4000

CLOUD_NAMES = frozenset(
    [
        *("HOME", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    ]
)
FILE_VARIABLES = frozenset(
    [
        *("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CA_BUNDLE"),
        *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH"),
        *("CLOUDSDK_CONFIG", "AZURE_FEDERATED_TOKEN_FILE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    ]
)
"""Their values are paths, which may be relative to where the shell is."""
_QUERY = re.compile(r"(https?://[^\s?\"']*)\?[^\s\"']*")


class FetchStopped(CortexError):
    """Nobody wanted the model any more; nothing of it was kept but whole files."""

    reference = "fetch-stopped"


class FetchDied(CortexError):
    """The process ended without an answer: a fault of ours, or it was killed."""

    reference = "fetch-died"

    def __init__(self, how: str, output: str) -> None:
        self.output = output
        super().__init__(f"the process that fetches models {how}")

    def problem(self) -> Problem:
        return Problem(reference=self.reference, message=str(self), traceback=self.output, hint="deploy again")


def cloud_variables(environ: Mapping[str, str], cwd: str) -> dict[str, str]:
    """Those variables of a shell that say how it reaches its clouds; paths are made absolute."""
    found = {name: value for name, value in environ.items() if value and (name in CLOUD_NAMES or leads_to_clouds(name))}
    for name in FILE_VARIABLES & found.keys():
        found[name] = os.path.join(cwd, os.path.expanduser(found[name]))
    return found


def fetch_in_process(
    request: FetchRequest,
    *,
    cloud: Mapping[str, str],
    environ: Mapping[str, str],
    tell: Callable[[FetchProgress], None],
    stop: threading.Event,
    command: tuple[str, ...] = COMMAND,
) -> Fetched:
    """
    Fetch a model into the store that the request names.

    Args:
        cloud: as `cloud_variables` gives them; no others reach the process.
        environ: everything else.
        stop: set by whoever does not want the model any more.

    Raises:
        GiveUp: it cannot be had; says why.
        FetchStopped, FetchDied
    """
    plain = without_clouds(environ)
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd="/",
            env={**plain, **cloud},
            start_new_session=True,
        )
        oom.step_up(process.pid, by=Rung.CONTROL_PLANE, to=Rung.NODE)
        try:
            answer = _answer(process, request, tell, stop)
        finally:
            _end(process)
        if answer is None:
            errors.seek(max(errors.seek(0, os.SEEK_END) - LAST_WORDS_BYTES, 0))
            output = errors.read().decode("utf-8", "replace").strip()
            raise FetchDied(_how(process.returncode), _QUERY.sub(r"\1?***", output))
    if isinstance(answer, FetchRefused):
        raise GiveUp(answer.problem)
    return answer


def _answer(
    process: subprocess.Popen[bytes],
    request: FetchRequest,
    tell: Callable[[FetchProgress], None],
    stop: threading.Event,
) -> Fetched | FetchRefused | None:
    """What it says in the end; None when it ends without a word."""
    assert process.stdin is not None
    assert process.stdout is not None
    decoder = msgspec.json.Decoder[FetchEvent](FetchEvent)
    try:
        process.stdin.write(msgspec.json.encode(request) + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        return None
    output = process.stdout.fileno()
    rest = b""
    while True:
        if stop.is_set():
            raise FetchStopped("nobody waits for the model any more")
        if not select.select([output], [], [], LOOK_EVERY_S)[0]:
            continue
        chunk = os.read(output, 2**16)
        if not chunk:
            return None
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            event: FetchEvent = decoder.decode(line)
            if not isinstance(event, FetchProgress):
                return event
            tell(event)


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.close()  # which it takes for a request to end
    except BrokenPipeError:
        pass
    try:
        process.wait(END_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def _how(code: int) -> str:
    return f"ended with exit code {code}" if code >= 0 else f"was ended by signal {-code}"
