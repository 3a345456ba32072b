"""What a handler may do, what it sees, and what becomes of it: through the ingress, as its callers meet it."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from contract_harness import (
    Answer,
    Connection,
    Home,
    eventually,
    rows_model,
    running_home,
    write_project,
)

pytestmark = pytest.mark.slow

APIS: dict[str, str] = {
    "attributes": "request_handler: attributes.py, sample: {warm: true}",
    "plain": "request_handler: plain.py",
    "mixed": "request_handler: mixed.py",
    "results": "request_handler: results.py",
    "responses": "request_handler: responses.py",
    "raises": "request_handler: raises.py",
    "raises-pooled": "request_handler: raises.py, concurrency: 3",
    "raises-async": "request_handler: raises_async.py",
    "writes": "request_handler: writes.py",
    "threads": "request_handler: threads.py",
    "one": "request_handler: overlap.py",
    "three": "request_handler: overlap.py, concurrency: 3",
    "two-async": "request_handler: overlap_async.py, concurrency: 2",
    "many-async": "request_handler: overlap_async.py",
    "blocks": "request_handler: blocks.py, concurrency: 4, timeout: 10s",
    "blocks-twice": "request_handler: blocks.py, min_replicas: 2, timeout: 10s",
    "cancelled": "request_handler: cancelled.py, timeout: 10s",
    "dies": "request_handler: dies.py, min_replicas: 3",
    "imports": "request_handler: nested/handlers/imports.py",
}

HANDLERS = {
    "attributes.py": """
        def pre_inference(sample, metadata, request):
            request.state["seen_by_pre"] = {
                "id": request.id,
                "header": request.headers["X-Custom"] if "x-custom" in request.headers else None,
                "query": request.query,
                "content_type": request.content_type,
                "body": request.body,
                "warmup": request.warmup,
                "sample": sample,
                "inputs": [(m.name, m.type, list(m.shape)) for m in metadata],
            }
            if request.warmup:
                print("warming up", request.id)
            return [1, 2, 3, 4]

        def post_inference(prediction, metadata, request):
            return {
                **request.state["seen_by_pre"],
                "outputs": [(m.name, m.type, list(m.shape)) for m in metadata],
                "by_index": prediction[0],
                "by_name": prediction["score"],
                "same_id": request.id == request.state["seen_by_pre"]["id"],
            }
    """,
    "plain.py": """
        def pre_inference(payload, meta=None):
            return {"features": [payload] * 4}

        def post_inference(result: list, meta, own_setting=3) -> float:
            return float(result[0][0][0]) * own_setting
    """,
    "mixed.py": """
        import asyncio

        async def pre_inference(sample, metadata, *, request):
            await asyncio.sleep(0)
            request.state["sample"] = sample
            return [1, 2, 3, 4]

        def post_inference(prediction, metadata, request):
            return asyncio.run(later(request.state["sample"]))

        async def later(value):
            await asyncio.sleep(0)
            return value
    """,
    "results.py": """
        import dataclasses, datetime, decimal, enum, math, uuid
        import numpy as np

        class Colour(enum.Enum):
            RED = "red"

        @dataclasses.dataclass
        class Point:
            x: int
            label: str

        class NoJson:
            pass

        LOOP = []
        LOOP.append(LOOP)
        RESULTS = {
            "text": "Zürich", "integer": 7, "large integer": 2**70, "float": 0.1, "boolean": True, "none": None,
            "tuple": (1, 2), "set": {3}, "frozenset": frozenset([4]), "nested": {"b": [1, {"a": ()}], "a": 0},
            "array": np.array([[1, 2], [3, 4]], np.int8), "strided": np.arange(6.0)[::2], "scalar": np.float32(0.5),
            "0-d": np.array(3), "texts": np.array(["a", "b"]), "booleans": np.array([True]),
            "decimal": decimal.Decimal("1.10"), "date": datetime.date(2026, 1, 31),
            "datetime": datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.timezone.utc),
            "uuid": uuid.UUID(int=1), "enum": Colour.RED, "dataclass": Point(1, "p"), "bytes": b"\\x00\\xff",
            "nan": [math.nan, math.inf, np.float32("nan")], "nan array": np.array([math.nan, 1]),
            "keys": {1: "a", None: "b", True: "c", 2.5: "d", Colour.RED: "e"}, "order": {"z": 1, "a": 2},
            "empty": "", "no json": {"deep": [NoJson()]}, "loop": LOOP, "function": len, "coroutine": None,
            "clash": {1: "a", "1": "b"},
        }

        def pre_inference(sample, metadata, request):
            request.state["which"] = sample
            return [1, 2, 3, 4]

        def post_inference(prediction, metadata, request):
            if request.state["which"] == "prediction":
                return prediction
            return RESULTS[request.state["which"]]
    """,
    "responses.py": """
        import cortex

        RESPONSES = {
            "text": lambda: cortex.Response("hello"),
            "bytes": lambda: cortex.Response(b"\\x89PNG", media_type="image/png"),
            "plain bytes": lambda: cortex.Response(b"x"),
            "json": lambda: cortex.Response({"a": 1}, status=201, headers={"Location": "/x", "x-own": "ä"}),
            "csv": lambda: cortex.Response("a,b", media_type="text/csv"),
            "nothing": lambda: cortex.Response("", status=204),
            "teapot": lambda: cortex.Response({"short": True}, status=418),
            "error": lambda: cortex.Response("down", status=503),
            "bad status": lambda: cortex.Response("x", status=99),
            "bad header": lambda: cortex.Response("x", headers={"a b": "c"}),
            "split header": lambda: cortex.Response("x", headers={"a": "b\\r\\nc: d"}),
            "our header": lambda: cortex.Response("x", headers={"Content-Length": "9"}),
            "bad type": lambda: cortex.Response("x", media_type="text/plain\\r\\nx: y"),
            "no json": lambda: cortex.Response(object()),
            "refusal": lambda: refuse(404, "no such flower", asked="tulip", tries=2),
            "no client error": lambda: refuse(500, "mine"),
        }

        def refuse(status, message, **facts):
            raise cortex.RequestError(status, message, **facts)

        def pre_inference(sample, metadata, request):
            request.state["which"] = sample
            return [1, 2, 3, 4]

        def post_inference(prediction, metadata, request):
            return RESPONSES[request.state["which"]]()
    """,
    "raises.py": """
        import os, sys

        class Mute(Exception):
            def __str__(self):
                raise RuntimeError("no words")

        def deeper(n):
            return deeper(n + 1) + 1

        def fail(what):
            if what == "SystemExit":
                sys.exit("bye")
            if what == "os._exit via exit":
                exit(3)
            if what == "KeyboardInterrupt":
                raise KeyboardInterrupt
            if what == "GeneratorExit":
                raise GeneratorExit
            if what == "RecursionError":
                deeper(0)
            if what == "Mute":
                raise Mute
            if what == "KeyError":
                raise KeyError("sepal_length")
            if what == "ExceptionGroup":
                raise ExceptionGroup("both", [ValueError("a"), TypeError("b")])
            if what == "StopIteration":
                raise StopIteration
            if what == "chained":
                try:
                    1 / 0
                except ZeroDivisionError as error:
                    raise ValueError("second") from error

        def pre_inference(sample, metadata):
            fail(sample.get("pre"))
            return [1, 2, 3, 4] if "post" not in sample else [9, 9, 9, 9]

        def post_inference(prediction, metadata, request):
            import json
            fail(json.loads(request.body).get("post"))
            return os.getpid()
    """,
    "raises_async.py": """
        import asyncio, os, raises

        async def pre_inference(sample, metadata):
            await asyncio.sleep(0)
            if sample.get("pre") == "CancelledError":
                raise asyncio.CancelledError
            raises.fail(sample.get("pre"))
            return [1, 2, 3, 4]

        async def post_inference(prediction, metadata):
            return os.getpid()
    """,
    "writes.py": """
        import logging, os, subprocess, sys
        from cortex.lib.log import get_logger

        logger = get_logger()

        def pre_inference(sample, metadata):
            if sample == "print":
                print("one", 2)
                print("no line end", end="")
            elif sample == "stderr":
                print("to stderr", file=sys.stderr)
            elif sample == "log":
                logger.warning("watch out: %s", "heat")
            elif sample == "other logger":
                logging.getLogger("some.library").error("it said so")
            elif sample == "binary":
                sys.stdout.buffer.write(b"\\xff\\x00raw\\n")
                sys.stdout.flush()
            elif sample == "descriptor":
                os.write(1, b"straight to 1\\n")
            elif sample == "child":
                subprocess.run(["echo", "from a child"], check=True)
            elif sample == "surrogate":
                print("half \\ud800 character")
            elif sample == "lines":
                print("a\\nb\\n")
            elif sample == "closed":
                sys.stdout.close()
                sys.stderr.close()
                print("after close")
            elif sample == "gone":
                sys.stdout = None
                print("nowhere")
                sys.stdout = sys.__stdout__
            return [1, 2, 3, 4]
    """,
    "threads.py": """
        import threading, time

        def pre_inference(sample, metadata):
            for _ in range(sample):
                threading.Thread(target=time.sleep, args=(3600,), daemon=False).start()
            return [1, 2, 3, 4]

        def post_inference(prediction, metadata):
            return threading.active_count()
    """,
    "overlap.py": """
        import threading, time

        inside = 0
        most = 0
        names = set()
        changed = threading.Condition()

        def pre_inference(sample, metadata):
            work(sample if isinstance(sample, int) else 0)
            return [1, 2, 3, 4]

        def post_inference(prediction, metadata):
            work()
            return {"most": most, "threads": len(names)}

        def work(wanted=0):
            "Goes on once so many have been inside at once, and not before one too many might have come."
            global inside, most
            with changed:
                inside += 1
                most = max(most, inside)
                names.add(threading.get_ident())
                changed.notify_all()
                changed.wait_for(lambda: most >= wanted, timeout=30)
            time.sleep(0.01)
            with changed:
                inside -= 1
    """,
    "overlap_async.py": """
        import asyncio, time

        inside = 0
        most = 0

        async def pre_inference(sample, metadata):
            await work(sample if isinstance(sample, int) else 0)
            return [1, 2, 3, 4]

        async def post_inference(prediction, metadata):
            await work()
            return {"most": most}

        async def work(wanted=0):
            global inside, most
            inside += 1
            most = max(most, inside)
            until_s = time.monotonic() + 30
            while most < wanted and time.monotonic() < until_s:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
            inside -= 1
    """,
    "blocks.py": """
        import os, time

        def pre_inference(sample, metadata):
            if sample == "block":
                time.sleep(600)
            return [1, 2, 3, 4]

        def post_inference(prediction, metadata):
            return os.getpid()
    """,
    "dies.py": """
        import ctypes, os, signal

        def pre_inference(sample, metadata):
            if sample == "os._exit":
                os._exit(0)
            if sample == "segmentation fault":
                ctypes.string_at(0)
            if sample == "abort":
                os.abort()
            if sample == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            return [1, 2, 3, 4]
    """,
    "labels.py": "NAMES = ['setosa', 'versicolor']\n",
    "labels.txt": "virginica\n",
    "nested/handlers/sibling.py": "HERE = __file__\n",
    "nested/handlers/imports.py": """
        import os, sys
        import labels, sibling
        import cortex

        AT_IMPORT = open("labels.txt").read().strip()

        def post_inference(prediction, metadata):
            return {
                "top": labels.NAMES, "sibling": os.path.basename(sibling.HERE), "file": AT_IMPORT,
                "later": open("labels.txt").read().strip(), "cwd": os.listdir("."),
                "path": [os.path.relpath(folder) for folder in (sys.path[0], sys.path[-2])],
                "names": sorted(name for name in os.environ if name.startswith("CORTEX_")),
            }
    """,
    "cancelled.py": """
        import asyncio, os

        async def pre_inference(sample, metadata):
            try:
                await asyncio.sleep(sample)
            except asyncio.CancelledError:
                print("cancelled in pre")
                raise
            return [1, 2, 3, 4]

        def post_inference(prediction, metadata):
            return os.getpid()
    """,
}

COMPUTE = ("concurrency", "min_replicas")


def cortex_yaml() -> str:
    lines = ["- {kind: deployment, name: h}"]
    for name, fields in APIS.items():
        parts = fields.split(", ")
        compute = ["cpu: 20m", *(part for part in parts if part.startswith(COMPUTE))]
        own = [part for part in parts if not part.startswith(COMPUTE)]
        lines.append(
            f"- {{kind: api, name: {name}, model: m.onnx, rollout: {{watch: 0}}, "
            f"{', '.join(own)}, compute: {{{', '.join(compute)}}}}}"
        )
    return "\n".join(lines)


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with running_home() as home:
        project = write_project(
            home.path.parent / "p", {"cortex.yaml": cortex_yaml(), "m.onnx": rows_model(), **HANDLERS}
        )
        home.deploy(project)
        yield home


Post = Callable[..., Answer]


@pytest.fixture
def post(home: Home) -> Post:
    def post(api: str, sample: Any, headers: dict[str, str] | None = None, query: str = "") -> Answer:
        with Connection(home.port) as connection:
            return connection.ask("POST", f"/h/{api}{query}", json.dumps(sample).encode(), headers)

    return post


def at_once(post: Post, api: str, count: int, sample: Any = None) -> list[Answer]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: post(api, sample), range(count)))


# ---- what a handler sees ----------------------------------------------------------------------------------------


def test_the_third_parameter_has_everything_about_the_request(post):
    answer = post(
        "attributes",
        {"a": 1},
        {"x-request-id": "mine-1", "X-Custom": "Yes", "content-type": "Application/JSON; charset=utf-8"},
        "?a=1&b=%20x&a=2&empty=",
    )
    assert (answer.status, answer.json) == (
        200,
        {
            "id": "mine-1",
            "header": "Yes",
            "query": {"a": "2", "b": " x", "empty": ""},
            "content_type": "application/json",
            "body": {"b64": "eyJhIjogMX0="},
            "warmup": False,
            "sample": {"a": 1},
            "inputs": [["features", "tensor(float)", ["n", 4]]],
            "outputs": [["score", "tensor(float)", ["n", 1]]],
            "by_index": [[10.0]],
            "by_name": [[10.0]],
            "same_id": True,
        },
    )


def test_warm_up_is_told_to_the_handler_and_counted_nowhere(home, post):
    assert "warming up warmup" in home.logs("h/attributes")
    shown = home.cortex("get", "h/attributes", "-o", "json").json
    assert shown["requests"]["5xx"] == 0
    home.cortex("refresh", "--path", home.path.parent / "p")
    with Connection(home.port) as connection:
        assert connection.ask("GET", "/h/attributes").status == 200
    assert post("attributes", {"a": 1}).json["warmup"] is False
    after = eventually(
        lambda: (found := home.cortex("get", "h/attributes", "-o", "json").json)["requests"]["2xx"] and found,
        "the one request is counted, and with it whatever came before",
    )
    assert after["version"] != shown["version"]
    assert {name: after["requests"][name] for name in ("2xx", "4xx", "5xx")} == {"2xx": 1, "4xx": 0, "5xx": 0}


def test_parameters_are_matched_by_position_and_may_have_defaults(post):
    assert post("plain", 2.5).json == 30.0


def test_an_async_and_a_sync_hook_may_stand_side_by_side_and_share_state(post):
    assert [answer.json for answer in at_once(post, "mixed", 8, {"x": [1]})] == [{"x": [1]}] * 8


def test_a_handler_imports_from_the_project_and_from_its_own_folder_and_works_in_the_project(post):
    found = post("imports", [1, 2, 3, 4]).json
    assert {"m.onnx"}.isdisjoint(found["cwd"]), "models named in the yaml are not part of the project"
    assert {"labels.txt", "nested"} <= set(found.pop("cwd"))
    assert found == {
        "top": ["setosa", "versicolor"],
        "sibling": "sibling.py",
        "file": "virginica",
        "later": "virginica",
        "path": [".", "nested/handlers"],
        "names": ["CORTEX_API", "CORTEX_DEPLOYMENT", "CORTEX_PROCESS", "CORTEX_REPLICA", "CORTEX_VERSION"],
    }


# ---- what it may return -----------------------------------------------------------------------------------------

RESULTS: dict[str, Any] = {
    "text": "Zürich",
    "integer": 7,
    "large integer": 2**70,
    "float": 0.1,
    "boolean": True,
    "none": None,
    "tuple": [1, 2],
    "set": [3],
    "frozenset": [4],
    "nested": {"b": [1, {"a": []}], "a": 0},
    "array": [[1, 2], [3, 4]],
    "strided": [0.0, 2.0, 4.0],
    "scalar": 0.5,
    "0-d": 3,
    "texts": ["a", "b"],
    "booleans": [True],
    "decimal": 1.10,
    "date": "2026-01-31",
    "datetime": "2026-01-31T12:00:00+00:00",
    "uuid": "00000000-0000-0000-0000-000000000001",
    "enum": "red",
    "dataclass": {"x": 1, "label": "p"},
    "bytes": {"b64": "AP8="},
    "nan": [None, None, None],
    "nan array": [None, 1.0],
    "empty": "",
    "prediction": [[[10.0]]],
}


@pytest.mark.parametrize(("which", "expected"), RESULTS.items())
def test_a_result_of_each_kind_becomes_json(post, which, expected):
    answer = post("results", which)
    assert (answer.status, answer.headers["content-type"], answer.json) == (200, "application/json", expected)


def test_keys_become_text_and_keep_their_order(post):
    assert post("results", "order").body == b'{"z":1,"a":2}'
    assert list(post("results", "keys").json.values()) == ["c", "b", "d", "e"]  # True is 1 to a dict


@pytest.mark.parametrize(
    ("which", "path", "found", "hint"),
    [
        ("no json", 'result["deep"][0]', "object of type NoJson", "return its attributes: vars(value)"),
        (
            "loop",
            "result[0]",
            "a value that contains itself",
            "return text, numbers, lists, dicts, numpy arrays or a cortex.Response",
        ),
        ("function", "result", "object of type builtin_function_or_method", "call it: return function(…)"),
        (
            "clash",
            "result",
            'a dict whose keys 1 and "1" both become "1"',
            "give each its own text, e.g. {str(key): …}",
        ),
    ],
)
def test_a_result_without_a_json_form_is_500_and_says_where_and_what_to_write(home, post, which, path, found, hint):
    answer = post("results", which, {"x-request-id": f"unserialisable-{which}".translate(SANE)})
    assert (answer.status, answer.json) == (
        500,
        {
            "error": "result-not-serialisable",
            "message": f"{path}: {found} cannot be written as JSON",
            "request_id": answer.headers["x-request-id"],
            "path": path,
            "found": found,
            "hint": hint,
        },
    )
    logged = home.logs("h/results", "--request", answer.headers["x-request-id"])
    assert logged == [f"result-not-serialisable: {path}: {found} cannot be written as JSON\nhint: {hint}"]


SANE = str.maketrans(dict.fromkeys('"[] ', "-"))


@pytest.mark.parametrize(
    ("which", "status", "content_type", "body", "headers"),
    [
        ("text", 200, "text/plain; charset=utf-8", b"hello", {}),
        ("bytes", 200, "image/png", b"\x89PNG", {}),
        ("plain bytes", 200, "application/octet-stream", b"x", {}),
        ("json", 201, "application/json", b'{"a":1}', {"location": "/x", "x-own": "\xe4"}),
        ("csv", 200, "text/csv", b"a,b", {}),
        ("nothing", 204, None, b"", {}),
        ("teapot", 418, "application/json", b'{"short":true}', {}),
        ("error", 503, "text/plain; charset=utf-8", b"down", {}),
    ],
)
def test_a_response_is_sent_as_it_is(home, post, which, status, content_type, body, headers):
    answer = post("responses", which, {"x-request-id": "me"})
    assert (answer.status, answer.headers.get("content-type"), answer.body) == (status, content_type, body)
    assert {name: answer.headers[name] for name in headers} == headers
    assert answer.headers["x-request-id"] == "me"
    assert "x-cortex-version" in answer.headers


@pytest.mark.parametrize(
    ("which", "reason"),
    [
        ("bad status", "status must be 200 to 599, not 99"),
        ("bad header", "'a b' is not a header name"),
        ("split header", "the value of header 'a' has control characters"),
        ("our header", "the header 'Content-Length' is set by the server"),
        ("bad type", "media_type 'text/plain\\r\\nx: y' is not a content type"),
    ],
)
def test_a_response_that_http_cannot_carry_is_500_and_says_why(post, which, reason):
    answer = post("responses", which)
    assert (answer.status, answer.json["error"]) == (500, "handler-failed")
    assert answer.json["message"] == f"post_inference returned a Response that cannot be sent: {reason}"


def test_a_request_error_is_that_answer_with_its_facts_and_leaves_no_traceback(home, post):
    answer = post("responses", "refusal", {"x-request-id": "refused-1"})
    assert (answer.status, answer.json) == (
        404,
        {
            "error": "request-error",
            "message": "no such flower",
            "request_id": "refused-1",
            "asked": "tulip",
            "tries": 2,
        },
    )
    assert home.logs("h/responses", "--request", "refused-1") == []
    wrong = post("responses", "no client error")
    assert (wrong.status, wrong.json["message"]) == (
        500,
        "post_inference raised ValueError: RequestError needs a status from 400 to 499, not 500",
    )


# ---- what it may raise ------------------------------------------------------------------------------------------

REASONS = {
    "SystemExit": "SystemExit: bye",
    "os._exit via exit": "SystemExit: 3",
    "KeyboardInterrupt": "KeyboardInterrupt",
    "GeneratorExit": "GeneratorExit",
    "RecursionError": "RecursionError: maximum recursion depth exceeded",
    "Mute": "Mute: <its message cannot be shown>",
    "KeyError": "KeyError: 'sepal_length'",
    "ExceptionGroup": "ExceptionGroup: both (2 sub-exceptions)",
    "StopIteration": "StopIteration",
    "chained": "ValueError: second",
}


@pytest.mark.parametrize("api", ["raises", "raises-pooled", "raises-async"])
def test_whatever_a_handler_raises_ends_its_own_request_only(home, post, api):
    pid = post(api, {}).json
    hooks = ("pre",) if api == "raises-async" else ("pre", "post")
    for hook in hooks:
        for what, reason in REASONS.items():
            request_id = f"{api}-{hook}-{what}".translate(SANE)
            answer = post(api, {hook: what}, {"x-request-id": request_id})
            if what == "StopIteration" and api == "raises-async":
                reason = "RuntimeError: coroutine raised StopIteration"
            told = (answer.status, answer.json["error"], answer.json["message"].partition(" while")[0])
            assert told == (500, "handler-failed", f"{hook}_inference raised {reason}")
            (logged,) = home.logs(f"h/{api}", "--request", request_id)
            assert logged.startswith(f"handler-failed: {hook}_inference raised {reason}")
            assert "/cortex/replica/" not in logged, "frames of ours are left out"
            assert 'File "raises.py", line ' in logged
    if api == "raises-async":
        assert post(api, {"pre": "CancelledError"}).status == 500
    assert post(api, {}).json == pid, "the same process goes on"
    assert "ZeroDivisionError: division by zero" in "\n".join(home.logs(f"h/{api}"))


DEATHS = ("os._exit", "segmentation fault", "abort", "kill")
ENDED = "this replica ended with the request in hand"
ENDINGS = {"os._exit": "exit code", "segmentation fault": "SIGSEGV", "abort": "SIGABRT", "kill": "SIGKILL"}
EXITS = {"os._exit": 0, "segmentation fault": -11, "abort": -6, "kill": -9}


@pytest.mark.parametrize("how", DEATHS)
def test_a_handler_that_takes_its_process_with_it_costs_others_nothing_and_is_replaced(home, post, how):
    """It is delivered once more, so it takes two of three; a request that shares both deaths with it is lost too."""
    beside: list[int] = []
    others: list[int] = []
    stop = threading.Event()

    def go_on(api: str, statuses: list[int]) -> None:
        while not stop.is_set():
            statuses.append(post(api, 1).status)

    before = home.cortex("get", "h/dies", "-o", "json").json["crashes"]
    threads = [threading.Thread(target=go_on, args=pair) for pair in (("dies", beside), ("plain", others))]
    for thread in threads:
        thread.start()
    try:
        answer = post("dies", how, {"x-request-id": f"dies-{how}".translate(SANE)})
        assert (answer.status, answer.json["error"]) == (502, "replica-lost")
        eventually(
            lambda: (
                (shown := home.cortex("get", "h/dies", "-o", "json").json)["crashes"] == before + 2
                and shown["replicas"]["ready"] == 3
            ),
            "two replicas are replaced",
        )
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(others) == {200}
    assert beside.count(200) >= len(beside) - 1 > 0
    assert set(beside) <= {200, 502}
    request_id = f"dies-{how}".translate(SANE)
    of_it = eventually(
        lambda: (
            len(lines := [x for x in home.logs("h/dies", "--request", request_id) if x.startswith(ENDED)]) == 2
            and lines
        ),
        "both deaths are in the log, as lines of the request",
    )
    assert all(ENDINGS[how] in line for line in of_it)
    shown = home.cortex("get", "h/dies", "-o", "json").json
    if shown["status"] != "live":  # another way to die was tried within a minute
        ends = shown["ends"]
        assert (shown["status"], ends["request"]) == ("crashing", request_id)
        assert (ends["exit_code"] if ends["signal"] is None else -ends["signal"]) == EXITS[how]
    if how == "segmentation fault":
        text = eventually(
            lambda: "Fatal Python error: Segmentation fault" in (found := "\n".join(home.logs("h/dies"))) and found,
            "the fault handler's words are in the log",
        )
        assert "in pre_inference" in text


# ---- what it may write ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "lines"),
    [
        ("print", ["one 2", "no line end"]),
        ("stderr", ["to stderr"]),
        ("log", ["watch out: heat"]),
        ("other logger", ["it said so"]),
        ("binary", ["\\xff\0raw"]),
        ("surrogate", ["half \\ud800 character"]),
        ("lines", ["a", "b"]),
        ("closed", ["after close"]),
        ("gone", []),
    ],
)
def test_what_a_handler_writes_is_in_the_log_at_once_with_the_request(home, post, what, lines):
    request_id = f"writes-{what}".translate(SANE)
    assert post("writes", what, {"x-request-id": request_id}).status == 200
    assert home.logs("h/writes", "--request", request_id) == lines


@pytest.mark.parametrize(("what", "line"), [("descriptor", "straight to 1"), ("child", "from a child")])
def test_what_goes_past_python_is_in_the_log_too(home, post, what, line):
    assert post("writes", what).status == 200
    eventually(lambda: line in home.logs("h/writes"), "it is in the log")


# ---- threads and loops ------------------------------------------------------------------------------------------


def test_threads_that_a_handler_leaks_hurt_neither_health_nor_draining(home, post):
    (pid,) = home.settled_replicas("h/threads")
    for _ in range(5):
        assert post("threads", 20).status == 200
    assert post("threads", 0).json > 100
    assert home.replica_pids("h/threads") == [pid]
    assert home.cortex("get", "h/threads", "-o", "json").json["status"] == "live"
    home.cortex("refresh", "threads", cwd=home.path.parent / "p")
    assert home.settled_replicas("h/threads") != [pid]


def test_concurrency_1_never_has_two_threads_in_handler_code(post):
    answers = at_once(post, "one", 12, 1)
    assert [answer.status for answer in answers] == [200] * 12
    assert max(answer.json["most"] for answer in answers) == 1


def test_concurrency_n_lets_in_n_and_no_more(post):
    answers = at_once(post, "three", 24, 3)
    assert [answer.status for answer in answers] == [200] * 24
    assert max(answer.json["most"] for answer in answers) == 3


def test_async_handlers_overlap_up_to_their_concurrency(post):
    assert max(answer.json["most"] for answer in at_once(post, "two-async", 12, 2)) == 2
    assert 4 < max(answer.json["most"] for answer in at_once(post, "many-async", 32, 5)) <= 64


# ---- time -------------------------------------------------------------------------------------------------------

HOLD_S = 5.0
"""So long requests wait for a replica that is being replaced; a machine that is busy may not have it back by then."""


@pytest.mark.parametrize("api", ["blocks", "blocks-twice"])
def test_a_handler_that_blocks_gets_a_504_for_its_own_request_and_its_replica_is_replaced(home, post, api):
    before = set(home.settled_replicas(f"h/{api}", 2 if api == "blocks-twice" else 1))
    statuses: list[int] = []
    stop = threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            begun_s = time.monotonic()
            status = post(api, "quick").status
            if (api, status) == ("blocks", 503) and time.monotonic() - begun_s >= HOLD_S:
                continue
            statuses.append(status)

    others = threading.Thread(target=go_on)
    others.start()
    try:
        eventually(lambda: statuses, "others are answered")
        answered = len(statuses)
        request_id = f"blocked-{api}"
        answer = post(api, "block", {"x-request-id": request_id})
        assert (answer.status, answer.json["error"]) == (504, "timeout")
        assert len(statuses) > answered + 1, "others are answered meanwhile"
        eventually(
            lambda: any(
                f"{ENDED}: a request outlived" in line for line in home.logs(f"h/{api}", "--request", request_id)
            ),
            "that it took its replica with it is a line of the request",
        )
        eventually(
            lambda: len(now := set(home.replica_pids(f"h/{api}"))) == len(before) and now != before,
            "the replica is replaced",
        )
        eventually(
            lambda: home.cortex("get", f"h/{api}", "-o", "json").json["status"] == "live", "the api is live again"
        )
    finally:
        stop.set()
        others.join()
    assert set(statuses) == {200}
    assert len(set(home.replica_pids(f"h/{api}")) - before) == 1
    assert home.cortex("get", f"h/{api}", "-o", "json").json["crashes"] == 1


def test_an_async_handler_is_cancelled_when_its_time_is_up_and_nothing_is_replaced(home, post):
    pid = post("cancelled", 0).json
    answer = post("cancelled", 600, {"x-request-id": "cancelled-1"})
    assert (answer.status, answer.json["error"]) == (504, "timeout")
    eventually(
        lambda: "cancelled in pre" in home.logs("h/cancelled", "--request", "cancelled-1"), "the handler is told"
    )
    assert post("cancelled", 0).json == pid


# ---- debug ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["?debug=true", "?debug=1", "?debug=yes", "?debug", "?x=1&debug=TRUE"])
def test_debug_logs_each_step_with_the_request_and_its_microseconds(home, post, query):
    request_id = "debug-" + query.translate(str.maketrans("?=&", "---"))
    assert post("plain", 2.5, {"x-request-id": request_id}, query).json == 30.0
    lines = home.logs("h/plain", "--request", request_id)
    shown = [line.rpartition(" (")[0] for line in lines]
    assert shown == [
        "debug: sample: 2.5",
        "debug: pre_inference: {'features': [2.5, 2.5, 2.5, 2.5]}",
        "debug: inference: [float32[1, 1] [[10.]]]",
        "debug: post_inference: 30.0",
    ]
    assert all(re.fullmatch(r"\d+ (µs|ms)\)|\d+\.\d\d s\)", line.rpartition(" (")[2]) for line in lines)


def test_without_debug_nothing_is_logged(home, post):
    for number, query in enumerate(("", "?debug=false", "?debug=0", "?undebug=1")):
        assert post("plain", 2.5, {"x-request-id": f"quiet-{number}"}, query).status == 200
        assert home.logs("h/plain", "--request", f"quiet-{number}") == []


def test_cortex_predict_debug_prints_the_answer_and_the_steps(home, tmp_path):
    ran = home.cortex("predict", "h/plain", "-", "--debug", stdin=b"2.5")
    assert ran.out == "30.0\n"
    head, *steps = ran.err.splitlines()
    assert head.startswith("request ")
    assert [step.split(":")[1].strip() for step in steps] == [
        "sample",
        "pre_inference",
        "inference",
        "post_inference",
    ]
    failed = home.cortex("predict", "h/raises", "-", "--debug", stdin=b'{"pre": "KeyError"}', code=1)
    assert "debug: sample: {'pre': 'KeyError'}" in failed.err
    assert "error: handler-failed\n  pre_inference raised KeyError: 'sepal_length'" in failed.err
