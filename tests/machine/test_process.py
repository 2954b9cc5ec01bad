"""How many threads OpenMP gets, and how they wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from job.machine import process

SEEN = """
import sys
from job.machine import process
quota = float(sys.argv[1])
process.cpu_quota = lambda: quota
process.fit_threads()
import ctypes, os
from importlib.util import find_spec
from pathlib import Path
(openmp,) = Path(find_spec("torch").origin).parent.glob("lib/libgomp*")  # without the seconds of torch itself
print(ctypes.CDLL(str(openmp)).omp_get_max_threads(), os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": ""}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "0\n"}, None),
    ],
)
def test_a_containers_share_of_the_processors(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert process.cpu_quota(str(tmp_path)) == quota


@pytest.mark.parametrize(
    ("quota", "stated", "seen"),
    [
        ("0.5", {}, f"1 {process.SPINS}"),
        ("1.9", {}, f"1 {process.SPINS}"),
        ("1", {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "ACTIVE"}, "2 None"),
        ("1", {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "7"}, "2 7"),
    ],
)
def test_threads_fit_the_share_and_spin_briefly_unless_the_environment_is_set(
    quota: str, stated: dict[str, str], seen: str
) -> None:
    threads = ("OMP_", "GOMP_", "MKL_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(threads)}
    done = subprocess.run(
        [sys.executable, "-c", SEEN, quota],
        env=environment | stated,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == seen


STARTED = """
import torch
from job.machine import device
device.configure(deterministic=True, shards=2)
print(torch.get_num_threads())
"""

SHARDED = f"""
import os, subprocess, sys
from job.machine import process
os.sched_getaffinity = lambda of: range(8)
process.cpu_quota = lambda: 4
process.fit_threads()
subprocess.run([sys.executable, "-c", {STARTED!r}], check=True)
"""


@pytest.mark.parametrize(("stated", "threads"), [({}, "1"), ({"OMP_NUM_THREADS": "2"}, "2")])
def test_shards_have_one_thread_in_a_container_with_a_share_unless_the_user_sets_the_threads(
    stated: dict[str, str], threads: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=environment | stated,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == threads
