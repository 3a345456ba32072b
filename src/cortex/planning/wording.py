"""What statuses say of replicas, in words with numbers. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from cortex.planning.model import RunRecord
from cortex.planning.slots import Slot, SlotState
from cortex.wire.build import mem_text
from cortex.wire.reports import ExitReport

_PROGRESS_WORDS = {
    SlotState.READY: "ready",
    SlotState.STARTING: "starting",
    SlotState.WAITING: "about to start",
    SlotState.PLACING: "waiting for room",
    SlotState.EXITED: "ended",
}


def progress(own: Sequence[Slot]) -> str:
    """`1 ready, 2 starting (loading model.onnx)`."""
    counts = Counter(slot.state for slot in own if slot.state in _PROGRESS_WORDS and not slot.drained)
    parts = []
    for state, words in _PROGRESS_WORDS.items():
        if counts[state]:
            doing = sorted(
                {slot.report.progress for slot in own if slot.state is state and slot.report and slot.report.progress}
            )
            detail = f" ({', '.join(doing)})" if doing and state is SlotState.STARTING else ""
            parts.append(f"{counts[state]} {words}{detail}")
    return ", ".join(parts)


def ends(failed: Sequence[Slot], record: RunRecord, wait_left_s: Callable[[Slot], float]) -> str | None:
    """That replicas end again and again; None while they do not."""
    lines = []
    for slot in failed:
        known = record.slots.get(slot.replica)
        if known is None or known.last_exit is None:
            continue
        left_s = wait_left_s(slot)
        if not known.failed_starts and not left_s:
            continue
        how = known.last_exit.text
        what = f"failed {_count(known.failed_starts, 'start')} in a row" if known.failed_starts else "keeps crashing"
        again = f", tried again in {left_s:.0f} s" if left_s >= 1 else ""
        lines.append(f"{slot.replica} {what} ({how}){again}")
    return "\n".join(lines) or None


def returning(number: int, replicas: int) -> str:
    """`1 replica of 3 restarts`."""
    return f"{_count(number, 'replica')} of {replicas} {'restarts' if number == 1 else 'restart'}"


def crashing(number: int, last: ExitReport) -> str:
    """`3 crashes in a row; the last: exit code 1 while it served request r-1`."""
    served = f" while it served request {last.request}" if last.request else ""
    return f"{_crashes(number)} in a row; the last: {last.text}{served}"


def killed_for_memory(own: Sequence[Slot], record: RunRecord, asked_bytes: int | None) -> str:
    """`1 replica killed by the kernel for memory, peak 300Mi, request 200Mi, 2 crashes so far`."""
    exits = (record.last_exit, *(slot.report.exit for slot in own if slot.report is not None))
    peak = max((last.peak_bytes for last in exits if last is not None and last.oom), default=0)
    down = sum(slot.state is SlotState.EXITED and not slot.drained for slot in own)
    words = [f"{_count(down, 'replica')} " * bool(down) + "killed by the kernel for memory"]
    if peak:
        words.append(f"peak {mem_text(peak)}")
    words.append(f"request {mem_text(asked_bytes)}" if asked_bytes is not None else "no memory request")
    if record.crashes:
        words.append(f"{_crashes(record.crashes)} so far")
    return ", ".join(words)


def room(placing: Sequence[Slot]) -> str:
    """Why there is no room for them."""
    return next((slot.lease.reason for slot in placing if slot.lease and slot.lease.reason), "waiting for room")


def _crashes(number: int) -> str:
    """The one word for an end that nobody asked for, here and wherever they are counted."""
    return _count(number, "crash", "crashes")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one}" if number == 1 else f"{number} {many or one + 's'}"
