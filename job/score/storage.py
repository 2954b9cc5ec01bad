"""How the values of each weight are stored: all of them, or the non-zero ones and a bitmask."""

from __future__ import annotations

from fractions import Fraction

from torch import Tensor

from job.score.graph import Graph, Operand, Operation
from job.score.operations import is_counted
from job.score.stored import Stored
from job.score.tally import Baseline
from job.score.widths import Widths


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
        """Return the operations that `operation` is spared if `stored` is a sparse weight."""
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
        declared = self.widths.declared_value(stored)
        kept, mask_bits = _kept(values, declared.block if declared else [])
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
