"""Builds are looked at before they are deployed: in a child of the launcher that would fork their replicas."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence

import msgspec

from cortex.agent.children import Children
from cortex.agent.kept import Kept, KeptInspections
from cortex.agent.launchers import Launcher, LauncherLost
from cortex.agent.provisions import Provisions
from cortex.agent.replicas import Replicas
from cortex.agent.specs import replica_spec
from cortex.agent.strays import Strays
from cortex.errors import CortexError, Problem
from cortex.ids import DeviceId, replica_id
from cortex.settings import NodeLayout, Settings
from cortex.wire.agent import InspectBuild
from cortex.wire.batching import Mode
from cortex.wire.build import BuildSpec
from cortex.wire.launch import InspectReport, ReplicaSpec
from cortex.wire.orders import StartReplica
from cortex.wire.secrecy import confidential, problem_without, to_mask

INSPECT_TRIES = 3
"""A launcher that dies over an inspection says nothing about what was inspected."""


class Inspections:
    """
    Has builds looked at.

    Args:
        devices: the node's GPUs.
        is_ending: whether nothing is tried again any more.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        layout: NodeLayout,
        provisions: Provisions,
        replicas: Replicas,
        kept: KeptInspections,
        strays: Strays,
        children: Children,
        devices: Sequence[DeviceId],
        is_ending: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._provisions = provisions
        self._replicas = replicas
        self.kept = kept
        self._strays = strays
        self._children = children
        self._devices = devices
        self._is_ending = is_ending

    async def inspect(self, request: InspectBuild) -> InspectReport:
        """What model and handler of a build are; what keeps them from being looked at is among the problems."""
        with self._provisions.using(request.build):
            return await self._inspect(request)

    async def _inspect(self, request: InspectBuild) -> InspectReport:
        build = request.build
        order = StartReplica(
            replica=replica_id(build.api, build.revision, 0),  # what is kept becomes the first one
            attempt=0,
            build=build,
            devices=self._devices_to_inspect_on(build),
        )
        self.kept.end(build.api)
        scratch = self._layout.scratch / f"inspection-{secrets.token_hex(8)}"
        is_kept = False
        try:
            provided = await self._provisions.provide(build)
            spec = msgspec.structs.replace(
                replica_spec(order, provided, settings=self._settings, layout=self._layout),
                start_timeout_s=request.timeout_s,
                log_path="",
                stats_path="",
                scratch=str(scratch),
            )
            launcher = self._replicas.launchers.get(build.runtime, build.env, build.packages)
            keep = request.keep and not order.devices  # which others may be waiting for
            report = await self._inspected(launcher, spec, provided.secrets, request.rows, keep=keep)
            if report.kept:
                self.kept.add(Kept(report.kept, launcher, spec, provided.secrets))
                is_kept = True
            return _masked(msgspec.structs.replace(report, kept="", rows_left=False), provided.secrets)
        except CortexError as error:
            return InspectReport(problems=(error.problem(),))
        except TimeoutError:
            return InspectReport(
                problems=(
                    Problem(
                        reference="inspection-timeout",
                        message=f"model and handler could not be checked within {request.timeout_s:.0f} s",
                    ),
                )
            )
        except OSError as error:
            message = f"this machine cannot check models and handlers now: {error}"
            return InspectReport(problems=(Problem(reference="node-fault", message=message),))
        finally:
            if not is_kept:
                await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    def _devices_to_inspect_on(self, build: BuildSpec) -> tuple[DeviceId, ...]:
        """As many GPUs as its replicas get: those that no replica holds, others only when these are too few."""
        held = {device for life in self._replicas.lives.values() for device in life.order.devices}
        return tuple(sorted(self._devices, key=held.__contains__)[: build.resources.gpus])

    async def _inspected(
        self, launcher: Launcher, spec: ReplicaSpec, values: Mapping[str, str], rows: Mode, *, keep: bool
    ) -> InspectReport:
        report = await self._looked(launcher, spec, values, rows, keep=keep)
        if not report.rows_left:
            return report
        alone = _model_alone(spec, with_sample=not report.has_pre)
        try:
            of_rows = await self._looked(launcher, alone, {}, rows, keep=False)
        except BaseException:
            launcher.call_off(report.kept)
            raise
        if of_rows.problems:
            launcher.call_off(report.kept)
            report = msgspec.structs.replace(report, kept="")
        problems = (*report.problems, *of_rows.problems)
        return msgspec.structs.replace(report, problems=problems, batching=of_rows.batching or report.batching)

    async def _looked(
        self, launcher: Launcher, spec: ReplicaSpec, values: Mapping[str, str], rows: Mode, *, keep: bool
    ) -> InspectReport:
        for tries_left in reversed(range(INSPECT_TRIES)):
            try:
                async with asyncio.timeout(spec.start_timeout_s + 10.0):
                    return await launcher.inspect(
                        spec,
                        values,
                        model=True,
                        handler=spec.handler is not None,
                        rows=rows,
                        keep=keep,
                    )
            except LauncherLost:
                self._children.end("cortex-inspect")  # nobody waits for what it had begun
                await self._strays.end()
                if not tries_left or self._is_ending():
                    raise
        raise AssertionError("unreachable")


def _model_alone(spec: ReplicaSpec, *, with_sample: bool) -> ReplicaSpec:
    """Without its handler, which says nothing about rows."""
    return msgspec.structs.replace(
        spec,
        handler=None,
        project_dir=None,
        env={},
        scratch="",
        tracker=None,
        sample=spec.sample if with_sample else None,
        sample_path=spec.sample_path if with_sample else None,
    )


def _masked(report: InspectReport, secrets: Mapping[str, str]) -> InspectReport:
    """Users' code knows its secrets, and may have died quoting one."""
    parts = to_mask(confidential(secrets))
    return msgspec.structs.replace(
        report,
        problems=tuple(problem_without(parts, problem) for problem in report.problems),
        warnings=tuple(problem_without(parts, problem) for problem in report.warnings),
    )
