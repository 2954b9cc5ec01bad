"""Channel shuffles, also those written as view, transpose and view, which strides would make look free.

RULES, FAQ, on ShuffleNet: an arbitrary permutation counts as the product with a sparse permutation matrix,
and the matrix is stored. What splits one dimension in two, swaps the parts and merges them again is such a
permutation; a transposition that leaves the dimensions apart (attention's heads) is only another order to
read them in.
"""

from __future__ import annotations

from job.score.graph import Graph, Operation

VIEWS = ("aten.view", "aten._unsafe_view", "aten._reshape_alias")
SWAPS = ("aten.transpose", "aten.permute")


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
