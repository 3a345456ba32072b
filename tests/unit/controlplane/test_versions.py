"""Tests of `cortex.controlplane.versions`."""

import msgspec
import pytest

from cortex.controlplane.versions import revision_of, revisions_of_version, version_of
from cortex.ids import ApiKey, Revision, Version
from cortex.state.base import VersionLine, VersionRecord
from cortex.testing.builders import a_build, a_record, a_sample, a_wanted_api
from cortex.wire.build import BuildSpec, ModelArtifact, Resources, SecretPin, TrackerConfig
from cortex.wire.operator import CURRENT

MODEL = ModelArtifact(format="onnx", tree="a" * 64, entry="model.onnx")
FACTS = {
    "runtime": "onnx",
    "model": MODEL,
    "project": "b" * 64,
    "handler": "handler.py",
    "tracker": TrackerConfig(model_type="classification"),
    "env": {"A": "1"},
}


def a_build_of(*, batching="auto", **facts):
    """A build of these facts, the rest as in `FACTS`."""
    on = {"batching": batching != "off", "trust_rows": batching == "on"}
    return BuildSpec(api="iris/a", version="", revision="", **on, **{**FACTS, **facts})


def version(*, refresh=0, secrets=None, **facts):
    return version_of(a_build_of(**facts), secrets=secrets or {}, refresh=refresh)


def test_the_same_facts_are_the_same_version():
    assert version() == version(env=dict(FACTS["env"]))


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("model", ModelArtifact(format="onnx", tree="c" * 64, entry="model.onnx")),
        ("model", ModelArtifact(format="onnx", tree="a" * 64, entry="other.onnx")),
        ("model", ModelArtifact(format="tensorflow", tree="a" * 64, entry="model.onnx")),
        ("model", ModelArtifact(format="onnx", tree="a" * 64, entry="model.onnx", signature_key="predict")),
        ("model", None),
        ("runtime", "tensorflow"),
        ("project", "d" * 64),
        ("project", None),
        ("handler", "other.py"),
        ("tracker", None),
        ("tracker", TrackerConfig(model_type="classification", key="label")),
        ("env", {"A": "2"}),
        ("secrets", {"TOKEN": "api-token"}),
        ("packages", "e" * 64),
        ("batching", "off"),
        ("batching", "on"),
        ("refresh", 1),
    ],
)
def test_each_fact_makes_another_version(fact, value):
    assert version(**{fact: value}) != version()


def test_versions_from_before_batching_could_be_on_stay_what_they_are():
    assert version().startswith("94eb42919966a14f")
    assert version(batching="off").startswith("578a4a47837d3d0d")
    assert version(batching="on") != version(batching="off")


def test_what_runs_a_build_without_a_model_is_part_of_its_version():
    assert version(model=None) != version(model=None, runtime="tensorflow")


def test_a_build_without_a_model_needs_what_else_it_has():
    build = msgspec.structs.replace(a_build(), model=None, project="b" * 64)
    assert build.trees == ("b" * 64,)
    assert msgspec.structs.replace(build, sample=a_sample(b"1")).trees == ("b" * 64, a_sample(b"1").tree)


def test_what_is_not_asked_for_leaves_versions_as_they_were():
    assert version(secrets={}, packages=None) == version()


def test_a_variable_and_a_secret_of_the_same_name_make_different_versions():
    assert version(env={"A": "x"}) != version(env={}, secrets={"A": "x"})


def test_where_a_model_came_from_makes_no_version():
    moved = ModelArtifact(format="onnx", tree="a" * 64, entry="model.onnx", source="elsewhere/model.onnx")
    assert version(model=moved) == version()


def test_order_of_env_makes_no_version():
    forward, backward = {"A": "1", "B": "2"}, {"B": "2", "A": "1"}
    assert version(env=forward) == version(env=backward)


def test_resources_and_concurrency_make_revisions_of_one_version():
    facts = [
        {},
        {"resources": Resources(cpu_millis=500)},
        {"resources": Resources(mem_bytes=2**20)},
        {"resources": Resources(gpus=1)},
        {"concurrency": 4},
        {"cloud": SecretPin(name="aws", generation="1")},
    ]
    assert len({version(**one) for one in facts}) == 1
    assert len({revision_of(a_build_of(**one)) for one in facts}) == len(facts)


def test_the_revisions_of_a_version_are_that_of_its_first_deploy_and_those_that_are_kept():
    old, new = Version("a" * 64), Version("b" * 64)
    build = msgspec.structs.replace(a_build(), version=new, revision=Revision("1" * 64))
    serving = msgspec.structs.replace(build, version=old, revision=Revision("c" * 64))
    record = a_record(a_wanted_api(build, serving=serving))
    elsewhere = msgspec.structs.replace(build, api=ApiKey("iris/other"), revision=Revision("2" * 64))
    kept = [VersionRecord(build=one) for one in (serving, build, elsewhere)]
    history = [
        VersionLine(api=build.api, version=old, revision=Revision("d" * 64), deployed_wall_s=0.0, cause="first"),
    ]
    assert revisions_of_version(record, kept, history, CURRENT) == {"1" * 8, "c" * 8}
    assert revisions_of_version(record, kept, history, "bbbb") == {"1" * 8}
    assert revisions_of_version(record, kept, history, "aaaa") == {"c" * 8, "d" * 8}
    assert revisions_of_version(record, kept, history, "eeee") == set()
