"""The NVIDIA driver as this process sees it: its version, the health of a GPU, and why there is no GPU."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml
import torch

from job.errors import ConfigurationError, JobError, MachineError

KERNEL_MODULE = Path("/proc/driver/nvidia/version")
"""Names the host's driver in any container, with or without a GPU."""

MOUNTED = Path("/usr/local/nvidia/lib64/libcuda.so.1")
"""Where Google's Container-Optimized OS and similar hosts mount the driver's libraries into a container."""

GIVE_IT = "Give the container a GPU (docker run --gpus all, apptainer run --nv, nvidia.com/gpu on Kubernetes)"
TOOLKIT = "install the NVIDIA container toolkit on the host"


@dataclass(frozen=True)
class DriverState:
    """What this process can see of GPUs and their driver. CUDA versions are (major, minor)."""

    built_for: tuple[int, int] | None  # the CUDA that this PyTorch is built for
    driver: str | None  # version of the kernel module, such as 580.65.06
    driver_cuda: tuple[int, int] | None  # the newest CUDA that the driver's library supports
    nodes: bool  # /dev/nvidia0 and the like exist
    hidden: str | None  # CUDA_VISIBLE_DEVICES
    mig: bool  # every GPU of this machine is in MIG mode
    mounted: bool  # the driver's library is in the folder for mounted ones
    error: str  # PyTorch's reason why CUDA does not start


def inspect() -> DriverState:
    """Return what can be seen where CUDA does not start."""
    built_for = torch.version.cuda
    return DriverState(
        built_for=_version(built_for) if built_for else None,
        driver=version(),
        driver_cuda=supported_cuda(),
        nodes=any(re.fullmatch(r"nvidia\d+", path.name) for path in Path("/dev").iterdir()),
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES"),
        mig=all_in_mig_mode(),
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
    """Return the newest CUDA version that the driver's library supports; None without the library."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int(0)
    if library.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return number.value // 1000, number.value % 1000 // 10


def why_no_gpu(seen: DriverState) -> JobError:
    """Return the error for a machine without a usable GPU, with the cause that `seen` shows.

    Where it shows none, the error names all three possible causes. It is a ConfigurationError; a MachineError
    for a GPU that is there and does not work.
    """
    if seen.built_for is None:
        return _unusable("this PyTorch is built without CUDA", "Use this project's image, or such a build")
    wanted = _text(seen.built_for)
    if seen.driver_cuda and seen.driver_cuda[0] < seen.built_for[0]:  # minor versions are compatible
        return _unusable(
            f"the NVIDIA driver {seen.driver or 'here'} supports CUDA up to {_text(seen.driver_cuda)} and is "
            f"too old for this PyTorch, which is built for CUDA {wanted}",
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


@dataclass(frozen=True)
class Health:
    """The state of one GPU; None is what this kind of GPU does not have, or this user may not read."""

    ecc: bool | None
    uncorrected: int | None  # memory errors that ECC could not correct since the driver was loaded
    mig: bool | None  # split into instances, of which a process uses one


def health(bus: str) -> Health | None:
    """Return the state of the GPU with PCI address `bus`, such as 00000000:3b:00.0; None where NVML fails.

    Raises MachineError for a GPU that is gone from the bus.
    """
    with _nvml() as there:
        if not there:
            return None
        gpu = _query(pynvml.nvmlDeviceGetHandleByPciBusId, bus.encode())
        if gpu is None:
            return None
        ecc = _query(pynvml.nvmlDeviceGetEccMode, gpu)
        return Health(
            ecc=None if ecc is None else bool(ecc[0]),
            uncorrected=_query(
                pynvml.nvmlDeviceGetTotalEccErrors,
                gpu,
                pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                pynvml.NVML_VOLATILE_ECC,
            ),
            mig=_in_mig_mode(gpu),
        )


def all_in_mig_mode() -> bool:
    """Return whether there are GPUs and each is in MIG mode."""
    with _nvml() as there:
        if not there:
            return False
        gpus = [
            _query(pynvml.nvmlDeviceGetHandleByIndex, number)
            for number in range(_query(pynvml.nvmlDeviceGetCount) or 0)
        ]
        return bool(gpus) and all(gpu is not None and _in_mig_mode(gpu) for gpu in gpus)


def _in_mig_mode(gpu: Any) -> bool | None:
    mode = _query(pynvml.nvmlDeviceGetMigMode, gpu)
    return None if mode is None else bool(mode[0])


def _query(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function of NVML returns, None where it fails; raise MachineError for a lost GPU."""
    try:
        return function(*arguments)
    except pynvml.NVMLError_GpuIsLost as error:
        raise MachineError("the GPU is gone from the bus", "Use another machine") from error
    except pynvml.NVMLError:
        return None


@contextmanager
def _nvml() -> Iterator[bool]:
    """Load NVML for the block; yield whether it is there and starts."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()
