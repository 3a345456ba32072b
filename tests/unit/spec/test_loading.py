"""Tests of `cortex.spec.loading`: files that are accepted, places, and that nothing but `Problems` is ever raised."""

import json
import textwrap

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cortex.errors import Problem, Problems
from cortex.spec.loading import SMALLEST_FILE, load
from cortex.spec.models import SecretRef
from cortex.spec.problems import REFERENCES, render

# Machines may be busy; the timeout of pytest ends what hangs.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

FULL = textwrap.dedent("""\
    # flowers of the garden
    - kind: deployment
      name: flowers

    - kind: api
      name: iris
      model: s3://bucket/iris/  # a folder
      model_format: tensorflow
      request_handler: ./handlers/iris.py
      tf_signature_key: predict
      tracker:
        key: class
        model_type: classification
      compute:
        min_replicas: 2
        max_replicas: 4
        init_replicas: 3
        target_cpu_utilization: 50
        target_in_flight: 3
        downscale_window: 2m
        cpu: 0.2
        gpu: 1
        mem: 129e6
        concurrency: 4
      sample: {sepal_length: 5.2, others: [1, null, true]}
      retry: no
      env:
        LEVEL: debug
        PORT: 8080
        RATIO: 1.10
        VERBOSE: True
        TOKEN: {secret: iris-token}
      timeout: 1h30m
      max_body: 128974848
      batching: off

    - kind: api
      name: rose
      model: rose.onnx
    """)


FLAT = """\
- kind: api
  name: iris
  model: iris.onnx
  tracker:
  key: "class"
  model_type: classification
  compute:
    concurrency: 2
  min_replicas: 2
  cpu: 0.20
  gpu:
"""


def test_fields_that_stand_beside_their_block_are_read_into_it_with_one_note_that_shows_it(accepted):
    loaded = accepted(FLAT)
    (api,) = loaded.spec.apis
    assert (api.tracker.key, api.tracker.model_type) == ("class", "classification")
    compute = api.compute
    assert (compute.min_replicas, compute.cpu.text, compute.concurrency, compute.gpu) == (2, "0.20", 2, 0)
    (note,) = loaded.notes
    assert render(note, level="note") == textwrap.dedent("""\
        note: flat-form
          cortex.yaml:4:3   api "iris"
          fields of `compute:` and `tracker:` stand beside `name:`, and are taken as if they stood in their block
          hint: usually written as
                  compute:
                    concurrency: 2
                    min_replicas: 2
                    cpu: 0.20
                  tracker:
                    key: "class"
                    model_type: classification""")


def test_what_the_note_on_the_flat_form_shows_is_what_was_read(accepted):
    loaded = accepted(FLAT)
    blocks = "\n".join(line for line in loaded.notes[0].hint.splitlines()[1:])
    nested = accepted(f"- kind: api\n  name: iris\n  model: iris.onnx\n{blocks}\n")
    assert (nested.spec, nested.notes) == (loaded.spec, ())


def test_several_apis_in_the_flat_form_have_one_note(accepted):
    text = "\n".join(f"- {{kind: api, name: {name}, model: m, cpu: {cpu}}}" for name, cpu in [("a", 1), ("b", 2)])
    (note,) = accepted(text).notes
    assert note.subject == 'api "a", api "b"'
    assert note.hint.splitlines() == [
        "usually written as",
        *('# api "a"', "  compute:", "    cpu: 1"),
        *('# api "b"', "  compute:", "    cpu: 2"),
    ]


def test_an_anchor_shared_by_two_apis_is_read_into_each(accepted):
    text = "- &base {kind: api, name: a, model: m, cpu: 1}\n- {<<: *base, name: b}\n"
    assert [api.compute.cpu_millis for api in accepted(text).spec.apis] == [1000, 1000]


def test_the_smallest_file_is_an_api_of_the_default_deployment(accepted):
    spec = accepted(SMALLEST_FILE).spec
    assert spec.deployment == "default"
    assert [(api.name, api.model) for api in spec.apis] == [("iris", "model.onnx")]


def test_a_full_file_is_read_field_by_field(accepted):
    spec = accepted(FULL).spec
    assert spec.deployment == "flowers"
    iris, rose = spec.apis
    assert iris.model_dump(mode="json") == {
        "name": "iris",
        "model": "s3://bucket/iris/",
        "model_format": "tensorflow",
        "request_handler": "handlers/iris.py",
        "tf_signature_key": "predict",
        "tracker": {"key": "class", "model_type": "classification"},
        "compute": {
            "min_replicas": 2,
            "max_replicas": 4,
            "init_replicas": 3,
            "target_cpu_utilization": 50,
            "target_in_flight": 3,
            "downscale_window": "2m",
            "cpu": "0.2",
            "gpu": 1,
            "mem": "129e6",
            "concurrency": 4,
        },
        "sample": {"sepal_length": 5.2, "others": [1, None, True]},
        "retry": "off",
        "env": {
            "LEVEL": "debug",
            "PORT": "8080",
            "RATIO": "1.10",
            "VERBOSE": "True",
            "TOKEN": {"secret": "iris-token"},
        },
        "timeout": "1h30m",
        "max_body": "128974848",
        "batching": "off",
    }
    assert (iris.compute.cpu_millis, iris.compute.mem_bytes) == (200, 129_000_000)
    assert (iris.timeout_s, iris.max_body_bytes) == (5400, 128974848)
    assert rose.name == "rose"


def test_a_deployment_without_apis_is_legal(accepted):
    spec = accepted("- kind: deployment\n  name: flowers\n").spec
    assert (spec.deployment, spec.apis) == ("flowers", ())


def test_resources_may_come_in_any_order(accepted):
    spec = accepted(
        "- {kind: api, name: a, model: m}\n- {kind: deployment, name: d}\n- {kind: api, name: b, model: m}"
    ).spec
    assert (spec.deployment, [api.name for api in spec.apis]) == ("d", ["a", "b"])


@pytest.mark.parametrize(
    "text", [SMALLEST_FILE.encode(), f"\ufeff{SMALLEST_FILE}", SMALLEST_FILE.replace("\n", "\r\n")]
)
def test_bytes_byte_order_marks_and_carriage_returns_are_fine(text):
    assert load(text, file="cortex.yaml").spec.apis[0].model == "model.onnx"


def test_a_cortex_yaml_may_be_written_as_json(accepted):
    assert accepted(json.dumps([{"kind": "api", "name": "a", "model": "m"}])).spec.apis[0].name == "a"


@pytest.mark.parametrize(
    ("line", "retry"),
    [("retry: on", "on"), ("retry: off", "off"), ("retry: No", "off"), ("retry: false", "off"), ("retry:", "on")],
)
def test_retry_is_a_switch(api, line, retry):
    assert api(line).retry == retry


@pytest.mark.parametrize(
    ("line", "batching"),
    [
        ("batching: auto", "auto"),
        ("batching: off", "off"),
        ("batching: no", "off"),
        ("batching: on", "on"),
        ("batching: true", "on"),
        ("batching:", "auto"),
    ],
)
def test_batching_is_automatic_on_or_off(api, line, batching):
    assert api(line).batching == batching


@pytest.mark.parametrize(
    ("written", "millis"),
    [
        ("0.2", 200),
        ("200m", 200),
        ('"200m"', 200),
        ("1", 1000),
        ("'1'", 1000),
        ("1.5", 1500),
        ("1e-1", 100),
        ("+2", 2000),
    ],
)
def test_cpu_may_be_quoted_or_not(api, written, millis):
    assert api(f"compute: {{cpu: {written}}}").compute.cpu_millis == millis


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        ("123Mi", 123 * 1024**2),
        ("128974848", 128974848),
        ("129M", 129_000_000),
        ("2000K", 2_000_000),
        ("128974848000m", 128974848),
    ],
)
def test_memory_may_be_quoted_or_not(api, written, size_bytes):
    assert api(f"compute: {{mem: {written}}}").compute.mem_bytes == size_bytes


@pytest.mark.parametrize("field", ["tracker", "compute", "sample", "retry", "env", "timeout", "max_body", "batching"])
def test_a_field_with_nothing_behind_it_has_its_default(api, field):
    assert api(f"{field}:") == api()


def test_every_field_of_compute_may_be_null(api):
    fields = [
        "min_replicas",
        "max_replicas",
        "init_replicas",
        "target_cpu_utilization",
        "target_in_flight",
        "downscale_window",
        "cpu",
        "gpu",
        "mem",
        "concurrency",
    ]
    assert api("compute: {" + ", ".join(f"{field}: null" for field in fields) + "}") == api()


def test_values_that_look_like_yaml_1_1_stay_strings(api):
    spec = api("env: {A: no, B: on, C: 012, D: 1_000, E: 12:30, F: 2024-01-31, G: ''}")
    assert spec.env == {"A": "no", "B": "on", "C": "012", "D": "1_000", "E": "12:30", "F": "2024-01-31", "G": ""}


def test_a_secret_is_named_in_env(api):
    assert api("env: {TOKEN: {secret: my.token}}").env == {"TOKEN": SecretRef(secret="my.token")}


@pytest.mark.parametrize(
    ("written", "sample"),
    [
        ("sample.json", "sample.json"),
        ("5", 5),
        ("false", False),
        ("[1.5, [2]]", [1.5, [2]]),
        ('"a text"', "a text"),
        ("{a: {b: null}}", {"a": {"b": None}}),
    ],
)
def test_a_sample_is_any_json_value(api, written, sample):
    assert api(f"sample: {written}").sample == sample


def test_anchors_and_merges_share_what_apis_have_in_common(accepted):
    text = textwrap.dedent("""\
        - kind: api
          name: a
          model: m
          compute: &compute {cpu: 1, mem: 1Gi}
        - kind: api
          name: b
          model: m
          compute:
            <<: *compute
            cpu: 2
        - kind: api
          name: c
          model: m
          compute: *compute
        """)
    apis = accepted(text).spec.apis
    assert [(api.compute.cpu_millis, api.compute.mem_bytes) for api in apis] == [
        (1000, 1024**3),
        (2000, 1024**3),
        (1000, 1024**3),
    ]


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ((1, "compute", "cpu"), (21, 5)),
        (("apis", 0, "compute", "cpu"), (21, 5)),
        (("apis", 0, "env", "TOKEN", "secret"), (32, 13)),
        (("apis", 1, "model"), (39, 3)),
        (("apis", 1, "compute", "cpu"), (37, 3)),
        (("apis", 0), (5, 3)),
        (("apis", 7, "model"), (2, 1)),
        (("apis",), (2, 1)),
        (("deployment",), (3, 3)),
        ((), (2, 1)),
    ],
)
def test_paths_of_the_file_and_of_the_spec_are_located(path, place):
    assert load(FULL, file="cortex.yaml").locate(path) == place


def test_the_name_of_a_deployment_that_is_not_in_the_file_is_at_its_beginning():
    assert load(SMALLEST_FILE, file="cortex.yaml").locate(("deployment",)) == (1, 1)


def test_a_problem_found_later_gets_its_place():
    problem = Problem(
        reference="model-not-found", message="m", subject="s", path=("apis", 1, "model"), hint="h", traceback="t"
    )
    placed = load(FULL, file="cortex.yaml").place(problem)
    assert placed == Problem(
        reference="model-not-found",
        message="m",
        subject="s",
        where="cortex.yaml:39:3",
        path=("apis", 1, "model"),
        hint="h",
        traceback="t",
    )


def test_loading_the_same_text_twice_gives_equal_results():
    assert load(FULL, file="cortex.yaml") == load(FULL, file="cortex.yaml")


def check_any_text(text: str | bytes) -> None:
    """Whatever the text: a spec that survives JSON, or problems that can be shown."""
    try:
        spec = load(text, file="cortex.yaml").spec
    except Problems as found:
        problems = found.problems
    else:
        assert json.dumps(spec.model_dump(mode="json"), allow_nan=False).encode()
        return
    assert problems
    for problem in problems:
        assert problem.reference in REFERENCES
        assert problem.where
        assert problem.hint
        assert render(problem).encode()


WORDS = "- |kind: api|kind: deployment|name: a|model: m|compute:|env: |sample: |cpu: |retry: |timeout: "
MARKS = "\n|\n  |\n    |\r\n|  |\t|{|}|[|]|,|: |:|? |'|\"|>\n|#|---\n|...\n|@|`|%|~"
NODES = "&a |*a|*a : |<<: |!|!!str |!!int |!!seq |!x!y |!<z> |null|true|1|0x1F|1e400"
ODD = "%YAML 1.2\n|%TAG ! x\n|.nan|200m|1Gi|\\|\\x41|\\ud83d|\\U99999999|\ud800|\0|\x85|\u2028|\ufeff|é|😀"
FRAGMENTS = st.sampled_from([*WORDS.split("|"), *MARKS.split("|"), *NODES.split("|"), *ODD.split("|"), "|", "|\n"])


@settings(unhurried, max_examples=200)
@given(st.lists(FRAGMENTS, max_size=30).map("".join))
def test_no_mixture_of_yaml_raises_anything_but_problems(text):
    check_any_text(text)


@settings(unhurried, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, len(FULL)), st.integers(0, 12), FRAGMENTS), min_size=1, max_size=4))
def test_no_damage_to_a_good_file_raises_anything_but_problems(damages):
    text = FULL
    for start, length, fragment in damages:
        text = text[:start] + fragment + text[start + length :]
    check_any_text(text)


@unhurried
@given(st.text() | st.binary())
def test_no_text_and_no_bytes_raise_anything_but_problems(text):
    check_any_text(text)


@unhurried
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["kind", "name", "compute", "cpu", "env"]), inner)
        ),
        max_leaves=15,
    )
)
def test_no_data_raises_anything_but_problems(data):
    check_any_text(json.dumps([{"kind": "api", "name": "a", "model": "m", "sample": data, "compute": data}, data]))
    check_any_text(
        json.dumps([{"kind": "api", "name": data, "model": data, "tracker": data, "env": data, "timeout": data}])
    )


@settings(unhurried, max_examples=40)
@given(
    st.integers(0, 20), st.integers(0, 20), st.sampled_from(["[", "{a: ", "- ", "&b [", "'", '"', "!", "%", "*", "? "])
)
def test_repeated_openings_never_hang(outer, inner, opening):
    check_any_text(opening * 50 * outer + "x\n" + opening * 50 * inner)
