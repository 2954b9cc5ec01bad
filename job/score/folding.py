"""What disappears into the convolutions ahead of time, by the conventions of the official rule set.

- A batch norm whose only input is a convolution with no other consumer: no multiplication is left, one
  addition an element as that convolution's bias, one parameter a channel.
- A multiplication by a constant after a convolution with no other consumer: nothing is left.

A convolution whose weight several calls share can absorb only what follows every one of them, and one whose
weight is quantised nothing: times a factor a channel, its values would not be of so few levels any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from job.score.graph import Graph, Operand, Operation


@dataclass(frozen=True)
class Folding:
    """What is gone (indices of operations), and the batch norm whose shift a convolution is left with."""

    gone: frozenset[int]
    shift_of: dict[int, Operation]


def fold(graph: Graph, absorbs: Callable[[Operand], bool]) -> Folding:
    """Find what folds into the convolutions of `graph` whose weight `absorbs` a factor."""
    consumers = graph.consumers()
    followers: dict[int, list[Operation]] = {}  # of each convolution, what it would absorb, in order
    convolution_of: dict[int, int] = {}  # by the operation whose result is the (folded) convolution's
    for operation in graph.operations:
        if operation.name == "aten.convolution" and absorbs(operation["weight"]):
            followers[operation.index] = []
            convolution_of[operation.index] = operation.index
            continue
        source = _scaled_source(operation)
        root = convolution_of.get(source, -1)
        if root >= 0 and len(consumers[source]) == 1:
            followers[root].append(operation)
            convolution_of[operation.index] = root
    _keep_apart(graph, followers)
    gone = frozenset(operation.index for absorbed in followers.values() for operation in absorbed)
    shift_of = {
        root: operation
        for root, absorbed in followers.items()
        for operation in absorbed
        if operation.is_standing_batch_norm
    }
    return Folding(gone, shift_of)


def _scaled_source(operation: Operation) -> int:
    """Return the only producer whose result `operation` scales channel by channel; -1 if it does not."""
    if operation.is_standing_batch_norm:
        scaled: Operand = operation["input"]
    elif operation.name in ("aten.mul", "aten.div"):
        scaled = operation["self"]
        factor = operation["other"]
        if isinstance(factor, Operand) and factor.is_activation and operation.name == "aten.mul":
            scaled, factor = factor, scaled
        if not scaled.is_activation or not _is_constant_per_channel(factor, scaled):
            return -1
    else:
        return -1
    return scaled.producers[0] if len(scaled.producers) == 1 else -1


def _is_constant_per_channel(factor: object, scaled: Operand) -> bool:
    """Return whether `factor` is a number, or stored values broadcast over all but the channels (dim 1)."""
    if not isinstance(factor, Operand):
        return isinstance(factor, int | float)
    if factor.is_activation:
        return False
    shape = (1,) * (len(scaled.shape) - len(factor.shape)) + factor.shape
    return all(size == 1 for dim, size in enumerate(shape) if dim != 1)


def _keep_apart(graph: Graph, followers: dict[int, list[Operation]]) -> None:
    """Empty the lists of convolutions that share a weight unless all of them absorb the same values."""
    readers: dict[int, list[int]] = {}
    for operation in graph.operations:
        for operand in operation.reads:
            for stored in operand.stored:
                readers.setdefault(id(stored), []).append(operation.index)
    for root in followers:
        weight: Operand = graph.operations[root]["weight"]
        sharers = {reader for stored in weight.stored for reader in readers[id(stored)]}
        if len({_signature(followers.get(sharer, [])) for sharer in sharers}) > 1:
            for sharer in sharers & followers.keys():
                followers[sharer] = []


def _signature(absorbed: list[Operation]) -> tuple[object, ...]:
    """Return what tells one sequence of scalings from another: operators, stored values and numbers."""
    return tuple(
        (
            operation.name,
            operation["other"] if isinstance(operation["other"], int | float) else None,
            *(id(stored) for operand in operation.reads for stored in operand.stored),
        )
        for operation in absorbed
    )
