"""Registering the device with PyTorch, for the whole process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from tests.simulated_gpu import autocast
from tests.simulated_gpu.board import BOARD
from tests.simulated_gpu.tensors import OnDevice, SimulatedTensor, copy

NAME = "simgpu"
LIBRARIES: list[torch.library.Library] = []  # kernels last as long as these
HostGenerator = torch.Generator


class Backend(_DummyBackendModule):
    """What PyTorch finds as `torch.simgpu`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device: object = None) -> None:
        BOARD.synchronise()


class Generator(HostGenerator):
    """A generator that draws the CPU's numbers and says that it is on the device it was made for."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        return HostGenerator.__new__(cls, "cpu")  # type: ignore[call-arg]

    def __init__(self, device: Any = "cpu") -> None:
        self.on_device = torch.device(device).type == NAME

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE if self.on_device else torch.device("cpu")


@cache
def install() -> None:
    """Put the device there. The thread that calls it is the one that may make tensors on it."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    LIBRARIES.extend([_kernels(), *autocast.kernels(NAME)])
    torch.Generator = Generator  # type: ignore[misc]
    torch.accelerator.synchronize = Backend.synchronize.__get__(Backend())
    nn.Module._apply = _replacing(nn.Module._apply)  # type: ignore[method-assign]
    OnDevice().__enter__()


DEVICE = torch.device("privateuseone", 0)  # the name that `install` changes


def _kernels() -> torch.library.Library:
    """Return the kernels that `torch.tensor(..., device=)` calls below every mode."""

    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
        return SimulatedTensor(torch.empty_strided(size, stride, dtype=dtype))

    def empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
        return SimulatedTensor(
            torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format)
        )

    def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
        return copy(target, source, non_blocking)

    library = torch.library.Library("aten", "IMPL")
    library.impl("empty_strided", empty_strided, "PrivateUse1")
    library.impl("empty.memory_format", empty, "PrivateUse1")
    library.impl("_copy_from", copy_from, "PrivateUse1")
    return library


def _replacing(apply: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Return a `Module._apply` that replaces what it changes: `.data =` cannot change a wrapper."""

    def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        with torch.no_grad():
            changes = any(function(parameter) is not parameter for parameter in module.parameters(recurse))
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(changes)
        try:
            return apply(module, function, recurse)
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)

    return _apply
