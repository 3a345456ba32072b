"""`cortex deploy` as its user meets it: what is refused and with which words, what changes, and what never does."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from contract_harness import (
    COMMAND_DEADLINE_S,
    Connection,
    Home,
    eventually,
    model_of,
    rows_model,
    running_home,
    write_project,
)
from onnx import TensorProto, helper

from cortex.processes import send_signal

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "golden" / "deploy_errors.txt"
Files = Mapping[str, "str | bytes | onnx.ModelProto"]


def api(name: str = "x", **fields: str) -> str:
    """One line of a cortex.yaml; `model` is m.onnx, and a replica asks for next to nothing."""
    given = {"kind": "api", "name": name, "model": "m.onnx", **fields}
    compute = given.pop("compute", "")
    given["compute"] = f"{{cpu: 20m{', ' if compute else ''}{compute}}}"
    return f"- {{{', '.join(f'{key}: {value}' for key, value in given.items())}}}\n"


def deployment(name: str, *apis: str) -> str:
    return f"- {{kind: deployment, name: {name}}}\n" + "".join(apis)


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    # What hangs is waited for so long, and what does not has to get ready in it on a busy machine.
    with running_home(CORTEX_START_TIMEOUT="20") as home:
        home.cortex("up")
        yield home


@pytest.fixture
def folder(home: Home) -> Path:
    """A folder for a test's projects, beside the home, and removed with it."""
    return Path(tempfile.mkdtemp(dir=home.path.parent))


def predict(home: Home, path: str, sample: bytes = b"[1, 2, 3, 4]") -> Any:
    with Connection(home.port) as connection:
        answer = connection.ask("POST", path, sample, {"content-type": "application/json"})
    assert answer.status == 200, answer
    return answer.json


# ---- what is refused --------------------------------------------------------------------------------------------


def single_node_model(operator: str, domain: str = "") -> onnx.ModelProto:
    return model_of(
        [helper.make_node(operator, ["features"], ["y"], domain=domain)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        domain=domain,
    )


def with_opset(version: int) -> onnx.ModelProto:
    model = rows_model()
    model.opset_import[0].version = version
    return model


def with_external_data() -> bytes:
    """The `.onnx` only: its weights stay behind."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        onnx.save_model(rows_model(), path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
        return path.read_bytes()


def handler(source: str, **fields: str) -> Files:
    return {"cortex.yaml": api(request_handler="h.py", **fields), "m.onnx": rows_model(), "h.py": source}


def model(content: str | bytes | onnx.ModelProto) -> Files:
    return {"cortex.yaml": api(), "m.onnx": content}


REFUSED: Mapping[str, Files] = {
    "a model that is not there": {"cortex.yaml": api(), "n.onnx": rows_model()},
    "a model that was not copied whole": model(rows_model().SerializeToString()[:-40]),
    "a text file named .onnx": model("this is no model\n"),
    "an empty model": model(b""),
    "a pickle": {"cortex.yaml": api(model="m.pkl"), "m.pkl": b"\x80\x04."},
    "weights left behind": model(with_external_data()),
    "weights cut off": {**model(with_external_data()), "m.onnx.data": b"abc"},
    "an opset from the future": model(with_opset(99)),
    "an operator that nobody knows": model(single_node_model("Frobnicate")),
    "an operator of a library": model(single_node_model("Tok", domain="ai.onnx.contrib")),
    "a handler that is not there": {"cortex.yaml": api(request_handler="h.py"), "m.onnx": rows_model(), "hh.py": ""},
    "a syntax error": handler("def pre_inference(sample, metadata)\n    return sample\n"),
    "a package that is not installed": handler("import Levenshtein\n"),
    "an error at import": handler("import os\n\nTOKEN = os.environ['NO_SUCH_TOKEN']\n"),
    "a parameter too few": handler("def pre_inference(sample):\n    return sample\n"),
    "no function": handler("post_inference = 3\n"),
    "a file without a hook": handler("LABELS = ['a', 'b']\n\n\ndef decode(x):\n    return LABELS[x]\n"),
    "a hook that is misspelt": handler("import json\n\n\ndef post_infernce(prediction, metadata):\n    return 1\n"),
    "a class of a later Cortex": handler(
        "class PythonPredictor:\n    def __init__(self, config):\n        pass\n\n    def predict(self, payload):\n"
        "        return payload\n"
    ),
    "what an array cannot do": handler(
        "def post_inference(prediction, metadata):\n    scores = prediction['score']\n    return scores.index(1.0)\n"
    ),
    "sys.exit at import": handler("import sys\n\nsys.exit(2)\n"),
    "a name that a module of the project lacks": handler("from rules import prize\n") | {"rules.py": "price = 1\n"},
    "a misspelt on_start": handler("def pre_inference(sample, metadata): pass\n\n\ndef on_startup(): pass\n"),
    "a process that ends at import": handler("import os\n\nprint('bye', flush=True)\nos._exit(2)\n"),
    "an endless loop at import": handler("import time\n\nprint('waiting for the database')\ntime.sleep(1000)\n"),
    "a handler that fails on its sample": handler(
        "def pre_inference(sample, metadata):\n    return sample['b']\n", sample="{a: 1}"
    ),
    "a sample that the model does not take": {"cortex.yaml": api(sample="[1, 2, 3]"), "m.onnx": rows_model()},
    "a tracker that misses what the sample is answered": handler(
        "def post_inference(prediction, metadata):\n    return {'label': 'a'}\n",
        sample="[1, 2, 3, 4]",
        tracker="{model_type: classification}",
    ),
    "a tracker for an output that is not there": {
        "cortex.yaml": api(tracker="{key: label, model_type: classification}"),
        "m.onnx": rows_model(output="lable"),
    },
    "a tracker for classes of a number": {
        "cortex.yaml": api(tracker="{model_type: classification}"),
        "m.onnx": rows_model(),
    },
    "a tracker without a key for an object": handler(
        "def post_inference(prediction, metadata):\n    return {'label': 'a', 'share': 0.5}\n",
        sample="[1, 2, 3, 4]",
        tracker="{model_type: regression}",
    ),
    "a tracker with a key that the sample's answer lacks": handler(
        "def post_inference(prediction, metadata):\n    return {'label': 'a', 'share': 0.5}\n",
        sample="[1, 2, 3, 4]",
        tracker="{model_type: classification, key: lable}",
    ),
    "a tracker with a key for the sample's plain answer": handler(
        "def post_inference(prediction, metadata):\n    return 'a'\n",
        sample="[1, 2, 3, 4]",
        tracker="{model_type: classification, key: label}",
    ),
    "a tracker of numbers for the sample's text": handler(
        "def post_inference(prediction, metadata):\n    return 'a'\n",
        sample="[1, 2, 3, 4]",
        tracker="{model_type: regression}",
    ),
    "a tracker of classes for the sample's number": handler(
        "def post_inference(prediction, metadata):\n    return 1.5\n",
        sample="[1, 2, 3, 4]",
        tracker="{model_type: classification}",
    ),
    # ---- models of other kinds
    **{
        f"a model that ends in {ending}": {"cortex.yaml": api(model=f"m{ending}"), f"m{ending}": b"\x80\x04."}
        for ending in (".pt", ".keras", ".h5", ".pb", ".joblib", ".tflite", ".bin")
    },
    "a folder without a model": {"cortex.yaml": api(model="models"), "models/readme.txt": "none yet"},
    "a folder with two models": {
        "cortex.yaml": api(model="models"),
        "models/a.onnx": rows_model(),
        "models/b.onnx": rows_model(),
    },
    "a zip that is none": {"cortex.yaml": api(model="m.zip"), "m.zip": b"PK\x03\x04 and no more"},
    "a scheme that is not read": {"cortex.yaml": api(model="ftp://host/m.onnx")},
    "a bucket without a slash": {"cortex.yaml": api(model="s3:/bucket/m.onnx")},
    "a signature of an ONNX model": {"cortex.yaml": api(tf_signature_key="predict"), "m.onnx": rows_model()},
    # ---- handlers
    "a hook without its underscore": handler("def preinference(sample, metadata):\n    return sample\n"),
    "a handler outside of the project": {"cortex.yaml": api(request_handler="../h.py"), "m.onnx": rows_model()},
    "a handler that is no Python": {
        "cortex.yaml": api(request_handler="h.js"),
        "m.onnx": rows_model(),
        "h.js": "export default 1",
    },
    "an on_start that raises": handler(
        "def on_start():\n    raise OSError('the database is away')\n\n\ndef post_inference(p, m):\n    return 1\n"
    ),
    "JSON of an array": handler(
        "import json\n\n\ndef post_inference(prediction, metadata):\n    return json.dumps(prediction['score'])\n"
    ),
    "the truth of an array": handler(
        "def post_inference(prediction, metadata):\n    if prediction['score'].tolist() and prediction['score']:\n"
        "        return 1\n",
        sample="[[1, 2, 3, 4], [1, 2, 3, 4]]",
    ),
    "a key of a cloud that nobody handed over": handler("import os\n\nos.environ['AWS_NO_SUCH_KEY']\n"),
    "no credentials of a cloud": handler(
        "class NoCredentialsError(Exception):\n    pass\n\n\nraise NoCredentialsError('Unable to locate credentials')\n"
    ),
    "a variable that is not set": handler("import os\n\nos.environ['NO_SUCH_PLACE']\n"),
    "a module of the project that is misspelt": {
        **handler("import pricing.rule\n"),
        "pricing/rules.py": "",
    },
    "a module that is left out by default": {**handler("import tests.helper\n"), "tests/helper.py": ""},
    "a module below src": {**handler("import pricing\n"), "src/pricing.py": ""},
    "a file that is left out by default": {**handler("open('prompt.md')\n"), "prompt.md": "You are"},
    # ---- requirements.txt
    "a package of a repository": {
        **handler("def post_inference(p, m):\n    return 1\n"),
        "requirements.txt": "-e git+https://example.com/a/b.git#egg=b\n",
    },
    "a package as conda writes it": {
        **handler("def post_inference(p, m):\n    return 1\n"),
        "requirements.txt": "numpy @ file:///croot/numpy_1682/work\n",
    },
    "a line that is no requirement": {
        **handler("def post_inference(p, m):\n    return 1\n"),
        "requirements.txt": "numpy=1.26\n",
    },
    # ---- cortex.yaml
    "cpu in megas": {"cortex.yaml": "- {kind: api, name: x, model: m.onnx, compute: {cpu: 500M}}\n"},
    "cpu in gibis": {"cortex.yaml": "- {kind: api, name: x, model: m.onnx, compute: {cpu: 2Gi}}\n"},
    "memory in thousandths": {"cortex.yaml": "- {kind: api, name: x, model: m.onnx, compute: {mem: 500m}}\n"},
    "fields at the left edge": {"cortex.yaml": "- kind: api\nname: x\nmodel: m.onnx\n"},
    "a field given flat and nested": {
        "cortex.yaml": "- kind: api\n  name: x\n  model: m.onnx\n  cpu: 1\n  compute:\n    cpu: 2\n"
    },
    "a block called onnx": {"cortex.yaml": "- {kind: api, name: x, onnx: {model: m.onnx, request_handler: h.py}}\n"},
    "a block called tensorflow": {
        "cortex.yaml": "- {kind: api, name: x, tensorflow: {model: m, signature_key: predict}}\n"
    },
    "a block called predictor": {
        "cortex.yaml": "- {kind: api, name: x, predictor: {type: python, path: p.py}, monitoring: {}, "
        "autoscaling: {}}\n"
    },
    "a kind of a later Cortex": {"cortex.yaml": "- {kind: RealtimeAPI, name: x, model: m.onnx}\n"},
    "two apis of one name": {"cortex.yaml": api() + api(), "m.onnx": rows_model()},
    "two keys of one name": {"cortex.yaml": "- {kind: api, name: x, model: m.onnx, model: n.onnx}\n"},
    "a tab": {"cortex.yaml": "- kind: api\n\tname: x\n"},
    "a minimum above the maximum": {
        "cortex.yaml": "- {kind: api, name: x, model: m.onnx, compute: {min_replicas: 3, max_replicas: 2}}\n",
    },
    "a sample that is not there": {
        "cortex.yaml": api(sample="sampel.json"),
        "m.onnx": rows_model(),
        "sample.json": "1",
    },
    "a sample beyond max_body": {"cortex.yaml": api(sample="[1, 2, 3, 4]", max_body="4"), "m.onnx": rows_model()},
    "a secret that is not set": {
        **handler("def post_inference(p, m):\n    return 1\n", env="{TOKEN: {secret: no-such}}"),
    },
    "more than the machine has": {
        "cortex.yaml": "- {kind: api, name: x, model: m.onnx, compute: {cpu: 99999, mem: 99999Gi}}\n",
        "m.onnx": rows_model(),
    },
    "memory without its unit": {
        "cortex.yaml": "- {kind: api, name: x, model: m.onnx, compute: {mem: 512}}\n",
        "m.onnx": rows_model(),
    },
    "a block of a later version of old, and no kind": {
        "cortex.yaml": "- {name: x, predictor: {type: python, path: p.py}, autoscaling: {min_replicas: 1}}\n",
        "p.py": "class PythonPredictor: pass\n",
    },
    "several mistakes at once": {
        "cortex.yaml": "- {kind: api, name: X, model: m.onnx, compute: {max_replica: 2}, concurrency: 1, timeout: x}\n",
        "m.onnx": rows_model(),
    },
}


@pytest.mark.timeout(400)
def test_what_cannot_work_is_refused_with_words_that_name_the_fix_and_changes_nothing(home, folder):
    """After a wanted change: run with CORTEX_GOLDEN=write, and read the difference."""
    good = write_project(folder / "p", {"cortex.yaml": deployment("bad", api()), "m.onnx": rows_model(2)})
    home.deploy(good)
    before = home.operator().api("bad", "x")
    blocks = []
    for name, files in REFUSED.items():
        project = write_project(folder / "bad", {**files, "cortex.yaml": deployment("bad", str(files["cortex.yaml"]))})
        ran = home.deploy(project, code=1)
        blocks.append(f"== {name}\n{told(ran.err, folder)}\n")
        assert predict(home, "/bad/x") == [[[20.0]]], "the version that worked goes on serving"
        now = home.operator().api("bad", "x")
        assert (now.serving or now.version) == before.version
        if "goes on serving" in ran.err:  # tried by a replica, so it was written down
            assert (now.status, now.replicas.ready) == ("update failed", 1)
            home.deploy(good)
            before = home.operator().api("bad", "x")
        else:
            assert (now.version, now.status, now.last_updated) == (before.version, "live", before.last_updated), name
        shutil.rmtree(project)
    text = "\n".join(blocks)
    if os.environ.get("CORTEX_GOLDEN") == "write":
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def told(talk: str, folder: Path) -> str:
    """The errors of a command's talk, without what differs from run to run."""
    lines = talk[talk.index("error: ") :].rstrip().splitlines()
    text = "\n".join(line.rstrip() for line in lines).replace(str(folder), "FOLDER").replace(f"{folder.name}/", "")
    text = re.sub(r"version [0-9a-f]{8} goes", "version 0a1b2c3d goes", text)
    text = re.sub(r"largest node has \d+m;", "largest node has 2000m;", text)
    text = re.sub(r"largest node has \d+Mi", "largest node has 4096Mi", text)
    newest = re.search(r"runs up to (\d+)", text)
    return re.sub(rf"\b{newest[1]}\b", "21", text) if newest else text


# ---- what changes -----------------------------------------------------------------------------------------------

HANDLER = "def post_inference(prediction, metadata):\n    return prediction[0]\n"


def test_a_dry_run_says_what_would_change_and_why_and_changes_nothing(home, folder):
    files: dict[str, Any] = {
        "cortex.yaml": deployment("dry", api("a", request_handler="h.py"), api("b"), api("c"), api("e")),
        "m.onnx": rows_model(),
        "h.py": HANDLER,
    }
    project = write_project(folder / "p", files)
    assert "would change\n  + a  added" in home.deploy(project, "--dry-run").out
    assert "dry" not in [deployed.name for deployed in home.operator().deployments()]
    assert home.cortex("get", "dry/a", code=1).err.startswith("error: api-not-found\n")
    home.deploy(project)
    before = home.cortex("get", "-d", "dry", "-o", "json").json
    write_project(
        project,
        {
            "cortex.yaml": deployment(
                "dry",
                api("a", request_handler="h.py"),
                api("b", timeout="30s"),
                api("d", model="n.onnx"),
                api("e", compute="concurrency: 2"),
            ),
            "h.py": HANDLER + "\n# more\n",
            "m.onnx": rows_model(3),
            "n.onnx": rows_model(4),
        },
    )
    ran = home.deploy(project, "--dry-run")
    assert re.sub(r"[0-9a-f]{8}", "00000000", ran.out) == (
        "deployment dry: would change\n"
        "  ~ a  new version  00000000 -> 00000000\n"
        "      model changed (m.onnx changed)\n"
        "      h.py changed\n"
        "  ~ b  new version  00000000 -> 00000000\n"
        "      model changed (m.onnx changed)\n"
        "      timeout 10m -> 30s\n"
        "  + d  added        00000000\n"
        "  ~ e  new version  00000000 -> 00000000\n"
        "      model changed (m.onnx changed)\n"
        "      concurrency none -> 2\n"
        "  - c  removed      00000000\n"
    )
    assert ran.err.endswith("dry run: nothing was changed\n")
    assert home.cortex("get", "-d", "dry", "-o", "json").json == before
    assert predict(home, "/dry/c") == [[[10.0]]]


def test_settings_change_in_place_and_compute_rolls_replicas_of_the_same_version(home, folder):
    project = write_project(folder / "p", {"cortex.yaml": deployment("set", api()), "m.onnx": rows_model()})
    home.deploy(project)
    pids = home.settled_replicas("set/x")
    version = home.cortex("get", "set/x", "-o", "json").json["version"]
    write_project(project, {"cortex.yaml": deployment("set", api(timeout="20s", max_body="1Mi"))})
    assert home.deploy(project).out.startswith(
        f"deployment set\n  ~ x  settings  {version}\n      timeout 10m -> 20s\n      max_body 100Mi -> 1Mi\n"
    )
    assert home.replica_pids("set/x") == pids
    write_project(project, {"cortex.yaml": deployment("set", api(timeout="20s", max_body="1Mi", compute="mem: 99Mi"))})
    assert home.deploy(project).out.startswith(f"deployment set\n  ~ x  rolled  {version}\n      mem none -> 99Mi\n")
    eventually(lambda: not set(pids) & set(home.replica_pids("set/x")), "its replicas are replaced")
    assert home.cortex("get", "set/x", "-o", "json").json["version"] == version
    assert home.deploy(project).out.startswith("deployment set: nothing changed (1 api)\n")


def test_an_api_that_leaves_the_file_is_removed(home, folder):
    project = write_project(
        folder / "p", {"cortex.yaml": deployment("gone", api("a"), api("b")), "m.onnx": rows_model()}
    )
    home.deploy(project)
    write_project(project, {"cortex.yaml": deployment("gone", api("a"))})
    assert "  - b  removed" in home.deploy(project).out
    with Connection(home.port) as connection:
        eventually(lambda: connection.ask("POST", "/gone/b", b"[]").status == 404, "its path is gone")
        assert connection.ask("POST", "/gone/a", b"[1, 2, 3, 4]").status == 200
    eventually(
        lambda: [shown["name"] for shown in home.cortex("get", "-d", "gone", "-o", "json").json] == ["a"],
        "only the other one is left",
    )
    write_project(project, {"cortex.yaml": deployment("gone")})
    assert "  - a  removed" in home.deploy(project).out


def test_a_signature_change_that_breaks_callers_is_shown(home, folder):
    project = write_project(folder / "p", {"cortex.yaml": deployment("breaks", api()), "m.onnx": rows_model()})
    home.deploy(project)
    write_project(project, {"m.onnx": rows_model(columns=5, output="total")})
    for arguments in (["--dry-run"], []):
        out = home.deploy(project, *arguments).out
        assert '      breaks callers: input "features" was float32[N,4], is float32[N,5]\n' in out
        assert '      breaks callers: output "score" is gone\n' in out


# ---- `default` belongs to a folder ------------------------------------------------------------------------------


def test_the_default_deployment_is_guarded_against_another_folder(home, folder):
    one = write_project(folder / "one", {"cortex.yaml": api("a") + api("b"), "m.onnx": rows_model()})
    two = write_project(folder / "two", {"cortex.yaml": api("b"), "m.onnx": rows_model(5)})
    home.deploy(one)
    for arguments in (["--dry-run"], []):
        refused = home.deploy(two, *arguments, code=1)
        assert told(refused.err, folder) == (
            "error: from-another-folder\n"
            "  deployment `default` came from FOLDER/one; deploying FOLDER/two would remove a\n"
            "  hint: name this group of apis: add\n"
            "            - kind: deployment\n"
            "              name: <name>\n"
            "        to this cortex.yaml, or pass --prune to remove them"
        )
    assert predict(home, "/a") == predict(home, "/b") == [[[10.0]]]
    assert "  - a  removed" in home.deploy(two, "--prune").out
    assert predict(home, "/b") == [[[50.0]]]
    home.deploy(one, code=0)  # removes nothing of two's, so nothing is in the way
    assert predict(home, "/a") == [[[10.0]]]
    home.cortex("delete", "default", "--yes")


def test_a_named_deployment_is_guarded_as_well(home, folder):
    one = write_project(
        folder / "one", {"cortex.yaml": deployment("kept", api("a") + api("b")), "m.onnx": rows_model()}
    )
    two = write_project(folder / "two", {"cortex.yaml": deployment("kept", api("b")), "m.onnx": rows_model(5)})
    home.deploy(one)
    refused = home.deploy(two, code=1)
    assert told(refused.err, folder) == (
        "error: from-another-folder\n"
        "  deployment `kept` came from FOLDER/one; deploying FOLDER/two would remove a\n"
        "  hint: name this group of apis otherwise: change `name` below `kind: deployment` of this cortex.yaml, "
        "or pass --prune to remove them"
    )
    assert predict(home, "/kept/a") == predict(home, "/kept/b") == [[[10.0]]]
    assert "  - a  removed" in home.deploy(two, "--prune").out
    home.cortex("delete", "kept", "--yes")


# ---- for programs -----------------------------------------------------------------------------------------------

KEYS = {"deployment", "outcome", "committed", "changes", "warnings", "problems", "apis", "receipts"}


def test_json_has_the_same_keys_however_a_deploy_ends(home, folder):
    project = write_project(folder / "p", {"cortex.yaml": deployment("prog", api()), "m.onnx": rows_model()})
    dry = home.deploy(project, "--dry-run", "-o", "json").json
    assert (dry.keys(), dry["outcome"], dry["committed"], dry["apis"]) == (KEYS, "dry run", False, [])
    early = home.deploy(project, "--no-wait", "-o", "json").json
    assert (early.keys(), early["outcome"], early["committed"]) == (KEYS, "not waited for", True)
    live = home.deploy(project, "-o", "json").json
    assert (live.keys(), live["deployment"], live["outcome"]) == (KEYS, "prog", "live")
    (shown,) = live["apis"]
    assert shown == {**home.cortex("get", "-d", "prog", "-o", "json").json[0], "requests": shown["requests"]}
    assert shown.keys() >= {
        *("deployment", "name", "status", "endpoint", "version", "last_updated"),
        *("replicas", "requests", "reason"),
    }
    assert shown["replicas"] == {"requested": 1, "ready": 1, "up_to_date": 1, "stale": 0, "failed": 0}
    assert shown["requests"].keys() == {"2xx", "4xx", "5xx", "latency_ms"}
    write_project(project, {"cortex.yaml": deployment("prog", api(sample="[1]")), "m.onnx": rows_model(2)})
    failed = home.deploy(project, "-o", "json", code=None)
    assert (failed.code, failed.json.keys(), failed.json["outcome"]) == (1, KEYS, "failed")
    write_project(project, {"m.onnx": "text"})
    refused = home.deploy(project, "-o", "json", code=1)
    assert (refused.json.keys(), refused.json["outcome"]) == (KEYS, "refused")
    (problem,) = refused.json["problems"]
    assert (problem["reference"], problem["where"].rpartition("/")[2]) == ("unusable-model", "cortex.yaml:2:24")


def test_results_go_to_stdout_and_talk_to_stderr(home, folder):
    project = write_project(folder / "p", {"cortex.yaml": deployment("talk", api()), "m.onnx": rows_model()})
    ran = home.deploy(project)
    assert "\x1b" not in ran.out + ran.err
    assert ran.out.startswith("deployment talk\n  + x  added  ")
    assert f"\nx  http://127.0.0.1:{home.port}/talk/x\n  curl " in ran.out
    assert "x: live after" in ran.err


# ---- at the same time, and in spite of deaths -------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_two_deploys_at_once_are_both_taken_one_after_the_other(home, folder):
    one = write_project(folder / "one", {"cortex.yaml": deployment("one", api()), "m.onnx": rows_model(6)})
    two = write_project(folder / "two", {"cortex.yaml": deployment("two", api()), "m.onnx": rows_model(7)})
    same = write_project(folder / "same", {"cortex.yaml": deployment("two", api()), "m.onnx": rows_model(8)})
    running = [home.start("deploy", project) for project in (one, two)]
    said = [process.communicate(timeout=COMMAND_DEADLINE_S) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert (predict(home, "/one/x"), predict(home, "/two/x")) == ([[[60.0]]], [[[70.0]]])
    running = [home.start("deploy", project) for project in (two, same) * 2]
    for process in running:
        process.communicate(timeout=COMMAND_DEADLINE_S)
    assert predict(home, "/two/x") in ([[[70.0]]], [[[80.0]]])
    assert home.cortex("get", "two/x", "-o", "json").json["status"] == "live"


@pytest.mark.timeout(400)
def test_a_deploy_survives_the_death_of_the_control_plane(home, folder):
    """Killed at any moment: the command goes on with the next one."""
    project = write_project(folder / "p", {"cortex.yaml": deployment("killed", api()), "m.onnx": rows_model()})
    home.deploy(project)
    for number in range(6):
        write_project(project, {"m.onnx": rows_model(float(number + 10))})
        process = home.start("deploy", project)
        assert process.stderr is not None
        for line in process.stderr:  # after another line of its talk each time
            if number == 0 or line.decode().startswith(MOMENTS[number % len(MOMENTS)]):
                break
        record = home.control_plane()
        if record is not None:
            send_signal(record, signal.SIGKILL)
        out, err = process.communicate(timeout=COMMAND_DEADLINE_S)
        assert process.returncode == 0, (out, err)
        assert predict(home, "/killed/x") == [[[10.0 * (number + 10)]]], (out, err)
        eventually(lambda: home.control_plane() is not None, "a control plane runs again")
    home.deploy(project)
    assert predict(home, "/killed/x") == [[[150.0]]]


MOMENTS = ("uploading", "checking", "x: checked")


def test_a_control_plane_started_anew_serves_what_was_deployed(home, folder):
    project = write_project(folder / "p", {"cortex.yaml": deployment("anew", api()), "m.onnx": rows_model()})
    home.deploy(project)
    pids = home.settled_replicas("anew/x")
    record = home.control_plane()
    assert record is not None
    send_signal(record, signal.SIGKILL)
    assert predict(home, "/anew/x") == [[[10.0]]]
    assert home.cortex("get", "anew/x", "-o", "json").json["status"] == "live"
    assert home.replica_pids("anew/x") == pids, "replicas are adopted, not started again"
    assert json.loads(home.cortex("info", "-o", "json").out)["pid"] != record.pid
