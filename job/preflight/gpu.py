"""The device: what it is, whether this PyTorch has code for it, and the arithmetic a run would use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from job.errors import ConfigurationError, MachineError
from job.machine import compiler, driver
from job.machine import device as devices
from job.preflight.check import Check, ok, warning

GIB = 2**30
TOLERANCE = 0.01


def check_device(device: torch.device) -> Check:
    """Describe the device; ConfigurationError where this PyTorch has no code for that kind of GPU."""
    if device.type != "cuda":
        return ok("gpu", f"none is used: {devices.describe(device)}")
    properties: Any = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    built_for: list[str] = torch.cuda.get_arch_list()
    if not runs_on(capability, built_for):
        raise ConfigurationError(
            f"this PyTorch has no code for {properties.name} (compute capability {capability[0]}."
            f"{capability[1]}), only for {', '.join(built_for)}",
            "Use another kind of GPU",
        )
    newest = driver.supported_cuda()
    free, total = torch.cuda.mem_get_info(device)
    health = driver.health(
        bus_address(properties.pci_domain_id, properties.pci_bus_id, properties.pci_device_id)
    )
    text = (
        f"{device}: {properties.name}, compute capability {capability[0]}.{capability[1]}, "
        f"{free / GIB:.1f} of {total / GIB:.1f} GiB free; driver {driver.version() or 'of unknown version'}"
        + (f" for CUDA up to {newest[0]}.{newest[1]}" if newest else "")
        + f"; PyTorch {torch.__version__} with CUDA {torch.version.cuda} and cuDNN {_cudnn()}; "
        + describe(health)
    )
    if health and health.uncorrected:
        return warning("gpu", text, "Use another machine: its memory has failed since the driver was loaded")
    return ok("gpu", text)


def bus_address(domain: int, bus: int, device: int) -> str:
    """Return the PCI address in the form that NVML takes."""
    return f"{domain:08x}:{bus:02x}:{device:02x}.0"


def describe(health: driver.Health | None) -> str:
    """Return what is known of ECC and MIG as a part of a sentence."""
    if health is None:
        return "ECC and MIG unknown, since NVML (libnvidia-ml.so.1) does not answer"
    parts = [f"ECC {_state(health.ecc)}"]
    if health.uncorrected is not None:
        parts.append(f"{health.uncorrected} uncorrected errors")
    return ", ".join(
        [*parts, f"MIG {_state(health.mig)}" + (" (this process uses one instance)" if health.mig else "")]
    )


def check_work(device: torch.device) -> Check:
    """Allocate on the device, copy there, convolve and multiply, copy back and compare; raise MachineError.

    Within a hundredth of the largest number, which is far more than any algorithm of cuDNN is off.
    """
    images = (torch.arange(4 * 8 * 16 * 16) % 3).float().view(4, 8, 16, 16)
    filters = (torch.arange(8 * 8 * 3 * 3) % 5).float().view(8, 8, 3, 3)
    expected = _work(images, filters)
    try:
        found = _work(images.to(device), filters.to(device)).to("cpu")
    except RuntimeError as error:  # of CUDA, of cuDNN, and memory that other processes hold
        reason = str(error).splitlines()[0]
        raise MachineError(f"a small kernel fails on {device}: {reason}", "Use another machine") from error
    if not torch.allclose(found, expected, rtol=0, atol=TOLERANCE * expected.abs().max().item()):
        raise MachineError(f"{device} computes wrong numbers", "Use another machine")
    return ok("kernel", f"{device} allocates, copies both ways and computes right")


def check_compiler(device: torch.device) -> Check:
    """Say that --compile has what it needs; ConfigurationError where it does not."""
    if lacking := compiler.missing(device):
        raise compiler.refusal(lacking)
    return ok("compile", "all that torch.compile needs is here")


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


def _work(images: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    maps = torch.nn.functional.conv2d(images, filters, padding=1).flatten(1)
    return maps @ maps.T


def _state(on: bool | None) -> str:
    return "not there" if on is None else "on" if on else "off"


def _cudnn() -> str:
    number = torch.backends.cudnn.version() or 0  # type: ignore[no-untyped-call]
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
