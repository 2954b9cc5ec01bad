"""The NVIDIA driver as this process can see it, and why there is no GPU when there is none."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from job.errors import ConfigurationError, JobError, MachineError
from job.machine import nvml

KERNEL_MODULE = Path("/proc/driver/nvidia/version")
"""Tells of the host's driver in any container, whether or not that was given a GPU."""

MOUNTED = Path("/usr/local/nvidia/lib64/libcuda.so.1")
"""Where Google's Container-Optimized OS and its like mount the driver's libraries into a container."""

GIVE_IT = "Start the container with --gpus all (docker run --gpus all ...)"
TOOLKIT = "install the NVIDIA container toolkit on the host"


@dataclass(frozen=True)
class Evidence:
    """What can be seen of GPUs and their driver from here. CUDA versions are (major, minor)."""

    built_for: tuple[int, int] | None  # the CUDA that this PyTorch is built for
    driver: str | None  # version of the kernel module, such as 580.65.06
    driver_cuda: tuple[int, int] | None  # the newest CUDA that the driver's library can do
    nodes: bool  # /dev/nvidia0 and so on
    hidden: str | None  # CUDA_VISIBLE_DEVICES
    mig: bool  # every GPU of this machine is in MIG mode
    mounted: bool  # the driver's library is in the folder for mounted ones
    error: str  # how PyTorch says that CUDA does not start


def evidence() -> Evidence:
    """Look, where CUDA does not start."""
    built_for = torch.version.cuda
    return Evidence(
        built_for=_version(built_for) if built_for else None,
        driver=version(),
        driver_cuda=supported_cuda(),
        nodes=any(re.fullmatch(r"nvidia\d+", path.name) for path in Path("/dev").iterdir()),
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES"),
        mig=nvml.all_in_mig_mode(),
        mounted=MOUNTED.exists(),
        error=_start_error(),
    )


def version() -> str | None:
    """Return the version of the NVIDIA kernel module, None where none is loaded."""
    try:
        match = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", KERNEL_MODULE.read_text())
    except OSError:
        return None
    return match[1] if match else None


def supported_cuda() -> tuple[int, int] | None:
    """Return the newest CUDA that the driver can do, by its library; None where that is not there."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int(0)
    if library.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return number.value // 1000, number.value % 1000 // 10


def why_no_gpu(seen: Evidence) -> JobError:
    """Return the error for a machine without a GPU: with one cause where the evidence tells, else all three.

    ConfigurationError; MachineError for a GPU that is there and does not work.
    """
    if seen.built_for is None:
        return _unusable("this PyTorch is built without CUDA", "Use this project's image, or such a build")
    wanted = _text(seen.built_for)
    if seen.driver_cuda and seen.driver_cuda[0] < seen.built_for[0]:  # minor versions are compatible
        return _unusable(
            f"the NVIDIA driver {seen.driver or 'here'} does CUDA up to {_text(seen.driver_cuda)} and is too "
            f"old for this PyTorch, which is built for CUDA {wanted}",
            f"Update the host's driver to one for CUDA {wanted}, or choose a machine image that has one",
        )
    if seen.nodes and seen.driver_cuda is None and seen.mounted:
        return _unusable(
            f"the driver's library is at {MOUNTED}, where the loader does not search",
            "Set LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64, as this project's image does",
        )
    if seen.nodes and seen.driver_cuda is None:
        return _unusable(
            "the GPU's device files are here and the libraries of its driver are not",
            f"{GIVE_IT}, and {TOOLKIT}, which brings the libraries in; on Google's Container-Optimized OS, "
            "which has no toolkit, mount the host's /var/lib/nvidia at /usr/local/nvidia",
        )
    if seen.nodes and seen.hidden is not None and "No CUDA GPUs" in seen.error:
        return _unusable(
            f"CUDA_VISIBLE_DEVICES={seen.hidden} leaves none", "Unset it, or name a GPU that is there"
        )
    if seen.nodes and seen.mig and "No CUDA GPUs" in seen.error:
        return _unusable(
            "the GPU is in MIG mode and this process was given none of its instances",
            "Create one and name it (nvidia-smi mig -cgi PROFILE -C; CUDA_VISIBLE_DEVICES=MIG-UUID), or turn "
            "MIG off",
        )
    if seen.nodes:
        return MachineError(f"there is a GPU and it does not work: {seen.error}", "Use another machine")
    if seen.driver:
        return _unusable(
            f"the host has the NVIDIA driver {seen.driver}, but none of its GPUs is in this container",
            f"{GIVE_IT}; if that is there already, {TOOLKIT}",
        )
    return _unusable(
        "no NVIDIA device and no driver can be seen from here",
        f"{GIVE_IT}, {TOOLKIT}, or give the host an NVIDIA driver for CUDA {wanted}",
    )


def _unusable(cause: str, fix: str) -> ConfigurationError:
    return ConfigurationError(
        f"no GPU can be used: {cause}", f"{fix}. Without one: a small recipe with --device cpu, or --demo"
    )


def _start_error() -> str:
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "No CUDA GPUs are available"


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)


def _text(cuda: tuple[int, int]) -> str:
    return f"{cuda[0]}.{cuda[1]}"
