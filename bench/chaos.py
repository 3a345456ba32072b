"""
Kill what can be killed while an outside client asks and versions come and go; count what went wrong.

`python bench/chaos.py --seconds 60 [--seed N] [--rate 300]`. Prints its seed and a receipt; exits 0 only when nothing
failed, no answer was wrong, every deploy that reported success is what answered next, the final state is as wanted,
and `cortex down` left no process, socket or temporary file behind.

Each request carries a tag and features of its own; the handler returns the tag, the label and its own number, so that
a lost, doubled, mixed-up or stale answer is told from a right one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from world import IRIS_MODEL, World

SAMPLES = (
    ([5.2, 3.6, 1.4, 0.3], "iris-setosa"),
    ([5.9, 2.8, 4.2, 1.3], "iris-versicolor"),
    ([6.9, 3.1, 5.6, 2.3], "iris-virginica"),
)
KILLED = ("replica", "replica", "replica", "agent", "launcher", "controlplane")
"""What a kill hits, drawn evenly: replicas most."""
STOPPED = ("agent", "launcher", "controlplane")
"""What is now and then stopped instead, and never told to go on by us: whoever needs it has to notice."""
STOPS = 0.25
"""Of all hits on those, how many stop. One at a time: the agent and the control plane look after each other."""
KEPT_FOR_S = 5.0
"""A kept connection that was idle for longer is not used again: a server may close it at any moment."""

CORTEX_YAML = """\
- kind: deployment
  name: chaos
- kind: api
  name: one
  model: model.onnx
  request_handler: handler.py
  sample: {{"tag": "sample", "features": [5.2, 3.6, 1.4, 0.3]}}
  compute: {{cpu: 100m}}
- kind: api
  name: three
  model: model.onnx
  request_handler: handler.py
  sample: {{"tag": "sample", "features": [5.2, 3.6, 1.4, 0.3]}}
  compute: {{cpu: 100m, min_replicas: 3}}
"""

GOOD_HANDLER = """\
NUMBER = {number}

def pre_inference(sample, metadata, request):
    request.state["tag"] = sample["tag"]
    return [sample["features"]]

def post_inference(prediction, metadata, request):
    return {{"tag": request.state["tag"], "label": str(prediction[0][0]), "number": NUMBER}}
"""

BAD_HANDLERS = {
    "fails at import": "NUMBER = {number}\nimport no_such_module_anywhere\n",
    "is no Python": "NUMBER = {number}\ndef pre_inference(sample, metadata:\n",
    "fails on its sample": "NUMBER = {number}\ndef pre_inference(sample, metadata):\n    raise ValueError('no')\n",
    "ends its process": "NUMBER = {number}\nimport os\n\ndef pre_inference(sample, metadata):\n    os._exit(7)\n",
}


@dataclass
class Tally:
    """What happened. Written by the client's loop and the main thread, each its own fields."""

    sent: int = 0
    ok: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    stops: Counter[str] = field(default_factory=Counter)
    deploys: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)


class Versions:
    """Which numbers may answer a request sent at a given moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._floor = 0
        self._possible: set[int] = set()

    def attempted(self, number: int) -> None:
        """From now on this number may answer."""
        with self._lock:
            self._possible.add(number)

    def succeeded(self, number: int) -> None:
        """A deploy reported success: only this one may answer requests sent from now on."""
        with self._lock:
            self._floor = number
            self._possible = {n for n in self._possible if n >= number}

    def floor(self) -> int:
        with self._lock:
            return self._floor

    def complaint(self, number: int, floor_when_sent: int) -> str | None:
        with self._lock:
            if number < floor_when_sent:
                return f"version {number} answered a request sent after version {floor_when_sent} was live"
            if number not in self._possible and number < self._floor:
                return None  # sent before the newest success: the one before may still have answered
            if number not in self._possible:
                return f"version {number} answered, which was never deployed or was refused"
            return None


class Client:
    """An outside client: a steady rate of tagged requests, half on kept-alive connections, half on new ones."""

    def __init__(self, port: int, rate: float, rng: random.Random, tally: Tally, versions: Versions) -> None:
        self._port = port
        self._rate = rate
        self._rng = rng
        self._tally = tally
        self._versions = versions
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="client")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pending: set[asyncio.Task[None]] = set()
        next_s = loop.time()
        while not self._stop.is_set():
            next_s += 1.0 / self._rate
            await asyncio.sleep(max(0.0, next_s - loop.time()))
            task = asyncio.create_task(self._one(self._tally.sent))
            self._tally.sent += 1
            pending.add(task)
            task.add_done_callback(pending.discard)
        if pending:
            await asyncio.wait(pending, timeout=60)
        for _reader, writer, _used_s in self._idle:
            writer.close()

    async def _one(self, index: int) -> None:
        tag = f"t{index}"
        api = "one" if index % 2 else "three"
        features, label = SAMPLES[index % len(SAMPLES)]
        keep_alive = self._rng.random() < 0.5
        floor = self._versions.floor()
        begun_s = time.monotonic()
        try:
            async with asyncio.timeout(30):
                status, body = await self._ask(api, {"tag": tag, "features": features}, tag, keep_alive)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            how = "kept" if keep_alive else "new"
            self._tally.failed.append(f"{_clock()} {tag} to {api} ({how}): {error!r}")
            return
        took_s = time.monotonic() - begun_s
        self._tally.latencies_s.append(took_s)
        self._tally.slowest_s = max(self._tally.slowest_s, took_s)
        if status != 200:
            self._tally.failed.append(f"{_clock()} {tag} to {api} after {took_s:.2f} s: {status} {body[:200]!r}")
            return
        answer = json.loads(body)
        complaint = None
        if answer.get("tag") != tag or answer.get("label") != label:
            complaint = f"{tag}: expected tag {tag} and label {label}, got {answer}"
        complaint = complaint or self._versions.complaint(answer["number"], floor)
        if complaint:
            self._tally.wrong.append(f"{api}: {complaint}")
        else:
            self._tally.ok += 1

    async def _ask(self, api: str, sample: object, tag: str, keep_alive: bool) -> tuple[int, bytes]:
        body = json.dumps(sample).encode()
        head = (
            f"POST /chaos/{api} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"x-request-id: {tag}\r\ncontent-length: {len(body)}\r\n"
            f"connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n"
        ).encode()
        reader, writer = await self._connection(keep_alive)
        writer.write(head + body)
        await writer.drain()
        try:
            status, closing, content = await _read_response(reader)
        except BaseException:
            writer.close()
            raise
        if keep_alive and not closing and len(self._idle) < 16:
            self._idle.append((reader, writer, time.monotonic()))
        else:
            writer.close()
        return status, content

    async def _connection(self, keep_alive: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A kept connection that was used a moment ago, or a new one. A broken one counts as a failure."""
        while keep_alive and self._idle:
            reader, writer, used_s = self._idle.pop()
            if time.monotonic() - used_s < KEPT_FOR_S:
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)


async def _read_response(reader: asyncio.StreamReader) -> tuple[int, bool, bytes]:
    first = await reader.readline()
    if not first:
        raise ConnectionResetError("closed before an answer")
    status = int(first.split()[1])
    length, closing = 0, False
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        elif name.lower() == b"connection":
            closing = b"close" in value.lower()
    return status, closing, await reader.readexactly(length)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", action="store_true", help="leave home and logs where they are")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    tally = Tally()
    world = World(folder)
    shutil.copy(IRIS_MODEL, world.project / "model.onnx")
    (world.project / "cortex.yaml").write_text(CORTEX_YAML.format())
    try:
        _play(world, options.seconds, options.rate, random.Random(seed), tally)
    finally:
        leftovers = _end(world)
    tally.faults += leftovers
    good = not (tally.failed or tally.wrong or tally.faults) and tally.ok == tally.sent > 0
    _print_receipt(seed, options.seconds, tally)
    if good and not options.keep:
        shutil.rmtree(folder)
    else:
        (folder / "story.txt").write_text("\n".join([*tally.story, *tally.failed, *tally.wrong, *tally.faults]))
        print(f"home and logs: {folder}")
    return 0 if good else 1


def _play(world: World, seconds: float, rate: float, rng: random.Random, tally: Tally) -> None:
    versions = Versions()
    number = 1
    _write_handler(world, GOOD_HANDLER, number)
    versions.attempted(number)
    first = world.cortex("deploy")
    if first.returncode != 0:
        tally.faults.append(f"the first deploy failed:\n{first.stdout}{first.stderr}")
        return
    versions.succeeded(number)
    client = Client(world.port, rate, random.Random(rng.random()), tally, versions)
    client.start()
    killer_stop = threading.Event()
    killer = threading.Thread(target=_kill_things, args=(world, random.Random(rng.random()), tally, killer_stop))
    killer.start()
    end_s = time.monotonic() + seconds
    try:
        while time.monotonic() < end_s:
            number += 1
            _deploy_one(world, number, rng, tally, versions)
            killer_stop.wait(rng.uniform(0.5, 3.0))
    finally:
        killer_stop.set()
        killer.join()
    number += 1
    _settle(world, number, tally, versions)
    client.stop()


def _write_handler(world: World, source: str, number: int) -> None:
    (world.project / "handler.py").write_text(source.format(number=number))


def _deploy_one(world: World, number: int, rng: random.Random, tally: Tally, versions: Versions) -> None:
    if rng.random() < 0.35:
        what = rng.choice(sorted(BAD_HANDLERS))
        _write_handler(world, BAD_HANDLERS[what], number)
        done = world.cortex("deploy")
        tally.deploys[f"bad, {'refused' if done.returncode else 'TAKEN'}"] += 1
        if done.returncode == 0:
            tally.faults.append(f"a version that {what} was reported live:\n{done.stdout}{done.stderr}")
        return
    _write_handler(world, GOOD_HANDLER, number)
    versions.attempted(number)
    done = world.cortex("deploy")
    if done.returncode == 0:
        versions.succeeded(number)
        tally.deploys["good, live"] += 1
    else:
        tally.deploys["good, interrupted"] += 1
        last = (done.stdout + done.stderr).strip().splitlines()[-6:]
        print(f"  deploy {number} exit {done.returncode}: {' | '.join(last)}", flush=True)


def _settle(world: World, number: int, tally: Tally, versions: Versions) -> None:
    """With the faults over, one more good deploy must go live, and everything must be as wanted."""
    _write_handler(world, GOOD_HANDLER, number)
    versions.attempted(number)
    done = world.cortex("deploy")
    if done.returncode != 0:
        tally.faults.append(f"the last deploy failed:\n{done.stdout}{done.stderr}")
        return
    versions.succeeded(number)
    deadline_s = time.monotonic() + 30
    while True:
        shown = world.cortex("get", "-o", "json")
        apis = {api["name"]: api for api in json.loads(shown.stdout or "[]")}
        ready = {
            name: (api["status"], api["replicas"]["up_to_date"], api["replicas"]["stale"]) for name, api in apis.items()
        }
        if ready == {"one": ("live", 1, 0), "three": ("live", 3, 0)}:
            return
        if time.monotonic() > deadline_s:
            tally.faults.append(f"the final state is not as wanted: {ready}")
            return
        time.sleep(0.2)


def _kill_things(world: World, rng: random.Random, tally: Tally, stop: threading.Event) -> None:
    while not stop.wait(rng.expovariate(1 / 1.5)):
        kind = rng.choice(KILLED)
        pids = [pid for pid, title in sorted(world.processes().items()) if title.startswith(f"cortex-{kind} ")]
        if pids and not any(map(_is_stopped, world.processes())):
            with contextlib.suppress(ProcessLookupError):
                pid = rng.choice(pids)
                stops = kind in STOPPED and rng.random() < STOPS
                os.kill(pid, signal.SIGSTOP if stops else signal.SIGKILL)
                (tally.stops if stops else tally.kills)[kind] += 1
                tally.story.append(f"{_clock()} {'stopped' if stops else 'killed'} {kind} {pid}")


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[0] == b"T"
    return False


def _end(world: World) -> list[str]:
    """`cortex down`, then look for anything it left."""
    faults = []
    down = world.cortex("down")
    if down.returncode != 0:
        faults.append(f"cortex down failed:\n{down.stdout}{down.stderr}")
    left = world.processes()
    for pid, title in left.items():
        faults.append(f"a process was left: {pid} {title}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for path in sorted(world.home.rglob("*")) if world.home.exists() else ():
        if path.is_socket() or path.suffix == ".tmp":
            faults.append(f"a file was left: {path.relative_to(world.home)}")
    return faults


def _clock() -> str:
    return time.strftime("%H:%M:%S", time.gmtime()) + f".{int(time.time() * 1000) % 1000:03d}"


def _print_receipt(seed: int, seconds: float, tally: Tally) -> None:
    latencies = sorted(tally.latencies_s) or [0.0]
    p50, p99 = (latencies[int(len(latencies) * q)] * 1000 for q in (0.5, 0.99))
    rows = [
        ("seed", seed),
        ("seconds", f"{seconds:.0f}"),
        ("requests sent", tally.sent),
        ("answered right", tally.ok),
        ("failed", len(tally.failed)),
        ("wrong answers", len(tally.wrong)),
        ("latency p50, p99, worst", f"{p50:.1f} ms, {p99:.1f} ms, {tally.slowest_s * 1000:.0f} ms"),
        ("kill -9", ", ".join(f"{n} {kind}" for kind, n in sorted(tally.kills.items())) or "none"),
        ("stopped", ", ".join(f"{n} {kind}" for kind, n in sorted(tally.stops.items())) or "none"),
        ("deploys", ", ".join(f"{n} {kind}" for kind, n in sorted(tally.deploys.items())) or "none"),
        ("other faults", len(tally.faults)),
    ]
    print("\nreceipt")
    for name, value in rows:
        print(f"  {name:<24} {value}")
    for title, items in (("failed", tally.failed), ("wrong", tally.wrong), ("fault", tally.faults)):
        for item in items[:20]:
            print(f"  {title}: {item}")


if __name__ == "__main__":
    sys.exit(main())
