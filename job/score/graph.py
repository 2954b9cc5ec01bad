"""What a model executed for one image: operations, the values that they read and where they were called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

IMAGE = -1
"""The producer of the image itself; operations are numbered from 0."""


@dataclass(frozen=True)
class Width:
    """Bits of a value, and whether its sign is a bit of its own (as in IEEE floats)."""

    bits: int
    sign_bit: bool = False


@dataclass(frozen=True)
class InputQuantisation:
    """What a layer that quantises what it reads while it runs has to find out each time."""

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


def _scale_bits(tensor: Tensor) -> int:
    """Return the bits of a quantised tensor's scales (32 each) and of its zero points where not all are 0."""
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        zero_points = torch.tensor([tensor.q_zero_point()])
    else:
        zero_points = tensor.q_per_channel_zero_points()
    each = 32 + (dtype_bits(tensor.dtype) if zero_points.count_nonzero() else 0)
    return zero_points.numel() * each


@dataclass(frozen=True, eq=False)
class Operand:
    """A tensor as one operation read or wrote it.

    Either an activation (`producers` are the operations whose results it holds) or a constant, made of
    the values in `stored` (empty for one that is only a fill, such as `zeros`), with its `tensor`.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    producers: tuple[int, ...] = ()
    stored: tuple[Stored, ...] = ()
    tensor: Tensor | None = None

    @property
    def is_activation(self) -> bool:
        """Return whether its values depend on the image."""
        return bool(self.producers)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True, eq=False)
class Operation:
    """One executed operator that read an activation. `arguments` go by the names of its schema."""

    index: int
    name: str  # "aten.relu": namespace and operator, in-place and out variants under the plain name
    arguments: dict[str, Any]
    reads: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    layer: str  # dotted path of the innermost module, "" for the model itself
    layer_type: type[nn.Module]
    where: str  # the line of the model's own code that called it

    def __getitem__(self, argument: str) -> Any:
        """Return an argument by its schema name; None where the schema has no such argument."""
        return self.arguments.get(argument)

    @property
    def is_standing_batch_norm(self) -> bool:
        """Return whether it is a batch norm with statistics known ahead of time: x * a + b by channel."""
        if "batch_norm" not in self.name or self["running_mean"] is None:
            return False
        return not (self["training"] or self["use_input_stats"])

    @property
    def output(self) -> Operand:
        """The first result, for most operators the only one."""
        return self.outputs[0]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module without children, which takes an activation and returns a tensor."""

    layer: str
    module: nn.Module


@dataclass(frozen=True, eq=False)
class Graph:
    """What the model executed for one image, in order."""

    operations: tuple[Operation, ...]
    results: tuple[int, ...]  # operations whose results the model returned
    calls: tuple[Call, ...]
    parameters: tuple[Stored, ...]  # every parameter of the model, whether read or not

    @property
    def end(self) -> int:
        """The reader, in `consumers`, of what the model returns."""
        return len(self.operations)

    def stored_names(self) -> list[str]:
        """Return the name of every stored tensor, parameters first, each once."""
        read = [stored for op in self.operations for operand in op.reads for stored in operand.stored]
        known = [*self.parameters, *read, *(source for stored in read for source in stored.sources)]
        return list(dict.fromkeys(stored.name for stored in known))

    def consumers(self) -> dict[int, list[int]]:
        """Return, for each producer, the operations that read its result; returning it counts as one."""
        readers: dict[int, list[int]] = {}
        for operation in self.operations:
            for producer in {producer for operand in operation.reads for producer in operand.producers}:
                readers.setdefault(producer, []).append(operation.index)
        for producer in self.results:
            readers.setdefault(producer, []).append(self.end)
        return readers


def plain_name(operator: Any) -> str:
    """Return `aten.add` for add, add_ and every overload of either."""
    name = str(operator._overloadpacket)
    return name[:-1] if operator._schema.is_mutable and name.endswith("_") else name


def by_name(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call under the names in the operator's schema, defaults included."""
    arguments = operator._schema.arguments
    defaults = {
        argument.name: argument.default_value for argument in arguments if argument.has_default_value()
    }
    given = dict(zip((argument.name for argument in arguments), args, strict=False))
    return {**defaults, **given, **kwargs}


def written(operator: Any, arguments: dict[str, Any]) -> list[Tensor]:
    """Return those of the (named) arguments that the operator changes in place."""
    changed = [
        argument.name
        for argument in operator._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return [tensor for name in changed for tensor in tensors(arguments.get(name))]


def is_random(operator: Any) -> bool:
    """Return whether the result differs from call to call, so that none can be computed ahead of time."""
    return torch.Tag.nondeterministic_seeded in operator.tags


def tensors(value: Any) -> list[Tensor]:
    """Return every tensor inside a nested structure."""
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]
