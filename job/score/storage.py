"""How many bits each value has: as the model carries it, or as a declaration beside it says."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from job.score.bits import Declared, Width
from job.score.formulas import Term
from job.score.graph import Graph, Operand, Operation
from job.score.levels import levels_bits
from job.score.operations import TABLE, is_counted
from job.score.stored import Stored, dtype_bits

FREEBIE_BITS = 16
"""RULES: entries that quantise nothing count parameters and multiplications as if of 16 bits."""

KEEPS_WIDTH = ("fill", "move", "permutation", "relu", "max pool")
"""Kinds whose result is made of the input's values, 0 and bounds, so needs no more bits than the input."""


class Storage:
    """The bits of everything that `graph` reads; what is `declared` goes before what the model says.

    `freebie` tells whether the 16-bit rule is applied: where it is asked for and nothing is quantised.
    """

    def __init__(self, graph: Graph, declared: Declared, freebie: bool) -> None:
        self._declared = declared
        self._results: dict[int, Width] = {}  # by the operation that wrote it
        self.freebie = False  # while looking for anything quantised
        for operation in graph.operations:
            self._results[operation.index] = self._result(operation)
        counted = [operation for operation in graph.operations if is_counted(operation.name)]
        self.freebie = freebie and not any(
            self._is_quantised(op, operand) for op in counted for operand in op.reads
        )
        weights = {
            id(stored): stored
            for operation in counted
            if TABLE[operation.name].kind in ("conv", "linear")
            for operand in operation.reads
            if len(operand.shape) > 1
            for stored in operand.stored
        }
        self._sparse = {key for key, stored in weights.items() if self._sparse_bits(stored) is not None}

    def is_sparse(self, operand: Operand) -> bool:
        """Return whether `operand` is a weight stored as its non-zero values and a bitmask."""
        return bool(operand.stored) and all(id(stored) in self._sparse for stored in operand.stored)

    def absorbs(self, weight: Operand) -> bool:
        """Return whether `weight` holds floating-point values, which times a factor are such values again."""
        return bool(weight.stored) and all(
            self._declared.value(stored.name) is None and stored.bits >= FREEBIE_BITS
            for stored in weight.stored
        )

    def parameters(self, stored: Stored) -> Fraction:
        """Return what `stored` counts: its bits, scales and bitmask included, over 32."""
        bits = self._sparse_bits(stored) if id(stored) in self._sparse else None
        if bits is None:
            bits = stored.tensor.numel() * self.bits(stored)
        declared = self._declared.value(stored.name)
        overhead = declared.scales * 32 if declared else stored.overhead_bits
        return Fraction(bits + overhead, 32)

    def bits(self, stored: Stored) -> int:
        """Return the bits that one value of `stored` counts."""
        return FREEBIE_BITS if self.freebie else self._own_bits(stored)

    def multiplication_bits(self, operation: Operation, term: Term) -> int:
        """Return the bits one multiplication of `term` counts."""
        if self.freebie:
            return FREEBIE_BITS
        widths = [(operand, self.width(operation, operand)) for operand in term.inputs]
        signs = any(
            width.bits == 1 and operand.stored and operand.dtype is not torch.bool
            for operand, width in widths
        )
        if signs and any(width.sign_bit and operand.is_activation for operand, width in widths):
            return 1  # RULES: a binary +-1 weight only changes the other value's sign bit
        return max((width.bits for _, width in widths), default=32)

    def addition_bits(self, operation: Operation, term: Term) -> int:
        """Return the bits one addition of `term` counts; the freebie leaves additions at theirs."""
        return max((self.width(operation, operand).bits for operand in term.inputs), default=32)

    def width(self, operation: Operation, operand: Operand) -> Width:
        """Return the width of `operand` as `operation` reads it."""
        own = Width(dtype_bits(operand.dtype), operand.dtype.is_floating_point)
        if operand.stored:
            return Width(max(self._own_bits(stored) for stored in operand.stored), own.sign_bit)
        if not operand.is_activation or operand.dtype is torch.bool:
            return own
        declared = self._declared.activation(operation.layer)
        if declared is not None:
            return declared
        return _widest([self._results.get(producer, own) for producer in operand.producers])

    def _own_bits(self, stored: Stored) -> int:
        declared = self._declared.value(stored.name)
        return declared.bits if declared else stored.bits

    def _is_quantised(self, operation: Operation, operand: Operand) -> bool:
        """Return whether `operand` has fewer than 32 bits; truth values are no quantised numbers."""
        return operand.dtype is not torch.bool and self.width(operation, operand).bits < 32

    def _result(self, operation: Operation) -> Width:
        """Return the width of what `operation` wrote."""
        dtype = operation.output.dtype
        own = Width(dtype_bits(dtype), dtype.is_floating_point)
        levels = levels_bits(operation.arguments)
        if levels is not None:
            return Width(levels)
        row = TABLE.get(operation.name)
        if row is None or row.kind not in KEEPS_WIDTH or not operation.reads:
            return own
        widest = _widest([self.width(operation, operand) for operand in operation.reads])
        return widest if widest.bits < own.bits else own

    def _sparse_bits(self, stored: Stored) -> int | None:
        """Return the bits of the non-zero values and the bitmask; None where storing all takes fewer.

        A weight that is zero throughout has not been trained, rather than pruned: all of it is stored.
        """
        values = stored.tensor
        if values.is_meta:
            return None
        declared = self._declared.value(stored.name)
        kept, mask_bits = _kept(values, declared.block if declared else ())
        numel, bits = values.numel(), self.bits(stored)
        if not values.count_nonzero() or kept == numel:
            return None
        sparse = kept * bits + mask_bits
        # One bit stands for -1 or +1: a zero among such values exists only in the bitmask.
        return sparse if bits == 1 or sparse <= numel * bits else None


def _kept(values: Tensor, block: tuple[int, ...]) -> tuple[int, int]:
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


def _widest(widths: list[Width]) -> Width:
    """Return the most bits among `widths`; the sign is a bit of its own only if it is in all of them."""
    return Width(max(width.bits for width in widths), all(width.sign_bit for width in widths))
