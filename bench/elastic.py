"""
How soon replicas follow a load, and how soon what sleeps answers.

    .venv/bin/python bench/elastic.py step [--rounds 20]
    .venv/bin/python bench/elastic.py wake [--rounds 20]

`step`: a handler that waits 50 ms, three tenths of what one replica sustains for some seconds, then ten times what it
does. Told is when so many replicas were ready as the offered load needs: offered seats over seats times target, rounded
up. Exits 0 when that took no more than 3 s in 19 of 20 rounds and no request failed.

`wake`: a small ONNX model without a handler, asked once it sleeps. Exits 0 when p95 of the answer is under 250 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import sys
import time
from collections import Counter

import uvloop
from world import IRIS_MODEL, World, a_world

from cortex.wire.operator import Status

WAITS_S = 0.05
SUSTAINS = 1 / WAITS_S
NEEDED = math.ceil(10 * SUSTAINS * WAITS_S / 0.8)
LIMIT_S, OF_ROUNDS = 3.0, 0.95
CALM_S, STEP_S = 6.0, 5.0
WAKES_WITHIN_MS = 250.0
HANDLER = f"""\
import time


def pre_inference(sample, metadata):
    time.sleep({WAITS_S})
    return [[5.2, 3.6, 1.4, 0.3]]


def post_inference(prediction, metadata):
    return prediction["label"][0]
"""
SAMPLE = b"[[5.2, 3.6, 1.4, 0.3]]"


def deploy(world: World, apis: str) -> None:
    (world.project / "model.onnx").write_bytes(IRIS_MODEL.read_bytes())
    (world.project / "handler.py").write_text(HANDLER)
    (world.project / "cortex.yaml").write_text(f"- {{kind: deployment, name: bench}}\n{apis}\n")
    world.must("deploy")


async def ask(port: int, path: str) -> int:
    """Status of one request on a connection of its own; 0: none came."""
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\ncontent-length: {len(SAMPLE)}\r\n\r\n"
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + SAMPLE)
        answer = await reader.read()
        writer.close()
    except OSError:
        return 0
    return int(answer[9:12] or 0)


async def offer(port: int, path: str, rate: float, seconds: float, chance: random.Random) -> Counter[int]:
    """Requests that come by chance, whether or not others were answered."""
    begun_s, due_s = time.monotonic(), 0.0
    asked: list[asyncio.Task[int]] = []
    while due_s < seconds:
        due_s += chance.expovariate(rate)
        await asyncio.sleep(max(0.0, begun_s + due_s - time.monotonic()))
        asked.append(asyncio.create_task(ask(port, path)))
    return Counter(await asyncio.gather(*asked))


async def ready_after_s(world: World, api: str, needed: int) -> float:
    """Seconds until so many replicas are ready."""
    begun_s, token = time.monotonic(), ""
    operator = world.operator()
    while time.monotonic() < begun_s + 60.0:
        watched = await asyncio.to_thread(operator.watch, token, timeout_s=5.0)
        token = watched.token
        if any(one.name == api and one.replicas.ready >= needed for one in watched.apis):
            return time.monotonic() - begun_s
    return math.inf


async def one_step(world: World, api: str, seed: int) -> tuple[float, Counter[int]]:
    chance, path = random.Random(seed), f"/bench/{api}"
    answers = await offer(world.port, path, 0.3 * SUSTAINS, CALM_S, chance)
    watch = asyncio.create_task(ready_after_s(world, api, NEEDED))
    answers += await offer(world.port, path, 10 * SUSTAINS, STEP_S, chance)
    return await watch, answers


def step(world: World, rounds: int) -> int:
    took_s: list[float] = []
    answers: Counter[int] = Counter()
    for number in range(rounds):
        api = f"waits{number}"
        deploy(world, f"- {{kind: api, name: {api}, model: model.onnx, request_handler: handler.py}}")
        seconds, found = uvloop.run(one_step(world, api, number))
        took_s.append(seconds)
        answers += found
        print(f"{NEEDED} replicas after {seconds:.2f} s; {dict(sorted(found.items()))}", flush=True)
    in_time = sum(seconds <= LIMIT_S for seconds in took_s)
    print(
        f"median {statistics.median(took_s):.2f} s, worst {max(took_s):.2f} s, {in_time} of {rounds} in {LIMIT_S:g} s"
    )
    return 0 if in_time >= OF_ROUNDS * rounds and answers.keys() == {200} else 1


def wake(world: World, rounds: int) -> int:
    deploy(world, "- {kind: api, name: naps, model: model.onnx, compute: {min_replicas: 0, idle_timeout: 500ms}}")
    operator = world.operator()
    took_ms: list[float] = []
    for _ in range(rounds):
        while operator.apis("bench")[0].status is not Status.ASLEEP:
            time.sleep(0.1)
        begun_s = time.monotonic()
        status = asyncio.run(ask(world.port, "/bench/naps"))
        took_ms.append((time.monotonic() - begun_s) * 1000)
        print(f"{status} after {took_ms[-1]:.0f} ms", flush=True)
    p95_ms = statistics.quantiles(took_ms, n=20, method="inclusive")[18]
    print(f"median {statistics.median(took_ms):.0f} ms, p95 {p95_ms:.0f} ms of {rounds} wakes")
    return 0 if p95_ms < WAKES_WITHIN_MS else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "wake"))
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    with a_world("elastic") as world:
        return {"step": step, "wake": wake}[given.what](world, given.rounds)


if __name__ == "__main__":
    sys.exit(main())
