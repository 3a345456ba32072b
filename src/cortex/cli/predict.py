"""`cortex predict`: one sample to one api."""

from __future__ import annotations

import os
from pathlib import Path

import click
import msgspec

from cortex.cli.boundary import DONE
from cortex.cli.command import Command, look, on_interrupt
from cortex.cli.curl import SAMPLE_FILE
from cortex.cli.parameters import api_argument, deployment_option, flag, full_api
from cortex.cli.terminal import Terminal, harmless
from cortex.cli.text import short_replica
from cortex.client import prediction
from cortex.client.addressing import deployment_here, find_api, find_file, full_name
from cortex.client.operator import OperatorClient
from cortex.errors import CortexError
from cortex.settings import Settings
from cortex.spec.locations import sample_path
from cortex.spec.problems import quoted
from cortex.wire.operator import ApiStatus

DEBUG_WAIT_S = 2.0
"""How long the steps of a debugged request may take to look the log."""


class SampleUnreadable(CortexError):
    """The sample is neither a file that can be read nor JSON."""

    reference = "sample-unreadable"

    def __init__(self, name: str, reason: str, *, hint: str = "") -> None:
        self.name = name
        self.hint = hint
        super().__init__(f"{name}: {reason}" if name else "no file is named")


class NoSample(CortexError):
    """Nothing is named or piped in, and the api has no sample that is at hand."""

    reference = "no-sample"

    def __init__(self, api: str, missing: str) -> None:
        self.hint = (
            f"name a file, or JSON itself: cortex predict {api} sample.json\n"
            "or take one into cortex.yaml: sample: sample.json"
        )
        super().__init__(f"there is no {missing}" if missing else f"no sample is given, and {api} has none of its own")


def predict(
    terminal: Terminal, settings: Settings, *, api: str, sample: str | None, deployment: str | None, debug: bool
) -> int:
    given = _given(terminal, sample)
    operator = look(terminal, settings)
    found = find_api(operator, full_api(api, deployment), deployment_here(terminal.cwd))
    body, content_type = given or _own_sample(terminal, operator, found)
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


def _given(terminal: Terminal, sample: str | None) -> tuple[bytes, str] | None:
    """What is named, typed or piped in, with its content type; None if nothing is."""
    if sample is None:
        piped = terminal.piped()
        return None if piped is None else (piped, prediction.sniffed_content_type(piped))
    if sample == "-":
        body = terminal.read_bytes()
        return body, prediction.sniffed_content_type(body)
    path = terminal.cwd / os.path.expanduser(sample)
    if sample.strip() and not path.exists() and (body := sample.encode()):
        wrong = prediction.why_no_json(body)
        if not wrong:
            return body, "application/json"
        if sample.lstrip()[0] in '{["':
            raise SampleUnreadable(quoted(sample), f"is neither a file nor JSON: {wrong}", hint=_quoting(sample))
    try:
        return prediction.read_sample(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise SampleUnreadable(sample, (reason or str(error)).lower()) from error


def _quoting(sample: str) -> str:
    """What mostly went wrong: the shell took the quotes away."""
    return "put it in single quotes, for the shell: '{\"key\": 1}'" if '"' not in sample else ""


def _own_sample(terminal: Terminal, operator: OperatorClient, api: ApiStatus) -> tuple[bytes, str]:
    """
    The sample that cortex.yaml names, or the sample.json beside it.

    Raises:
        NoSample: it has none, or its file is not on this machine.
    """
    sample = api.spec.get("sample")
    name = SAMPLE_FILE if sample is None else sample_path(sample)
    if name is None:
        return msgspec.json.encode(sample), "application/json"
    here = find_file(terminal.cwd) if deployment_here(terminal.cwd) == api.deployment else None
    sources = [deployment.source for deployment in operator.deployments() if deployment.name == api.deployment]
    for folder in (*([here.parent] if here else ()), *(Path(source) for source in sources if source)):
        try:
            return prediction.read_sample(folder / name)
        except OSError:
            continue
    raise NoSample(full_name(api), f"{name} where {full_name(api)} was deployed from" if sample is not None else "")


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
    if error.status >= 500 and not api.status.is_well:
        return f"the api is in status {api.status}: `cortex get {full_name(api)}`"
    if error.status >= 500 and error.request_id:
        return f"`cortex logs {full_name(api)} --no-follow --request {error.request_id}` shows what happened"
    return ""


COMMAND = Command(
    "predict",
    predict,
    summary="Send a sample to an api and print its answer.",
    details="""
    SAMPLE is a file, JSON itself, or - for standard input; without it what is piped in is sent, else the api's own
    `sample`. What is JSON is sent as JSON, whatever the file is called; otherwise the content type follows from the
    ending: .txt, .npy, images, audio; anything else is sent as bytes.
    """,
    parameters=(
        api_argument(),
        click.Argument(["sample"], type=click.Path(), required=False),
        deployment_option(),
        flag("--debug", help="Also show the request after each step, with times."),
    ),
    examples=(
        ("cortex predict sklearn sample.json", "the answer, as JSON"),
        ("cortex predict faces photo.jpg --debug", "an image, and what became of it"),
        ("cortex predict raw '[5.2, 3.6, 1.4, 0.3]'", "JSON itself"),
        ("cortex predict sklearn", "its own sample"),
        ("jq .samples[0] all.json | cortex predict raw", "a sample from elsewhere"),
    ),
)
