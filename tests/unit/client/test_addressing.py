"""Which api a name means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cortex.client.addressing import (
    AmbiguousApi,
    ApiNotFound,
    DeploymentNotFound,
    NotOneApi,
    deployment_here,
    find,
    find_api,
    find_file,
    select,
)
from cortex.client.errors import OperatorFailed
from cortex.client.operator import OperatorClient
from cortex.wire.operator import Failure


@pytest.fixture
def operator(fake: Any, fakes: Any) -> OperatorClient:
    fake.apis = [fakes.api("sklearn"), fakes.api("raw"), fakes.api("raw", deployment="other")]
    return OperatorClient(port=fake.port, token=fakes.TOKEN)


def test_a_full_name_is_asked_for_directly(operator: OperatorClient, fake: Any) -> None:
    assert find_api(operator, "other/raw", "iris").deployment == "other"
    assert fake.calls == ["GET /v1/apis/other/raw"]


def test_a_name_alone_means_the_deployment_here(operator: OperatorClient) -> None:
    assert find_api(operator, "raw", "other").deployment == "other"


def test_a_name_alone_means_the_only_match(operator: OperatorClient) -> None:
    assert find_api(operator, "sklearn", None).deployment == "iris"
    assert find_api(operator, "sklearn", "other").deployment == "iris"


def test_a_deployment_is_found_by_its_name_unless_an_api_is_called_so(operator: OperatorClient) -> None:
    assert find(operator, "other", None) == "other"
    assert find(operator, "sklearn", "iris") == find_api(operator, "iris/sklearn", None)


def test_a_deployment_where_one_api_is_wanted_is_told_its_apis(operator: OperatorClient) -> None:
    with pytest.raises(NotOneApi) as caught:
        find_api(operator, "iris", None)
    assert (str(caught.value), caught.value.hint) == ('"iris" is a deployment', "say which: iris/raw, iris/sklearn")


def test_a_name_in_several_deployments_is_ambiguous(operator: OperatorClient) -> None:
    with pytest.raises(AmbiguousApi) as caught:
        find_api(operator, "raw", None)
    assert caught.value.candidates == ("iris/raw", "other/raw")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sklern", 'did you mean "sklearn"?'),
        ("other/sklearn", 'did you mean "iris/sklearn"?'),
        ("iris/sklern", 'did you mean "iris/sklearn"?'),
        ("raww", 'did you mean "iris/raw"?'),
        ("othr", 'did you mean "other"?'),
        ("nothing-like-it", "there are: iris/raw, iris/sklearn, other/raw"),
    ],
)
def test_an_unknown_name_offers_what_may_be_meant(operator: OperatorClient, name: str, hint: str) -> None:
    with pytest.raises(ApiNotFound) as caught:
        find_api(operator, name, "iris")
    assert caught.value.problem().hint == hint


def test_nothing_deployed_says_so() -> None:
    with pytest.raises(ApiNotFound) as caught:
        select("a", [])
    assert caught.value.hint.startswith("nothing is deployed")


def test_many_candidates_are_counted(fakes: Any) -> None:
    with pytest.raises(ApiNotFound) as caught:
        select("zzz", [fakes.api(f"api-{number:02}") for number in range(12)])
    assert caught.value.hint.endswith("iris/api-07 and 4 more")


def test_other_errors_than_not_found_are_passed_on(operator: OperatorClient, fake: Any) -> None:
    fake.failures["GET /v1/apis/iris/raw"] = (500, Failure(error="internal-error", message="oops"))
    with pytest.raises(OperatorFailed, match="oops"):
        find_api(operator, "raw", "iris")


def test_an_unknown_deployment_offers_the_nearest() -> None:
    assert DeploymentNotFound("irs", ("iris", "text")).hint == 'did you mean "iris"?'
    assert DeploymentNotFound("x", ("iris",)).hint == "deployed: iris"
    assert DeploymentNotFound("x", ()).hint == "nothing is deployed"


def test_the_nearest_file_is_found_upward(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (tmp_path / "cortex.yaml").touch()
    assert find_file(folder) == tmp_path / "cortex.yaml"
    (folder / "cortex.yaml").mkdir()
    assert find_file(folder) == tmp_path / "cortex.yaml"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("- kind: deployment\n  name: iris\n- kind: api\n  name: a\n  model: m.onnx\n", "iris"),
        ("- kind: api\n  name: a\n  model: m.onnx\n- name: 'iris' # ours\n  kind: \"deployment\"\n", "iris"),
        ("# Deploy with `cortex deploy`, a deployment.\n\n-   kind: deployment\n    name: iris\n", "iris"),
        ("- {kind: deployment, name: iris}\n", "iris"),
        ("- kind: api\n  name: deployment-of-mine\n  model: m.onnx\n", "default"),
        ("- kind: api # no deployment here\n  name: a\n  model: m.onnx\n", "default"),
        ("- kind: deployment\n  nme: iris\n", None),
        ("]: deployment", None),
    ],
)
def test_the_deployment_here_is_read_from_the_file(tmp_path: Path, text: str, name: str | None) -> None:
    (tmp_path / "cortex.yaml").write_text(text)
    assert deployment_here(tmp_path) == name


def test_without_a_file_no_deployment_is_here(tmp_path: Path) -> None:
    assert deployment_here(tmp_path) is None


def test_a_file_that_is_no_text_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "cortex.yaml").write_bytes(b"\xff\xfe")
    assert deployment_here(tmp_path) is None


def test_the_usual_file_is_read_without_a_yaml_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr("cortex.spec.loading.load", fail)
    example = Path(__file__).parents[3] / "examples" / "iris"
    assert deployment_here(example) == "iris"
    (tmp_path / "cortex.yaml").write_text("# a deployment without a name\n- kind: api\n  name: a\n  model: m.onnx\n")
    assert deployment_here(tmp_path) == "default"
