"""Which files make up a model, and why these."""

import io
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cortex.artifacts import models
from cortex.artifacts.errors import (
    AmbiguousModel,
    ExternalDataMissing,
    FileChanged,
    ModelFormatMismatch,
    ModelNotFound,
    ModelSourceError,
    NoModel,
    UnusableFile,
    UnusableModel,
    UnusableZip,
)
from cortex.artifacts.models import ResolvedModel, as_upload, resolve
from cortex.wire.operator import ModelUpload

onnx = pytest.importorskip("onnx")

Write = Callable[[Mapping[str, bytes]], Path]


def onnx_model(*external: str) -> bytes:
    """A model that adds a weight; with names, each weight of four floats is in a file of that name."""
    inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4])]
    weights, nodes, last = [], [], "x"
    for number, name in enumerate(external or ("",)):
        tensor = onnx.helper.make_tensor(f"w{number}", onnx.TensorProto.FLOAT, [4], [1.0] * 4)
        if name:
            tensor.ClearField("float_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in {"location": name, "offset": "0", "length": "16"}.items():
                tensor.external_data.add(key=key, value=value)
        weights.append(tensor)
        nodes.append(onnx.helper.make_node("Add", [last, f"w{number}"], [f"y{number}"]))
        last = f"y{number}"
    outputs = [onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, [4])]
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, weights)
    return onnx.helper.make_model(graph).SerializeToString()


INLINE = onnx_model()
WEIGHTS = b"\0" * 16


def packed(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def saved_model(at: str = "", **more: bytes) -> dict[str, bytes]:
    top = f"{at}/" if at else ""
    return {
        f"{top}saved_model.pb": b"graph",
        f"{top}variables/variables.index": b"i",
        f"{top}variables/variables.data-00000-of-00001": b"v",
        **{f"{top}{name}": content for name, content in more.items()},
    }


@pytest.fixture
def find(tmp_path: Path) -> Callable[..., ResolvedModel]:
    """Resolve a model named in a cortex.yaml in `tmp_path / "in"`."""

    def resolved(model: str, **options: str) -> ResolvedModel:
        return resolve(model, folder=tmp_path / "in", scratch=tmp_path / "scratch", **options)

    return resolved


def names(found: ResolvedModel) -> list[str]:
    return [name for name, _ in found.files]


# --- ONNX files ---


def test_an_onnx_file_is_its_own_entry(find, write: Write) -> None:
    top = write({"models/iris.onnx": INLINE})
    path = top / "models/iris.onnx"
    assert find("models/iris.onnx") == ResolvedModel(format="onnx", entry="iris.onnx", files=(("iris.onnx", path),))
    assert find(str(path)).files == find(f"file://{path}").files == find(f"file://localhost{path}").files
    assert find("models/../models//iris.onnx").entry == "iris.onnx"


def test_a_file_url_may_be_percent_encoded(find, write: Write) -> None:
    top = write({"my model.onnx": INLINE})
    assert find(f"file://{top}/my%20model.onnx").entry == "my model.onnx"


def test_files_of_weights_are_taken_along_under_their_own_names(find, write: Write) -> None:
    top = write(
        {"m/model.onnx": onnx_model("model.onnx.data", "deep/w.bin"), "m/model.onnx.data": WEIGHTS}
        | {"m/deep/w.bin": WEIGHTS, "m/README.md": b"not needed"}
    )
    found = find("m/model.onnx")
    assert found.files == (
        ("deep/w.bin", top / "m/deep/w.bin"),
        ("model.onnx", top / "m/model.onnx"),
        ("model.onnx.data", top / "m/model.onnx.data"),
    )
    assert found.entry == "model.onnx"
    assert found.note == "model.onnx, with its weights in deep/w.bin, model.onnx.data"


def test_missing_weights_are_named(find, write: Write) -> None:
    write({"model.onnx": onnx_model("model.onnx.data", "b.bin"), "b.bin": WEIGHTS})
    with pytest.raises(ExternalDataMissing) as caught:
        find("model.onnx")
    assert str(caught.value) == "model.onnx needs model.onnx.data beside it"
    assert caught.value.missing == ("model.onnx.data",)
    assert caught.value.problem().reference == "external-data-missing"


def test_weights_beside_the_file_that_a_link_points_to_are_found(find, write: Write) -> None:
    top = write({"v3/model.onnx": onnx_model("model.onnx.data"), "v3/model.onnx.data": WEIGHTS})
    (top / "current.onnx").symlink_to("v3/model.onnx")
    found = find("current.onnx")
    assert (found.entry, names(found)) == ("model.onnx", ["model.onnx", "model.onnx.data"])


def test_links_beside_each_other_are_followed_one_by_one(find, write: Write) -> None:
    """How caches of model hubs look: a folder of links into a store."""
    top = write({"store/1": onnx_model("model.onnx.data"), "store/2": WEIGHTS})
    (top / "snapshot").mkdir()
    (top / "snapshot/model.onnx").symlink_to("../store/1")
    (top / "snapshot/model.onnx.data").symlink_to("../store/2")
    assert names(find("snapshot/model.onnx")) == ["model.onnx", "model.onnx.data"]
    assert names(find("snapshot")) == ["model.onnx", "model.onnx.data"]


def test_weights_that_lie_elsewhere_are_refused(find, write: Write) -> None:
    write({"m/model.onnx": onnx_model("../secret"), "secret": WEIGHTS})
    with pytest.raises(UnusableModel, match="not a file in its own folder"):
        find("m/model.onnx")


def test_an_onnx_model_may_have_any_name_if_the_format_is_said(find, write: Write) -> None:
    write({"model.bin": INLINE})
    assert find("model.bin", model_format="onnx").entry == "model.bin"
    with pytest.raises(NoModel) as caught:
        find("model.bin")
    assert "model_format: onnx" in caught.value.hint


def test_upper_case_endings_count(find, write: Write) -> None:
    write({"MODEL.ONNX": INLINE})
    assert find("MODEL.ONNX").format == "onnx"


# --- SavedModels ---


def test_a_saved_model_folder_is_taken_whole(find, write: Write) -> None:
    top = write(saved_model("bert", **{"assets/vocab.txt": b"", ".DS_Store": b"clutter"}))
    found = find("bert")
    assert (found.format, found.entry, found.note) == ("tensorflow", ".", "")
    assert names(found) == [
        "assets/vocab.txt",
        "saved_model.pb",
        "variables/variables.data-00000-of-00001",
        "variables/variables.index",
    ]
    assert dict(found.files)["saved_model.pb"] == top / "bert/saved_model.pb"
    assert find("bert/") == found


def test_a_saved_model_without_variables_is_valid(find, write: Write) -> None:
    write({"m/saved_model.pb": b"graph", "t/saved_model.pbtxt": b"graph"})
    assert names(find("m")) == ["saved_model.pb"]
    assert names(find("t")) == ["saved_model.pbtxt"]


def test_the_numerically_highest_version_is_taken_and_said(find, write: Write) -> None:
    top = write(saved_model("bert/9") | saved_model("bert/10") | saved_model("bert/best") | {"bert/notes.txt": b""})
    found = find("bert")
    assert dict(found.files)["saved_model.pb"] == top / "bert/10/saved_model.pb"
    assert found.note == "10, the highest version of 3 in the folder bert"


def test_versions_are_found_at_any_depth(find, write: Write) -> None:
    top = write(
        saved_model("out/export/estimator/1568244606")
        | saved_model("out/export/estimator/1568244000")
        | saved_model("out/7/serving")
    )
    found = find("out")
    assert dict(found.files)["saved_model.pb"] == top / "out/export/estimator/1568244606/saved_model.pb"
    assert "export/estimator/1568244606, the highest version of 3" in found.note


def test_the_number_above_a_saved_model_counts(find, write: Write) -> None:
    top = write(saved_model("m/2/serving") | saved_model("m/10/serving"))
    assert dict(find("m").files)["saved_model.pb"] == top / "m/10/serving/saved_model.pb"


def test_the_only_saved_model_below_needs_no_version(find, write: Write) -> None:
    write(saved_model("m/data/model"))
    assert find("m").note == "data/model, the only SavedModel in the folder m"


def test_a_saved_model_is_not_searched_for_others(find, write: Write) -> None:
    write(saved_model("m") | saved_model("m/9"))
    found = find("m")
    assert "saved_model.pb" in names(found)
    assert "9/saved_model.pb" in names(found)


def test_the_same_version_twice_is_an_error_that_lists_both(find, write: Write) -> None:
    write(saved_model("m/bert/3") | saved_model("m/gpt/3") | saved_model("m/gpt/2"))
    with pytest.raises(AmbiguousModel) as caught:
        find("m")
    assert caught.value.candidates == ("bert/3", "gpt/3")


def test_several_without_versions_are_an_error_that_lists_them(find, write: Write) -> None:
    write(saved_model("m/good") | saved_model("m/better"))
    with pytest.raises(AmbiguousModel, match="2 SavedModels with no version number:\n  better\n  good"):
        find("m")


def test_links_inside_a_model_are_followed_and_loops_end(find, write: Write) -> None:
    top = write(saved_model("m/5") | {"blobs/v": b"real"})
    (top / "m/latest").symlink_to("5")
    (top / "m/5/loop").symlink_to("..")
    (top / "m/5/variables/extra").symlink_to("../../../blobs/v")
    found = find("m")
    assert dict(found.files)["variables/extra"].read_bytes() == b"real"
    assert found.note == "5, the highest version of 2 in the folder m"


# --- folders in general ---


def test_a_folder_with_one_onnx_is_onnx(find, write: Write) -> None:
    write({"m/config.json": b"{}", "m/onnx/model.onnx": onnx_model("w.bin"), "m/onnx/w.bin": WEIGHTS})
    found = find("m")
    assert (found.format, found.entry, names(found)) == ("onnx", "model.onnx", ["model.onnx", "w.bin"])
    assert found.note == "onnx/model.onnx, the only .onnx in the folder m, with its weights in w.bin"


def test_a_folder_with_several_onnx_is_an_error_that_lists_them(find, write: Write) -> None:
    write({"m/a.onnx": INLINE, "m/sub/b.onnx": INLINE})
    for options in ({}, {"model_format": "onnx"}):
        with pytest.raises(AmbiguousModel) as caught:
            find("m/", **options)
        assert caught.value.candidates == ("a.onnx", "sub/b.onnx")
        assert "model: m/a.onnx" in caught.value.hint


def test_a_long_list_is_shortened(find, write: Write) -> None:
    write({f"m/{i:02}.onnx": INLINE for i in range(30)})
    with pytest.raises(AmbiguousModel, match="… and 20 more"):
        find("m")


def test_a_saved_model_wins_over_an_onnx_unless_the_format_says_otherwise(find, write: Write) -> None:
    write(saved_model("m/1") | {"m/model.onnx": INLINE})
    assert find("m").format == "tensorflow"
    assert find("m", model_format="onnx").entry == "model.onnx"


def test_a_folder_without_a_model_says_what_was_looked_for(find, write: Write) -> None:
    write({"m/weights.h5": b"x", "m/.git/x.onnx": INLINE, "m/venv/pyvenv.cfg": b"", "m/venv/test.onnx": INLINE})
    for options, looked_for in [
        ({}, "a SavedModel (saved_model.pb, here or in version folders such as 1/) or exactly one .onnx file"),
        ({"model_format": "onnx"}, "exactly one .onnx file"),
        ({"model_format": "tensorflow"}, "a SavedModel (saved_model.pb, here or in version folders such as 1/)"),
    ]:
        with pytest.raises(NoModel) as caught:
            find("m", **options)
        assert str(caught.value) == f"the folder m holds no model; looked for {looked_for}"


def test_a_folder_of_another_format_than_said_is_a_mismatch(find, write: Write) -> None:
    write(saved_model("tf") | {"on/x.onnx": INLINE})
    with pytest.raises(ModelFormatMismatch, match="model_format is onnx, but the folder tf holds a SavedModel"):
        find("tf", model_format="onnx")
    with pytest.raises(ModelFormatMismatch, match=r"is tensorflow, but the folder on holds x\.onnx and no") as caught:
        find("on", model_format="tensorflow")
    assert "`model_format: onnx`" in caught.value.hint


def test_a_file_that_is_said_to_be_tensorflow_is_a_mismatch(find, write: Write) -> None:
    write({"x.onnx": INLINE})
    with pytest.raises(ModelFormatMismatch, match=r"is tensorflow, but x\.onnx is a file"):
        find("x.onnx", model_format="tensorflow")


def test_a_folder_with_too_many_entries_is_not_searched_through(find, write: Write, monkeypatch) -> None:
    monkeypatch.setattr(models, "MAX_ENTRIES", 5)
    write({f"m/{i}": b"" for i in range(6)})
    with pytest.raises(NoModel, match="more than 5 entries"):
        find("m")


# --- zips ---


def test_a_zip_with_the_saved_model_at_its_top(find, write: Write) -> None:
    write({"m.zip": packed(saved_model())})
    found = find("m.zip")
    assert (found.format, found.entry, found.note) == ("tensorflow", ".", "")
    assert dict(found.files)["variables/variables.index"].read_bytes() == b"i"


def test_a_zip_with_version_folders(find, write: Write, tmp_path: Path) -> None:
    clutter = {"__MACOSX/m/11/._saved_model.pb": b"", "m/.DS_Store": b""}
    write({"m.zip": packed(saved_model("m/9") | saved_model("m/10") | clutter)})
    found = find("m.zip", model_format="tensorflow")
    assert found.note == "m/10, the highest version of 2 in m.zip"
    assert names(found) == sorted(saved_model())
    assert not list((tmp_path / "scratch").rglob("9"))  # only what is chosen is unpacked


def test_a_zip_with_one_onnx_and_its_weights(find, write: Write) -> None:
    write({"m.zip": packed({"x/model.onnx": onnx_model("w.bin"), "x/w.bin": WEIGHTS, "readme": b""})})
    found = find("m.zip")
    assert (found.format, found.entry, names(found)) == ("onnx", "model.onnx", ["model.onnx", "w.bin"])
    assert dict(found.files)["w.bin"].read_bytes() == WEIGHTS


def test_a_zip_of_another_name_is_seen_by_its_first_bytes(find, write: Write) -> None:
    write({"archive": packed(saved_model())})
    assert find("archive").format == "tensorflow"


def test_zips_have_the_same_errors_as_folders(find, write: Write) -> None:
    write(
        {
            "none.zip": packed({"a.txt": b""}),
            "two.zip": packed({"a.onnx": INLINE, "b.onnx": INLINE}),
            "data.zip": packed({"a.onnx": onnx_model("w.bin")}),
            "tf.zip": packed(saved_model()),
        }
    )
    with pytest.raises(NoModel, match=r"none\.zip holds no model; looked for a SavedModel"):
        find("none.zip")
    with pytest.raises(AmbiguousModel, match=r"two\.zip holds 2 \.onnx files"):
        find("two.zip")
    with pytest.raises(ExternalDataMissing, match=r"a\.onnx needs w\.bin beside it"):
        find("data.zip")
    with pytest.raises(ModelFormatMismatch):
        find("tf.zip", model_format="onnx")


def test_two_zips_share_a_scratch_folder(find, write: Write) -> None:
    write({"a.zip": packed({"saved_model.pb": b"one"}), "b.zip": packed({"saved_model.pb": b"other"})})
    one, other = find("a.zip"), find("b.zip")
    assert [path.read_bytes() for found in (one, other) for _, path in found.files] == [b"one", b"other"]


def test_a_zip_that_would_write_elsewhere_is_refused(find, write: Write, tmp_path: Path) -> None:
    write({"m.zip": packed({"saved_model.pb": b"graph", "../../evil": b""})})
    with pytest.raises(UnusableZip):
        find("m.zip")
    assert not (tmp_path / "scratch").exists()


# --- what cannot be a model ---


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("models/skleran.onnx", "models/sklearn.onnx"),
        ("./modles/sklearn.onnx", "./models/sklearn.onnx"),
        ("modles/other.onnx", "models"),
        ("models/sklearn.zip", "models/sklearn.onnx"),
        ("models/sklearn", "models/sklearn.onnx"),
        ("models/sklearn.onnx/", None),
        ("nothing/like/it", None),
    ],
)
def test_a_path_with_nothing_there_suggests_what_is(find, write: Write, asked: str, meant: str | None) -> None:
    write({"models/sklearn.onnx": INLINE, "handlers/h.py": b""})
    if meant is None and asked.startswith("models/"):
        assert find(asked).entry == "sklearn.onnx"  # a slash too many is forgiven
        return
    with pytest.raises(ModelNotFound) as caught:
        find(asked)
    assert caught.value.suggestion == meant
    assert caught.value.model == asked


def test_a_suggestion_for_an_absolute_path_is_absolute(find, write: Write) -> None:
    top = write({"iris.onnx": INLINE})
    with pytest.raises(ModelNotFound) as caught:
        find(f"{top}/irs.onnx")
    assert caught.value.suggestion == f"{top}/iris.onnx"


def test_a_path_through_a_file_is_not_found(find, write: Write) -> None:
    write({"iris.onnx": INLINE})
    with pytest.raises(ModelNotFound):
        find("iris.onnx/model")


def test_a_link_to_nowhere_is_named(find, write: Write) -> None:
    top = write({})
    (top / "m.onnx").symlink_to("gone.onnx")
    with pytest.raises(UnusableModel, match=r"is a link to gone\.onnx, which is not there"):
        find("m.onnx")


@pytest.mark.parametrize(
    ("files", "model", "reason"),
    [
        ({"m.onnx": b""}, "m.onnx", "is empty"),
        ({"m.zip": b""}, "m.zip", "is empty"),
        ({"m/saved_model.pb": b""}, "m", "is empty"),
        ({"m.onnx": onnx_model("w"), "w": b""}, "m.onnx", "is empty"),
        ({"m.onnx": b"version https://git-lfs.github.com/spec/v1\noid"}, "m.onnx", "Git LFS pointer"),
        ({"m.zip": b"version https://git-lfs.github.com/spec/v1\noid"}, "m.zip", "Git LFS pointer"),
        ({"m/saved_model.pb": b"version https://git-lfs.github.com/spec/v1"}, "m", "Git LFS pointer"),
        ({"m.onnx": INLINE[:-20]}, "m.onnx", "copied whole"),
        ({"m.onnx": b"<html>not found</html>"}, "m.onnx", "web page"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_named(find, write: Write, files, model: str, reason: str) -> None:
    write(files)
    with pytest.raises(UnusableModel, match=reason):
        find(model)


def test_an_empty_asset_is_fine(find, write: Write) -> None:
    write(saved_model("m", **{"assets/empty": b"", "fingerprint.pb": b""}))
    assert "assets/empty" in names(find("m"))


def test_a_pipe_is_refused_without_waiting(find, write: Write) -> None:
    top = write({"m/saved_model.pb": b"graph"})
    os.mkfifo(top / "m.onnx")
    os.mkfifo(top / "m/pipe")
    for model in ("m.onnx", "m"):
        with pytest.raises(UnusableModel, match="neither a file nor a folder"):
            find(model)


def test_what_cannot_be_read_is_named(find, write: Write, unprivileged) -> None:
    top = write({"m.onnx": INLINE, "dir/x.onnx": INLINE, "sm/saved_model.pb": b"g", "m.zip": packed(saved_model())})
    for name in ("m.onnx", "dir", "sm/saved_model.pb", "m.zip"):
        (top / name).chmod(0)
    unprivileged()
    for model in ("m.onnx", "dir", "dir/x.onnx", "sm", "m.zip"):
        with pytest.raises(UnusableModel, match=r"cannot be read \(Permission denied\)"):
            find(model)


@pytest.mark.parametrize(
    ("name", "advice"),
    [("m.pt", "torch.onnx.export"), ("m.pkl", "skl2onnx"), ("m.h5", "model.export"), ("m.tar.gz", "unpack it")],
)
def test_models_of_other_kinds_are_told_what_to_do(find, write: Write, name: str, advice: str) -> None:
    write({name: b"\x00\x01"})
    with pytest.raises(NoModel) as caught:
        find(name)
    assert advice in caught.value.hint


@pytest.mark.parametrize(
    ("name", "advice"),
    [("m.pt", "torch.onnx.export"), ("m.keras", "model.export"), ("frozen.pb", "tf.saved_model.save")],
)
def test_models_of_other_kinds_that_are_zips_or_graphs_are_told_as_well(
    find, write: Write, name: str, advice: str
) -> None:
    write({name: b"PK\x03\x04 and so on" if name != "frozen.pb" else b"\x0a\x01"})
    with pytest.raises(NoModel, match=r"is neither an \.onnx file") as caught:
        find(name)
    assert advice in caught.value.hint


def test_the_file_inside_a_saved_model_points_to_its_folder(find, write: Write) -> None:
    write(saved_model("bert/1"))
    with pytest.raises(NoModel) as caught:
        find("bert/1/saved_model.pb")
    assert caught.value.hint == "say `model: bert/1`"


def test_every_error_of_a_model_carries_what_the_user_wrote(find, write: Write) -> None:
    write({"m.zip": b"PK"})
    for model in ("nothing.onnx", "m.zip"):
        with pytest.raises(ModelSourceError) as caught:
            find(model)
        assert caught.value.model == model


# --- announcing ---


def test_an_upload_lists_files_by_digest(find, write: Write) -> None:
    write(saved_model("m/3") | saved_model("m/4"))
    found = find("m")
    upload = as_upload(found)
    assert isinstance(upload, ModelUpload)
    assert [file.path for file in upload.files] == names(found)
    assert (upload.entry, upload.format, upload.note) == (".", "tensorflow", found.note)
    assert {file.executable for file in upload.files} == {False}


def test_a_file_that_goes_away_or_changes_before_it_is_hashed_is_named(find, write: Write, monkeypatch) -> None:
    top = write({"m.onnx": INLINE})
    found = find("m.onnx")
    monkeypatch.setattr(models, "hash_file", lambda path, cache: (_ for _ in ()).throw(FileChanged(path)))
    with pytest.raises(FileChanged):
        as_upload(found)
    monkeypatch.undo()
    (top / "m.onnx").unlink()
    with pytest.raises(UnusableFile, match="is not there any more"):
        as_upload(found)
