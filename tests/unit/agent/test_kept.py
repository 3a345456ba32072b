"""Which replica may go on with what an inspection has loaded, and what becomes of it if none does."""

import asyncio

import msgspec
import pytest

from cortex.agent.kept import Kept, KeptInspections
from cortex.ids import ApiKey, ReplicaId, Revision, Version
from cortex.wire.batching import BatchingOrder
from cortex.wire.build import Resources, TrackerConfig
from cortex.wire.launch import ReplicaSpec

TRACKER = TrackerConfig(model_type="regression")


class FakeLauncher:
    def __init__(self):
        self.called_off = []

    def call_off(self, mark):
        self.called_off.append(mark)


def a_spec(**fields):
    return ReplicaSpec(
        **{
            "replica": ReplicaId("iris.a.0badf00d.0"),
            "attempt": 0,
            "api": ApiKey("iris/a"),
            "version": Version("1" * 64),
            "revision": Revision("2" * 64),
            "home": "/home",
            "runtime": "onnx",
            "model_path": "/models/a.onnx",
            **fields,
        }
    )


@pytest.fixture
def launcher():
    return FakeLauncher()


@pytest.fixture
def scratch(tmp_path):
    folder = tmp_path / "inspection"
    (folder / "import").mkdir(parents=True)
    return folder


def test_a_replica_takes_it_once_with_its_scratch_folder(launcher, scratch, tmp_path):
    async def run():
        kept = KeptInspections()
        kept.add(Kept("1", launcher, a_spec(scratch=str(scratch)), {"KEY": "value"}))
        spec = a_spec(attempt=1, log_path="l", stats_path="s", scratch=str(tmp_path / "own"), tracker=TRACKER)
        return [kept.take(launcher, spec, {"KEY": "value"}) for _ in range(2)]

    assert asyncio.run(run()) == ["1", ""]
    assert (tmp_path / "own" / "import").is_dir()
    assert not scratch.exists()
    assert launcher.called_off == []


def test_what_only_matters_once_it_serves_makes_no_difference(launcher):
    async def run():
        kept = KeptInspections()
        kept.add(Kept("1", launcher, a_spec(), {}))
        return kept.take(launcher, a_spec(concurrency=4, batches=BatchingOrder(batches=True), attempt=7), {})

    assert asyncio.run(run()) == "1"


@pytest.mark.parametrize(
    "other",
    [
        {"replica": ReplicaId("iris.a.0badf00d.1")},
        {"env": {"A": "1"}},
        {"threads": 2},
        {"model_path": "/models/b.onnx"},
        {"project_dir": "/projects/other"},
        {"handler": "other.py"},
        {"signature_key": "other"},
        {"resources": Resources(gpus=1)},
        {"view_bytes": 1},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_matters_at_import_or_for_the_model_has_to_be_the_same(launcher, other):
    async def run():
        kept = KeptInspections()
        kept.add(Kept("1", launcher, a_spec(), {}))
        return kept.take(launcher, a_spec(**other), {})

    assert asyncio.run(run()) == ""


def test_other_secrets_or_another_launcher_are_another_state(launcher):
    async def run():
        kept = KeptInspections()
        kept.add(Kept("1", launcher, a_spec(), {"KEY": "old"}))
        return kept.take(launcher, a_spec(), {"KEY": "new"}), kept.take(FakeLauncher(), a_spec(), {"KEY": "old"})

    assert asyncio.run(run()) == ("", "")


def test_what_nobody_takes_is_ended_when_its_time_is_over(launcher, scratch):
    async def run():
        kept = KeptInspections(kept_s=0.0)
        kept.add(Kept("1", launcher, a_spec(scratch=str(scratch)), {}))
        while not launcher.called_off:
            await asyncio.sleep(0)
        return kept.take(launcher, a_spec(scratch=str(scratch)), {})

    assert asyncio.run(run()) == ""
    assert launcher.called_off == ["1"]
    assert not scratch.exists()


def test_those_of_an_api_are_ended_before_it_is_looked_at_again(launcher):
    async def run():
        kept = KeptInspections()
        kept.add(Kept("1", launcher, a_spec(), {}))
        kept.add(Kept("2", launcher, a_spec(api=ApiKey("iris/b")), {}))
        kept.end(ApiKey("iris/a"))
        return [
            kept.take(launcher, msgspec.structs.replace(a_spec(), api=ApiKey(api)), {}) for api in ("iris/a", "iris/b")
        ]

    assert asyncio.run(run()) == ["", "2"]
    assert launcher.called_off == ["1"]
