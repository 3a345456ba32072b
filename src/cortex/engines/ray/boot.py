"""
What is done on a node of a cluster to have our agent there: runs in a worker of Ray's, which knows nothing of us.

So it is sent whole, by value, and imports the standard library alone. It brings the files of the node's home, installs
our wheel where that is not there, and starts the agent in a way that it outlives the worker and the raylet: Ray ends a
worker's children, whatever session they are in, but knows nothing of what they have begun.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

INSTALL_TIMEOUT_S = 600.0
CHECK_TIMEOUT_S = 60.0

_BEGIN = """
import json, subprocess, sys
order = json.load(sys.stdin)
with open(order["output"], "ab") as output:
    process = subprocess.Popen(
        order["command"], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", env=order["environ"],
        start_new_session=True,
    )
print(process.pid)
"""
"""A process between the worker and the agent: with its end the agent is nobody's child."""


def start_agent(
    *,
    home: str,
    files: Mapping[str, bytes],
    arguments: Sequence[str],
    version: str,
    wheel_name: str,
    wheel: bytes,
    installer: Sequence[str],
    use_installed: bool,
) -> dict[str, Any]:
    """
    Have an agent run on this node. Once more is harmless: files are the newest, and a home has one agent.

    Args:
        home: of the node, an absolute path; made if it is not there.
        files: content by path in the home, for mode 0600.
        arguments: the agent's command line.
        version: of ours, which this Python may have already.
        wheel_name, wheel: what is installed otherwise, into a folder named by its digest.
        installer: further arguments of `uv pip install`, as where packages come from.
        use_installed: False: the wheel is used in any case.

    Returns:
        `pid`: of the agent, which may have found another one there; `python`: what it runs with.

    Raises:
        RuntimeError: it cannot be installed or started; says why, in a line or some.
    """
    root = Path(home)
    (root / "logs").mkdir(parents=True, exist_ok=True)
    root.chmod(0o700)
    for name, content in files.items():
        _write(root / name, content)
    environ = _environ()
    python = sys.executable
    if not (use_installed and _has_ours(python, version, environ)):
        python = _installed(root / "software", wheel_name, wheel, installer, environ)
    order = {
        "command": [python, "-P", "-m", "cortex.agent", *arguments],
        "output": str(root / "logs" / "agent.out"),
        "environ": environ,
    }
    begun = _run([python, "-c", _BEGIN], environ, CHECK_TIMEOUT_S, said=json.dumps(order))
    return {"pid": int(begun), "python": python}


def _environ() -> dict[str, str]:
    """
    What the raylet was started with, but for what is Ray's own.

    Not the worker's: Ray hides GPUs from a task that has asked for none, and leaves it one thread.
    """
    try:
        pairs = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
        found = dict(os.fsdecode(pair).split("=", 1) for pair in pairs if b"=" in pair)
    except OSError:
        found = dict(os.environ)
    return {name: value for name, value in found.items() if not name.upper().startswith("RAY_")}


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as output:
        output.write(content)
    unfinished.replace(file)


def _has_ours(python: str, version: str, environ: Mapping[str, str]) -> bool:
    code = "import cortex.agent, cortex.version; print(cortex.version.__version__)"
    try:
        return _run([python, "-P", "-c", code], environ, CHECK_TIMEOUT_S) == version
    except RuntimeError:
        return False


def _installed(
    software: Path, wheel_name: str, wheel: bytes, installer: Sequence[str], environ: Mapping[str, str]
) -> str:
    """A Python that has our wheel, in a folder of its own that is whole once it says so."""
    folder = software / hashlib.sha256(wheel).hexdigest()[:16]
    python, whole = folder / "bin" / "python", folder / "whole"
    software.mkdir(parents=True, exist_ok=True)
    with (software / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if whole.exists():
            return str(python)
        shutil.rmtree(folder, ignore_errors=True)
        uv = _uv()
        _run([*uv, "venv", "--quiet", "--python", sys.executable, str(folder)], environ, INSTALL_TIMEOUT_S)
        _write(folder / wheel_name, wheel)
        install = ["pip", "install", "--quiet", "--python", str(python), *installer, str(folder / wheel_name)]
        _run([*uv, *install], environ, INSTALL_TIMEOUT_S)
        _write(whole, b"")
    return str(python)


def _uv() -> list[str]:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    return [found] if found else [sys.executable, "-m", "uv"]


def _run(command: Sequence[str], environ: Mapping[str, str], timeout_s: float, *, said: str = "") -> str:
    try:
        done = subprocess.run(
            command,
            env=dict(environ),
            cwd="/",
            input=said,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{command[0]}: {error}") from None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()
