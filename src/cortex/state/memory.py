"""State that lasts as long as the process: for tests, and for trying things out."""

from __future__ import annotations

from cortex.state.records import RecordStore


class MemoryStateStore(RecordStore):
    """Implements `StateStore` in memory; held to the same contract suite as the durable ones."""
