"""What proofs and answers of many models come to: figures, and docs/batching.md."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from truth import CALLERS, MAX_ROWS, SMALL, Truth

from cortex.wire.batching import RULES, Proof

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
    """Of CPU time, for reading its graph and proving it."""
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
    missed = [one for one in results if one.is_missed]
    refused = [one for one in results if not one.proof.proved and not one.is_missed]
    proved = [one for one in results if one.proof.proved]
    return "\n".join(
        [
            "# Which models are batched",
            "",
            filled(
                f"""
                `batching: auto` runs requests of several callers together where it is proved from the model's graph
                that each output row is a function of the input row of the same index, and of neither the number nor
                the order of rows. This is what that comes to on {len(results)} models. `bench/batching/models.py`
                makes or downloads them, proves and asks them, and writes this page: `make batching`.
                """
            ),
            "",
            *_overview(results),
            "",
            *(filled(text, bullet=True) for text in _findings(results)),
            "",
            f"## Row by row, and not proved: {len(missed)}",
            "",
            "They run unbatched; `batching: on` is for them.",
            "",
            "| model | first operator in the way |",
            "|---|---|",
            *(f"| `{one.name}.{one.form}` | {_cell(one.reason)} |" for one in missed),
            "",
            f"## Refused, and rightly: {len(refused)}",
            "",
            filled(
                """
                *mixes*: rows were answered differently in other company. *other rows*: other rows come out than went
                in, alone or together. *fails together*: the model itself refuses batches. *one row only*: an input has
                no free first dimension. *not run*: no made-up request was accepted.
                """
            ),
            "",
            "| model | in truth | first operator in the way |",
            "|---|---|---|",
            *(
                f"| `{one.name}.{one.form}` | {STATE.get(one.name, one.truth.seen)} | {_cell(one.reason)} |"
                for one in refused
            ),
            "",
            f"## Proved: {len(proved)}",
            "",
            "*moved*: rows with any other bit than alone. *most*: the largest difference, as a share of the tolerance.",
            "",
            "| model | operators | ms | rounding | answers | moved | most |",
            "|---|---|---|---|---|---|---|",
            *(_row(one) for one in proved),
            "",
        ]
    )


def _overview(results: Sequence[Result]) -> Iterator[str]:
    yield "| models | all | row by row in truth | of these proved | proved, and mix rows |"
    yield "|---|---|---|---|---|"
    for heading, group in [*_grouped(results), ("**all**", list(results))]:
        rowwise = [one for one in group if one.is_rowwise]
        proved = sum(one.proof.proved for one in rowwise)
        yield f"| {heading} | {len(group)} | {len(rowwise)} | {proved} | {sum(one.is_wrong for one in group)} |"


def _findings(results: Sequence[Result]) -> Iterator[str]:
    batched = [one for one in results if one.is_batched]
    exact = [one for one in batched if one.proof.rounding == "exact"]
    float32 = [one for one in batched if not one.name.endswith(("-half", "-float64"))]
    counts = Counter(one.proof.rounding for one in results if one.proof.proved)
    slowest = max(results, key=lambda one: one.milliseconds)
    median = statistics.median(one.milliseconds for one in results)
    answers = sum(one.truth.answers for one in batched)
    beyond = sum(one.truth.beyond for one in batched)
    moved = sum(one.truth.moved for one in exact)
    worst = max((one.truth.worst for one in batched), default=0.0)
    relative = max((one.truth.relative for one in float32), default=0.0)
    absolute = max((one.truth.absolute for one in float32), default=0.0)
    yield f"""
        **Truth** is what answers say, whatever is proved: {CALLERS} callers with requests of 1 to 7 rows and of several
        lengths, each alone and in batches of up to {MAX_ROWS} rows, with one thread and with two.
        """
    yield f"""
        **Answers**: {answers:,} in batches, of the {len(batched)} models that `auto` batches. {beyond} rows are off by
        more than the tolerance; of the {len(exact)} models that are `exact`, {moved} are off by any bit.
        """
    yield f"""
        **Rounding**: of what is proved {counts["exact"]} models are `exact`, {counts["rounding"]} `rounding`,
        {counts["labels"]} `labels` and {counts["steps"]} `steps`, which `auto` does not batch. Of what it batches, a
        float32 row moves by {relative:.1e} of its largest value at most, and by {absolute:.1e} where that is below
        {SMALL}; the tolerance is 1e-4 of it and 1e-6. No row moves by more than {worst:.0%} of its tolerance.
        """
    yield f"""
        **CPU time** for reading a graph and proving it: {median:.0f} ms in the median. The longest took
        {slowest.milliseconds:.0f} ms, `{slowest.name}.{slowest.form}` with {slowest.proof.operators:,} operators.
        """
    yield """
        **TimeDistributed** of Keras 3.15 over a free number of frames takes as many frames as there are rows: it mixes
        in earnest, as a SavedModel and converted.
        """
    yield f"""
        **With** onnxruntime {metadata.version("onnxruntime")} and {_tensorflow()}, by rules {RULES}. What made the
        models is in `bench/batching`, with its versions; those of PyTorch were made once and are in
        `tests/rows/models`.
        """


def _tensorflow() -> str:
    for name in ("tensorflow-cpu", "tensorflow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f"TensorFlow {metadata.version(name)}"
    return "no TensorFlow"


def filled(text: str, *, bullet: bool = False) -> str:
    """Text in lines of 120 characters, whatever its own lines are."""
    return textwrap.fill(
        " ".join(text.split()),
        120,
        initial_indent="* " if bullet else "",
        subsequent_indent="  " if bullet else "",
        break_on_hyphens=False,
        break_long_words=False,
    )


def _row(one: Result) -> str:
    proof, seen = one.proof, one.truth
    cells = (
        f"`{one.name}.{one.form}`",
        f"{proof.operators:,}",
        f"{one.milliseconds:.0f}",
        _cell(f"{proof.rounding}, by {proof.rounding_operator}" if proof.rounding_operator else proof.rounding),
        f"{seen.answers:,}",
        f"{seen.moved / seen.rows:.0%}" if seen.moved else "0",
        f"{seen.worst:.1%}",
    )
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Text in a table's cell, cut where nobody reads on."""
    text = text if len(text) <= 200 else f"{text[:199]}…"
    return text.replace("|", "\\|")
