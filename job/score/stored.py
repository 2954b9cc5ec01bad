"""The values a model carries, each with the bits it is really stored in, and a copy that can be traced."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from job.errors import UsageError


@dataclass(frozen=True)
class Width:
    """Bits of a value, and whether its sign is a bit of its own (as in IEEE floats)."""

    bits: int
    sign_bit: bool = False


@dataclass(frozen=True)
class InputQuantisation:
    """How a layer quantises what it reads while it runs: bits, and what it has to find out each time."""

    bits: int
    finds_scale: bool  # from the values of each row; else the scale is stored
    finds_zero_point: bool


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor of values that inference needs.

    `tensor` holds what the values stand for (dequantised where they are quantised), `bits` the size of
    one value, `overhead_bits` that of the scales and zero points of all of them together. `sources` are the
    tensors of the model that it was computed from ahead of time, empty for one that the model itself has.
    `input_quantisation` is of the layer whose weight it is.
    """

    name: str
    tensor: Tensor
    bits: int
    overhead_bits: int = 0
    sources: tuple[Stored, ...] = ()
    input_quantisation: InputQuantisation | None = None

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Stored:
        """Describe `tensor`, a PyTorch quantised one too, by what it stores."""
        if tensor.is_quantized:
            return cls(name, tensor.dequantize(), dtype_bits(tensor.dtype), _scale_bits(tensor))
        return cls(name, tensor, dtype_bits(tensor.dtype))


def dtype_bits(dtype: torch.dtype) -> int:
    """Return the bits of one value of `dtype`; integers of any size that index or count are taken as 32."""
    if dtype is torch.bool:
        return 1
    name = str(dtype).removeprefix("torch.")
    if name in ("quint4x2", "quint2x4"):
        return int(name[5])
    digits = name.lstrip("uint")
    if name.startswith(("int", "uint")) and digits.isdigit():
        return min(int(digits), 32)
    return dtype.itemsize * 8


def plain_copy(model: nn.Module) -> tuple[nn.Module, dict[int, Stored]]:
    """Return a copy of `model`, in eval mode on the CPU, and by id of its tensors what is stored for each.

    In the copy pruned weights are only the weights, and tensors of a quantised subclass (`torchao` and the
    like) plain floating-point ones, so that it executes plain operators; what they store is described
    next to it. Tensors on the meta device stay there. `model` is only read.

    Raises UsageError if the model cannot be copied.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    # Tensors that are no parameters or buffers: deepcopy refuses those that autograd computed (the `weight`
    # that pruning leaves behind), and `to` would leave them where they are.
    loose = {
        id(value): _on_cpu(value.detach().clone())
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor)
    }
    try:
        replica = copy.deepcopy(model, dict[int, Any](loose)).eval()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise UsageError(
            f"the model cannot be copied, and the score never runs the live one: {error}",
            "Give a model that copy.deepcopy accepts",
        ) from error
    replica._apply(_on_cpu)
    _finish_pruning(replica)
    stored: dict[int, Stored] = {}
    for path, module in replica.named_modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or id(tensor) in stored:
                    continue
                full_name = f"{path}.{name}".lstrip(".")
                plain, description = _plain(full_name, tensor)
                tensors[name] = plain
                stored[id(plain)] = description
    return replica, stored


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else tensor.cpu()


def _finish_pruning(model: nn.Module) -> None:
    """Put the pruned weight in the place of the weight and mask that it is computed from."""
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]


def _plain(name: str, tensor: Tensor) -> tuple[Tensor, Stored]:
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None or not hasattr(tensor, "dequantize") or type(tensor) in (Tensor, nn.Parameter):
        return tensor, Stored.of(name, tensor)
    parts: list[Tensor] = [getattr(tensor, part) for part in flatten()[0]]
    data = max(parts, key=Tensor.numel)
    # Several values may share a byte (int4), or a byte hold fewer levels than it could.
    bits = math.ceil(data.numel() * dtype_bits(data.dtype) / tensor.numel())
    target = getattr(tensor, "target_dtype", None)
    if isinstance(target, torch.dtype):
        bits = min(bits, dtype_bits(target))
    overhead = sum(
        part.numel() * dtype_bits(part.dtype)
        for part in parts
        if part is not data and part.count_nonzero()  # zero points that are all 0 need not be stored
    )
    plain = tensor.dequantize().detach()
    return plain, Stored(name, plain, bits, overhead, input_quantisation=_input_quantisation(tensor))


def _input_quantisation(tensor: Any) -> InputQuantisation | None:
    """Return how the layer of a torchao int8 weight quantises its input; None where it does not."""
    how = getattr(tensor, "act_quant_kwargs", None)
    if how is None or type(tensor).__name__ != "Int8Tensor":
        return None
    finds_scale = tensor.act_quant_scale is None
    return InputQuantisation(8, finds_scale, finds_scale and how.mapping_type.name == "ASYMMETRIC")


def unpack(packed: torch.ScriptObject, layer: str) -> dict[str, Tensor | None]:
    """Return the weight and bias inside the packed parameters of a PyTorch quantised module."""
    try:
        weight, bias = packed.unpack()  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError) as error:
        raise UsageError(f"the packed weights of {layer or 'the model'} cannot be read: {error}") from error
    return {"weight": weight, "bias": bias}


def _scale_bits(tensor: Tensor) -> int:
    """Return the bits of a quantised tensor's scales (32 each) and of its zero points where not all are 0."""
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        zero_points = torch.tensor([tensor.q_zero_point()])
    else:
        zero_points = tensor.q_per_channel_zero_points()
    each = 32 + (dtype_bits(tensor.dtype) if zero_points.count_nonzero() else 0)
    return zero_points.numel() * each
