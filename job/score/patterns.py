"""Sequences of operators that count as one: foldings into convolutions, and channel shuffles.

Folded into the convolutions ahead of time, by the conventions of the official rule set:

- A batch norm whose only input is a convolution with no other consumer: one addition an element remains,
  as that convolution's bias, and one parameter a channel.
- A multiplication by a constant after a convolution with no other consumer: nothing remains.

A convolution whose weight several calls share can absorb only what follows every one of them, and one whose
weight is quantised nothing: multiplied by a factor for each channel, its values would have more levels.

RULES, FAQ, on ShuffleNet: an arbitrary permutation counts as the product with a sparse permutation matrix,
and the matrix is stored. What splits one dimension in two, swaps the parts and merges them again is such a
permutation, also written as view, transpose and view; a transposition that leaves the dimensions apart
(attention's heads) is only another order to read them in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from job.score.graph import Graph, Operand, Operation

VIEWS = ("aten.view", "aten._unsafe_view", "aten._reshape_alias")
SWAPS = ("aten.transpose", "aten.permute")


@dataclass(frozen=True)
class Folding:
    """The folded operations (indices), and by convolution the batch norm whose shift becomes its bias."""

    gone: frozenset[int]
    shift_of: dict[int, Operation]


def fold(graph: Graph, absorbs: Callable[[Operand], bool]) -> Folding:
    """Find the operations that fold into the convolutions of `graph` whose weight `absorbs` a factor."""
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
    elif operation.name in ("aten.mul", "aten.div") and not operation["rounding_mode"]:
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
    """Return the operators, stored values and numbers that make one sequence of scalings."""
    return tuple(
        (
            operation.name,
            operation["other"] if isinstance(operation["other"], int | float) else None,
            *(id(stored) for operand in operation.reads for stored in operand.stored),
        )
        for operation in absorbed
    )


def shuffles(graph: Graph) -> dict[int, int]:
    """Return, by the index of the operation that completes each, the size of the shuffled dimension."""
    found: dict[int, int] = {}
    for merge in graph.operations:
        if merge.name == "aten.channel_shuffle":
            found[merge.index] = merge.output.shape[1]
        if merge.name not in VIEWS:
            continue
        swap = _before(graph, merge)
        if swap is not None and swap.name == "aten.clone":
            swap = _before(graph, swap)
        split = _before(graph, swap) if swap is not None and swap.name in SWAPS else None
        if split is None or swap is None or split.name not in VIEWS:
            continue
        size = _shuffled(split.reads[0].shape, split.output.shape, swap.output.shape, merge.output.shape)
        if size:
            found[merge.index] = size
    return found


def _before(graph: Graph, operation: Operation) -> Operation | None:
    producers = operation.reads[0].producers
    return graph.operations[producers[0]] if len(producers) == 1 and producers[0] >= 0 else None


def _shuffled(
    whole: tuple[int, ...], parts: tuple[int, ...], swapped: tuple[int, ...], merged: tuple[int, ...]
) -> int:
    """Return the size of the dimension of `whole` that was split, swapped and merged; 0 if none was."""
    if merged != whole or len(parts) != len(whole) + 1:
        return 0
    for dim, size in enumerate(whole):
        before, after = whole[:dim], whole[dim + 1 :]
        first, second = parts[dim : dim + 2]
        split = first > 1 and second > 1 and parts == (*before, first, second, *after)
        if split and swapped == (*before, second, first, *after):
            return size
    return 0
