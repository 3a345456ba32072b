"""Tests of `cortex.spec.problems`."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cortex.errors import Problem
from cortex.spec.problems import REFERENCES, found, lookup, nearest, one_of, quoted, render, subject

# Machines may be busy; the timeout of pytest ends what hangs.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

RESOURCES = [
    {"kind": "deployment", "name": "flowers"},
    {"kind": "api", "name": "iris", "compute": {"cpu": 1}, "sample": [1, {"a": 2}]},
    {"kind": "api", "name": 5},
    {"kind": "model", "name": "old"},
    "text",
]


def test_a_problem_is_rendered_with_place_message_and_hint():
    problem = Problem(
        reference="unknown-field",
        message='"max_replica" is not a field of compute',
        subject='api "iris": compute: max_replica',
        where="cortex.yaml:14:7",
        hint='did you mean "max_replicas"?',
    )
    assert render(problem).splitlines() == [
        "error: unknown-field",
        '  cortex.yaml:14:7   api "iris": compute: max_replica',
        '  "max_replica" is not a field of compute',
        '  hint: did you mean "max_replicas"?',
    ]


def test_what_a_problem_does_not_have_takes_no_line():
    assert render(Problem(reference="some-problem", message="it is so")) == "error: some-problem\n  it is so"


def test_a_place_or_a_subject_alone_has_no_gap():
    assert render(Problem(reference="r", message="m", where="f:1:1")) == "error: r\n  f:1:1\n  m"
    assert render(Problem(reference="r", message="m", subject='api "a"')) == 'error: r\n  api "a"\n  m'


def test_further_lines_are_indented_below_the_first():
    problem = Problem(reference="r", message="one\ntwo", hint="for example\na:\n  b: 1")
    assert render(problem).splitlines() == [
        "error: r",
        "  one",
        "  two",
        "  hint: for example",
        "        a:",
        "          b: 1",
    ]


def test_the_users_traceback_comes_before_the_message():
    problem = Problem(reference="r", message="the handler failed", traceback="Traceback:\n\n  line 3\n")
    assert render(problem) == "error: r\n    Traceback:\n\n      line 3\n  the handler failed"


def test_a_note_says_so():
    assert render(Problem(reference="not-in-effect", message="m"), level="note") == "note: not-in-effect\n  m"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ((), ""),
        ((0,), 'deployment "flowers"'),
        ((0, "name"), 'deployment "flowers": name'),
        ((1, "compute", "cpu"), 'api "iris": compute: cpu'),
        ((1, "sample", 1, "a"), 'api "iris": sample: index 1: a'),
        ((2, "name"), "api at index 2: name"),
        ((3, "kind"), 'resource "old": kind'),
        ((4,), "resource at index 4"),
        ((9,), "resource at index 9"),
        (("kind",), "kind"),
    ],
)
def test_a_subject_has_names_instead_of_indexes(path, words):
    assert subject(path, RESOURCES) == words


def test_a_subject_in_a_project_spec_names_the_api():
    project = {"deployment": "flowers", "apis": [{"name": "iris"}, {}]}
    assert subject(("apis", 0, "model"), project) == 'api "iris": model'
    assert subject(("apis", 1, "model"), project) == "api at index 1: model"
    assert subject(("deployment",), project) == "deployment"


def test_a_name_too_long_to_read_gives_way_to_the_index():
    assert subject((0,), [{"kind": "api", "name": "x" * 61}]) == "api at index 0"


def test_lookup_returns_none_where_a_path_leads_nowhere():
    assert lookup(RESOURCES, (1, "compute", "cpu")) == 1
    assert lookup(RESOURCES, (1, "compute", "cpu", "more")) is None
    assert lookup(RESOURCES, ("kind",)) is None
    assert lookup(RESOURCES, (-1,)) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("iris", '"iris"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("a\nb\x1b[31m", '"a\\nb\\x1b[31m"'),
        ("a\u00a0b\u200b", '"a\\xa0b\\u200b"'),
        ("größe 模型", '"größe 模型"'),
        ("\ud800", '"\\ud800"'),
    ],
)
def test_quoted_text_shows_what_cannot_be_seen(text, shown):
    assert quoted(text) == shown


@unhurried
@given(st.text(alphabet=st.characters()))
def test_quoted_text_is_short_and_safe_to_print(text):
    assert quoted(text).isprintable()
    assert len(quoted(text[:60])) <= 2 + 60 * len("\\U00000000")
    if len(text) > 60:
        assert quoted(text).endswith('…"')


@pytest.mark.parametrize(
    ("value", "written", "words"),
    [
        (None, None, "nothing"),
        (True, None, "true"),
        (True, "True", "True"),
        (2.0, None, "the number 2.0"),
        (1000.0, "1e3", "the number 1e3"),
        ("2", None, 'the string "2"'),
        ([1], None, "a list"),
        ((1,), None, "a list"),
        ({}, None, "a mapping"),
        (object(), None, "object"),
    ],
)
def test_what_was_found_is_named_by_its_kind(value, written, words):
    assert found(value, written) == words


def test_a_number_too_long_for_python_to_print_is_not_printed():
    assert found(10**5000) == "the number with very many digits"


@pytest.mark.parametrize(
    ("words", "shown"),
    [(["a"], '"a"'), (["a", "b"], '"a" or "b"'), (["a", "b", "c"], '"a", "b" or "c"')],
)
def test_choices_are_joined_as_in_speech(words, shown):
    assert one_of(words) == shown


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("max_replica", "max_replicas"),
        ("maxReplicas", "max_replicas"),
        ("MAX-REPLICAS", "max_replicas"),
        ("concurency", "concurrency"),
        ("cpus", "cpu"),
        ("memory", "mem"),
        ("target_cpu", "target_cpu_utilization"),
        ("handler", "request_handler"),
        ("command", None),
        ("x", None),
        ("", None),
        ("c" * 10_000, None),
    ],
)
def test_the_nearest_choice_is_what_was_probably_meant(word, meant):
    choices = ["compute", "concurrency", "cpu", "max_replicas", "mem", "request_handler", "target_cpu_utilization"]
    assert nearest(word, choices) == meant


def test_an_ambiguous_beginning_is_not_guessed():
    assert nearest("model", ["model_format", "model_type"]) is None


def test_references_are_kebab_case_and_explained_in_a_sentence():
    for reference, meaning in REFERENCES.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", reference)
        assert meaning.endswith(".")
