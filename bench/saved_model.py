"""
A small SavedModel: microseconds a call, milliseconds from fork to ready, memory, requests a second through the ingress.

    .venv/bin/python bench/saved_model.py [--seconds 3] [--connections 16]

Needs the extra `tensorflow`. The load comes from one more process, which keeps one request in flight on each of its
connections and compares every answer with the first. It needs a core of its own; on a busy machine read the ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import select
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}

from cortex.replica.backends import base
from cortex.replica.bodies.codec import Decoder
from cortex.replica.bodies.results import encode
from cortex.replica.tensors.conversion import Converter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "integration" / "replica"))

from replica_harness import LauncherProcess, spec_for  # noqa: E402
from world import a_world  # noqa: E402

EXAMPLE = ROOT / "examples" / "iris"
MODEL = EXAMPLE / "models" / "tensorflow"
BODY = b'{"sepal_length": 5.2, "sepal_width": 3.6, "petal_length": 1.4, "petal_width": 0.3}'
CALLS_A_ROUND = 200
SKIPPED = 2
"""Exit code that `run.py` takes for "not measured here"."""
REPLICAS = 10


def main() -> None:
    options = _options()
    if importlib.util.find_spec("tensorflow") is None:
        print("TensorFlow is not installed: make install", file=sys.stderr)
        sys.exit(SKIPPED)
    with tempfile.TemporaryDirectory(prefix="cxb", dir="/tmp") as folder:
        print_starts(Path(folder))
    with a_world("savedmodel") as world:
        shutil.copytree(EXAMPLE, world.project, dirs_exist_ok=True)
        world.must("deploy", "tensorflow.yaml")
        for api in ("raw", "classifier"):
            for connections in (options.connections, 1):
                print_load(world.port, f"/iris-tensorflow/{api}", options.seconds, connections)
    print_calls(options.seconds)  # last: TensorFlow's threads stay in this process


def print_calls(seconds: float) -> None:
    """Microseconds a call: the model alone in several ways, then what a request costs around it."""
    backend = base.load("tensorflow", str(MODEL))
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")
    decode, convert = Decoder(has_pre_inference=False).decode, Converter(backend.signature).convert
    sample = decode(BODY, "application/json")
    feeds = convert(sample)
    outputs = backend.run(feeds)

    signature = tf.saved_model.load(str(MODEL)).signatures["predict"]
    session = tf.compat.v1.Session(
        graph=tf.Graph(),
        config=tf.compat.v1.ConfigProto(inter_op_parallelism_threads=-1, intra_op_parallelism_threads=1),
    )
    with session.graph.as_default():
        definition = tf.compat.v1.saved_model.load(session, ["serve"], str(MODEL)).signature_def["predict"]
    tensor = session.graph.get_tensor_by_name
    public = session.make_callable(
        [tensor(info.name) for info in definition.outputs.values()],
        [tensor(definition.inputs[name].name) for name in feeds],
    )
    bare, arguments = backend._call, [feeds[spec.name] for spec in backend.signature.inputs]  # type: ignore[attr-defined]

    def request() -> bytes:
        given = convert(decode(BODY, "application/json"))
        return encode(backend.plain(backend.present(backend.run(given), given)))

    ways: dict[str, Callable[[], object]] = {
        "tf.function signature": lambda: {
            name: value.numpy()
            for name, value in signature(**{name: tf.constant(feed) for name, feed in feeds.items()}).items()
        },
        "Session.make_callable": lambda: public(*feeds.values()),
        "the bare callable": lambda: bare(*arguments),
        "Backend.run": lambda: backend.run(feeds),
        "convert": lambda: convert(sample),
        "present and encode": lambda: encode(backend.plain(backend.present(outputs, feeds))),
        "body to response": request,
    }
    best = dict.fromkeys(ways, float("inf"))
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        for name, way in ways.items():
            started_s = time.perf_counter()
            for _ in range(CALLS_A_ROUND):
                way()
            best[name] = min(best[name], (time.perf_counter() - started_s) / CALLS_A_ROUND * 1e6)
    print(f"\nmicroseconds a call, one row, one thread, best round, TensorFlow {tf.__version__}")
    for name, each_us in best.items():
        print(f"  {name:<28} {each_us:7.1f}")


def print_starts(folder: Path) -> None:
    started_s = time.perf_counter()
    launcher = LauncherProcess(folder, backend="tensorflow")
    try:
        launcher_s = time.perf_counter() - started_s
        print(f"TensorFlow imported        {launcher_s:.1f} s, once; {os.getloadavg()[0]:.1f} processes want a core")
        ready_ms, cpu_ms, replicas = [], [], []
        for number in range(REPLICAS):
            spec = spec_for(folder, MODEL, replica=f"t.a.00000000.{number}", runtime="tensorflow")
            started_s = time.perf_counter()
            replica = launcher.fork(spec).ready()
            ready_ms.append((time.perf_counter() - started_s) * 1000)
            cpu_ms.append(_cpu_s(replica.pid) * 1000)
            assert replica.post(BODY).status == 200
            replicas.append(replica)
        print(f"fork to ready              {_spread(ready_ms)} ms")
        print(f"  processor time of that   {_spread(cpu_ms)} ms")
        shares = [_pss_bytes(replica.pid) / 2**20 for replica in replicas]
        print(f"PSS, {REPLICAS} replicas alive     {_spread(shares)} MiB each", end="; ")
        for replica in replicas[1:]:
            replica.kill()
        time.sleep(1)
        alone, parent = (_pss_bytes(pid) / 2**20 for pid in (replicas[0].pid, launcher.pid))
        print(f"one alone {alone:.0f}, its launcher {parent:.0f}")
    finally:
        launcher.stop()


def print_load(port: int, path: str, seconds: float, connections: int) -> None:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_generate, args=(port, path, seconds, connections, theirs))
    process.start()
    rate, durations_s = ours.recv()
    process.join()
    cuts = statistics.quantiles(durations_s, n=100)
    print(
        f"{path:30} c={connections:<3} {rate:8,.0f} req/s   p50 {cuts[49] * 1e6:6.0f} µs   p99 {cuts[98] * 1e6:6.0f} µs"
    )


def _generate(port: int, path: str, seconds: float, connections: int, result: Connection) -> None:
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    message = f"{head}content-length: {len(BODY)}\r\n\r\n".encode() + BODY
    poll = select.epoll()
    socks: dict[int, socket.socket] = {}
    for _ in range(connections):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        socks[sock.fileno()] = sock
        poll.register(sock, select.EPOLLIN)
    first = _exchange(next(iter(socks.values())), message)
    durations_s: list[float] = []
    clock = time.perf_counter
    started_s, sent_s = clock(), {}
    for fd, sock in socks.items():
        sent_s[fd] = clock()
        sock.sendall(message)
    while clock() < started_s + seconds:
        for fd, _ in poll.poll():
            sock = socks[fd]
            if _body(sock.recv(65536)) != first:
                raise SystemExit("two answers to one question")
            now_s = clock()
            durations_s.append(now_s - sent_s[fd])
            sent_s[fd] = now_s
            sock.sendall(message)
    result.send((len(durations_s) / (clock() - started_s), durations_s))


def _exchange(sock: socket.socket, message: bytes) -> bytes:
    sock.sendall(message)
    return _body(sock.recv(65536))


def _body(answer: bytes) -> bytes:
    if not answer.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"unexpected answer: {answer!r}")
    return answer.partition(b"\r\n\r\n")[2]


def _cpu_s(pid: int) -> float:
    """Processor time of a process's threads so far; the other processes of a busy machine are not in it."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _pss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise OSError("no Pss in smaps_rollup")


def _spread(values: list[float]) -> str:
    return f"median {statistics.median(values):.1f} (least {min(values):.1f}, most {max(values):.1f})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each load lasts (default 3)")
    parser.add_argument("--connections", type=int, default=16, help="keep-alive connections (default 16)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
