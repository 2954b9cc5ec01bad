"""Why there is no GPU, from what can be seen; a GPU's health, from a library of NVML's name made here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from job.machine import driver
from job.machine.driver import DriverState, inspect, why_no_gpu

NOTHING = DriverState(
    (13, 0),
    driver=None,
    driver_cuda=None,
    nodes=False,
    hidden=None,
    mig=False,
    mounted=False,
    error="no driver",
)
WELL = replace(NOTHING, driver="580.65.06", driver_cuda=(13, 0), nodes=True, error="CUDA unknown error")
NO_GPUS = "No CUDA GPUs are available"

CASES = [
    # neither device nor driver: any of the three
    (NOTHING, 78, ["--gpus all", "toolkit", "driver", "13.0"], []),
    # the host has a driver, whose GPUs the container was not given
    (replace(NOTHING, driver="580.65.06"), 78, ["580.65.06", "--gpus all", "toolkit"], ["too old"]),
    # device files by --device, and no libraries: the toolkit brings those
    (
        replace(NOTHING, driver="580.65.06", nodes=True),
        78,
        ["libraries", "--gpus all", "toolkit", "Container-Optimized OS", "/usr/local/nvidia"],
        ["too old", "LD_LIBRARY_PATH"],
    ),
    # a host without the toolkit, whose libraries are mounted where the loader was not told to search
    (
        replace(NOTHING, driver="580.65.06", nodes=True, mounted=True),
        78,
        ["/usr/local/nvidia/lib64/libcuda.so.1", "LD_LIBRARY_PATH=/usr/local/nvidia/lib:"],
        ["--gpus all", "toolkit"],
    ),
    (
        replace(WELL, mig=True, error=NO_GPUS),
        78,
        ["MIG", "nvidia-smi mig", "CUDA_VISIBLE_DEVICES=MIG-"],
        ["--gpus"],
    ),
    (replace(WELL, mig=True), 74, ["CUDA unknown error"], ["MIG"]),
    (replace(WELL, error=NO_GPUS), 74, [NO_GPUS], ["MIG"]),
    (
        replace(WELL, driver="550.54.15", driver_cuda=(12, 4)),
        78,
        ["550.54.15", "12.4", "too old", "13.0"],
        [],
    ),
    (replace(WELL, built_for=(13, 2)), 74, ["does not work"], ["too old"]),  # minor versions are compatible
    (replace(WELL, built_for=None), 78, ["without CUDA"], ["too old", "--gpus all"]),
    (
        replace(WELL, hidden="-1", error=NO_GPUS),
        78,
        ["CUDA_VISIBLE_DEVICES=-1"],
        ["--gpus all"],
    ),
    (replace(WELL, hidden="0"), 74, ["CUDA unknown error", "another machine"], ["CUDA_VISIBLE_DEVICES"]),
]


@pytest.mark.parametrize(("seen", "exit_code", "words", "others"), CASES)
def test_the_cause_is_found_from_what_is_seen(
    seen: DriverState, exit_code: int, words: list[str], others: list[str]
) -> None:
    error = why_no_gpu(seen)
    assert error.exit_code == exit_code
    assert all(word in str(error) for word in words), error
    assert not any(word in str(error) for word in others), error
    assert exit_code == 74 or all(word in str(error) for word in ("no GPU", "--device cpu", "--demo"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_what_is_seen_here_is_no_gpu() -> None:
    seen = inspect()
    assert seen.built_for is None or seen.built_for >= (12, 0)
    assert seen.error


@pytest.mark.parametrize(
    ("line", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Sat Feb 24 22:55:48 UTC 2024",
            "535.161.08",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root@x)",
            "580.65.06",
        ),
        ("something else", None),
    ],
)
def test_the_driver_is_read_from_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, version: str | None
) -> None:
    monkeypatch.setattr(driver, "KERNEL_MODULE", tmp_path / "version")
    assert driver.version() is None
    (tmp_path / "version").write_text(f"{line}\nGCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n")
    assert driver.version() == version


NOT_SUPPORTED, NO_PERMISSION, NOT_LOADED, LOST = 3, 4, 9, 15  # of nvmlReturn_t
BUS, OTHER_BUS = "00000000:3b:00.0", "00000000:00:00.0"

LIBRARY = """
#include <stdlib.h>
#include <string.h>
typedef void *gpu;
static int one;
static int answer(const char *variable) { return atoi(getenv(variable)); }
int nvmlInitWithFlags(unsigned flags) { return answer("INIT"); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "an error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, gpu *found) { *found = &one; return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, gpu *found) {
    *found = &one;
    return strcmp(bus, "00000000:3b:00.0") ? 6 : 0;
}
int nvmlDeviceGetEccMode(gpu from, unsigned *now, unsigned *next) { *now = *next = 1; return answer("ECC"); }
int nvmlDeviceGetTotalEccErrors(gpu from, int type, int counter, unsigned long long *count) {
    *count = type == 1 && counter == 0 ? 7 : 99;
    return answer("ECC");
}
int nvmlDeviceGetMigMode(gpu from, unsigned *now, unsigned *next) { *now = *next = 1; return answer("MIG"); }
"""

QUERY = """
import json, os, sys
from job.errors import JobError
from job.machine import driver
for bus, codes in json.loads(sys.argv[1]):
    os.environ.update(codes)
    try:
        print(driver.health(bus), driver.all_in_mig_mode())
    except JobError as error:
        print(error.exit_code, error)
"""

HEALTHS = [
    (BUS, {}, "Health(ecc=True, uncorrected=7, mig=True) True"),
    # what a kind of GPU does not have, and what a user may not read
    (BUS, {"ECC": NOT_SUPPORTED}, "Health(ecc=None, uncorrected=None, mig=True) True"),
    (BUS, {"ECC": NO_PERMISSION}, "Health(ecc=None, uncorrected=None, mig=True) True"),
    (BUS, {"MIG": NOT_SUPPORTED}, "Health(ecc=True, uncorrected=7, mig=None) False"),
    (BUS, {"MIG": NO_PERMISSION}, "Health(ecc=True, uncorrected=7, mig=None) False"),
    (BUS, {"INIT": NOT_LOADED}, "None False"),
    (OTHER_BUS, {}, "None True"),
    (BUS, {"ECC": LOST}, "74 the GPU is gone from the bus. Use another machine"),
]


def healths(folder: Path, cases: list[tuple[str, dict[str, int]]]) -> list[str]:
    """Return what a process reads from the NVML in `folder` that answers with these codes, case by case."""
    well = dict.fromkeys(("INIT", "ECC", "MIG"), 0)
    asked = [(bus, {name: str(code) for name, code in (well | codes).items()}) for bus, codes in cases]
    done = subprocess.run(
        [sys.executable, "-c", QUERY, json.dumps(asked)],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_ecc_its_errors_and_mig_are_read_where_nvml_gives_them(tmp_path: Path) -> None:
    (tmp_path / "nvml.c").write_text(LIBRARY)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    found = healths(tmp_path, [(bus, codes) for bus, codes, _ in HEALTHS])
    assert found == [health for *_, health in HEALTHS]


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is an NVIDIA driver here")
def test_without_nvmls_library_there_is_no_health(tmp_path: Path) -> None:
    assert healths(tmp_path, [(BUS, {})]) == ["None False"]
