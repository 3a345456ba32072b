"""Tests of `cortex.engines.gpus`."""

import os

import pytest

from cortex.engines import gpus, machine
from cortex.ids import NodeId

FIRST, SECOND = "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77", "GPU-11111111-2222-3333-4444-555555555555"
TWO_WHOLE = f"GPU 0: NVIDIA A100-SXM4-40GB (UUID: {FIRST})\nGPU 1: NVIDIA A100-SXM4-40GB (UUID: {SECOND})\n"
"""As the driver 550 lists them."""
ONE_DIVIDED = f"""\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: {FIRST})
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 1g.5gb      Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: {SECOND})
"""


@pytest.fixture
def driver(tmp_path):
    """Write an `nvidia-smi` that prints this and ends so; returns an environment that has it."""

    def install(listing, code=0):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n[ \"$*\" = -L ] || exit 64\ncat <<'END'\n{listing}END\nexit {code}\n")
        program.chmod(0o755)
        return {"PATH": f"{folder}:{os.defpath}"}

    return install


@pytest.fixture
def proc(tmp_path):
    return tmp_path / "proc"


def information(proc, address, uuid):
    folder = proc / "driver/nvidia/gpus" / address
    folder.mkdir(parents=True)
    (folder / "information").write_text(
        f"Model: \t\t Tesla T4\nIRQ:   \t\t 24\nGPU UUID: \t {uuid}\nBus Type: \t PCIe\n"
    )


def test_a_machine_without_a_driver_has_none(proc):
    assert gpus.usable_devices({"PATH": "/nowhere"}, proc=proc) == ()


def test_what_nvidia_smi_lists_is_there(driver, proc):
    assert gpus.usable_devices(driver(TWO_WHOLE), proc=proc) == (FIRST, SECOND)


def test_of_a_divided_gpu_only_its_parts_are_there(driver, proc):
    assert gpus.usable_devices(driver(ONE_DIVIDED), proc=proc) == (
        "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",
        "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb",
        SECOND,
    )


@pytest.mark.parametrize("listing", ["", "No devices found.\n", "GPU 0: a name without its UUID\n", "\0\n"])
def test_a_listing_without_devices_is_none(listing):
    assert gpus.read_listing(listing) == ()


def test_a_driver_that_fails_is_logged_in_its_own_words(driver, proc, caplog):
    environ = driver("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", code=9)
    assert gpus.usable_devices(environ, proc=proc) == ()
    assert "ended with 9: NVIDIA-SMI has failed because it couldn't communicate" in caplog.text


def test_a_program_that_cannot_be_run_is_logged(driver, proc, tmp_path, caplog):
    environ = driver("")
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/nowhere/at/all\n")
    assert gpus.usable_devices(environ, proc=proc) == ()
    assert "GPUs cannot be listed" in caplog.text


def test_without_nvidia_smi_the_drivers_files_are_read(proc):
    information(proc, "0000:3b:00.0", FIRST)
    information(proc, "0000:af:00.0", SECOND)
    assert gpus.usable_devices({"PATH": "/nowhere"}, proc=proc) == (FIRST, SECOND)


def test_uuids_that_the_driver_hides_are_replaced_by_numbers(proc):
    information(proc, "0000:3b:00.0", "GPU-????????-????-????-????-????????????")
    assert gpus.usable_devices({"PATH": "/nowhere"}, proc=proc) == ("0",)


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        (None, (FIRST, SECOND)),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("1", ("1",)),
        ("1,0", ("1", "0")),
        (" 0 , 1 ", ("0", "1")),
        ("0,2,1", ("0",)),
        ("0,0", ("0",)),
        (SECOND, (SECOND,)),
        ("GPU-5d5b", ("GPU-5d5b",)),
        (f"{SECOND},GPU-9", (SECOND,)),
    ],
)
def test_cuda_visible_devices_leaves_what_cuda_itself_would_see(wanted, left):
    assert gpus.visible((FIRST, SECOND), wanted) == left


def test_a_node_report_counts_and_names_them(driver, proc, tmp_path):
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:        8388608 kB\n")
    (proc / "self/cgroup").write_text("")
    environ = driver(TWO_WHOLE) | {"CUDA_VISIBLE_DEVICES": SECOND}
    report = machine.node_report(NodeId("here"), environ=environ, root=tmp_path / "cgroup", proc=proc)
    assert (report.gpus, report.devices) == (1, (SECOND,))
