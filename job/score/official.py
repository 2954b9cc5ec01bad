"""The rule set `official`: the challenge's rules applied to everything the network does and stores."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from job.score.conversions import Conversions
from job.score.formulas import Term
from job.score.graph import Graph, Operand, Operation
from job.score.levels import levels_bits, scale_bits, scales, zero_points
from job.score.operations import is_counted
from job.score.patterns import VIEWS, Folding, fold, shuffles
from job.score.storage import Storage
from job.score.stored import dtype_bits
from job.score.tally import Baseline, Line, Tally, Values
from job.score.widths import FREEBIE_BITS


def official(graph: Graph, storage: Storage, conversions: Conversions, baseline: Baseline | None) -> Tally:
    """Count every operator and every stored value of `graph`, folded, by the bits in `storage`.

    Operators without a row are left out; the caller has refused or listed them.
    """
    folding = fold(graph, storage.widths.absorbs)
    shuffled = shuffles(graph)
    left = [operation for operation in graph.operations if operation.index not in folding.gone]
    lines = [
        _line(operation, folding, storage)
        for operation in left
        if is_counted(storage.widths.table.get(operation.name)) and operation.index not in conversions.gone
    ]
    # The operator that is a shuffle has its row; one that is written out is a sequence of views.
    written_out = [graph.operations[index] for index in shuffled if graph.operations[index].name in VIEWS]
    lines += [_shuffle(operation, storage) for operation in written_out]
    matrices = {size: _matrix(graph.operations[index], size, storage) for index, size in shuffled.items()}
    values = (*_stored_values(left, folding, storage), *matrices.values())
    return Tally((), tuple(lines), values, baseline)


def _line(operation: Operation, folding: Folding, storage: Storage) -> Line:
    terms = storage.widths.table[operation.name].cost(operation, storage.is_sparse)
    batch_norm = folding.shift_of.get(operation.index)
    if batch_norm is not None and operation["bias"] is None:
        terms.append(_shift(batch_norm, terms))
    return _weighed(operation, storage.widths.kind(operation), terms, storage)


def _shift(batch_norm: Operation, terms: list[Term]) -> Term:
    """Return the addition of a folded batch norm's shift, which is the convolution's bias now."""
    sums = terms[1].sums  # none where the convolution is a transposed one
    shift = batch_norm["bias"] if batch_norm["bias"] is not None else batch_norm["running_mean"]
    return sums.plus(shift) if sums is not None else Term(additions=batch_norm.output.numel)


def _shuffle(operation: Operation, storage: Storage) -> Line:
    terms = [Term(multiplications=operation.output.numel, inputs=operation.reads)]
    return _weighed(operation, "permutation", terms, storage)


def _matrix(operation: Operation, size: int, storage: Storage) -> Values:
    """Return a permutation's sparse matrix: `size` ones, and the bitmask of where they are."""
    ones = size * (FREEBIE_BITS if storage.widths.freebie else 32)
    return _values(operation.layer, "permutation", ones + size**2)


def _weighed(operation: Operation, kind: str, terms: list[Term], storage: Storage) -> Line:
    return Line(
        operation.layer,
        kind,
        operation.name,
        sum(term.multiplications for term in terms),
        sum(term.additions for term in terms),
        storage.widths.counted(operation, terms),
        storage.widths.accumulated(operation, terms),
    )


def _stored_values(operations: list[Operation], folding: Folding, storage: Storage) -> Iterator[Values]:
    """Yield what `operations` (those left after folding) read, under the layer that reads it first."""
    seen: set[object] = set()
    for operation in operations:
        for key, values in _needed(operation, folding, storage):
            if key not in seen:
                seen.add(key)
                yield values


def _needed(operation: Operation, folding: Folding, storage: Storage) -> Iterator[tuple[object, Values]]:
    """Yield what `operation` needs, each with a key that is the same for the same values."""
    layer = operation.layer
    kind = storage.widths.kind(operation)
    if operation.is_standing_batch_norm:  # x * scale + shift, whatever the statistics and the affine were
        yield ("scale", _identity(operation)), _per_channel(operation, layer, "scale", storage)
        yield ("shift", _identity(operation)), _per_channel(operation, layer, "shift", storage)
        return
    if kind == "quantise" or operation.name.startswith("quantized."):
        bits = levels_bits(operation.arguments) or dtype_bits(operation.output.dtype)
        key = ("scales", layer, scales(operation.arguments), zero_points(operation.arguments))
        yield key, _values(layer, "scales", scale_bits(operation.arguments, bits))
    if kind in ("quantise", "dequantise"):
        return  # observers' other state is of training, and the way back has the scale of the way in
    batch_norm = folding.shift_of.get(operation.index)
    for operand in operation.reads:
        if batch_norm is None or operand is not operation["bias"]:
            for stored in operand.stored:
                yield id(stored), Values(layer, stored.name, storage.parameters(stored))
    if batch_norm is not None:
        yield ("shift", _identity(operation)), _per_channel(batch_norm, layer, "shift", storage)


def _identity(operation: Operation) -> tuple[int, ...]:
    return tuple(id(stored) for operand in operation.reads for stored in operand.stored)


def _per_channel(batch_norm: Operation, layer: str, name: str, storage: Storage) -> Values:
    """Return one value a channel, at the bits of the batch norm's affine, or else of its statistics."""
    affine = [batch_norm[part] for part in ("weight", "bias") if batch_norm[part] is not None]
    operands: list[Operand] = affine or [batch_norm["running_mean"], batch_norm["running_var"]]
    bits = max(storage.widths.bits(stored) for operand in operands for stored in operand.stored)
    return _values(layer, name, batch_norm["input"].shape[1] * bits)


def _values(layer: str, name: str, bits: int) -> Values:
    return Values(layer, f"{layer}.{name}".lstrip("."), Fraction(bits, 32))
