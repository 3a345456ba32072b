"""
One iris sample, asked again and again: Cortex beside a hand-written FastAPI server and the model alone, in one run.

    .venv/bin/python bench/throughput.py [--seconds 5] [--rounds 3] [--connections 16]

Needs `wrk` on PATH (Debian: `apt-get install wrk`). Rounds of all servers take turns, so that what else the machine
does hits each alike; the figures are medians. The load generator has no core of its own here: read the ratios.

Cortex runs one replica behind its ingress. FastAPI runs as one uvicorn worker with uvloop and httptools, written as its
documentation suggests: a pydantic model for the body, a sync handler, onnxruntime with one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from world import IRIS_MODEL, a_world, free_ports

SAMPLE = {"sepal_length": 5.2, "sepal_width": 3.6, "petal_length": 1.4, "petal_width": 0.3}
LABEL = "iris-setosa"

CORTEX_YAML = """\
- {kind: deployment, name: bench}
- {kind: api, name: raw, model: model.onnx}
- {kind: api, name: handler, model: model.onnx, request_handler: handler.py}
"""

HANDLER = """\
FIELDS = ("sepal_length", "sepal_width", "petal_length", "petal_width")


def pre_inference(sample, metadata):
    return [[sample[field] for field in FIELDS]]


def post_inference(prediction, metadata):
    return prediction["label"][0]
"""

FASTAPI_APP = """\
import numpy
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession("model.onnx", options)
app = FastAPI()


class Sample(BaseModel):
    sepal_length: float
    sepal_width: float
    petal_length: float
    petal_width: float


@app.post("/predict")
def predict(sample: Sample) -> str:
    row = [sample.sepal_length, sample.sepal_width, sample.petal_length, sample.petal_width]
    label, _ = session.run(None, {session.get_inputs()[0].name: numpy.array([row], numpy.float32)})
    return str(label[0])
"""

LUA = """\
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.body = '%s'
"""
UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


def main() -> int:
    options = _options()
    wrk = shutil.which("wrk")
    if wrk is None:
        print("wrk is not on PATH; on Debian: apt-get install wrk", file=sys.stderr)
        return 2
    with a_world("bench") as world, _fastapi(world.folder / "fastapi") as fastapi_url:
        shutil.copy(IRIS_MODEL, world.project / "model.onnx")
        (world.project / "cortex.yaml").write_text(CORTEX_YAML)
        (world.project / "handler.py").write_text(HANDLER)
        world.must("deploy")
        named, plain = json.dumps(SAMPLE), json.dumps([list(SAMPLE.values())])
        servers = {
            "cortex, no handler": (f"http://127.0.0.1:{world.port}/bench/raw", plain),
            "cortex, handler": (f"http://127.0.0.1:{world.port}/bench/handler", named),
            "FastAPI + uvicorn": (fastapi_url, named),
        }
        for name, (url, body) in servers.items():
            if LABEL not in (answer := ask(url, body)):
                print(f"{name} answers {answer!r}, which is wrong", file=sys.stderr)
                return 1
        for connections in (options.connections, 1):
            _compare(wrk, servers, connections, options)
    print(f"\nonnxruntime alone, one row in a loop: {_bare():,.0f}/s")
    return 0


def _compare(wrk: str, servers: dict[str, tuple[str, str]], connections: int, options: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = {name: [] for name in servers}
    p50s: dict[str, list[float]] = {name: [] for name in servers}
    p99s: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(options.rounds):
        for name, (url, body) in servers.items():
            rate, p50_ms, p99_ms = load(wrk, url, body, connections, options.seconds)
            rates[name].append(rate)
            p50s[name].append(p50_ms)
            p99s[name].append(p99_ms)
    base = statistics.median(rates["FastAPI + uvicorn"])
    print(
        f"\n{connections} connection{'s' if connections > 1 else ''}, {options.rounds} rounds of {options.seconds:g} s"
    )
    print(f"  {'':<20} {'requests/s':>11} {'p50':>9} {'p99':>9}   ratio")
    for name in servers:
        rate = statistics.median(rates[name])
        p50_ms, p99_ms = statistics.median(p50s[name]), statistics.median(p99s[name])
        print(f"  {name:<20} {rate:>11,.0f} {p50_ms:>6.2f} ms {p99_ms:>6.2f} ms   {rate / base:.1f}x")


def load(wrk: str, url: str, body: str, connections: int, seconds: float) -> tuple[float, float, float]:
    """Requests a second, and the 50th and 99th percentile of latency in ms. Any answer but 2xx ends the run."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(LUA % body)
        script.flush()
        command = [wrk, "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "-s", script.name, url]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise SystemExit(f"{url} did not answer every request:\n{said}")
    return float(_found(r"Requests/sec:\s+([\d.]+)", said)[0]), _percentile(50, said), _percentile(99, said)


def _percentile(percent: int, said: str) -> float:
    number, unit = _found(rf"\s{percent}%\s+([\d.]+)(us|ms|s)\b", said)
    return float(number) * UNITS_MS[unit]


def _found(pattern: str, said: str) -> tuple[str, ...]:
    match = re.search(pattern, said)
    if match is None:
        raise SystemExit(f"wrk did not say what was expected:\n{said}")
    return match.groups()


@contextlib.contextmanager
def _fastapi(folder: Path) -> Iterator[str]:
    """The server to compare with, on a port of its own."""
    folder.mkdir()
    shutil.copy(IRIS_MODEL, folder / "model.onnx")
    (folder / "app.py").write_text(FASTAPI_APP)
    (port,) = free_ports(1)
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "app:app",
        "--port",
        str(port),
        "--no-access-log",
        "--log-level",
        "error",
    ]
    process = subprocess.Popen([*command, "--loop", "uvloop", "--http", "httptools"], cwd=folder)
    try:
        url = f"http://127.0.0.1:{port}/predict"
        _until(lambda: ask(url, json.dumps(SAMPLE)))
        yield url
    finally:
        process.terminate()
        process.wait()


def _until(attempt: Callable[[], object], deadline_s: float = 30.0) -> None:
    end_s = time.monotonic() + deadline_s
    while True:
        try:
            attempt()
            return
        except OSError:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.05)


def ask(url: str, body: str) -> str:
    request = urllib.request.Request(url, body.encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.read().decode()


def _bare(seconds: float = 2.0) -> float:
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(IRIS_MODEL), options)
    feeds = {session.get_inputs()[0].name: numpy.array([list(SAMPLE.values())], numpy.float32)}
    calls, begun_s = 0, time.perf_counter()
    while time.perf_counter() - begun_s < seconds:
        for _ in range(200):
            session.run(None, feeds)
        calls += 200
    return calls / (time.perf_counter() - begun_s)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of load in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
