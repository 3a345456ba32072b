"""Tests of `cortex.controlplane.changes`."""

import msgspec

from cortex.controlplane.changes import breaking_changes, describe, file_changes, removed
from cortex.controlplane.versions import revision_of, version_of
from cortex.errors import Problem
from cortex.ids import ApiKey, Revision, Version
from cortex.planning.model import WantedApi
from cortex.state.base import ApiRecord, PackagesRecord, VersionRecord
from cortex.testing.builders import a_sample
from cortex.wire.build import BuildSpec, ModelArtifact, Resources, SecretPin
from cortex.wire.operator import ChangeKind, StoredFile
from cortex.wire.signature import Signature, TensorSpec


def a_file(path, content="1", *, executable=False):
    return StoredFile(path=path, sha256=content * 64, executable=executable)


HANDLER = (a_file("handler.py"),)


def a_version(*, model="a", files=HANDLER, cpu=200, refresh=0, timeout="10m", sample=None, batching="auto"):
    artifact = ModelArtifact(format="onnx", tree=model * 64, entry="m.onnx")
    project = "".join(f.sha256[0] for f in files).ljust(64, "0")
    unnamed = BuildSpec(
        api=ApiKey("iris/a"),
        version=Version(""),
        revision=Revision(""),
        runtime="onnx",
        model=artifact,
        project=project,
        handler="handler.py",
        resources=Resources(cpu_millis=cpu),
        sample=sample,
        batching=batching != "off",
        trust_rows=batching == "on",
    )
    build = msgspec.structs.replace(unnamed, version=version_of(unnamed, secrets={}, refresh=refresh))
    build = msgspec.structs.replace(build, revision=revision_of(build))
    return VersionRecord(
        build=build,
        spec={"timeout": timeout, "compute": {"cpu": f"{cpu}m"}},
        refresh=refresh,
        project=tuple(files),
        model_files=(a_file("m.onnx", model),),
    )


def stored(version, failed=None):
    return ApiRecord(wanted=WantedApi(api=version.build.api, build=version.build, failed=failed), version=version)


def told(old, new, failed=None):
    change = describe(stored(old, failed) if old else None, new, endpoint="http://x/iris/a")
    return change.kind, change.causes


def test_an_api_that_was_not_there_is_added():
    assert told(None, a_version()) == (ChangeKind.ADDED, ())


def test_the_same_again_is_unchanged():
    assert told(a_version(), a_version()) == (ChangeKind.UNCHANGED, ())


def test_a_failed_version_deployed_again_is_tried_again():
    problem = Problem(reference="x", message="x")
    assert told(a_version(), a_version(), problem) == (ChangeKind.UNCHANGED, ("it failed before and is tried again",))


def test_a_changed_file_is_named():
    new = a_version(files=(a_file("handler.py", "2"),))
    assert told(a_version(), new) == (ChangeKind.NEW_VERSION, ("handler.py changed",))


def test_a_changed_model_is_named():
    assert told(a_version(), a_version(model="b")) == (ChangeKind.NEW_VERSION, ("model changed (m.onnx changed)",))


def test_another_version_folder_is_told_by_its_name():
    old, new = (
        msgspec.structs.replace(a_version(model=model), model_note=f"bert/{version}, the highest version of 2 in bert")
        for model, version in (("a", 9), ("b", 10))
    )
    assert told(old, new) == (ChangeKind.NEW_VERSION, ("model changed (bert/9 -> bert/10)",))
    same = msgspec.structs.replace(a_version(model="b"), model_note=old.model_note)
    assert told(old, same) == (ChangeKind.NEW_VERSION, ("model changed (m.onnx changed)",))


def test_more_cpu_rolls_the_replicas_of_the_same_version():
    kind, causes = told(a_version(), a_version(cpu=500))
    assert (kind, causes) == (ChangeKind.ROLLED, ("cpu 200m -> 500m",))


def test_a_timeout_changes_in_place():
    assert told(a_version(), a_version(timeout="30s")) == (ChangeKind.SETTINGS, ("timeout 10m -> 30s",))


def test_a_model_that_comes_or_goes_is_told():
    with_model = a_version()
    without = msgspec.structs.replace(
        with_model, build=msgspec.structs.replace(with_model.build, model=None, version="w")
    )
    assert told(with_model, without) == (ChangeKind.NEW_VERSION, ("model removed",))
    assert told(without, with_model) == (ChangeKind.NEW_VERSION, ("model added",))


def test_a_sample_changes_in_place():
    assert told(a_version(), a_version(sample=a_sample(b"1"))) == (ChangeKind.SETTINGS, ("sample changed",))


def test_a_refresh_makes_a_new_version():
    assert told(a_version(), a_version(refresh=1)) == (ChangeKind.NEW_VERSION, ("refreshed",))


def with_packages(record, files=(), **versions):
    lock = "e".join(sorted(f"{n}{v}" for n, v in versions.items())).ljust(64, "0") if versions else None
    packages = PackagesRecord(asked="", lock=lock, versions=versions) if versions else None
    return rebuilt(record, packages=packages, lock=lock, project=tuple(files) or record.project)


def rebuilt(record, *, packages=None, project=None, secrets=None, lock=None):
    """Another version of a record."""
    build = msgspec.structs.replace(
        record.build,
        version=f"{lock}{sorted((secrets or {}).items())}",
        packages=lock,
        project="".join(file.sha256[0] for file in project or ()).ljust(64, "0"),
        secrets=secrets or {},
    )
    return msgspec.structs.replace(record, build=build, packages=packages, project=project or ())


def test_changed_packages_are_told_in_place_of_the_file_that_asks_for_them():
    old = with_packages(a_version(), (a_file("handler.py"), a_file("requirements.txt")), pillow="10.4.0", six="1")
    new = with_packages(a_version(), (a_file("handler.py"), a_file("requirements.txt", "2")), pillow="11.0.0", six="1")
    assert told(old, new) == (ChangeKind.NEW_VERSION, ("requirements.txt: pillow 10.4.0 -> 11.0.0",))


def test_packages_that_come_and_go_are_told():
    files = (a_file("handler.py"),)
    none, some = with_packages(a_version(), files), with_packages(a_version(), files, pillow="11.0.0", six="1")
    assert told(none, some)[1] == ("requirements.txt: 2 packages",)
    assert told(some, none)[1] == ("requirements.txt: no packages any more",)


def test_a_secret_in_place_of_a_value_is_told_by_its_variable_alone():
    files = (a_file("handler.py"),)
    pin = SecretPin(name="api-token", generation="0011")
    old, new = rebuilt(a_version(), project=files), rebuilt(a_version(), project=files, secrets={"TOKEN": pin})
    assert told(old, new) == (ChangeKind.NEW_VERSION, ("env changed (TOKEN)",))


def test_another_value_of_the_same_secret_is_no_change_of_the_configuration():
    files = (a_file("handler.py"),)
    old, new = (
        rebuilt(a_version(), project=files, secrets={"TOKEN": SecretPin(name="api-token", generation=generation)})
        for generation in ("0011", "0022")
    )
    assert told(old, new)[1] == ()


def test_a_removed_api_is_told_with_its_last_version():
    version = a_version()
    change = removed(stored(version))
    assert (change.api, change.kind, change.previous) == ("a", ChangeKind.REMOVED, version.build.version[:8])


def test_files_are_told_as_changed_added_and_removed():
    old = (a_file("a.py"), a_file("b.py"), a_file("run.sh"))
    new = (a_file("a.py", "2"), a_file("c.py"), a_file("run.sh", executable=True))
    assert file_changes(old, new) == ["a.py changed", "run.sh changed", "c.py added", "b.py removed"]


def test_of_many_changed_files_the_rest_is_counted():
    new = [a_file(f"f{n}.py") for n in range(9)]
    words = file_changes((), new)
    assert len(words) == 5
    assert words[-1] == "and 5 more files"


def tensor(name, shape=("N", 4), dtype="float32", *, optional=False):
    return TensorSpec(name=name, dtype=dtype, shape=shape, optional=optional)


def broken(old, new):
    def signature(inputs):
        return Signature(inputs=tuple(inputs), outputs=(tensor("out"),))

    return list(breaking_changes(signature(old), signature(new)))


def test_another_name_for_a_free_dimension_breaks_nobody():
    assert broken([tensor("x", ("N", 4))], [tensor("x", ("batch", 4))]) == []


def test_another_shape_or_type_of_an_input_breaks_callers():
    assert broken([tensor("x")], [tensor("x", ("N", 5))]) == ['input "x" was float32[N,4], is float32[N,5]']


def test_a_new_required_input_breaks_callers_and_an_optional_one_does_not():
    assert broken([tensor("x")], [tensor("x"), tensor("y")]) == ['input "y" is new and required']
    assert broken([tensor("x")], [tensor("x"), tensor("y", optional=True)]) == []


def test_an_input_or_output_that_is_gone_breaks_callers():
    assert broken([tensor("x"), tensor("y")], [tensor("x")]) == ['input "y" is gone']
    old = Signature(inputs=(), outputs=(tensor("a"), tensor("b")))
    assert list(breaking_changes(old, msgspec.structs.replace(old, outputs=(tensor("a"),)))) == ['output "b" is gone']


def test_another_batching_is_told_in_the_words_of_the_file():
    trusted = a_version(batching="on")
    assert told(a_version(), trusted) == (ChangeKind.NEW_VERSION, ("batching auto -> on",))
    assert told(trusted, a_version(batching="off")) == (ChangeKind.NEW_VERSION, ("batching on -> off",))
