"""
Which models are proved to be row by row, which are in truth, and what differs when they are batched.

    python bench/batching/models.py [--cache FOLDER] [--only 'keras-*'] [--answers 100000] [--write]

Collects models (see `collect`; the first time it takes half an hour, most of it downloads), proves each, and asks each
alone and in batches as 16 callers with mixed lengths and numbers of rows would. `--write` writes docs/batching.md.
Fails if a model is proved that mixes rows, if fewer than 95 % of those that are row by row are proved, or if an answer
differs by more than it may.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import collect
import msgspec
import report
import truth
from numpy.typing import NDArray
from report import Result

from cortex.replica.backends import base
from cortex.rows import prove, prove_saved_model
from cortex.wire import onnx_proto, saved_model_proto
from cortex.wire.batching import Proof, SizeCondition

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cortex-batching"
SECONDS: Final = 20.0
"""For asking one model: large ones give fewer answers, small ones more instead."""
THREADS: Final = (1, 2)
"""A run is split among them, and with it the order of sums."""


def timed_proof(path: Path) -> tuple[Proof, float]:
    """Read a model's graph and prove it. Returns the proof, and milliseconds of CPU time for both."""
    began = time.process_time()
    if path.suffix == ".onnx":
        found = prove(onnx_proto.read_graph(path))
    else:
        found = prove_saved_model(saved_model_proto.read_graph(path, None))
    return found, (time.process_time() - began) * 1e3


def ask(paths: Sequence[Path], results: Sequence[Result], answers: int) -> None:
    """
    Ask every model alone and in batches.

    What is proved and batched by `auto` gets `answers` together: an equal share each, and what models that take long
    leave of theirs is asked of the others.
    """
    worker = Worker()
    batched = [index for index, result in enumerate(results) if result.is_batched]
    share = -(-answers // max(1, len(batched)))
    for index, (path, result) in enumerate(zip(paths, results, strict=True)):
        wanted = share if result.is_batched else max(400, share // 2)
        result.truth = worker.examine(path, result.proof, wanted, SECONDS, seed=0)
        print(f"{index + 1}/{len(paths)} {result}", file=sys.stderr)
    for seed in range(1, 10):
        missing = answers - sum(results[index].truth.answers for index in batched)
        quick = [index for index in batched if results[index].truth.answers >= share]
        if missing <= 0 or not quick:
            break
        for index in quick:
            more = worker.examine(paths[index], results[index].proof, -(-missing // len(quick)), SECONDS, seed=seed)
            results[index].truth = truth.added(results[index].truth, more)
    worker.close()


class Worker:
    """Asks models in another process, since some of them end it."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))

    def examine(self, path: Path, proof: Proof, answers: int, seconds: float, *, seed: int) -> truth.Truth:
        sizes = [msgspec.to_builtins(size) for size in proof.sizes] if proof.proved else []
        try:
            return self._pool.submit(examine, path, sizes, answers, seconds, seed).result()
        except BrokenProcessPool:
            self._pool = ProcessPoolExecutor(1, get_context("spawn"))
            return truth.Truth("not run", "the runtime crashes on it")

    def close(self) -> None:
        self._pool.shutdown()


def examine(path: Path, sizes: list[dict[str, Any]], answers: int, seconds: float, seed: int) -> truth.Truth:
    """Load a model as a replica does, and ask it. With one thread and with two, which split sums in other ways."""
    conditions = msgspec.convert(sizes, list[SizeCondition])
    found: truth.Truth | None = None
    for threads in THREADS:
        try:
            backend = base.load("onnx" if path.suffix == ".onnx" else "tensorflow", str(path), threads=threads)
        except base.ModelError as error:
            return truth.Truth("not run", " ".join(str(error).split())[:200])
        try:
            seen = truth.examine(
                path.stem,
                backend,
                answers=-(-answers // len(THREADS)),
                seconds=seconds / len(THREADS),
                may_share=lambda feeds: all(keeps_to(size, feeds) for size in conditions),
                seed=seed * len(THREADS) + threads,
            )
        finally:
            backend.close()
        found = seen if found is None else truth.added(found, seen)
    assert found is not None
    return found


def keeps_to(condition: SizeCondition, feeds: Mapping[str, NDArray[Any]]) -> bool:
    """Whether a request may be batched under what a proof supposes of sizes."""
    size: int = feeds[condition.input].shape[condition.axis]
    if condition.size is not None:
        return size == condition.size
    if condition.at_most is not None:
        return size <= condition.at_most
    other: int = feeds[condition.other_input].shape[condition.other_axis]
    return size == other


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Prove and try many models.")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where models are kept (default: %(default)s)")
    parser.add_argument("--only", default="*", help="names of models, e.g. 'keras-*'")
    parser.add_argument("--answers", type=int, default=100_000, help="of models that are batched, all together")
    parser.add_argument("--write", action="store_true", help="write docs/batching.md")
    options = parser.parse_args(arguments)
    folder = collect.collect(options.cache)
    paths = [path for path in sorted(folder.glob(options.only + ".*")) if path.suffix in (".onnx", ".tf")]
    results = [Result(path.stem, path.suffix[1:], *timed_proof(path)) for path in paths]
    print(f"{len(results)} models, {sum(result.proof.proved for result in results)} proved", file=sys.stderr)
    ask(paths, results, options.answers)
    (options.cache / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))
    print(report.summary(results))
    if options.write:
        report.PAGE.write_text(report.page(results))
    return 1 if report.problems(results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
