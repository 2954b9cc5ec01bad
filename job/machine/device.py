"""The device a run uses, its arithmetic and its determinism."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from job import events
from job.errors import ConfigurationError
from job.machine import driver
from job.machine.environment import source_hash
from job.machine.process import threads_are_stated

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)

HARDWARE = ("device", "compute_capability", "multiprocessors")
"""Differences that disappear on another machine of the same kind."""

SETTINGS = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_CPU_ISA_HINTS",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS",
    "OMP_DYNAMIC",
    "ONEDNN_CPU_ISA_HINTS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
)
"""Variables of the environment by which PyTorch's libraries choose other arithmetic."""

GPU_SETTINGS = (
    "CUBLASLT_WORKSPACE_SIZE",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_BLAS_PREFER_CUBLASLT",
    "TORCH_CUDNN_V8_API_DISABLED",
)

PACKAGES = ("fastai", "numpy", "torchvision")

MACHINE = (*HARDWARE, "code", "torch", "cuda", "cudnn", *PACKAGES, *SETTINGS, *GPU_SETTINGS)
"""The keys of `machine`; a different value in two attempts at a run is drift."""


def choose(requested: str, local_rank: int | None = None) -> torch.device:
    """Return the device for auto or cuda (the first GPU), cuda:N, cpu or any (a GPU where there is one).

    A GPU becomes CUDA's current device; a device that a plug-in has registered with PyTorch counts as a GPU
    for auto and any. Raises the error of `driver.why_no_gpu` where a GPU is required and there is none, since
    nobody wants 600 epochs on a processor, and ConfigurationError for a number that no GPU has. GPUs are
    numbered as CUDA_VISIBLE_DEVICES leaves them. By its `local_rank` each process of a machine gets one.
    """
    if local_rank is not None and requested in ("auto", "cuda", "any") and torch.cuda.is_available():
        requested = f"cuda:{local_rank}"
    plugged_in = torch.accelerator.current_accelerator(check_available=True)
    if requested in ("auto", "any") and plugged_in is not None and plugged_in.type != "cuda":
        return torch.device(plugged_in.type, 0)
    if requested == "cpu" or (requested == "any" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise driver.why_no_gpu(driver.inspect())
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    number = pick(requested, names, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if len(names) > 1 and local_rank is None:
        events.emit("device", using=f"cuda:{number} ({names[number]})", ignored_gpus=len(names) - 1)
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def pick(requested: str, names: Sequence[str], visible: str | None) -> int:
    """Return the number of the GPU that `requested` names; ConfigurationError where `names` has no such GPU.

    `visible` is CUDA_VISIBLE_DEVICES.
    """
    number = int(requested.partition(":")[2] or 0)
    if number < len(names):
        return number
    there = ", ".join(f"cuda:{at} ({name})" for at, name in enumerate(names))
    limited = f" with CUDA_VISIBLE_DEVICES={visible}" if visible is not None else ""
    raise ConfigurationError(
        f"there is no {requested}; this process sees {there}{limited}", "Name one of those"
    )


def resolve_precision(requested: str, device: torch.device) -> str:
    """Return `requested`; for `auto`, bf16 where the hardware multiplies it natively.

    Elsewhere `auto` is fp16 on a GPU from compute capability 7 on, else fp32.
    """
    if requested != "auto":
        return requested
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "fp32"


def configure(deterministic: bool, shards: int = 1) -> None:
    """Make fp32 mean IEEE fp32 (no TF32) and, if asked, algorithms deterministic; call before CUDA starts.

    The process also keeps the memory that it frees. With several shards it has one thread, unless the user
    has set OMP_NUM_THREADS: bits depend on the threads, and may not on the processes.
    """
    if shards > 1 and not threads_are_stated():
        torch.set_num_threads(1)
    _keep_freed_memory()
    _turn_tf32_off()
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS refuses deterministic work without it
        torch.use_deterministic_algorithms(True)
        # Filling new memory protects code that reads it before writing; none here does, and it costs time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def describe(device: torch.device) -> str:
    """Return the device's name for the report."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def machine(device: torch.device) -> dict[str, str | None]:
    """Return what the bits depend on besides the recipe, by the names in MACHINE; call after `configure`.

    CUDA lays random numbers out over its multiprocessors, of which one model of GPU can have several numbers.
    """
    on_gpu = device.type == "cuda"
    properties = torch.cuda.get_device_properties(device) if on_gpu else None
    return {
        "device": describe(device),
        "compute_capability": f"{properties.major}.{properties.minor}" if properties else None,
        "multiprocessors": str(properties.multi_processor_count) if properties else None,
        "code": source_hash(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": str(torch.backends.cudnn.version()) if on_gpu else None,  # type: ignore[no-untyped-call]
        **{name: version(name) for name in PACKAGES},
        **{name: _setting(name) for name in SETTINGS},
        **{name: _setting(name) if on_gpu else None for name in GPU_SETTINGS},
    }


def _setting(name: str) -> str | None:
    value = os.environ.get(name)
    return None if value is None else value[:200].encode("utf-8", "backslashreplace").decode()


def _turn_tf32_off() -> None:
    """Set every flag of fp32 arithmetic to IEEE and read each back.

    The old flags come first: where they and the new ones disagree, reading the old ones raises, which
    inductor does. cuDNN's operators are set by name: torch 2.11 does not pass the general setting on to them.
    """
    backends: Any = torch.backends
    backends.cudnn.allow_tf32 = False
    backends.cuda.matmul.allow_tf32 = False
    backends.fp32_precision = "ieee"
    backends.cudnn.conv.fp32_precision = "ieee"
    backends.cudnn.rnn.fp32_precision = "ieee"
    require_ieee(
        {
            "cudnn.allow_tf32": backends.cudnn.allow_tf32,
            "cuda.matmul.allow_tf32": backends.cuda.matmul.allow_tf32,
            "fp32_precision": backends.fp32_precision,
            "cuda.matmul.fp32_precision": backends.cuda.matmul.fp32_precision,
            "cudnn.conv.fp32_precision": backends.cudnn.conv.fp32_precision,
            "cudnn.rnn.fp32_precision": backends.cudnn.rnn.fp32_precision,
        }
    )


def require_ieee(flags: Mapping[str, str | bool]) -> None:
    """Raise ConfigurationError for flags of `torch.backends`, by name, that leave TF32 on."""
    wrong = [
        f"torch.backends.{name} is {value!r}" for name, value in flags.items() if value not in (False, "ieee")
    ]
    if wrong:
        raise ConfigurationError(
            f"PyTorch {torch.__version__} does not turn TF32 off: {', '.join(wrong)}",
            "Use the PyTorch of this project's lock file",
        )


def synchronise(device: torch.device) -> None:
    """Wait until `device` has finished all work it was given; on a processor it already has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _keep_freed_memory() -> None:
    """Make the C library keep freed memory for later allocations.

    glibc returns the large tensors of a step on the processor to the system, which clears their pages again
    for the next step: 7 % of its time at k = 6, 14 % at k = 1.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
