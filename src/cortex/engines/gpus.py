"""
Which GPUs of this machine are ours: NVIDIA's, by the names that `CUDA_VISIBLE_DEVICES` takes.

The driver is asked through `nvidia-smi`, a process of its own, so that a driver that hangs or crashes takes nobody with
it; where that program is missing, the files are read that the driver keeps in /proc.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cortex.ids import DeviceId

log = logging.getLogger(__name__)

ASK_TIMEOUT_S: Final = 30.0
"""Without its persistence mode the driver first wakes each GPU, which takes a second or two."""
_WINDOWS_FOLDER: Final = "/usr/lib/wsl/lib"
"""Where WSL2 puts `nvidia-smi`. Source: NVIDIA, CUDA on WSL User Guide."""

_LISTED: Final = re.compile(r"^(?P<part>[ \t]+MIG|GPU) .*\(UUID: (?P<uuid>[^)\s]+)\)[ \t]*$", re.MULTILINE)
_UUID: Final = re.compile(r"^GPU UUID:\s*(GPU-[0-9a-fA-F-]+)\s*$", re.MULTILINE)


def usable_devices(environ: Mapping[str, str], *, proc: Path = Path("/proc")) -> tuple[DeviceId, ...]:
    """
    The GPUs that there are, as far as `CUDA_VISIBLE_DEVICES` in our own environment leaves them to us.

    Never raises: a driver that does not answer is logged, and its GPUs are not there.
    """
    return visible(_listed_by_nvidia_smi(environ) or _listed_in_proc(proc), environ.get("CUDA_VISIBLE_DEVICES"))


def visible(devices: Sequence[DeviceId], wanted: str | None) -> tuple[DeviceId, ...]:
    """
    What `CUDA_VISIBLE_DEVICES` leaves of a machine's devices.

    Args:
        devices: all of them.
        wanted: the variable; None when it is not set.

    Returns:
        Names from the variable itself: its numbers follow an order of CUDA's, which need not be that of `devices`.

    Source:
        CUDA C++ Programming Guide, "CUDA Environment Variables": numbers, or beginnings of UUIDs, up to the first that
        stands for no device.
    """
    if wanted is None:
        return tuple(devices)
    found: list[DeviceId] = []
    for entry in map(str.strip, wanted.split(",")):
        known = int(entry) < len(devices) if entry.isdecimal() else any(entry and d.startswith(entry) for d in devices)
        if not known:
            break
        if entry not in found:
            found.append(DeviceId(entry))
    return tuple(found)


def read_listing(text: str) -> tuple[DeviceId, ...]:
    """
    Devices from what `nvidia-smi -L` prints: each GPU, or in its place the parts that it is divided into (MIG).

    Source: NVIDIA Multi-Instance GPU User Guide, "CUDA Visible Devices": of a divided GPU only the parts can be used.
    """
    devices: list[DeviceId] = []
    whole: DeviceId | None = None
    for match in _LISTED.finditer(text):
        device = DeviceId(match["uuid"])
        if match["part"] == "GPU":
            whole = device
        elif whole is not None and devices[-1:] == [whole]:
            devices.pop()
        devices.append(device)
    return tuple(devices)


def _listed_by_nvidia_smi(environ: Mapping[str, str]) -> tuple[DeviceId, ...]:
    program = shutil.which("nvidia-smi", path=environ.get("PATH")) or shutil.which("nvidia-smi", path=_WINDOWS_FOLDER)
    if program is None:
        return ()
    try:
        done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("GPUs cannot be listed: %s", error)
        return ()
    if done.returncode != 0:
        log.warning("GPUs cannot be listed: nvidia-smi -L ended with %s: %s", done.returncode, done.stdout.strip())
        return ()
    return read_listing(done.stdout)


def _listed_in_proc(proc: Path) -> tuple[DeviceId, ...]:
    """Source: the driver's README, "Using the /proc Filesystem Interface"; UUIDs may be shown as question marks."""
    devices = []
    for number, file in enumerate(sorted(proc.glob("driver/nvidia/gpus/*/information"))):
        try:
            found = _UUID.search(file.read_text())
        except OSError:
            found = None
        devices.append(DeviceId(found[1] if found else str(number)))
    return tuple(devices)
