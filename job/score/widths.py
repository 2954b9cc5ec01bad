"""The bits of each value that is read: as the model stores it, or as they are declared for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from job.errors import UsageError
from job.score.bits import Declared, ValueBits
from job.score.conversions import Conversions
from job.score.formulas import Sums, Term
from job.score.graph import Graph, Operand, Operation, Stored, Width, dtype_bits
from job.score.operations import Row, is_counted
from job.score.quantised import levels_bits

FREEBIE_BITS = 16
"""RULES: entries that quantise nothing count parameters and multiplications as if of 16 bits."""

KEEPS_WIDTH = ("fill", "move", "permutation", "relu", "max pool", "dequantise")
"""Kinds whose result is made of the input's values, 0 and bounds, so needs no more bits than the input."""

SLOPED = ("aten.leaky_relu", "aten._prelu_kernel")
"""Of the kind `relu`, with products with the slope among the results, which need the bits of any product."""


class Widths:
    """The bits of everything that `graph` reads; `declared` bits take precedence over the model's.

    `table` has the row of each operator that is counted. `freebie` is whether the 16-bit rule is applied:
    where it is asked for and nothing is quantised.

    Raises UsageError where a declaration for a parameter has no effect on what is computed from it.
    """

    def __init__(
        self,
        graph: Graph,
        table: Mapping[str, Row],
        conversions: Conversions,
        declared: Declared | None,
        freebie: bool,
    ) -> None:
        self.table = table
        self._conversions = conversions
        self._declared = declared
        self._results: dict[int, Width] = {}  # by the operation that wrote it
        self.freebie = False  # while searching for anything quantised
        for operation in graph.operations:
            self._results[operation.index] = self._result(operation)
        counted = [op for op in graph.operations if is_counted(table.get(op.name))]
        read = [(op, operand) for op in counted for operand in op.reads]
        for operation, operand in read:
            self._check_reached(operation, operand)
        self.freebie = (
            freebie
            and not any(self._is_quantised(op, operand) for op, operand in read)
            and not any(type(self.accumulator(op)) is int and self.accumulator(op) != 32 for op in counted)
        )

    def kind(self, operation: Operation) -> str:
        """Return the kind that `operation` is summed under; "" if no rule counts it."""
        row = self.table.get(operation.name)
        if row is None:
            return ""
        has_weight = any(not operand.is_activation for operand in operation.reads)
        return "matmul" if row.kind == "linear" and not has_weight else row.kind

    def absorbs(self, weight: Operand) -> bool:
        """Return whether `weight` holds floating-point values, which times a factor are such values again."""
        return bool(weight.stored) and all(
            self.declared_value(stored) is None and stored.bits >= FREEBIE_BITS for stored in weight.stored
        )

    @property
    def float_bits(self) -> int:
        """The bits that a float32 value counts."""
        return FREEBIE_BITS if self.freebie else 32

    def bits(self, stored: Stored) -> int:
        """Return the bits that one value of `stored` counts."""
        return FREEBIE_BITS if self.freebie else self._own_bits(stored)

    def counted(self, operation: Operation, terms: list[Term]) -> Fraction:
        """Return the count of `terms`: each operation the bits of its widest input, over 32."""
        bits = sum(
            term.multiplications * self.multiplication_bits(operation, term.inputs)
            + term.additions * self.addition_bits(operation, term.inputs)
            for term in terms
        )
        return Fraction(bits, 32)

    def accumulated(self, operation: Operation, terms: list[Term]) -> Fraction:
        """Return the count of `terms` with the accumulators that are declared for `operation`."""
        declared = self.accumulator(operation)
        if declared is None:
            return self.counted(operation, terms)
        bits = sum(
            term.multiplications * self.multiplication_bits(operation, term.inputs)
            + (
                term.additions * self.addition_bits(operation, term.inputs)
                if term.sums is None
                else term.additions * declared
                if isinstance(declared, int)
                else self._exact_bits(operation, term.sums, term.added)
            )
            for term in terms
        )
        return Fraction(bits, 32)

    def accumulator(self, operation: Operation) -> int | str | None:
        """Return the accumulator declared for `operation`."""
        if self._declared is None:
            return None
        return self._declared.accumulator(operation.layer, self.kind(operation))

    def multiplication_bits(self, operation: Operation, inputs: tuple[Operand, ...]) -> int:
        """Return the bits one multiplication of `inputs` counts."""
        if self.freebie:
            return FREEBIE_BITS
        widths = [(operand, self.width(operation, operand)) for operand in inputs]
        signs = any(
            width.bits == 1 and operand.stored and operand.dtype is not torch.bool
            for operand, width in widths
        )
        if signs and any(width.sign_bit and operand.is_activation for operand, width in widths):
            return 1  # RULES: a binary +-1 weight only changes the other value's sign bit
        return max((width.bits for _, width in widths), default=32)

    def addition_bits(self, operation: Operation, inputs: tuple[Operand, ...]) -> int:
        """Return the bits one addition of `inputs` counts; the freebie leaves additions at theirs."""
        return max((self.width(operation, operand).bits for operand in inputs), default=32)

    def width(self, operation: Operation, operand: Operand) -> Width:
        """Return the width of `operand` as `operation` reads it."""
        own = Width(dtype_bits(operand.dtype), operand.dtype.is_floating_point)
        if operand.stored:
            return Width(max(self._own_bits(stored) for stored in operand.stored), own.sign_bit)
        if not operand.is_activation or operand.dtype is torch.bool:
            return own
        if self._declared is not None:
            declared = self._declared.activation(operation.layer, self.kind(operation))
            if declared is not None:
                return Width(declared.bits, declared.sign_bit)
        return _widest([self._results.get(producer, own) for producer in operand.producers])

    def declared_value(self, stored: Stored) -> ValueBits | None:
        """Return the bits declared for `stored`: under its name, or for the tensor it is computed from.

        Of several tensors those of its size must have the same bits; masks are left out.
        """
        if self._declared is None:
            return None
        own = self._declared.value(stored.name)
        if own is not None or not stored.sources:
            return own
        size = stored.tensor.numel()
        values = [s for s in stored.sources if s.tensor.numel() == size]
        values = [s for s in values if len(values) == 1 or not _is_mask(s.tensor)]
        found = [self._declared.value(source.name) for source in values]
        return found[0] if found and all(bits == found[0] for bits in found) else None

    def block(self, stored: Stored) -> list[int]:
        """Return the sides of the blocks declared for `stored`, [] without any.

        Raises UsageError where it is no matrix of filters.
        """
        declared = self.declared_value(stored)
        if self._declared is None or declared is None or not declared.block:
            return []
        if stored.tensor.dim() < 2:
            raise UsageError(
                f"--bits: the block declared for {self._declared.pattern(declared)!r} needs a matrix,"
                f" and {stored.name!r} is stored in the shape {list(stored.tensor.shape)}",
                "Store it as [filters, values of each], or declare it without a block",
            )
        return declared.block

    def _check_reached(self, operation: Operation, operand: Operand) -> None:
        for stored in operand.stored:
            if self._declared is None or self.declared_value(stored) is not None:
                continue
            declared = [s.name for s in stored.sources if self._declared.value(s.name) is not None]
            if declared:
                sources = ", ".join(source.name for source in stored.sources)
                raise UsageError(
                    f"--bits: what is declared for {declared[0]!r} has no effect: layer"
                    f" {operation.layer or '(model)'} reads {stored.name!r}, computed from {sources}",
                    f"Declare {stored.name!r} itself, or all tensors of its size that it is computed from",
                )

    def _own_bits(self, stored: Stored) -> int:
        declared = self.declared_value(stored)
        return declared.bits if declared else stored.bits

    def _is_quantised(self, operation: Operation, operand: Operand) -> bool:
        """Return whether `operand` has fewer than 32 bits; truth values are no quantised numbers."""
        return operand.dtype is not torch.bool and self.width(operation, operand).bits < 32

    def _result(self, operation: Operation) -> Width:
        """Return the width of what `operation` wrote."""
        if not operation.outputs:
            return Width(32)  # a number that Python has read
        dtype = operation.output.dtype
        own = Width(dtype_bits(dtype), dtype.is_floating_point)
        levels = levels_bits(operation.arguments) or self._conversions.bits.get(operation.index)
        if levels is not None:
            return Width(levels)
        row = self.table.get(operation.name)
        if row is None or row.kind not in KEEPS_WIDTH or operation.name in SLOPED or not operation.reads:
            return own
        reads = (operation["self"],) if row.kind == "permutation" else operation.reads  # without indices
        widest = _widest([self.width(operation, operand) for operand in reads])
        return widest if widest.bits < own.bits else own

    def _exact_bits(self, operation: Operation, sums: Sums, added: tuple[Operand, ...] | None) -> int:
        """Return the bits of all additions in integer adder trees, or of those that come after them."""
        first = sum(self.width(operation, operand).bits for operand in sums.factors)
        if len(sums.factors) == 2 and any(self.width(operation, o).bits == 1 for o in sums.factors):
            first -= 1  # +-1 times a value has the value's bits
        if added is None:
            return sum(count * _tree_bits(n, first) for n, count in sums.counts.items())
        own = self.addition_bits(operation, added)
        return sum(
            count * max(min(first + math.ceil(math.log2(max(n, 1))), 32), own)
            for n, count in sums.counts.items()
        )


def _is_mask(values: Tensor) -> bool:
    return values.dtype is torch.bool or bool(((values == 0) | (values == 1)).all())


def _tree_bits(n: int, bits: int) -> int:
    """Return the bits of the n - 1 additions that sum n values of `bits`, each level a bit wider.

    Of an odd number of values the last one waits for the next level.
    """
    total = 0
    while n > 1:
        total += n // 2 * min(bits, 32)
        n, bits = n - n // 2, bits + 1
    return total


def _widest(widths: list[Width]) -> Width:
    """Return the most bits among `widths`; the sign is a bit of its own only if it is in all of them."""
    return Width(max(width.bits for width in widths), all(width.sign_bit for width in widths))
