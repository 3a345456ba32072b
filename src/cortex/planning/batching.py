"""
Whether a model's requests may share a run: from what was proved, tried and seen to one decision and its words. Pure.

What is known of a model is kept beside the versions and by the number of the rules, so that better rules, or a row that
disagreed, change what replicas do without making new versions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from cortex.ids import ApiKey, ReplicaId
from cortex.wire.batching import (
    RULES,
    BatchingOrder,
    BatchingVerdict,
    Disagreement,
    Mode,
    Proof,
    Rounding,
    SizeCondition,
    Trial,
)
from cortex.wire.build import BuildSpec, ModelKey


class BatchingStop(msgspec.Struct, frozen=True, kw_only=True):
    """A replica saw a row answered differently alone and together: nobody batches that model there any more."""

    api: ApiKey
    replica: ReplicaId
    started_wall_s: float
    """When that replica's process started: with its id, it tells one that was seen before from another one."""
    runtime: str
    """Empty if it had not said: then it holds for all."""
    disagreement: Disagreement
    wall_s: float = 0.0
    """When it was recorded, for people."""

    def is_of(self, replica: ReplicaId, started_wall_s: float) -> bool:
        """Whether this run of a replica saw it."""
        return (self.replica, self.started_wall_s) == (replica, started_wall_s)


class BatchingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one model's rows by one number of rules. One stored row."""

    model: ModelKey
    rules: int
    proof: Proof | None = None
    trials: tuple[Trial, ...] = ()
    """One for each runtime."""
    runtimes: dict[str, str] = {}
    """What the last inspection ran on, by place (`place_of`)."""
    stops: tuple[BatchingStop, ...] = ()

    def with_verdict(self, verdict: BatchingVerdict, place: str) -> BatchingRecord:
        """With what an inspection at a place has found out."""
        trial = verdict.trial
        if trial is None:
            return msgspec.structs.replace(self, proof=verdict.proof)
        others = tuple(known for known in self.trials if known.runtime != trial.runtime)
        return msgspec.structs.replace(
            self, proof=verdict.proof, trials=(*others, trial), runtimes={**self.runtimes, place: trial.runtime}
        )

    def trial_on(self, runtime: str) -> Trial | None:
        """The trial on a runtime. While that is not known: one that speaks against batches, wherever it was made."""
        if not runtime:
            return next((trial for trial in self.trials if trial.disagreement is not None), None)
        return next((trial for trial in self.trials if trial.runtime == runtime), None)


class BatchingDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What replicas of a build do about batches, and why."""

    order: BatchingOrder
    text: str
    """For people, in one line."""
    mode: Mode
    verdict: BatchingVerdict | None = None
    stop: BatchingStop | None = None
    disagreement: Disagreement | None = None
    """Why nothing is batched, if it is that rows were answered differently alone and together."""
    runtime: str = ""
    """What it was decided for; empty while that is not known."""


class Known:
    """
    Everything that is known of models' rows.

    Args:
        rules: the number of the rules in force; what was found out by others is void.
    """

    def __init__(self, records: Iterable[BatchingRecord], *, rules: int = RULES) -> None:
        in_force = [record for record in records if record.rules == rules]
        self._records = {record.model: record for record in in_force}
        self._stops = [(record.model, stop) for record in in_force for stop in record.stops]
        self._decisions: dict[tuple[ModelKey, Mode, str], BatchingDecision] = {}
        """Those that were made: hundreds of replicas ask for the same few."""

    def decision(self, build: BuildSpec, runtime: str = "") -> BatchingDecision:
        """
        What a replica of this build does.

        Args:
            runtime: what it says that it runs on. While it has not said: what the last inspection at its place ran on.
        """
        runtime = runtime or self.runtime_at(build)
        model, mode = build.model_key, build.batching_mode
        if model is None:
            return BatchingDecision(order=BatchingOrder(), text="not batched: there is no model", mode=mode)
        found = self._decisions.get((model, mode, runtime))
        if found is None:
            found = decide(mode, self.verdict(model, runtime), self.stop(model, runtime))
            found = self._decisions[model, mode, runtime] = msgspec.structs.replace(found, runtime=runtime)
        return found

    def runtime_at(self, build: BuildSpec) -> str:
        """What a replica of this build will run on; empty if nobody can tell."""
        record = self._records.get(build.model_key) if build.model_key is not None else None
        return record.runtimes.get(place_of(build), "") if record is not None else ""

    def verdict(self, model: ModelKey, runtime: str) -> BatchingVerdict | None:
        """None: it is not known what its graph says."""
        record = self._records.get(model)
        if record is None or record.proof is None:
            return None
        return BatchingVerdict(proof=record.proof, trial=record.trial_on(runtime))

    def stop(self, model: ModelKey, runtime: str) -> BatchingStop | None:
        """Why nobody batches it on this runtime; while the runtime is not known, any reason counts."""
        for stopped, stop in self._stops:
            if stopped.may_be(model) and (not runtime or stop.runtime in ("", runtime)):
                return stop
        return None

    def to_be_asked(self, build: BuildSpec, runtime: str = "") -> Mode:
        """What an inspection of this build has to find out: nothing (`off`), or what its mode takes."""
        model, mode = build.model_key, build.batching_mode
        if model is None:
            return "off"
        verdict = self.verdict(model, runtime or self.runtime_at(build))
        if mode == "off" or (verdict is not None and not _wants_trial(mode, verdict)):
            return "off"
        return mode


def place_of(build: BuildSpec) -> str:
    """What a runtime follows from, as far as that is known before anything runs: packages, GPUs and threads."""
    return f"{build.packages or 'installed with Cortex'}, {build.resources.cpu_millis}m, {build.resources.gpus}"


def decide(mode: Mode, verdict: BatchingVerdict | None, stop: BatchingStop | None) -> BatchingDecision:
    """
    Whether requests share runs, and the words for it.

    `auto` batches what is proved and was tried, unless a sum may move a value by a whole step. `on` is the user's word
    for what is not proved. Neither batches once rows disagreed; where they would not anyway, that is no reason.

    Args:
        verdict: of the rules and the runtime in question; None while there is none. Without a trial: none was made.
        stop: a disagreement that a replica has seen on that runtime.
    """

    def found(text: str, *, batches: bool = False, disagreement: Disagreement | None = None) -> BatchingDecision:
        order = _together(verdict) if batches else BatchingOrder()
        return BatchingDecision(
            order=order, text=text, mode=mode, verdict=verdict, stop=stop, disagreement=disagreement
        )

    if mode == "off":
        return found("not batched: batching is off in cortex.yaml")
    if mode == "auto" and verdict is not None and (reason := _refused(verdict.proof)):
        return found(f"not batched: {reason}")
    if stop is not None:
        text = f"batching off: rows disagreed ({disagreement_text(stop.disagreement)})"
        return found(text, disagreement=stop.disagreement)
    if verdict is None and mode == "auto":
        return found("not batched yet: whether rows depend on each other is still to be found out")
    if verdict is None:
        return found("batching: on your word; not tried yet", batches=True)
    proof, trial = verdict.proof, verdict.trial
    if trial is not None and trial.disagreement is not None:
        text = f"not batched: rows disagreed when they were tried ({disagreement_text(trial.disagreement)})"
        return found(text, disagreement=trial.disagreement)
    if mode == "auto" and trial is None:
        return found(f"not batched yet: {_proved(proof)}, still to be tried")
    basis = _proved(proof) if proof.proved else f"on your word, not proved ({_obstacle(proof)})"
    return found(f"batching: {basis}; {_tried(trial)}", batches=True)


def disagreement_text(disagreement: Disagreement) -> str:
    """`output "y" is 0.5 alone and 0.7 beside others, 0.2 apart where rounding explains 1e-05`."""
    where = f'output "{disagreement.output}" is ' if disagreement.output else ""
    text = f"{where}{disagreement.alone} alone and {disagreement.together} beside others"
    if disagreement.difference is not None and disagreement.tolerance:
        text += f", {disagreement.difference:.3g} apart where rounding explains {disagreement.tolerance:.3g}"
    return text


def _wants_trial(mode: Mode, verdict: BatchingVerdict) -> bool:
    proof = verdict.proof
    return verdict.trial is None and (mode == "on" or not _refused(proof))


def _together(verdict: BatchingVerdict | None) -> BatchingOrder:
    """
    What is ordered where requests may share runs: only those for which it is proved.

    On the user's word all may, and of rounding nobody knows whether there can be ties.
    """
    if verdict is None or not verdict.proof.proved:
        return BatchingOrder(True, "labels")
    return BatchingOrder(True, verdict.proof.rounding, verdict.proof.sizes)


_ROUNDING_WORDS: Mapping[Rounding, str] = {
    "exact": "every bit stays the same",
    "rounding": "sums may round",
    "labels": "sums may round, and ties fall the other way",
    "steps": "a value may move by a whole step",
}


def _proved(proof: Proof) -> str:
    conditions = " and ".join(_condition(one) for one in proof.sizes)
    return (
        f"proved from {proof.operators:,} operator{'s' * (proof.operators != 1)}, {_ROUNDING_WORDS[proof.rounding]}"
        f"{', where ' if conditions else ''}{conditions}"
    )


def _condition(condition: SizeCondition) -> str:
    size = f'dimension {condition.axis} of "{condition.input}"'
    if condition.size is not None:
        return f"{size} is {condition.size}"
    if condition.at_most is not None:
        return f"{size} is at most {condition.at_most}"
    return f'{size} is dimension {condition.other_axis} of "{condition.other_input}"'


def _tried(trial: Trial | None) -> str:
    if trial is None:
        return "not tried yet"
    if not trial.rows:
        return "not tried, as no input could be made up"
    rows = f"tried with {trial.rows:,} row{'s' * (trial.rows != 1)}"
    return f"{rows}, worst {100 * trial.worst:.2g} % of the tolerance" if trial.worst else f"{rows}, no difference"


def _refused(proof: Proof) -> str:
    """Why `auto` does not go by this proof; empty if it does."""
    if not proof.proved:
        return f'{_obstacle(proof)}. "batching: on" if you know better'
    if proof.rounding == "steps":
        return (
            f"{_of(proof.rounding_operator)}sums that round in another order may move a value by a whole step. "
            '"batching: on" if that does no harm'
        )
    return ""


def _obstacle(proof: Proof) -> str:
    return _of(proof.operator) + (proof.reason or "not proved")


def _of(operator: str) -> str:
    return f"{operator}: " if operator else ""
