"""What a life looks like to the control plane."""

from __future__ import annotations

from cortex.agent.life.living import sample_limit_s
from cortex.agent.life.state import Life, Now
from cortex.wire.reports import Phase, ReplicaReport, StartStep


def report(life: Life, now: Now, *, rss_bytes: int, peak_rss_bytes: int, cpu_s: float) -> ReplicaReport:
    """One replica; what its process uses comes from the kernel."""
    status, build, has_exited = life.status, life.order.build, life.phase is Phase.EXITED
    return ReplicaReport(
        replica=life.id,
        api=build.api,
        version=build.version,
        revision=build.revision,
        attempt=life.order.attempt,
        phase=life.phase,
        resources=build.resources,
        devices=life.order.devices,
        was_ready=life.was_ready,
        started_wall_s=life.started_wall_s,
        phase_age_s=max(0.0, now.s - life.phase_since_s),
        knocked_age_s=_knocked_age_s(life, now),
        pid=life.identity.pid if life.identity is not None and not has_exited else None,
        in_flight=status.in_flight if status is not None else 0,
        rss_bytes=rss_bytes,
        peak_rss_bytes=peak_rss_bytes,
        cpu_s=cpu_s,
        progress=life.progress.doing,
        **_waits(life, now),
        steps=tuple(StartStep(phase=step.phase, seconds=round(step.seconds, 3)) for step in life.steps),
        warnings=status.warnings if status is not None else (),
        model=build.model_key,
        batches=life.order.batches,
        batching=status.batching if status is not None else None,
        exit=life.exit if has_exited else None,
    )


def _knocked_age_s(life: Life, now: Now) -> float | None:
    hold = life.hold
    waits = life.phase is Phase.ASLEEP and hold is not None and not hold.is_over
    return max(0.0, now.s - hold.since_s) if waits and hold is not None else None


def _waits(life: Life, now: Now) -> dict[str, float]:
    """Of a process that starts: since when it is at what it does, and until when it may be."""
    if life.phase not in (Phase.LOADING, Phase.WARMING):
        return {}
    limit_s, since_s = now.settings.start_timeout_s, life.progress.since_wall_s
    if life.phase is Phase.WARMING:
        limit_s = min(limit_s, sample_limit_s(life.order.build))
    return {"got_on_wall_s": since_s, "given_up_wall_s": since_s + limit_s}
