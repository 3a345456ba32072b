"""What proofs and answers of many models come to: figures, and docs/batching.md."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from truth import CALLERS, MAX_ROWS, Truth

from cortex.wire.batching import Proof

PAGE: Final = Path(__file__).resolve().parent.parent.parent / "docs" / "batching.md"
WANTED_SHARE: Final = 0.95
"""Of models that are row by row: that are proved."""

GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "scikit-learn, LightGBM, XGBoost, CatBoost": ("sklearn-*", "lightgbm-*", "xgboost-*", "catboost-*"),
    "Fewer bits, fused operators": ("*-qdq", "*-qoperator", "*-dynamic", "*-half", "*-fused", "wide-*"),
    "Hugging Face architectures, by both exporters of PyTorch": ("torch-hf-*",),
    "PyTorch, by both exporters": ("torch-*",),
    "Keras by tf2onnx": ("keras-*.onnx",),
    "Keras as SavedModels": ("keras-*.tf",),
    "TensorFlow functions as SavedModels": ("tensorflow-*",),
    "Made node by node": ("handmade-*",),
    "Of others, out of packages on PyPI": ("*",),
}
"""Headings, and patterns of names; the first that fits."""

STATE: Final = {"tensorflow-recorder": "writes to state, which no answer shows"}
"""Models that no answer can convict: by name, what is known of them."""


@dataclasses.dataclass
class Result:
    """A model with all that was found out about it."""

    name: str
    form: str
    """`onnx` or `tf`."""
    proof: Proof
    milliseconds: float
    """Of reading its graph and proving it."""
    truth: Truth = dataclasses.field(default_factory=Truth)

    @property
    def is_batched(self) -> bool:
        """Whether `batching: auto` batches it."""
        return self.proof.proved and self.proof.rounding != "steps"

    @property
    def is_rowwise(self) -> bool:
        """In truth."""
        return self.truth.seen in ("row by row", "steps") and self.name not in STATE

    @property
    def is_wrong(self) -> bool:
        """Proved, and it is not so."""
        mixes = self.truth.seen in ("mixes", "other rows", "fails together") or self.name in STATE
        return self.proof.proved and mixes

    @property
    def is_missed(self) -> bool:
        return self.is_rowwise and not self.proof.proved

    @property
    def group(self) -> str:
        file = f"{self.name}.{self.form}"
        return next(
            heading
            for heading, patterns in GROUPS.items()
            if any(fnmatch.fnmatch(file, p) or fnmatch.fnmatch(self.name, p) for p in patterns)
        )

    def __str__(self) -> str:
        proof = f"proved, {self.proof.rounding}" if self.proof.proved else f"no: {self.reason}"
        return f"{self.name}.{self.form}: {self.truth.seen}, {self.truth.answers} answers; {proof}"

    @property
    def reason(self) -> str:
        return f"{self.proof.operator}: {self.proof.reason}".removeprefix(": ")


def problems(results: Sequence[Result]) -> list[str]:
    """What must not be."""
    found = [f"proved, and {one.truth.seen}: {one.name}.{one.form}" for one in results if one.is_wrong]
    rowwise = [one for one in results if one.is_rowwise]
    missed = [one for one in rowwise if one.is_missed]
    if rowwise and len(missed) > (1 - WANTED_SHARE) * len(rowwise):
        found.append(f"{len(missed)} of {len(rowwise)} that are row by row are not proved")
    for one in results:
        if one.is_batched and one.truth.beyond:
            found.append(f"{one.truth.beyond} rows beyond the tolerance: {one.name}.{one.form}")
        if one.is_batched and one.proof.rounding == "exact" and one.truth.moved:
            found.append(f"{one.truth.moved} rows not equal in each bit: {one.name}.{one.form}")
    return found


def summary(results: Sequence[Result]) -> str:
    """Figures in a few lines, with everything that is missed or wrong."""
    lines = [f"{heading}: {_figures(group)}" for heading, group in _grouped(results)]
    lines.append(f"all: {_figures(results)}")
    lines.append(_asked(results))
    lines += [f"missed: {one.name}.{one.form}: {one.reason}" for one in results if one.is_missed]
    lines += [f"not run: {one.name}.{one.form}: {one.truth.detail}" for one in results if one.truth.seen == "not run"]
    lines += problems(results)
    return "\n".join(lines)


def _figures(results: Sequence[Result]) -> str:
    rowwise = [one for one in results if one.is_rowwise]
    proved = [one for one in rowwise if one.proof.proved]
    return f"{len(results)} models, {len(rowwise)} row by row, {len(proved)} of them proved"


def _asked(results: Sequence[Result]) -> str:
    batched = [one for one in results if one.is_batched]
    exact = [one for one in batched if one.proof.rounding == "exact"]
    return (
        f"{sum(one.truth.answers for one in batched):,} answers of {len(batched)} batched models: "
        f"{sum(one.truth.beyond for one in batched)} rows beyond the tolerance; {len(exact)} exact ones: "
        f"{sum(one.truth.moved for one in exact)} rows with another bit"
    )


def _grouped(results: Sequence[Result]) -> Iterator[tuple[str, list[Result]]]:
    for heading in GROUPS:
        group = [one for one in results if one.group == heading]
        if group:
            yield heading, group


def page(results: Sequence[Result]) -> str:
    """docs/batching.md."""
    batched = [one for one in results if one.is_batched]
    rowwise = [one for one in results if one.is_rowwise]
    proved = [one for one in rowwise if one.proof.proved]
    missed = [one for one in rowwise if one.is_missed]
    slowest = max(results, key=lambda one: one.milliseconds)
    roundings = {
        kind: [one for one in results if one.proof.proved and one.proof.rounding == kind]
        for kind in ("exact", "rounding", "labels", "steps")
    }
    relative = max((one.truth.relative for one in batched if _is_float32(one)), default=0.0)
    absolute = max((one.truth.absolute for one in batched if _is_float32(one)), default=0.0)
    lines = [
        "# Which models are batched",
        "",
        "`batching: auto` runs requests of several callers together where it is proved from the model's graph that each",
        "output row is a function of the input row of the same index, and of neither the number nor the order of rows.",
        f"This page is what came of it on {len(results)} models. It is written by `bench/batching/models.py`, which makes or",
        "downloads them: `make batching` repeats everything.",
        "",
        "| models | all | row by row in truth | of these proved | proved, but mix rows |",
        "|---|---|---|---|---|",
    ]
    for heading, group in [*_grouped(results), ("**all**", list(results))]:
        true = [one for one in group if one.is_rowwise]
        wrong = sum(one.is_wrong for one in group)
        lines.append(
            f"| {heading} | {len(group)} | {len(true)} | {sum(one.proof.proved for one in true)} | {wrong} |"
        )
    lines += [
        "",
        f"* **Truth** is what answers say: {CALLERS} callers, requests of 1 to 7 rows and of several lengths, each alone and in",
        f"  batches of at most {MAX_ROWS} rows, with one thread and with two. It is found without looking at proofs.",
        f"* **Answers**: {sum(one.truth.answers for one in batched):,} in batches, of the {len(batched)} models that `auto`",
        f"  batches. {sum(one.truth.beyond for one in batched)} rows differ by more than the tolerance from what they are alone,",
        f"  and of the {sum(one.proof.rounding == 'exact' for one in batched)} models that are `exact`"
        f" {sum(one.truth.moved for one in batched if one.proof.rounding == 'exact')} rows in any bit.",
        f"* **Rounding**: {len(roundings['exact'])} proved models are `exact`, {len(roundings['rounding'])} `rounding`,"
        f" {len(roundings['labels'])} `labels`, {len(roundings['steps'])} `steps`; the last `auto` does not batch. A float32 row",
        f"  moved by at most {relative:.1e} of its largest value, and by at most {absolute:.1e} where all its values are below",
        "  0.001; the tolerance is 1e-6 plus 1e-4 of the largest value.",
        f"* **Time**: reading a graph and proving it takes {_median([one.milliseconds for one in results]):.0f} ms in the median;"
        f" the longest is {slowest.milliseconds:.0f} ms, `{slowest.name}` with {slowest.proof.operators:,} operators.",
        "",
        f"## Not proved, though row by row: {len(missed)} of {len(rowwise)}",
        "",
        "They run unbatched; `batching: on` is for them.",
        "",
        "| model | first operator in the way |",
        "|---|---|",
        *(f"| `{one.name}.{one.form}` | {_cell(one.reason)} |" for one in missed),
        "",
        "## Refused, and rightly",
        "",
        "*other rows*: it gives another number of rows than it takes, alone or together. *one row only*: an input has no free",
        "first dimension. *fails together*: the model itself refuses batches. *not run*: no made-up input was accepted.",
        "",
        "| model | in truth | first operator in the way |",
        "|---|---|---|",
        *(
            f"| `{one.name}.{one.form}` | {STATE.get(one.name, one.truth.seen)} | {_cell(one.reason)} |"
            for one in results
            if not one.proof.proved and not one.is_missed
        ),
        "",
        f"## Proved: {len(proved)}",
        "",
        "*moved*: rows with any other bit than alone; *most*: the largest difference as a share of the tolerance.",
        "",
        "| model | operators | ms | rounding | answers | moved | most |",
        "|---|---|---|---|---|---|---|",
        *(_row(one) for one in results if one.proof.proved),
        "",
    ]
    return "\n".join(lines)


def _row(one: Result) -> str:
    seen = one.truth
    operator = f", by {one.proof.rounding_operator}" if one.proof.rounding_operator else ""
    moved = f"{seen.moved / seen.rows:.0%}" if seen.rows and seen.moved else "0"
    return (
        f"| `{one.name}.{one.form}` | {one.proof.operators:,} | {one.milliseconds:.0f} | {one.proof.rounding}{_cell(operator)} |"
        f" {seen.answers:,} | {moved} | {seen.worst:.1%} |"
    )


def _is_float32(one: Result) -> bool:
    return not one.name.endswith("-half") and one.name != "sklearn-float64"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
