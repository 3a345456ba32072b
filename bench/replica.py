"""
One replica by itself, without the ingress: requests a second, milliseconds from fork to first prediction, memory.

    .venv/bin/python bench/replica.py [--seconds 3] [--connections 16]

The load comes from one more process, which keeps one request in flight on each of its connections and compares every
answer with the first. It needs a core of its own; on a busy machine read the processor time a request.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import select
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "integration" / "replica"))

from replica_harness import LauncherProcess, Replica, request, spec_for  # noqa: E402

MODEL = ROOT / "examples" / "iris" / "models" / "sklearn.onnx"
SAMPLE = b"[5.1, 3.5, 1.4, 0.2]"
HEADERS = {  # what the ingress sends
    "host": "127.0.0.1:8880",
    "user-agent": "wrk",
    "content-type": "application/json",
    "x-request-id": "0123456789abcdef",
    "x-cortex-limits": "600000,104857600",
}
HANDLER = """
def pre_inference(sample, metadata):
    return sample

def post_inference(prediction, metadata):
    return prediction["label"][0]
"""
ASYNC_HANDLER = HANDLER.replace("def ", "async def ")


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="cxb", dir="/tmp") as name:
        folder = Path(name)
        launcher = LauncherProcess(folder)
        try:
            _starts(launcher, folder)
            _throughput(launcher, folder, options.seconds, options.connections)
        finally:
            launcher.stop()


def _starts(launcher: LauncherProcess, folder: Path) -> None:
    durations_ms, replicas = [], []
    for number in range(10):
        spec = spec_for(folder, MODEL, replica=f"t.a.00000000.{number}")
        started_s = time.perf_counter()
        replica = launcher.fork(spec)
        answer = replica.post(SAMPLE)  # waits in the backlog until the replica serves
        durations_ms.append((time.perf_counter() - started_s) * 1000)
        assert answer.status == 200, answer
        replicas.append(replica)
    print(f"fork to first prediction   {_spread(durations_ms)} ms")
    shares = [_pss_bytes(replica.pid) / 2**20 for replica in replicas]
    print(f"PSS, 10 replicas alive     {_spread(shares)} MiB each; launcher {_pss_bytes(launcher.pid) / 2**20:.0f} MiB")
    for replica in replicas:
        replica.kill()


def _throughput(launcher: LauncherProcess, folder: Path, seconds: float, connections: int) -> None:
    for number, (name, source, extra) in enumerate(
        (
            ("no handler", None, {}),
            ("sync handler", HANDLER, {}),
            ("sync handler, concurrency 4", HANDLER, {"concurrency": 4}),
            ("async handler", ASYNC_HANDLER, {}),
        )
    ):
        place = folder / f"p{number}"
        place.mkdir()
        spec = spec_for(place, MODEL, replica=f"t.b.00000000.{number}", handler_source=source, **extra)
        replica = launcher.fork(spec).ready()
        for count in (connections, 1):
            rate, p50_us, p99_us, cpu_us = load(replica, seconds, count)
            print(
                f"{name:30} c={count:<3} {rate:8,.0f} req/s   p50 {p50_us:6.0f} µs   p99 {p99_us:6.0f} µs   "
                f"replica's cpu {cpu_us:5.1f} µs a request"
            )
        replica.kill()


def load(replica: Replica, seconds: float, connections: int) -> tuple[float, float, float, float]:
    """Requests a second, two quantiles of their durations, and processor time a request, in microseconds."""
    before_s = _cpu_s(replica.pid)
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_generate, args=(str(replica.slot_path), seconds, connections, theirs)
    )
    process.start()
    rate, durations_s = ours.recv()
    process.join()
    cpu_us = (_cpu_s(replica.pid) - before_s) / len(durations_s) * 1e6
    cuts = statistics.quantiles(durations_s, n=100)
    return rate, cuts[49] * 1e6, cuts[98] * 1e6, cpu_us


def _generate(path: str, seconds: float, connections: int, result: multiprocessing.connection.Connection) -> None:
    message = request(SAMPLE, HEADERS)
    poll = select.epoll()
    socks: dict[int, socket.socket] = {}
    sent_s: dict[int, float] = {}
    for _ in range(connections):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        socks[sock.fileno()] = sock
        poll.register(sock, select.EPOLLIN)
    length = _answer_bytes(next(iter(socks.values())), message)
    durations_s: list[float] = []
    clock = time.perf_counter
    started_s = clock()
    for fd, sock in socks.items():
        sent_s[fd] = clock()
        sock.send(message)
    until_s = started_s + seconds
    while clock() < until_s:
        for fd, _ in poll.poll():
            sock = socks[fd]
            answer = sock.recv(65536)
            if len(answer) != length or not answer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"unexpected answer: {answer!r}")
            now_s = clock()
            durations_s.append(now_s - sent_s[fd])
            sent_s[fd] = now_s
            sock.send(message)
    result.send((len(durations_s) / (clock() - started_s), durations_s))


def _answer_bytes(sock: socket.socket, message: bytes) -> int:
    sock.send(message)
    return len(sock.recv(65536))


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
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    main()
