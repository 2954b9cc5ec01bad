"""Why there is no GPU, from what can be seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from job.machine import driver
from job.machine.driver import Evidence, evidence, why_no_gpu

NOTHING = Evidence(
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
def test_the_cause_is_told_from_the_evidence(
    seen: Evidence, exit_code: int, words: list[str], others: list[str]
) -> None:
    error = why_no_gpu(seen)
    assert error.exit_code == exit_code
    assert all(word in str(error) for word in words), error
    assert not any(word in str(error) for word in others), error
    assert exit_code == 74 or all(word in str(error) for word in ("no GPU", "--device cpu", "--demo"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_what_is_seen_here_is_no_gpu() -> None:
    seen = evidence()
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
