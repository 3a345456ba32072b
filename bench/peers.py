"""
The same replica asked through its own door, and through the door of another node, in one run.

    .venv/bin/python bench/peers.py [--seconds 5] [--rounds 3] [--connections 16]

Needs `wrk` on PATH (Debian: `apt-get install wrk`). Two doors with certificates, as two nodes have them, and a third as
a machine alone has it; the replica answers at once and costs as little as Python can. Rounds of all ways take turns, so
that what else the machine does hits each alike; the figures are medians. Load generator, doors and replica share the
cores: read the ratios. The memory of the workers of each door is said as well.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from throughput import load
from world import free_ports

from cortex import certificates
from cortex.clock import SystemClock
from cortex.ids import NodeId, api_key, route_path
from cortex.ingress.handover import ListenAddress
from cortex.ingress.peers import IngressPeer, Peering, PeerShare
from cortex.ingress.routes import IngressRoute, IngressServer
from cortex.ingress.supervisor import Ingress

API = api_key("bench", "echo")
REPLICA = """\
import asyncio, sys, uvloop

ANSWER = b'HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\ncontent-length: 2\\r\\n\\r\\n[]'


class Replica(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.received = transport, b""

    def data_received(self, data):
        self.received += data
        head, end, body = self.received.partition(b"\\r\\n\\r\\n")
        if end and len(body) >= 3:
            self.received = b""
            self.transport.write(ANSWER)


async def main():
    server = await asyncio.get_running_loop().create_unix_server(Replica, sys.argv[1], backlog=1024)
    await server.serve_forever()


uvloop.run(main())
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="The same replica through its own door and through another's.")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    wrk = shutil.which("wrk")
    if wrk is None:
        print("wrk is not on PATH; on Debian: apt-get install wrk", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="cx-", dir="/tmp") as folder, replica(Path(folder) / "r.sock") as socket:
        asyncio.run(compare(wrk, Path(folder), IngressServer("replica", str(socket), 40), options))
    return 0


@contextlib.contextmanager
def replica(socket: Path) -> Iterator[Path]:
    process = subprocess.Popen([sys.executable, "-c", REPLICA, str(socket)])
    try:
        while not socket.exists():
            time.sleep(0.01)
        yield socket
    finally:
        process.kill()
        process.wait()


async def compare(wrk: str, folder: Path, server: IngressServer, options: argparse.Namespace) -> None:
    signer = certificates.make_authority(time.time())
    ports = free_ports(5)
    peers = [IngressPeer(NodeId(name), "127.0.0.1", port) for name, port in zip("ab", ports, strict=False)]
    with_replica = IngressRoute(API, route_path(API), (server,), 30.0, 1 << 20, True, "1")
    elsewhere = IngressRoute(API, route_path(API), (), 30.0, 1 << 20, True, "1", peers=(PeerShare(peers[0].name, 1),))
    async with contextlib.AsyncExitStack() as stack:
        doors: dict[str, tuple[Ingress, int]] = {}
        for name, peer, port in zip("abc", [*peers, None], ports[2:], strict=True):
            home = folder / name
            home.mkdir()
            ingress = Ingress(
                directory=home / "ingress",
                sockets=home,
                listen=[ListenAddress("127.0.0.1", port)],
                clock=SystemClock(),
                peering=None if peer is None else _peering(home, signer, peer),
            )
            await ingress.start()
            stack.push_async_callback(ingress.stop, 0.0)
            doors[name] = (ingress, port)
        await doors["a"][0].apply([with_replica], peers[1:])
        await doors["b"][0].apply([elsewhere], peers[:1])
        await doors["c"][0].apply([with_replica])
        ways = {"a machine alone": doors["c"], "its own door": doors["a"], "through a peer": doors["b"]}
        for connections in (1, options.connections):
            rounds = [
                (name, await asyncio.to_thread(load, wrk, _url(port), "[1]", connections, options.seconds))
                for _ in range(options.rounds)
                for name, (_, port) in ways.items()
            ]
            print(f"{connections} connections".ljust(20), "requests/s", "p50 ms".rjust(9), "p99 ms".rjust(9))
            for name in ways:
                rate, p50_ms, p99_ms = (
                    statistics.median(figure) for figure in zip(*(f for n, f in rounds if n == name), strict=True)
                )
                print(f"{name:20} {rate:10,.0f} {p50_ms:9.2f} {p99_ms:9.2f}")
        for name, (ingress, _) in ways.items():
            print(f"{name:20} {sum(psutil.Process(pid).memory_info().rss for pid in ingress.pids()) / 2**20:7.1f} MiB")


def _peering(home: Path, signer: certificates.Authority, peer: IngressPeer) -> Peering:
    certificate, authority = home / "node.pem", home / "ca.pem"
    authority.write_bytes(signer.certificate)
    certificates.kept_certificate(certificate, signer, peer.name, time.time())
    return Peering(host=peer.host, port=peer.port, certificate=certificate, authority=authority)


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}{route_path(API)}"


if __name__ == "__main__":
    raise SystemExit(main())
