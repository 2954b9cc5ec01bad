"""The device: what it is, whether this PyTorch has code for it, and the arithmetic a run would use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from job.errors import ConfigurationError, MachineError
from job.machine import compiler, driver
from job.machine import device as devices
from job.preflight.check import Finding, ok, warning

GIB = 2**30
TOLERANCE = 0.01


def check_device(device: torch.device) -> Finding:
    """Describe the device; ConfigurationError where this PyTorch has no code for this kind of GPU."""
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
        + describe_health(health)
    )
    if health and health.uncorrected:
        return warning(
            "gpu", text, "Use another machine: this GPU's memory has failed since the driver was loaded"
        )
    return ok("gpu", text)


def bus_address(domain: int, bus: int, device: int) -> str:
    """Return the PCI address in the form that NVML takes."""
    return f"{domain:08x}:{bus:02x}:{device:02x}.0"


def describe_health(health: driver.Health | None) -> str:
    """Return the state of ECC and MIG as text."""
    if health is None:
        return "ECC and MIG unknown, since NVML (libnvidia-ml.so.1) does not answer"
    parts = [f"ECC {_state(health.ecc)}"]
    if health.uncorrected is not None:
        parts.append(f"{health.uncorrected} uncorrected errors")
    return ", ".join(
        [*parts, f"MIG {_state(health.mig)}" + (" (this process uses one instance)" if health.mig else "")]
    )


def check_work(device: torch.device) -> Finding:
    """Run a small convolution and product on the device and compare with the processor; raise MachineError.

    The tolerance is a hundredth of the largest number, far above the error of any of cuDNN's algorithms.
    """
    images = (torch.arange(4 * 8 * 16 * 16) % 3).float().view(4, 8, 16, 16)
    filters = (torch.arange(8 * 8 * 3 * 3) % 5).float().view(8, 8, 3, 3)
    expected = _work(images, filters)
    try:
        found = _work(images.to(device), filters.to(device)).to("cpu")
    except RuntimeError as error:  # of CUDA, of cuDNN, or for lack of memory that other processes hold
        reason = str(error).splitlines()[0]
        raise MachineError(f"a small kernel fails on {device}: {reason}", "Use another machine") from error
    if not torch.allclose(found, expected, rtol=0, atol=TOLERANCE * expected.abs().max().item()):
        raise MachineError(f"{device} computes wrong numbers", "Use another machine")
    return ok("kernel", f"{device} allocates, copies both ways and computes correctly")


def check_compiler(device: torch.device) -> Finding:
    """Check that --compile has what it needs; raise ConfigurationError."""
    if lacking := compiler.missing(device):
        raise compiler.refusal(lacking)
    return ok("compile", "all that torch.compile needs is here")


def check_precision(requested: str, device: torch.device) -> Finding:
    """Report the precision of the training step, and why."""
    resolved = devices.resolve_precision(requested, device)
    if requested != "auto":
        return ok("precision", f"{resolved}, as asked for")
    why = "native to this device" if resolved != "fp32" else "since nothing shorter is native to this device"
    return ok("precision", f"{resolved}, {why}")


def runs_on(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Return whether a GPU runs code for one of `built_for`, such as sm_80 or compute_90.

    Machine code (sm_) runs on its own major version from its minor version on, PTX (compute_) on any later
    GPU (CUDA C++ Programming Guide, "Binary compatibility" and "PTX compatibility").
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
