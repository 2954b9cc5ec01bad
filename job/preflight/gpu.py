"""The device: what it is, whether this PyTorch has code for it, and the arithmetic a run would use."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from job.errors import ConfigurationError
from job.machine import device as devices
from job.machine import driver
from job.preflight.check import Check, ok

GIB = 2**30


def check_device(device: torch.device) -> Check:
    """Describe the device; ConfigurationError where this PyTorch has no code for that kind of GPU."""
    if device.type != "cuda":
        return ok("gpu", f"none is used: {devices.describe(device)}")
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    built_for: list[str] = torch.cuda.get_arch_list()
    if not runs_on(capability, built_for):
        raise ConfigurationError(
            f"this PyTorch has no code for {properties.name} (compute capability {capability[0]}."
            f"{capability[1]}), only for {', '.join(built_for)}",
            "Use another kind of GPU",
        )
    newest = driver.supported_cuda()
    return ok(
        "gpu",
        f"{properties.name}, compute capability {capability[0]}.{capability[1]}, "
        f"{properties.total_memory / GIB:.0f} GiB; driver {driver.version() or 'of unknown version'}"
        + (f" for CUDA up to {newest[0]}.{newest[1]}" if newest else "")
        + f", PyTorch {torch.__version__} for CUDA {torch.version.cuda}",
    )


def check_precision(requested: str, device: torch.device) -> Check:
    """Say what arithmetic the training step gets, and why."""
    resolved = devices.resolve_precision(requested, device)
    if requested != "auto":
        return ok("precision", f"{resolved}, as asked for")
    why = "made for by this device" if resolved != "fp32" else "since this device is made for nothing shorter"
    return ok("precision", f"{resolved}, {why}")


def runs_on(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Tell whether a GPU runs code for one of `built_for`, such as sm_80 or compute_90.

    Machine code runs on its own major version from its minor on; compute_ code is translated for any later
    one (CUDA C++ Programming Guide, "Binary compatibility" and "PTX compatibility").
    """
    for name in built_for:
        kind, _, digits = name.partition("_")
        digits = digits.rstrip("af")  # sm_90a
        major, minor = int(digits[:-1]), int(digits[-1])
        if (kind == "compute" and (major, minor) <= capability) or (
            kind == "sm" and major == capability[0] and minor <= capability[1]
        ):
            return True
    return False
