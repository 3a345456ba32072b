"""Tests of `cortex.agent.specs`."""

from pathlib import Path

import msgspec
import pytest

from cortex.agent.provisions import Provided
from cortex.agent.specs import replica_spec, threads_for
from cortex.ids import replica_id
from cortex.testing.builders import a_build
from cortex.wire.batching import BatchingOrder
from cortex.wire.orders import StartReplica

BUILD = a_build()


@pytest.mark.parametrize(("cpu_millis", "threads"), [(100, 1), (1000, 1), (1999, 1), (2000, 2), (7500, 7)])
def test_threads_are_whole_cores_of_the_request_and_at_least_one(cpu_millis, threads):
    assert threads_for(cpu_millis) == threads


def test_a_process_is_told_what_was_ordered_about_batches_since(settings, layout):
    order = StartReplica(replica=replica_id(BUILD.api, BUILD.revision, 0), attempt=1, build=BUILD)
    order = msgspec.structs.replace(order, batches=BatchingOrder(True))
    spec = replica_spec(order, Provided(Path("/m"), None, None, {}), settings=settings, layout=layout)
    assert (spec.batches, spec.model_path, spec.attempt) == (BatchingOrder(True), "/m", 1)
