"""What torch.compile needs on a device, and where it keeps compiled code."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

from job.errors import ConfigurationError

SECONDS = 60  # for a program of three lines; inductor's own take longer

C = """
#include <Python.h>
#include <stdlib.h>
int micronet_probe(void) { return PY_MAJOR_VERSION; }
"""
CPP = """
#include <Python.h>
#include <cmath>
#include <omp.h>
int micronet_probe() { return omp_get_max_threads(); }
"""


def prepare(cache: Path, device: torch.device) -> None:
    """Keep compiled code in `cache`; ConfigurationError where something that `device` needs is missing.

    Never in a store: it is machine code, and nothing that is read from a store may be run.
    """
    if lacking := missing(device):
        raise refusal(lacking)
    folder = cache.absolute() / "compiled"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")


def missing(device: torch.device) -> list[str]:
    """Return what inductor, or on a GPU triton, needs and would not find, each with the reason.

    Inductor takes $CXX or g++ (torch/_inductor/config.py), triton $CC, gcc or clang
    (triton/runtime/build.py).
    """
    if device.type != "cuda":
        return _trial(_command("CXX", "g++"), "C++", CPP, ["-fopenmp"])
    lacking = [] if find_spec("triton") else ["the Python package triton is not installed"]
    lacking += _trial(_command("CC", "gcc", "clang"), "C", C, [])
    return lacking + (_libcuda() if find_spec("triton") else [])


def refusal(lacking: list[str]) -> ConfigurationError:
    """Return the error for what `missing` has found."""
    return ConfigurationError(
        f"--compile cannot work here: {'; '.join(lacking)}",
        "Use this project's image, install a compiler (apt-get install g++ python3-dev), "
        "or leave --compile out",
    )


def _command(variable: str, *names: str) -> list[str]:
    if os.environ.get(variable):
        return shlex.split(os.environ[variable])
    return [next(filter(shutil.which, names), names[0])]


def _trial(command: list[str], language: str, source: str, options: list[str]) -> list[str]:
    """Compile and link `source` as an extension of this Python; return why that fails, or nothing."""
    include = sysconfig.get_path("include", "posix_prefix")  # not Debian's posix_local, as triton has it
    with tempfile.TemporaryDirectory() as folder:
        words = [*command, "-x", language.lower(), "-", "-shared", "-fPIC", *options]
        words += [f"-I{include}", "-o", str(Path(folder) / "probe.so")]
        try:
            done = subprocess.run(  # noqa: S603 - the compiler that torch.compile would run
                words, input=source, capture_output=True, text=True, timeout=SECONDS, check=False,
                env={**os.environ, "LC_ALL": "C"},
            )  # fmt: skip
        except OSError:
            return [f"there is no {language} compiler ({' '.join(command)} was not found)"]
        except subprocess.TimeoutExpired:
            return [f"{' '.join(command)} did not compile three lines of {language} in {SECONDS} s"]
    if done.returncode == 0:
        return []
    lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
    reason = next((line for line in lines if "error" in line), lines[-1])
    return [f"{' '.join(command)} cannot compile an extension of Python: {reason.strip()}"]


def _libcuda() -> list[str]:
    """Return why triton does not find the driver's library, which it links its launcher with, or nothing."""
    from triton.backends.nvidia import driver

    try:
        driver.libcuda_dirs()
    except (AssertionError, OSError, subprocess.SubprocessError) as error:
        return [f"triton does not find libcuda.so.1 ({' '.join(str(error).split())})"]
    return []
