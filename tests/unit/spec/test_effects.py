"""Tests of `cortex.spec.effects`."""

from cortex.spec.effects import EFFECTS, Effect
from cortex.spec.models import BLOCKS, ApiSpec


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
            "compute.target_in_flight",
            "compute.downscale_window",
            "compute.idle_timeout",
            "sample",
            "retry",
            "timeout",
            "max_body",
            "rollout.watch",
        },
    }
