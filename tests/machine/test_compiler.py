"""What --compile needs: the real compilers, and machines that lack a part of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from job.errors import ConfigurationError
from job.machine.compiler import missing, prepare

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
ON_CUDA = """
import json, os, sys, torch
from triton.backends.nvidia import driver
from job.machine.compiler import missing
for variables in json.loads(sys.argv[1]):
    before = dict(os.environ)
    os.environ.update(variables)
    driver.libcuda_dirs.cache_clear()
    print(json.dumps(missing(torch.device("cuda"))))
    os.environ.clear()
    os.environ.update(before)
"""


@pytest.fixture
def libcuda(tmp_path: Path) -> Path:
    """A folder with a library of the driver's name: what it can do is not asked, only where it is."""
    source = tmp_path / "cuda.c"
    source.write_text("int cuInit(unsigned flags) { return 100; }")
    folder = tmp_path / "driver"
    folder.mkdir()
    subprocess.run(["gcc", "-shared", "-o", folder / "libcuda.so.1", source], check=True)
    return folder


def missing_on_cuda(*environments: dict[str, str]) -> list[list[str]]:
    """Return what a process with CUDA would lack in each environment; triton itself caches the driver."""
    command = [sys.executable, "-c", ON_CUDA, json.dumps(environments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def without(*headers: str) -> Callable[[Path], str]:
    """Return a maker of a compiler for which these headers are not there."""

    def make(folder: Path) -> str:
        real = shutil.which("g++")
        blocked = "|".join(f"*{header}*" for header in headers)
        path = folder / "compiler"
        path.write_text(
            f"#!/bin/sh\nsource=$(cat)\ncase $source in {blocked}) "
            f"echo 'fatal error: {headers[0]}: No such file or directory' >&2; exit 1;; esac\n"
            f'printf "%s" "$source" | {real} "$@"\n'
        )
        path.chmod(0o755)
        return str(path)

    return make


def test_this_machine_compiles_for_its_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "elsewhere")
    assert missing(CPU) == []
    prepare(tmp_path, CPU)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "compiled" / "triton")


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_no_compiler_is_named(device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ConfigurationError, match=r"there is no C(\+\+)? compiler \((g\+\+|gcc) was not found"
    ) as caught:
        prepare(tmp_path, device)
    assert caught.value.exit_code == 78
    assert "apt-get install g++ python3-dev" in caught.value.fix
    assert "leave --compile out" in caught.value.fix


@pytest.mark.parametrize("header", ["Python.h", "cmath", "omp.h"])
def test_a_header_that_is_not_there_is_named(
    header: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", without(header)(tmp_path))
    (lacking,) = missing(CPU)
    assert f"fatal error: {header}" in lacking


def test_a_compiler_of_several_words_is_run_as_inductor_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "env LC_ALL=C g++")
    assert missing(CPU) == []


def test_a_gpu_needs_triton_a_c_compiler_and_the_drivers_library(libcuda: Path, tmp_path: Path) -> None:
    compiler = without("Python.h")(tmp_path)
    named, on_path, nowhere, no_header = missing_on_cuda(
        {"TRITON_LIBCUDA_PATH": str(libcuda)},
        {"LD_LIBRARY_PATH": str(libcuda)},
        {},
        {"CC": compiler, "TRITON_LIBCUDA_PATH": str(libcuda)},
    )
    assert named == on_path == []
    if not torch.cuda.is_available():
        assert "triton does not find libcuda.so.1" in nowhere[0]
    (lacking,) = no_header
    assert "fatal error: Python.h" in lacking


def test_triton_that_is_not_installed_is_named(libcuda: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("job.machine.compiler.find_spec", lambda name: None)
    assert missing(CUDA) == ["the Python package triton is not installed"]
