"""What a model executed for one image: operations, what they read and wrote, and where they were called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from job.score.stored import Stored

IMAGE = -1
"""The producer of the image itself; operations are numbered from 0."""


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
        """Whether its values depend on the image."""
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
        """Whether it is a batch norm with statistics known ahead of time: x * a + b for each channel."""
        if "batch_norm" not in self.name or self["running_mean"] is None:
            return False
        return not (self["training"] or self["use_input_stats"])

    @property
    def output(self) -> Operand:
        """The first result, for most operators the only one."""
        return self.outputs[0]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module without children: what a counter that sees modules only would see."""

    layer: str
    module: nn.Module
    input_shapes: tuple[torch.Size, ...]
    output_shape: torch.Size


@dataclass(frozen=True, eq=False)
class Graph:
    """What the model executed for one image, in order."""

    operations: tuple[Operation, ...]
    results: tuple[int, ...]  # operations whose results the model returned
    calls: tuple[Call, ...]
    parameters: tuple[Stored, ...]  # every parameter of the model, whether read or not

    def stored_names(self) -> list[str]:
        """Return the name of every stored tensor, parameters first, each once."""
        read = (stored.name for op in self.operations for operand in op.reads for stored in operand.stored)
        return list(dict.fromkeys([*(stored.name for stored in self.parameters), *read]))

    def consumers(self) -> dict[int, list[int]]:
        """Return, for each producer, the operations that read its result; returning it counts as one."""
        readers: dict[int, list[int]] = {}
        for operation in self.operations:
            for producer in {producer for operand in operation.reads for producer in operand.producers}:
                readers.setdefault(producer, []).append(operation.index)
        for producer in self.results:
            readers.setdefault(producer, []).append(len(self.operations))
        return readers
