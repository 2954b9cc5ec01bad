"""The rule set `official`: the challenge's rules applied to everything the network does and stores."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from torch import Tensor

from job.score.conversions import Conversions
from job.score.formulas import Term
from job.score.graph import Graph, Operand, Operation, Stored, dtype_bits
from job.score.operations import is_counted
from job.score.patterns import VIEWS, Folding, fold, shuffles
from job.score.quantised import levels_bits, scale_bits, scales, zero_points
from job.score.tally import Baseline, Line, Tally, Values
from job.score.widths import Widths


def official(graph: Graph, storage: Storage, conversions: Conversions, baseline: Baseline | None) -> Tally:
    """Count every operator and every stored value of `graph`, folded, by the bits in `storage`.

    Operators without a row are left out; the caller refuses or lists them.
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
    return _values(operation.layer, "permutation", size * storage.widths.float_bits + size**2)


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
        return  # an observer's other state is for training; dequantising uses the scale of quantising
    batch_norm = folding.shift_of.get(operation.index)
    for operand in operation.reads:
        if batch_norm is None or operand is not operation["bias"]:
            for stored in operand.stored:
                yield id(stored), Values(layer, stored.name, storage.parameters(stored))
    if batch_norm is not None:
        yield ("shift", _identity(operation)), _per_channel(batch_norm, layer, "shift", storage)


def _identity(operation: Operation) -> tuple[int, ...]:
    stored = tuple(id(stored) for operand in operation.reads for stored in operand.stored)
    return stored or (operation.index,)


def _per_channel(batch_norm: Operation, layer: str, name: str, storage: Storage) -> Values:
    """Return one value a channel, at the bits of the batch norm's affine, or else of its statistics.

    Where those are fills, which are not stored, it is a float that is computed from them ahead of time.
    """
    affine = [batch_norm[part] for part in ("weight", "bias") if batch_norm[part] is not None]
    operands: list[Operand] = affine or [batch_norm["running_mean"], batch_norm["running_var"]]
    widths = [storage.widths.bits(stored) for operand in operands for stored in operand.stored]
    bits = max(widths, default=storage.widths.float_bits)
    return _values(layer, name, batch_norm["input"].shape[1] * bits)


def _values(layer: str, name: str, bits: int) -> Values:
    return Values(layer, f"{layer}.{name}".lstrip("."), Fraction(bits, 32))


class Storage:
    """How the values that `graph` reads are stored, at the bits of `widths`.

    A weight is stored as its non-zero values and a bitmask where that makes the score against `baseline`
    smaller: the multiplications and additions that its zeros save are weighed against the bits of the mask.
    """

    def __init__(self, graph: Graph, widths: Widths, baseline: Baseline) -> None:
        self.widths = widths
        self._sparse: set[int] = set()
        counted = [op for op in graph.operations if is_counted(widths.table.get(op.name))]
        self._choose_sparse(counted, baseline)

    def is_sparse(self, operand: Operand) -> bool:
        """Return whether `operand` is a weight stored as its non-zero values and a bitmask."""
        return bool(operand.stored) and all(id(stored) in self._sparse for stored in operand.stored)

    def parameters(self, stored: Stored) -> Fraction:
        """Return what `stored` counts: its bits, scales and bitmask included, over 32."""
        bits = self._sparse_bits(stored) if id(stored) in self._sparse else None
        if bits is None:
            bits = stored.tensor.numel() * self.widths.bits(stored)
        return Fraction(bits + self._overhead_bits(stored), 32)

    def _overhead_bits(self, stored: Stored) -> int:
        """Return the bits of the scales and zero points that are kept with `stored`."""
        declared = self.widths.declared_value(stored)
        if declared is None or declared.scales is None:
            smaller = (s for s in stored.sources if s.tensor.numel() < stored.tensor.numel())
            of_sources = sum(source.tensor.numel() * source.bits for source in smaller)
            return stored.overhead_bits or (of_sources if declared else 0)
        return declared.scales * 32

    def _choose_sparse(self, counted: list[Operation], baseline: Baseline) -> None:
        """Find the weights for which the zeros save more operations than the bitmask costs parameters."""
        readers: dict[int, list[Operation]] = {}
        weights: dict[int, Stored] = {}
        for operation in counted:
            if self.widths.table[operation.name].kind not in ("conv", "linear", "recurrent"):
                continue
            for operand in operation.reads:
                for stored in operand.stored if len(operand.shape) > 1 else ():
                    weights[id(stored)] = stored
                    readers.setdefault(id(stored), []).append(operation)
        for key, stored in weights.items():
            bits = self._sparse_bits(stored)
            if bits is None:
                continue
            dense = stored.tensor.numel() * self.widths.bits(stored)
            saved = sum((self._saved(operation, stored) for operation in readers[key]), Fraction())
            # One bit stands for -1 or +1: a zero among such values exists only in the bitmask.
            if self.widths.bits(stored) == 1 or baseline.score(Fraction(bits - dense, 32), -saved) <= 0:
                self._sparse.add(key)

    def _saved(self, operation: Operation, stored: Stored) -> Fraction:
        """Return the operations that `operation` saves if `stored` is a sparse weight."""
        cost = self.widths.table[operation.name].cost
        dense, sparse = cost(operation, lambda _: False), cost(operation, lambda o: stored in o.stored)
        return self.widths.counted(operation, dense) - self.widths.counted(operation, sparse)

    def _sparse_bits(self, stored: Stored) -> int | None:
        """Return the bits of the non-zero values and the bitmask; None where there is nothing to leave out.

        A weight that is zero throughout has not been trained, rather than pruned: all of it is stored.
        """
        values = stored.tensor
        if values.is_meta:
            return None
        kept, mask_bits = _kept(values, self.widths.block(stored))
        if not values.count_nonzero() or kept == values.numel():
            return None
        return kept * self.widths.bits(stored) + mask_bits


def _kept(values: Tensor, block: list[int]) -> tuple[int, int]:
    """Return how many values are kept with a bitmask, and its bits: one a value, or one a block.

    Blocks tile the matrix of filters [filters, values of one]; one that is not all zeros is kept whole.
    """
    if not block:
        return int(values.count_nonzero()), values.numel()
    matrix = (values != 0).flatten(1)
    rows, columns = (-(-size // side) * side for size, side in zip(matrix.shape, block, strict=True))
    padded = matrix.new_zeros(rows, columns)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    blocks = padded.reshape(rows // block[0], block[0], columns // block[1], block[1]).any(3).any(1)
    inside = blocks.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return int(inside[: matrix.shape[0], : matrix.shape[1]].sum()), blocks.numel()
