"""Why a GPU that an api asks for cannot be used: both backends ask here, so that none falls back to the CPU unheard."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

from cortex.replica.backends.base import ModelError

_DRIVER: Final = "libcuda.so.1"
LOOK_AT_THE_DRIVER: Final = "see what nvidia-smi says on this machine, or leave out `gpu:`"


class GpuUnusable(ModelError):
    """
    A GPU was asked for, and the library that runs the model cannot use one.

    Args:
        library: as people know it.
        reason: in words that follow "cannot use one:".
        hint: what to do about it.
    """

    reference = "gpu-unusable"

    def __init__(self, library: str, reason: str, *, hint: str) -> None:
        self.library, self.reason = library, reason
        super().__init__(f"the api asks for a GPU, and {library} cannot use one: {reason}", hint=hint)


def driver_problem(open_library: Callable[[str], Any] = ctypes.CDLL) -> str | None:
    """
    Ask the driver itself what is wrong; None when it shows this process a GPU.

    Source: CUDA Driver API, cuInit, cuDeviceGetCount, cuGetErrorString: 0 is success.
    """
    try:
        driver = open_library(_DRIVER)
    except OSError as error:
        return f"the NVIDIA driver is not there ({error})"
    code = driver.cuInit(0)
    if code:
        said = ctypes.c_char_p()
        driver.cuGetErrorString(code, ctypes.byref(said))
        return f"the NVIDIA driver does not start ({(said.value or b'no reason given').decode()}, error {code})"
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver shows no device"
    return None
