"""What the prover says of a case beside what running it shows."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal, TypeAlias

import msgspec
import numpy as np
from cases import Case
from prover import proof_of
from truth import THREADS, Batch, DoesNotLoad, Feeds, Truth, examine

from cortex.wire.batching import Proof, Rounding, SizeCondition

Seen: TypeAlias = Literal["right", "wrong", "untested", "unloadable", "unexamined", "crashed"]
"""
`untested`: no input that was drawn was taken; `unexamined`: refused, and not run; `crashed`: the runtime ended its
process by a signal, as it does without any batch.
"""

_DRAWS: Final = 50
"""So often a batch is drawn until one has the sizes that a proof is for."""
_ALONE: Final = 200
"""Requests, as there are in the batches that are drawn for a number of threads."""
_MORE_OF_WRITTEN: Final = 4
"""So many times as many batches are drawn for a case that says what is to be seen: some are seen in few."""


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """One case. Travels as JSON between the processes of a campaign."""

    key: str
    """What the case is made from again."""
    name: str
    proved: bool
    reason: str = ""
    operator: str = ""
    rounding: Rounding = "exact"
    seen: Seen = "unexamined"
    problem: str = ""
    text: str = ""
    """Of what was seen wrong."""
    expected: str = ""
    expected_rounding: str = ""
    operators: tuple[str, ...] = ()
    """Of a case that is proved and right."""
    rows: int = 0
    moved: int = 0
    flipped: int = 0
    unexplained: int = 0
    worst: float = 0.0
    """As in `Truth`."""

    @property
    def is_wrongly_proved(self) -> bool:
        return self.proved and self.seen == "wrong"

    @property
    def is_as_expected(self) -> bool:
        """Of a case that somebody wrote: a trap that nothing falls into is no trap."""
        if self.expected == "proved":
            return self.proved and self.seen == "right" and self.expected_rounding in ("", self.rounding)
        if self.expected == "mixes":
            return not self.proved and self.seen == "wrong"
        return not self.proved


def judge(key: str, case: Case, *, seed: int = 0, batches: int = 6, examine_refused: bool = True) -> Judgement:
    """
    Args:
        key: of the case, in the campaign.
        seed: of the requests; with the case's name it makes them the same each time.
        batches: drawn for each number of threads.
        examine_refused: whether to run what is not proved, too.
    """
    proof = proof_of(case.model)
    found = _unseen(key, case, proof)
    if not proof.proved and not examine_refused:
        return found
    if case.expected:
        batches *= _MORE_OF_WRITTEN
    # What is not proved has no class. What is taken for right by this one would be by most.
    rounding: Rounding = proof.rounding if proof.proved else "rounding"
    threads = THREADS if proof.proved else THREADS[:1]
    try:
        truth = examine(case.model, _draws(case, proof, seed), rounding=rounding, batches=batches, threads=threads)
    except DoesNotLoad as problem:
        return msgspec.structs.replace(found, seen="unloadable", text=str(problem))
    return _with_truth(found, truth, case)


def _unseen(key: str, case: Case, proof: Proof) -> Judgement:
    return Judgement(
        key=key,
        name=case.name,
        proved=proof.proved,
        reason=proof.reason,
        operator=proof.operator,
        rounding=proof.rounding,
        expected=case.expected or "",
        expected_rounding=case.rounding or "",
    )


def _draws(case: Case, proof: Proof, seed: int) -> Callable[[], Batch]:
    """Draws batches of sizes that the proof is for, the same for a seed each time."""
    rng = np.random.default_rng([seed, zlib.crc32(case.name.encode())])

    def draw() -> Batch:
        for _ in range(_DRAWS):
            batch = case.draw(rng)
            if keeps_to(batch[0], proof.sizes):
                return batch
        return batch[:1]  # which a replica runs alone

    return draw


def run_alone(case: Case, *, seed: int = 0) -> None:
    """Run requests that `judge` would run, but none of them with others: whatever ends the process is no mixing."""
    proof = proof_of(case.model)
    draw = _draws(case, proof, seed)

    def requests() -> Iterator[Feeds]:
        while True:
            yield from draw()

    one_by_one = requests()
    threads = THREADS if proof.proved else THREADS[:1]
    with contextlib.suppress(DoesNotLoad):
        examine(case.model, lambda: [next(one_by_one)], batches=_ALONE, threads=threads)


def crashed(key: str, case: Case, *, alone: bool) -> Judgement:
    """
    What a process says that was not there when the runtime ended its process.

    Args:
        alone: it did so without a batch, too; else it is only the batch that it does not survive.
    """
    proof = proof_of(case.model)
    found = _unseen(key, case, proof)
    if alone or not proof.proved:
        return msgspec.structs.replace(found, seen="crashed")
    return msgspec.structs.replace(found, seen="wrong", problem="failure", text="the runtime crashed on a batch")


def keeps_to(feeds: Feeds, conditions: Iterable[SizeCondition]) -> bool:
    """Whether a request has the sizes that a proof is for."""
    return all(_keeps_to(feeds, one) for one in conditions)


def _keeps_to(feeds: Feeds, condition: SizeCondition) -> bool:
    size: int = feeds[condition.input].shape[condition.axis]
    if condition.size is not None:
        return size == condition.size
    if condition.at_most is not None:
        return size <= condition.at_most
    return bool(size == feeds[condition.other_input].shape[condition.other_axis])


def _with_truth(found: Judgement, truth: Truth, case: Case) -> Judgement:
    if truth.wrong is not None:
        return msgspec.structs.replace(found, seen="wrong", problem=truth.wrong.problem, text=truth.wrong.text)
    if not truth.rows:
        return msgspec.structs.replace(found, seen="untested")
    used = tuple(sorted({_label(node.domain, node.op_type) for node in case.model.graph.node}))
    return msgspec.structs.replace(
        found,
        seen="right",
        rows=truth.rows,
        moved=truth.moved,
        flipped=truth.flipped,
        unexplained=truth.unexplained,
        worst=truth.worst,
        operators=used if found.proved else (),
    )


def _label(domain: str, operator: str) -> str:
    return "function" if domain == "own" else f"{domain}.{operator}" if domain else operator
