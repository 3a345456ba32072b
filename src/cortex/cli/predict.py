"""`cortex predict`: one sample to one api."""

from __future__ import annotations

import os

import click
import msgspec

from cortex.cli.boundary import DONE
from cortex.cli.command import Command, api_argument, deployment_option, flag, full_api, on_interrupt, reach
from cortex.cli.logs import short_replica
from cortex.cli.terminal import Terminal, harmless
from cortex.client import prediction
from cortex.client.addressing import deployment_here, find_api, full_name
from cortex.client.operator import OperatorClient
from cortex.errors import CortexError
from cortex.settings import Settings
from cortex.wire.operator import ApiStatus, Status

DEBUG_WAIT_S = 2.0
"""How long the steps of a debugged request may take to reach the log."""


class SampleUnreadable(CortexError):
    """The sample's file cannot be read."""

    reference = "sample-unreadable"

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        if name.lstrip()[:1] in ("{", "[", '"'):
            self.hint = "a sample is a file; for a value: echo '<value>' | cortex predict API -"
        super().__init__(f"{name}: {reason}" if name else "no file is named")


def predict(
    terminal: Terminal, settings: Settings, *, api: str, sample: str, deployment: str | None, debug: bool
) -> int:
    body, content_type = _read(terminal, sample)
    operator = reach(terminal, settings)
    found = find_api(operator, full_api(api, deployment), deployment_here(terminal.cwd))
    with on_interrupt("the api may still work on the request; its answer is lost"):
        try:
            answer = prediction.post(found.endpoint, body, content_type, debug=debug)
        except prediction.PredictionRefused as error:
            error.hint = _next_step(found, error)
            if debug:
                _show_steps(terminal, operator, found, error.request_id)
            raise
        if debug:
            _show_steps(terminal, operator, found, answer.request_id)
    _show(terminal, answer)
    return DONE


def _read(terminal: Terminal, sample: str) -> tuple[bytes, str]:
    if sample == "-":
        binary = getattr(terminal.stdin, "buffer", None)
        body: bytes = binary.read() if binary is not None else terminal.stdin.read().encode()
        return body, prediction.sniffed_content_type(body)
    try:
        return prediction.read_sample(terminal.cwd / os.path.expanduser(sample))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise SampleUnreadable(sample, (reason or str(error)).lower()) from error


def _show(terminal: Terminal, answer: prediction.Answer) -> None:
    """JSON, indented for people; in a pipe the bytes as they came."""
    is_json = "json" in answer.content_type
    is_text = is_json or answer.content_type.startswith("text/")
    if terminal.shows_results and is_text:
        shown = answer.body
        if is_json:
            try:
                shown = msgspec.json.format(answer.body, indent=2)
            except msgspec.MsgspecError:
                pass
        terminal.out(harmless(shown.decode("utf-8", "replace")))
        return
    if terminal.shows_results:
        kind = answer.content_type or "unnamed type"
        terminal.say(f"{len(answer.body)} bytes of {kind}: not for a terminal, send them to a file with >")
        return
    ending = b"\n" if is_text and not answer.body.endswith(b"\n") else b""
    binary = getattr(terminal.stdout, "buffer", None)
    if binary is None:
        terminal.stdout.write((answer.body + ending).decode("utf-8", "replace"))
    else:
        binary.write(answer.body + ending)
    terminal.stdout.flush()


def _show_steps(terminal: Terminal, operator: OperatorClient, api: ApiStatus, request_id: str) -> None:
    """What the request was at each step, as the replica logged it."""
    if not request_id:
        return
    lines = operator.logs(api.deployment, api.name, request=request_id)
    if not lines.lines and lines.cursor:
        lines = operator.logs(api.deployment, api.name, request=request_id, cursor=lines.cursor, wait_s=DEBUG_WAIT_S)
    paint = terminal.paint_talk
    terminal.say(paint(f"request {request_id}, replica {_replicas(lines.lines and lines.lines[0].replica)}", "bold"))
    for line in lines.lines:
        for part in harmless(line.text).splitlines():
            terminal.say(f"  {part}")
    if not lines.lines:
        terminal.say(f"  nothing logged yet: `cortex logs {full_name(api)} --request {request_id}`")


def _replicas(replica: object) -> str:
    return short_replica(str(replica)) if replica else "unknown"


def _next_step(api: ApiStatus, error: prediction.PredictionRefused) -> str:
    if error.status >= 500 and api.status is not Status.LIVE:
        return f"the api is in status {api.status}: `cortex get {full_name(api)}`"
    if error.status >= 500 and error.request_id:
        return f"`cortex logs {full_name(api)} --no-follow --request {error.request_id}` shows what happened"
    return ""


COMMAND = Command(
    "predict",
    predict,
    summary="Send a sample to an api and print its answer.",
    details="""
    SAMPLE is a file, or - for standard input. The content type follows from the file's ending: .json, .txt, .npy,
    images, audio; anything else is sent as bytes.
    """,
    parameters=(
        api_argument(),
        click.Argument(["sample"], type=click.Path()),
        deployment_option(),
        flag("--debug", help="Also show the request after each step, with times."),
    ),
    examples=(
        ("cortex predict sklearn sample.json", "the answer, as JSON"),
        ("cortex predict faces photo.jpg --debug", "an image, and what became of it"),
        ("echo '[5.2, 3.6, 1.4, 0.3]' | cortex predict raw -", "a sample from elsewhere"),
    ),
)
