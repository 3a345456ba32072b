"""What a forked child stands in before it loads anything: a session, a log, variables, a view of its project."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from cortex import oom, processes
from cortex.oom import Rung
from cortex.replica.handler import view
from cortex.replica.observation import logs, places, secrecy
from cortex.replica.process import isolation
from cortex.wire.launch import ReplicaSpec
from cortex.wire.secrecy import confidential


class Surroundings(NamedTuple):
    view: view.ProjectView
    log: logs.LogFile
    streams: logs.Streams

    @property
    def spec(self) -> ReplicaSpec:
        """With the folder that it is to work in."""
        return self.view.spec


def settle(
    spec: ReplicaSpec,
    secrets: Mapping[str, str],
    *,
    descriptors: Collection[int],
    open_log: Callable[[], logs.LogFile],
    title: tuple[str, ...],
) -> Surroundings:
    """
    Make a process of its own of this one, which was just forked and has one thread.

    Args:
        descriptors: those that stay open.
        open_log: called once the others are closed.
        title: for `ps`.
    """
    isolation.detach()
    isolation.close_descriptors_except(descriptors)
    log = open_log()
    faulthandler.enable(log.descriptor)
    isolation.reseed()
    oom.step_up(os.getpid(), by=Rung.LAUNCHER, to=Rung.USERS)
    isolation.apply_variables(isolation.replica_variables(spec, os.environ, secrets))
    isolation.forget_launcher()
    secrecy.keep(confidential(secrets))
    isolation.set_title(*title)
    seen = view.enter(spec)
    places.keep(seen.spec)
    streams = logs.install(log, seen.spec.project_dir)
    processes.become_subreaper()
    return Surroundings(seen, log, streams)
