"""Tests of `cortex.spec.effects`."""

import pytest

from cortex.spec.effects import EFFECTS, NOT_IN_EFFECT_YET, Effect, not_in_effect
from cortex.spec.models import BLOCKS, ApiSpec, ProjectSpec
from cortex.spec.problems import REFERENCES, render

IRIS = {"name": "iris", "model": "models/iris"}


def api(**fields) -> ApiSpec:
    return ApiSpec.model_validate(IRIS | fields)


def notes(**fields) -> list[str]:
    project = ProjectSpec.model_validate({"apis": [IRIS | fields]})
    return [".".join(map(str, note.path[2:])) for note in not_in_effect(project)]


def test_every_field_of_an_api_but_its_name_has_an_effect():
    apart = ("compute", "rollout")
    fields = set(ApiSpec.model_fields) - {"name", *apart}
    fields |= {f"{block}.{field}" for block in apart for field in BLOCKS[block].model_fields}
    assert set(EFFECTS) == fields


def test_effects_are_those_of_the_documentation():
    by_effect = {effect: {path for path, has in EFFECTS.items() if has is effect} for effect in Effect}
    assert by_effect == {
        Effect.NEW_VERSION: {
            "model",
            "model_format",
            "request_handler",
            "tf_signature_key",
            "tracker",
            "env",
            "batching",
        },
        Effect.ROLLS_REPLICAS: {"compute.cpu", "compute.gpu", "compute.mem", "compute.concurrency"},
        Effect.IN_PLACE: {
            "compute.min_replicas",
            "compute.max_replicas",
            "compute.init_replicas",
            "compute.target_cpu_utilization",
            "sample",
            "retry",
            "timeout",
            "max_body",
            "rollout.watch",
        },
    }


def test_a_project_that_asks_for_nothing_new_has_no_notes():
    assert notes() == []
    assert (
        notes(compute={"min_replicas": 3, "cpu": 1, "mem": "1Gi"}, env={"A": "x"}, timeout="5s", model="a.onnx") == []
    )


@pytest.mark.parametrize(
    ("fields", "noted"),
    [
        ({"compute": {"max_replicas": 10}}, ["compute.max_replicas"]),
        ({"compute": {"max_replicas": 100}}, ["compute.max_replicas"]),
        ({"compute": {"max_replicas": None, "target_cpu_utilization": None}}, []),
        ({"compute": {"min_replicas": 10, "max_replicas": 10}}, []),
        ({"compute": {"init_replicas": 2}}, []),
        ({"compute": {"target_cpu_utilization": 50}}, ["compute.target_cpu_utilization"]),
        ({"compute": {"target_cpu_utilization": 80}}, ["compute.target_cpu_utilization"]),
        ({"compute": {"gpu": 1}}, []),
        ({"model_format": "tensorflow"}, []),
        ({"model": "iris.zip"}, []),
        ({"tf_signature_key": "predict"}, []),
        ({"env": {"TOKEN": {"secret": "token"}}}, []),
        ({"batching": "off"}, []),
    ],
)
def test_a_field_that_does_nothing_yet_is_noted_when_it_is_written_whatever_its_value(fields, noted):
    assert [path for path in noted if path not in NOT_IN_EFFECT_YET] == []
    assert notes(**fields) == noted


@pytest.mark.parametrize("compute", [{}, {"min_replicas": 2}, {"max_replicas": 100}])
def test_notes_are_the_same_after_the_way_to_the_control_plane(compute):
    project = ProjectSpec.model_validate({"apis": [IRIS | {"compute": compute}]})
    arrived = ProjectSpec.model_validate(project.model_dump(mode="json", exclude_unset=True))
    assert arrived == project
    assert not_in_effect(arrived) == not_in_effect(project)
    assert len(not_in_effect(arrived)) == ("max_replicas" in compute)


def test_a_note_is_shown_like_a_problem():
    project = ProjectSpec.model_validate({"apis": [IRIS, IRIS | {"name": "rose", "compute": {"max_replicas": 2}}]})
    (note,) = not_in_effect(project)
    assert note.path == ("apis", 1, "compute", "max_replicas")
    assert note.reference in REFERENCES
    assert render(note, level="note").splitlines() == [
        "note: not-in-effect",
        '  api "rose": compute: max_replicas',
        "  replicas are not scaled yet: their number stays as it is",
    ]


def test_every_row_is_about_a_field_that_exists():
    assert set(NOT_IN_EFFECT_YET) <= set(EFFECTS)
