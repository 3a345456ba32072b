"""Tests of `cortex.replica.backends.signatures`."""

import pytest

from cortex.replica.backends.signatures import (
    AmbiguousSignature,
    NoSignature,
    SignatureDef,
    UnknownSignature,
    choose,
    natural_order,
    yaml_line,
)
from cortex.wire.signature import TensorSpec


def signature(inputs=("x",), outputs=("y",)) -> SignatureDef:
    return SignatureDef(
        {name: TensorSpec(name, "float32", (None, 4)) for name in inputs},
        {name: TensorSpec(name, "string", None) for name in outputs},
    )


def signatures(*keys):
    return {key: signature() for key in keys}


def test_the_only_signature_is_served_whatever_its_key():
    assert choose(signatures("anything")) == ("anything", "")


@pytest.mark.parametrize("wanted", ["classify", "predict", "serving_default"])
def test_what_was_asked_for_is_served_without_a_word(wanted):
    assert choose(signatures("classify", "predict", "serving_default"), wanted) == (wanted, "")


@pytest.mark.parametrize(
    ("keys", "served", "line"),
    [
        (("serving_default", "predict", "classify"), "predict", "tf_signature_key: classify"),
        (("serve", "serving_default"), "serving_default", "tf_signature_key: serve"),
        (("regress", "predict"), "predict", "tf_signature_key: regress"),
    ],
)
def test_of_several_the_usual_one_is_served_and_the_line_for_another_said(keys, served, line):
    choice = choose(signatures(*keys))
    assert choice.key == served
    assert choice.note.startswith(f"serves its signature {served}; ")
    assert f'"{line}"' in choice.note
    assert all(key in choice.note for key in keys)


def test_the_choice_does_not_depend_on_the_order():
    assert choose(signatures("a", "predict", "b")) == choose(signatures("b", "predict", "a"))


def test_no_signature_says_how_to_export_one():
    with pytest.raises(NoSignature, match=r"^the SavedModel has no signature to serve$") as caught:
        choose({})
    assert "model.export(folder)" in caught.value.hint
    with pytest.raises(NoSignature, match="so not predict either"):
        choose({}, "predict")


def test_several_without_a_usual_one_are_listed_with_inputs_outputs_and_the_line_to_add():
    with pytest.raises(AmbiguousSignature) as caught:
        choose({"score_10": signature(("a", "b")), "score_2": signature((), ("y", "z"))})
    assert str(caught.value).splitlines() == [
        "the model has 2 signatures, and nothing says which one to serve",
        "  score_2: nothing → y string[…], z string[…]",
        "  score_10: a float32[?, 4], b float32[?, 4] → y string[…]",
    ]
    assert caught.value.hint.splitlines() == [
        "add one to the api in cortex.yaml, e.g.",
        "tf_signature_key: score_2",
    ]


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [
        ("clasify", "did you mean `tf_signature_key: classify`?"),
        ("Classify", "did you mean `tf_signature_key: classify`?"),
        ("CLASSIFY", "did you mean `tf_signature_key: classify`?"),
        ("zzz", "name one that it has, e.g. `tf_signature_key: classify`"),
    ],
)
def test_an_unknown_key_is_answered_with_those_that_are_there_and_a_guess(wanted, hint):
    with pytest.raises(UnknownSignature) as caught:
        choose(signatures("predict", "classify"), wanted)
    assert str(caught.value).splitlines()[0] == f"the model has no signature {wanted}; it has"
    assert caught.value.keys == ("classify", "predict")
    assert caught.value.hint == hint


def test_very_many_signatures_are_not_all_listed():
    many = signatures(*(f"s{number}" for number in range(100)))
    with pytest.raises(AmbiguousSignature) as caught:
        choose(many)
    assert len(str(caught.value).splitlines()) == 22
    assert len(choose({**many, "predict": signature()}).note) < 250


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("serving_default", "tf_signature_key: serving_default"),
        ("a/b-c.d", "tf_signature_key: a/b-c.d"),
        ("on", 'tf_signature_key: "on"'),
        ("1", 'tf_signature_key: "1"'),
        ('say "x" \\', 'tf_signature_key: "say \\"x\\" \\\\"'),
        ("größe", 'tf_signature_key: "größe"'),
    ],
)
def test_the_line_is_yaml_that_means_the_key(key, line):
    from ruamel.yaml import YAML

    assert yaml_line(key) == line
    assert YAML(typ="safe").load(line) == {"tf_signature_key": key}


def test_names_are_sorted_as_people_count():
    names = ["output_10", "output_2", "b", "output", "a10b2", "a10b1", "a9", ""]
    assert sorted(names, key=natural_order) == ["", "a9", "a10b1", "a10b2", "b", "output", "output_2", "output_10"]


def test_a_signature_is_read_by_attribute():
    served = signature()
    assert served.inputs["x"].dtype == "float32"
    assert served.inputs["x"].shape == (None, 4)
    assert [spec.name for spec in served.outputs.values()] == ["y"]
