"""Tests of `cortex.replica.backends.cuda`."""

import ctypes

import pytest

from cortex.replica.backends.cuda import GpuUnusable, driver_problem


class Driver:
    """What libcuda.so.1 would be to ctypes."""

    def __init__(self, *, init=0, count=1, count_code=0):
        self.init, self.count, self.count_code = init, count, count_code

    def cuInit(self, flags):
        return self.init

    def cuGetErrorString(self, code, said):
        ctypes.cast(said, ctypes.POINTER(ctypes.c_char_p))[0] = b"no CUDA-capable device is detected"
        return 0

    def cuDeviceGetCount(self, count):
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int))[0] = self.count
        return self.count_code


@pytest.mark.parametrize(
    ("driver", "problem"),
    [
        (Driver(), None),
        (Driver(init=100), "the NVIDIA driver does not start (no CUDA-capable device is detected, error 100)"),
        (Driver(count=0), "the NVIDIA driver shows no device"),
        (Driver(count_code=3), "the NVIDIA driver shows no device"),
    ],
)
def test_the_driver_says_itself_what_is_wrong(driver, problem):
    assert driver_problem(lambda name: driver) == problem


def test_a_driver_that_is_not_installed_is_told_with_the_loaders_words():
    def open_library(name):
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    assert driver_problem(open_library) == (
        "the NVIDIA driver is not there (libcuda.so.1: cannot open shared object file: No such file or directory)"
    )


def test_the_problem_names_library_reason_and_what_to_do():
    problem = GpuUnusable("onnxruntime", "libcublasLt.so.13 is missing", hint="install it").problem()
    assert problem.reference == "gpu-unusable"
    assert problem.message == ("the api asks for a GPU, and onnxruntime cannot use one: libcublasLt.so.13 is missing")
    assert problem.hint == "install it"
