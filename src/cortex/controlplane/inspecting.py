"""
Having new versions looked at before they are deployed: whether they would start, and what their models' rows allow.

In children of a launcher on a node that `errands` chooses: users' code never runs here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Protocol

import msgspec

from cortex.controlplane.fetching import DeployLeft
from cortex.controlplane.lines import CalledOff
from cortex.errors import CortexError, Problem, Problems
from cortex.ids import ApiKey, Version, split_api_key
from cortex.planning.batching import BatchingDecision, Known, disagreement_text, place_of
from cortex.state.base import ApiRecord, DeployedApi
from cortex.state.records import StateStore
from cortex.wire.batching import Disagreement, Mode
from cortex.wire.build import BuildSpec, ModelKey
from cortex.wire.launch import InspectReport
from cortex.wire.operator import DeployProgress

INSPECTIONS_AT_ONCE = 4
"""Each is a process that loads a model; more at once only compete for the same cores."""

Emit = Callable[[DeployProgress], None]


class Inspector(Protocol):
    """
    Looks at a build in a child of a node, and at its model's rows if it is said how, until the event is set.

    `keep`: a replica of it is about to be started. Raises CortexError when no node can be asked.
    """

    def __call__(self, build: BuildSpec, rows: Mode, left: threading.Event, /, *, keep: bool) -> InspectReport: ...


class DeployInspections:
    """Those of deploys; what is found out of a model's rows is kept by model, whatever becomes of the version."""

    def __init__(self, *, state: StateStore, inspect: Inspector) -> None:
        self._state = state
        self._inspect = inspect

    def of_deploy(
        self,
        candidates: Sequence[DeployedApi],
        known: Mapping[ApiKey, ApiRecord],
        emit: Emit,
        left: threading.Event,
        *,
        keep: bool,
    ) -> tuple[list[DeployedApi], list[Problem]]:
        """
        Have each version looked at that has not been before: the candidates with what was found, and warnings.

        Args:
            keep: replicas of them are about to be started.

        Raises:
            Problems: all that is wrong.
            DeployLeft: nobody waits any more; what was being looked at has been ended.
        """
        reports = _known_reports(candidates, known)
        new: dict[Version, BuildSpec] = {}
        for candidate in candidates:
            if candidate.version.build.version not in reports:
                new.setdefault(candidate.version.build.version, candidate.version.build)
        reports |= self._look_at(new, emit, left, keep=keep)
        of_rows = Known(self._state.batching())
        problems: list[Problem] = []
        warnings: list[Problem] = []
        for index, candidate in enumerate(candidates):
            build = candidate.version.build
            report = reports[build.version]
            subject = f'api "{split_api_key(build.api)[1]}"'
            wrong, noted = _judged(report, of_rows.decision(build)) if build.version in new else (report.problems, ())
            problems += [_placed(problem, subject=subject, path=("apis", index)) for problem in wrong]
            warnings += [_placed(problem, subject=subject, path=("apis", index)) for problem in noted]
        if problems:
            raise Problems(problems)
        return [_with_report(one, reports[one.version.build.version]) for one in candidates], warnings

    def _look_at(
        self, builds: Mapping[Version, BuildSpec], emit: Emit, left: threading.Event, *, keep: bool
    ) -> dict[Version, InspectReport]:
        """Several at once. Raises DeployLeft."""
        reports: dict[Version, InspectReport] = {}
        rows = asked_of_rows(builds.values(), Known(self._state.batching()))
        with ThreadPoolExecutor(INSPECTIONS_AT_ONCE, thread_name_prefix="inspect") as pool:
            futures = {
                pool.submit(self._inspect, build, rows[version], left, keep=keep): build
                for version, build in builds.items()
            }
            for done, future in enumerate(as_completed(futures)):
                build = futures[future]
                try:
                    report = future.result()
                except CalledOff:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise DeployLeft("the deploy was called off") from None
                except CortexError as error:
                    report = InspectReport(problems=(error.problem(),))
                name = split_api_key(build.api)[1]
                emit(DeployProgress(message=_checked(build, report), api=name, done=done + 1, total=len(builds)))
                if report.batching is not None and build.model_key is not None:
                    self._state.record_verdict(build.model_key, report.batching, place=place_of(build))
                reports[build.version] = msgspec.structs.replace(report, batching=None)
        return reports


def _known_reports(
    candidates: Iterable[DeployedApi], known: Mapping[ApiKey, ApiRecord]
) -> dict[Version, InspectReport]:
    """Of versions that are what is wanted already."""
    reports = {}
    for candidate in candidates:
        build = candidate.version.build
        old = known.get(build.api)
        if (
            old is not None
            and old.wanted.build.version == build.version
            and old.version.inspection.signature is not None
        ):
            reports[build.version] = old.version.inspection
    return reports


def _judged(report: InspectReport, rows: BatchingDecision) -> tuple[Sequence[Problem], Sequence[Problem]]:
    """What is wrong with a new version, and what there is to warn of."""
    if rows.disagreement is None:
        return report.problems, report.warnings
    found = _contradiction(rows, rows.disagreement)
    if rows.mode == "on" and rows.stop is None:
        return (*report.problems, found), report.warnings
    return report.problems, (found, *report.warnings)


def _with_report(candidate: DeployedApi, report: InspectReport) -> DeployedApi:
    version = msgspec.structs.replace(candidate.version, inspection=report)
    return msgspec.structs.replace(candidate, version=version)


def asked_of_rows(builds: Iterable[BuildSpec], known: Known) -> dict[Version, Mode]:
    """
    What the inspection of each version is asked about its model's rows: what is not known, and of each model once.

    Where a trial speaks against batches it is made again: what it ran on may be another runtime by now.
    """
    asked: dict[Version, Mode] = {}
    said: set[tuple[ModelKey | None, str, Mode]] = set()
    for build in builds:
        decision = known.decision(build)
        contradicted = decision.stop is None and decision.disagreement is not None
        rows = decision.mode if contradicted else known.to_be_asked(build)
        asked[build.version] = "off" if (build.model_key, place_of(build), rows) in said else rows
        said.add((build.model_key, place_of(build), rows))
    return asked


def _contradiction(decision: BatchingDecision, disagreement: Disagreement) -> Problem:
    """What there is to say where rows disagreed: against the user's word, or against what was proved."""
    seen = "in a replica" if decision.stop is not None else "when they were tried"
    return Problem(
        reference="batching-contradicted",
        message=f"requests are not batched, as rows disagreed {seen}: {disagreement_text(disagreement)}",
        subject="batching",
        path=("batching",),
        hint="write batching: auto, which batches only what is proved"
        if decision.mode == "on"
        else "nothing is wrong with your model; that it was proved is a fault of Cortex, please report it",
    )


def _checked(build: BuildSpec, report: InspectReport) -> str:
    """What was looked at, and whether anything is wrong with it."""
    what = "model and handler" if build.handler is not None else "model"
    return f"found fault with {what}" if report.problems else f"checked {what}"


def _placed(problem: Problem, *, subject: str, path: tuple[str | int, ...]) -> Problem:
    return msgspec.structs.replace(
        problem,
        subject=f"{subject}: {problem.subject}" if problem.subject else subject,
        path=(*path, *problem.path),
    )
