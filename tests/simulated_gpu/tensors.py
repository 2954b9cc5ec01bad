"""The device's tensors: wrappers around CPU tensors, and the operators on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.simulated_gpu.board import BOARD, Allocation

CPU = torch.device("cpu")
READS = {
    "aten::_local_scalar_dense",  # .item(), float(), bool(), `if tensor`
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
}
STRICT = ("aten::_fused", "aten::_foreach", "aten::_amp")  # take no host tensor, not even a scalar


class SimulatedTensor(Tensor):
    """A tensor on the device. `raw` is the CPU tensor that holds its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    raw: Tensor
    allocation: Allocation

    @staticmethod
    def __new__(cls, raw: Tensor) -> SimulatedTensor:
        with torch.inference_mode(raw.is_inference()):  # a view is what its base is
            tensor = torch.Tensor._make_wrapper_subclass(
                cls,
                raw.size(),
                strides=raw.stride(),
                storage_offset=raw.storage_offset(),
                dtype=raw.dtype,
                layout=raw.layout,
                device=torch.device("simgpu", 0),
            )
        tensor.raw, tensor.allocation = raw, BOARD.allocation(raw)
        return tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return run(function, args, kwargs or {})


class OnDevice(TorchDispatchMode):
    """Has the device asked for in `device=` make new tensors, of which no argument is on it."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator on the CPU values; wrap what is to be on the device."""
    target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [tensor for tensor in tensors if isinstance(tensor, SimulatedTensor)]
    makes = bool(here) if target is None else target.type == "simgpu"
    if not here and not makes:
        return function(*args, **kwargs)
    BOARD.operator()
    name = function.overloadpacket._qualified_op_name
    if name == "aten::copy_":
        return copy(*args, **kwargs)
    if name == "aten::_to_copy" and not makes:
        return _to_host(function, args, kwargs)
    _refuse_two_devices(name, tensors)
    if name in READS:
        BOARD.read(name)
    if makes and target:
        kwargs = {**kwargs, "device": CPU}
    found = function(
        *tree_map_only(SimulatedTensor, _raw, args), **tree_map_only(SimulatedTensor, _raw, kwargs)
    )
    if name in READS or not makes:
        return found
    known = {id(tensor.raw): tensor for tensor in here}  # what works in place returns its argument
    return tree_map_only(
        Tensor, lambda each: known[id(each)] if id(each) in known else SimulatedTensor(each), found
    )


def copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy between the device and the host, or on the device."""
    if isinstance(target, SimulatedTensor):
        target.raw.copy_(_raw(source))
    else:
        BOARD.copy_to(target, _raw(source), non_blocking)
    return target


def _to_host(function: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    non_blocking = bool(kwargs.pop("non_blocking", False))
    value = function(_raw(args[0]), *args[1:], **kwargs)
    host = torch.empty_like(value)
    BOARD.copy_to(host, value, non_blocking)
    return host


def _refuse_two_devices(name: str, tensors: list[Tensor]) -> None:
    """Raise as CUDA does, which takes a scalar from the host and nothing larger."""
    host = [tensor for tensor in tensors if not isinstance(tensor, SimulatedTensor)]
    if name == "aten::_to_copy" or len(host) == len(tensors):
        return
    if (name.startswith(STRICT) and host) or any(tensor.dim() for tensor in host):
        shapes = [tuple(tensor.shape) for tensor in host]
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} has {shapes} on the host")


def _raw(tensor: Tensor) -> Tensor:
    return tensor.raw if isinstance(tensor, SimulatedTensor) else tensor
