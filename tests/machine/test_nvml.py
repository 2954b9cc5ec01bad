"""NVML's answers, from a library of its name that is compiled here: few machines have the driver's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOT_SUPPORTED, NO_PERMISSION, LOST = 3, 4, 15  # of nvmlReturn_t

LIBRARY = """
#include <string.h>
typedef void *gpu;
static int one;
int nvmlInitWithFlags(unsigned flags) { return INIT; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "an error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, gpu *found) { *found = &one; return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, gpu *found) {
    *found = &one;
    return strcmp(bus, "00000000:3b:00.0") ? 6 : 0;
}
int nvmlDeviceGetEccMode(gpu from, unsigned *now, unsigned *pending) { *now = *pending = 1; return ECC; }
int nvmlDeviceGetTotalEccErrors(gpu from, int type, int counter, unsigned long long *count) {
    *count = type == 1 && counter == 0 ? 7 : 99;
    return ECC;
}
int nvmlDeviceGetMigMode(gpu from, unsigned *now, unsigned *pending) { *now = *pending = 1; return MIG; }
"""

ASK = """
import sys
from job.errors import JobError
from job.machine import nvml
try:
    print(nvml.health(sys.argv[1]), nvml.all_in_mig_mode())
except JobError as error:
    print(error.exit_code, error)
"""


def answers(folder: Path, bus: str = "00000000:3b:00.0", init: int = 0, ecc: int = 0, mig: int = 0) -> str:
    (folder / "nvml.c").write_text(LIBRARY)
    library = folder / "libnvidia-ml.so.1"
    words = ["gcc", "-shared", "-fPIC", f"-DINIT={init}", f"-DECC={ecc}", f"-DMIG={mig}", "-o", library]
    subprocess.run([*words, folder / "nvml.c"], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", ASK, bus], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_ecc_its_errors_and_mig_are_read(tmp_path: Path) -> None:
    assert answers(tmp_path) == "Health(ecc=True, uncorrected=7, mig=True) True"


@pytest.mark.parametrize("why", [NOT_SUPPORTED, NO_PERMISSION])
def test_what_a_gpu_does_not_have_or_a_user_may_not_know_is_none(why: int, tmp_path: Path) -> None:
    assert answers(tmp_path, ecc=why) == "Health(ecc=None, uncorrected=None, mig=True) True"
    assert answers(tmp_path, mig=why) == "Health(ecc=True, uncorrected=7, mig=None) False"


def test_a_gpu_that_is_gone_is_the_machines_fault(tmp_path: Path) -> None:
    assert answers(tmp_path, ecc=LOST).startswith("74 the GPU is gone from the bus")


def test_a_library_that_does_not_start_and_an_unknown_gpu_have_no_answer(tmp_path: Path) -> None:
    assert answers(tmp_path, init=9) == "None False"  # NVML_ERROR_DRIVER_NOT_LOADED
    assert answers(tmp_path, bus="00000000:00:00.0") == "None True"


def test_without_the_library_there_is_no_answer(tmp_path: Path) -> None:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is an NVIDIA driver here")
    done = subprocess.run(
        [sys.executable, "-c", ASK, "00000000:3b:00.0"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "None False"
