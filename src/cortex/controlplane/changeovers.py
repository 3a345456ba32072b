"""
Proving change-overs: an api is asked for its sample from before a deploy is written until after its new version is
live, and goes back if the change has made a request fail.

What is asked and answered: `prober`. What is said of it: `planning.receipts`. Here it is begun and ended, and written
down. Answers are kept in memory: where this process ends, the receipt says that it was cut short.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from cortex.artifacts import samples
from cortex.artifacts.store import ArtifactStore
from cortex.clock import Clock
from cortex.controlplane.rollback import take_back
from cortex.errors import CortexError, Problem
from cortex.ids import ApiKey, Revision, short, split_api_key
from cortex.planning import happenings, receipts
from cortex.planning.receipts import ChangeOver, SoFar
from cortex.state.base import ApiRecord, DeployedApi
from cortex.state.records import StateStore
from cortex.wire.build import BuildSpec, Sample
from cortex.wire.events import TellEvent, told_to_nobody
from cortex.wire.operator import ChangeKind, DeployProgress, Receipt, Verdict
from cortex.wire.probing import ProbeAnswer, ProbeRequest, ProbeSample

log = logging.getLogger(__name__)

BEFORE_S, LONGEST_BEFORE_S = 3.0, 10.0
"""For so long the old version is asked before anything changes; for longer where there are few answers by then."""
AFTER_S, LONGEST_AFTER_S = 5.0, 20.0
"""For so long the new one is asked once it is live; likewise."""
ENOUGH = 20
"""Answers in each of these times."""
MOST_PER_S, MOST_OF_ALL_PER_S = 100.0, 300.0
"""Requests to one api, and to all that one deploy changes."""
LONGEST_S = 900.0
"""A change-over that takes longer is not watched to its end."""
LOOK_EVERY_S = 0.1
CLOSE_S = 10.0
"""How long change-overs have to say that they are cut short, when the control plane ends."""

_COUNTED = "the ingress that runs is an older one, and counts what is asked for a proof"

Emit = Callable[[DeployProgress], None]


class ProbesCounted(CortexError):
    """What `--prove` asks would be counted as requests by the ingress of an older Cortex; nothing was changed."""

    reference = "probes-counted"
    hint = "`cortex down` and `cortex up` start the new one; or deploy without --prove"


class Asking(Protocol):
    """An api that is being asked; `probing.Probing` is it."""

    def answers(self) -> tuple[ProbeAnswer, ...]: ...

    @property
    def has_ended(self) -> bool: ...

    def close(self) -> None: ...


class Planned:
    """What is to be proved of one api, and whether it can be."""

    def __init__(self, *, build: BuildSpec, path: str, serving: BuildSpec | None, why_not: str = "") -> None:
        self.build = build
        self.path = path
        self.serving = serving
        """What served before, and would again; None: nothing did."""
        self.why_not = why_not
        old = short(serving.version) if serving is not None else ""
        self.samples, own = _samples(build, serving)
        self.change = ChangeOver(old=old, new=short(build.version), own_sample=own)

    @property
    def api(self) -> ApiKey:
        return self.build.api


@dataclass
class _Begun:
    planned: Planned
    asking: Asking | None
    """None: not before it is live."""
    most_per_s: float


class ChangeOvers:
    """
    Proves change-overs.

    Args:
        ask: begins to ask an api. Raises CortexError.
        serves_alone: whether the version of an api that was marked as live is seen to be the only one in rotation.
        ingress_url: where predictions are asked for.
        token: what the ingress knows probes by. Raises OSError.
        committed: called after the wanted state has changed.
    """

    def __init__(
        self,
        *,
        state: StateStore,
        store: ArtifactStore,
        clock: Clock,
        ask: Callable[[ProbeRequest], Asking],
        serves_alone: Callable[[ApiKey], bool],
        ingress_url: Callable[[], str],
        token: Callable[[], str],
        committed: Callable[[], None],
        tell: TellEvent = told_to_nobody,
    ) -> None:
        self._state = state
        self._store = store
        self._clock = clock
        self._ask = ask
        self._serves_alone = serves_alone
        self._ingress_url = ingress_url
        self._token = token
        self._committed = committed
        self._tell = tell
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def recover(self) -> None:
        """Those that were under way when the control plane ended. Raises StateError."""
        kept = {one.build.revision: one.build for one in self._state.versions()}
        for record in self._state.in_proof():
            revision = record.wanted.in_proof
            build = kept.get(revision) if revision is not None else None
            build = build or record.wanted.build
            receipt = receipts.unseen(Verdict.CUT_SHORT, "the control plane ended meanwhile; what it saw is not known")
            self._state.record_receipt(record.wanted.api, revision or build.revision, build.version, receipt)
            self._tell(happenings.proved(record.wanted.api, build.version, receipt))

    def close(self) -> None:
        """Begin no further ones, and let those under way say that they are cut short."""
        self._stopping.set()
        until_s = self._clock.monotonic_s() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, until_s - self._clock.monotonic_s()))

    # ---- within a deploy ----------------------------------------------------------------------------------------

    def begin(self, planned: Iterable[Planned], emit: Emit) -> Beginning:
        """
        Ask what serves before anything changes; returns when that was seen for long enough.

        Raises:
            CortexError: somebody cannot be asked; nobody is any more. So it is when `emit` raises.
        """
        planned = list(planned)
        asked = sum(not one.why_not for one in planned)
        most_per_s = min(MOST_PER_S, MOST_OF_ALL_PER_S / max(1, asked))
        with ExitStack() as begun:
            found = []
            for one in planned:
                asking = self._asking(one, most_per_s) if one.serving is not None and not one.why_not else None
                if asking is not None:
                    begun.callback(asking.close)
                found.append(_Begun(one, asking, most_per_s))
            self._see_before([one for one in found if one.asking is not None], emit)
            begun.pop_all()
        return Beginning(self, found)

    def _see_before(self, begun: Sequence[_Begun], emit: Emit) -> None:
        if not begun:
            return
        names = ", ".join(split_api_key(one.planned.api)[1] for one in begun)
        since_s = self._clock.monotonic_s()
        while (seen_s := self._clock.monotonic_s() - since_s) < LONGEST_BEFORE_S and not self._stopping.is_set():
            emit(DeployProgress(message=f"proving: asking what serves now ({names})"))
            if any(answer.counted for one in begun if one.asking is not None for answer in one.asking.answers()):
                raise ProbesCounted(_COUNTED)
            fewest = min(len(one.asking.answers()) for one in begun if one.asking is not None)
            if seen_s >= BEFORE_S and fewest >= ENOUGH:
                return
            self._stopping.wait(LOOK_EVERY_S)

    def _asking(self, planned: Planned, most_per_s: float) -> Asking:
        url = urlsplit(self._ingress_url())
        sent = tuple(
            ProbeSample(file=str(samples.body_file(self._store, one.tree)), content_type=one.content_type)
            for one in planned.samples
        )
        timeouts_s = [one.timeout_s for one in planned.samples if one.timeout_s is not None]
        request = ProbeRequest(
            host=url.hostname or "127.0.0.1",
            port=url.port or 80,
            path=planned.path,
            token=self._token(),
            samples=sent,
            name=f"probe-{short(planned.build.revision)}",
            timeout_s=max(timeouts_s, default=600.0) + 35.0,
            most_per_s=most_per_s,
        )
        return self._ask(request)

    # ---- afterwards ---------------------------------------------------------------------------------------------

    def go_on(self, begun: _Begun, begun_s: float) -> None:
        """Look at a change-over that was written, until it is over."""
        if begun.planned.why_not:
            self._write(begun.planned, receipts.unseen(Verdict.NOT_PROVED, begun.planned.why_not))
            return
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=self._run, args=(begun, begun_s), name="change-over", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, begun: _Begun, begun_s: float) -> None:
        planned = begun.planned
        try:
            receipt = self._receipt(begun, begun_s)
        except Exception as error:
            if not isinstance(error, CortexError):
                log.exception("a change-over of %s was not proved through a fault of ours", planned.api)
            receipt = receipts.unseen(Verdict.CUT_SHORT, str(error), previous=planned.change.old)
        finally:
            if begun.asking is not None:
                begun.asking.close()
        log.info("%s: change-over to version %s: %s", planned.api, planned.change.new, receipt.text)
        try:
            self._write(planned, receipt)
        except CortexError as error:
            log.warning("%s: the receipt cannot be written: %s", planned.api, error)

    def _receipt(self, begun: _Begun, begun_s: float) -> Receipt:
        planned = begun.planned
        change, revision = planned.change, planned.build.revision
        live_s: float | None = None
        while True:
            # In this order: what was answered before the row was read is the doing of what the row says.
            answers = begun.asking.answers() if begun.asking is not None else ()
            record = self._state.api(planned.api)
            now_s = self._clock.monotonic_s()
            seen = SoFar(answers=answers, begun_s=begun_s, live_s=live_s)
            ended = _ended(record, revision)
            if not ended and self._stopping.is_set():
                ended = "the control plane was stopped"
            if not ended and begun.asking is not None and begun.asking.has_ended:
                ended = "the process that asks was killed"
            if not ended and now_s - begun_s > LONGEST_S:
                ended = f"it was not over after {LONGEST_S / 60:g} min"
            if ended or record is None:
                return receipts.receipt(change, seen, Verdict.CUT_SHORT, ended)
            if fault := receipts.fault(change, seen):
                return receipts.receipt(change, seen, Verdict.FAILED, self._back(planned, fault))
            if live_s is None and record.wanted.live_wall_s is not None and self._serves_alone(planned.api):
                live_s = now_s
                if begun.asking is None:  # there was nobody to ask before
                    begun_s = now_s
                    begun.asking = self._asking(planned, begun.most_per_s)
            if any(one.counted for one in answers):
                return receipts.receipt(change, seen, Verdict.CUT_SHORT, _COUNTED)
            if live_s is not None and _is_over(answers, live_s, now_s):
                unanswered = receipts.unanswered(seen)
                verdict = Verdict.CUT_SHORT if unanswered else Verdict.PASSED
                return receipts.receipt(change, seen, verdict, unanswered)
            if _sleeps(answers):
                return receipts.receipt(change, seen, Verdict.CUT_SHORT, "it fell asleep")
            self._stopping.wait(LOOK_EVERY_S)

    def _back(self, planned: Planned, fault: str) -> str:
        """Go back to what served before; returns the fault, with what became of it."""
        if planned.serving is None:
            return f"{fault}; there is no version to go back to"
        wall_s = self._clock.wall_s()
        revision, to = planned.build.revision, planned.serving.revision
        if not take_back(self._state, self._tell, planned.api, revision, to, reason=fault, wall_s=wall_s):
            return f"{fault}; something else is wanted by now"
        log.warning("%s: back from version %s: %s", planned.api, planned.change.new, fault)
        self._committed()
        return fault

    def _write(self, planned: Planned, receipt: Receipt) -> None:
        self._state.record_receipt(planned.api, planned.build.revision, planned.build.version, receipt)
        self._tell(happenings.proved(planned.api, planned.build.version, receipt))
        self._committed()


class Beginning:
    """Apis that are asked while nothing has changed yet; used in `with`, which ends that unless `go_on` was called."""

    def __init__(self, owner: ChangeOvers, begun: Sequence[_Begun]) -> None:
        self._owner = owner
        self._begun = begun

    @property
    def apis(self) -> frozenset[ApiKey]:
        """What is asked, or will be."""
        return frozenset(one.planned.api for one in self._begun if not one.planned.why_not)

    def go_on(self, begun_s: float, left: Iterable[ApiKey]) -> None:
        """
        The deploy is written.

        Args:
            begun_s: monotonic, from before it was.
            left: apis that are as they were.
        """
        begun, left = self._begun, frozenset(left)
        self._begun = [one for one in begun if one.planned.api in left]
        for one in begun:
            if one.planned.api not in left:
                self._owner.go_on(one, begun_s)

    def __enter__(self) -> Beginning:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._begun:
            if one.asking is not None:
                one.asking.close()


# ---- what is proved --------------------------------------------------------------------------------------------------


def planned_of(candidate: DeployedApi, kind: ChangeKind, old: ApiRecord | None) -> Planned | str:
    """What is to be proved of an api that a deploy changes; or why nothing is."""
    if kind is ChangeKind.LEFT:
        return "it stays as it is"
    failed = old is not None and old.wanted.failed is not None
    if kind is ChangeKind.SETTINGS:
        return "its replicas stay"
    if kind is ChangeKind.UNCHANGED and not failed:
        return "nothing changed"
    serving = old.wanted.serving if old is not None and old.wanted.serving_was_live else None
    asleep = old is not None and old.wanted.scale.asleep
    return Planned(
        build=candidate.version.build,
        path=candidate.settings.path,
        serving=serving,
        why_not="it sleeps, and whoever asks wakes it" if asleep else "",
    )


def refusals(planned: Iterable[tuple[int, Planned, bool]], *, even_unrepeatable: bool) -> list[Problem]:
    """
    Why change-overs cannot be proved.

    Args:
        planned: each with the index of its api, and whether its requests may be repeated.
    """
    problems = []
    for index, one, retry in planned:
        name = split_api_key(one.api)[1]
        if one.build.sample is None:
            problems.append(
                Problem(
                    reference="no-sample-to-prove-with",
                    message="a change-over is proved by asking for the sample, and there is none",
                    subject=f'api "{name}"',
                    path=("apis", index),
                    hint="add `sample:`, a request that works, or deploy without --prove",
                )
            )
        elif not retry and not even_unrepeatable:
            problems.append(
                Problem(
                    reference="proof-repeats-requests",
                    message="its requests are not to be repeated, and a change-over is proved by sending the sample "
                    "again and again",
                    subject=f'api "{name}": retry',
                    path=("apis", index, "retry"),
                    hint="pass --yes if the sample may be sent many times, or deploy without --prove",
                )
            )
    return problems


def token_in(file: Path) -> Callable[[], str]:
    """Reads what the ingress knows probes by."""
    return lambda: file.read_text().strip()


def _samples(build: BuildSpec, serving: BuildSpec | None) -> tuple[tuple[Sample, ...], dict[str, int]]:
    """What is sent, and which of it is of which version, if they differ."""
    new, old = build.sample, serving.sample if serving is not None else None
    if new is None or old is None or serving is None or (old.tree, old.content_type) == (new.tree, new.content_type):
        return (() if new is None else (new,)), {}
    if short(serving.version) == short(build.version):  # one version takes both, if it takes them at all
        return (new,), {}
    return (new, old), {short(build.version): 0, short(serving.version): 1}


def _ended(record: ApiRecord | None, revision: Revision) -> str:
    """Why it is over before it was seen to its end; empty: it is not."""
    if record is None:
        return "the api was deleted"
    wanted = record.wanted
    if wanted.build.revision != revision:
        if wanted.rolled_back is not None and revision in wanted.rolled_back.passed:
            return f"it was rolled back{': ' if wanted.rolled_back.reason else ''}{wanted.rolled_back.reason}"
        return "another deploy replaced it"
    if wanted.failed is not None:
        return f"the new version did not start: {wanted.failed.message.partition(chr(10))[0]}"
    return ""


def _is_over(answers: Sequence[ProbeAnswer], live_s: float, now_s: float) -> bool:
    """Whether what is new was asked for long enough, or sleeps by now."""
    after = sum(one.begun_s >= live_s and not receipts.is_asleep(one) for one in answers)
    was_long = now_s - live_s >= AFTER_S or _sleeps(answers)
    return now_s - live_s >= LONGEST_AFTER_S or (was_long and after >= ENOUGH)


def _sleeps(answers: Sequence[ProbeAnswer]) -> bool:
    return bool(answers) and receipts.is_asleep(answers[-1])
