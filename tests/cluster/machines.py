"""
Machines for tests: network namespaces with addresses of their own, on one bridge. Needs root and iproute2.

Only the standard library, since Ray's autoscaler imports this too (`machines_provider.py`).
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PREFIX = "cxr"
END_TIMEOUT_S = 30.0
_made = itertools.count()


def lacking() -> str | None:
    """Why there can be no such machines here; None: there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "nsenter"):
        if shutil.which(program) is None:
            return f"there is no `{program}`"
    probe = f"{PREFIX}{os.getpid()}probe"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return "network namespaces cannot be made here"
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return None


@dataclass(frozen=True)
class Machine:
    """A network namespace."""

    namespace: str
    address: str
    link: str
    """Its end of the cable that is outside: it can be pulled."""

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs there. Files are everybody's, so that what it makes is seen outside."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *arguments]

    def pids(self) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def pids_of(self, words: str) -> list[int]:
        """Processes that run there with these words in their command line."""
        return [pid for pid in self.pids() if words in command_line(pid)]

    def cut_off(self) -> None:
        """Pull its cable."""
        _ip("link", "set", self.link, "down")

    def end(self) -> None:
        """Kill everything that runs there, and wait until that is gone."""
        deadline = time.monotonic() + END_TIMEOUT_S
        while pids := self.pids():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.namespace} still has {pids}")
            time.sleep(0.02)

    def remove(self) -> None:
        """End it, and take it from the network."""
        self.end()
        subprocess.run(["ip", "link", "delete", self.link], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "delete", self.namespace], capture_output=True, check=False)


@dataclass(frozen=True)
class Network:
    """A bridge with an address for us, and machines on it. `outside` is the namespace that the bridge is in."""

    name: str
    subnet: str
    """`10.77.3`: its first three numbers."""
    outside: str

    @property
    def our_address(self) -> str:
        return f"{self.subnet}.1"

    def machine(self, number: int) -> Machine:
        """The one of a number, from 2 to 254, whether or not it is there."""
        return Machine(f"{self.name}n{number}", f"{self.subnet}.{number}", f"{self.name}v{number}")

    def add(self, number: int) -> Machine:
        """Make one. Also from within another: what belongs outside is done there."""
        machine = self.machine(number)
        inner = f"{self.name}i{number}"
        out = ["nsenter", f"--net={self.outside}"]
        _ip("netns", "add", machine.namespace)
        _ip("link", "add", machine.link, "type", "veth", "peer", "name", inner, before=out)
        _ip("link", "set", inner, "netns", machine.namespace, before=out)
        _ip("link", "set", machine.link, "master", self.name, "up", before=out)
        within = ("-n", machine.namespace)
        _ip(*within, "address", "add", f"{machine.address}/24", "dev", inner)
        _ip(*within, "link", "set", inner, "up")
        _ip(*within, "link", "set", "lo", "up")
        return machine

    def machines(self) -> Iterator[Machine]:
        """Those that there are."""
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        for line in listed.splitlines():
            name = line.split()[0] if line.split() else ""
            number = name.removeprefix(f"{self.name}n")
            if number != name and number.isdecimal():
                yield self.machine(int(number))

    def close(self) -> None:
        """Remove all machines, and the bridge."""
        for machine in list(self.machines()):
            machine.remove()
        subprocess.run(["ip", "link", "delete", self.name], capture_output=True, check=False)


def make_network() -> Network:
    """A network of this process's own. What a process that is gone has left behind of such is removed."""
    _remove_leftovers()
    name = f"{PREFIX}{os.getpid()}{chr(ord('a') + next(_made) % 26)}"  # with a number of a machine 15 bytes at most
    taken = subprocess.run(["ip", "-o", "-4", "address"], capture_output=True, text=True, check=True).stdout
    for turn in range(os.getpid(), os.getpid() + 2**12):
        subnet = f"10.{96 + turn // 250 % 64}.{turn % 250}"
        if f" {subnet}." in taken:
            continue
        _ip("link", "add", name, "type", "bridge")
        _ip("address", "add", f"{subnet}.1/24", "dev", name)
        _ip("link", "set", name, "up")
        return Network(name, subnet, f"/proc/{os.getpid()}/ns/net")
    raise OSError("no address is free")


def _remove_leftovers() -> None:
    links = subprocess.run(["ip", "-o", "link", "show", "type", "bridge"], capture_output=True, text=True, check=True)
    for name, pid in re.findall(rf"^\d+: ({PREFIX}(\d+)[a-z]):", links.stdout, re.MULTILINE):
        if not Path(f"/proc/{pid}").exists():
            Network(name, "", "").close()


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def run(command: Sequence[str], *, environ: Mapping[str, str], output: Path, timeout_s: float) -> None:
    """
    Run a command to its end, with what it says in a file.

    Raises:
        RuntimeError: it did not end well, or not in time; says what it said.
    """
    with output.open("ab") as file:
        try:
            done = subprocess.run(
                command,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd="/",
                timeout=timeout_s,
                check=False,
            )
            if done.returncode == 0:
                return
            how = f"ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            how = f"took over {timeout_s:g} s"
    raise RuntimeError(f"{' '.join(command)} {how}:\n{output.read_text(errors='replace')[-4000:]}")


def _ip(*arguments: str, before: Sequence[str] = ()) -> None:
    done = subprocess.run([*before, "ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
