"""What a quantisation keeps of a value (levels) and with it (scales, zero points), and what it costs.

RULES waive conversions to and from formats that float32 represents exactly, such as int8. They do not
waive arithmetic: multiplying by a scale that is no power of two counts, and so does adding a zero point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from job.score.formulas import Formula, IsSparse, Term, convolution, linear
from job.score.graph import InputQuantisation, Operand, Operation, Stored

SCALES = ("scale", "scales", "output_scale", "Y_scale_i")
ZERO_POINTS = ("zero_point", "zero_points", "output_zero_point", "Y_zero_point_i")
"""The names that the arguments have in PyTorch's quantising and quantised operators."""


def levels_bits(arguments: Mapping[str, Any]) -> int | None:
    """Return the bits of the levels that a (simulated) quantisation keeps; None for any other operator."""
    low, high = arguments.get("quant_min"), arguments.get("quant_max")
    return None if low is None or high is None else math.ceil(math.log2(high - low + 1))


def scales(arguments: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the scales, one for the tensor or one for each channel; nan where they are not known."""
    return _numbers(arguments, SCALES)


def zero_points(arguments: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the zero points as `scales` does; without any the quantisation is symmetric."""
    return _numbers(arguments, ZERO_POINTS)


def scale_bits(arguments: Mapping[str, Any], bits: int) -> int:
    """Return the bits of the scales, 32 each, and of the zero points, `bits` each unless all are 0."""
    points = zero_points(arguments)
    return 32 * len(scales(arguments)) + (bits * len(points) if any(points) else 0)


def power_of_two(*factors: float) -> bool:
    """Return whether multiplying by each of `factors` changes no more than the exponent of a float."""
    return all(math.frexp(factor)[0] == 0.5 for factor in factors)


def computed(name: str, result: Tensor, arguments: Mapping[str, Any], reads: Sequence[Operand]) -> Stored:
    """Return the stored value that a constant computed ahead of time from `reads` is.

    A (de)quantised one has the bits of its levels, one in which values of a stored tensor were only set to
    0 the bits of that tensor, and any other those of its dtype.
    """
    sources = tuple(
        {
            id(source): source
            for operand in reads
            for stored in operand.stored
            for source in stored.sources or (stored,)
        }.values()
    )
    bits = levels_bits(arguments)
    if bits is not None:
        quantised = arguments["input"] if isinstance(arguments.get("input"), Operand) else reads[0]
        if len(quantised.stored) == 1 and not quantised.dtype.is_floating_point:
            # Integers that are read as fractions: the stored values are theirs, under their name.
            (integers,) = quantised.stored
            bits = min(bits, integers.bits)
            return Stored(integers.name, result, bits, scale_bits(arguments, bits), sources)
        return Stored(name, result, bits, scale_bits(arguments, bits), sources)
    kept = next((operand.stored[0] for operand in reads if _is_masked(result, operand)), None)
    if kept is not None:
        return Stored(name, result, kept.bits, kept.overhead_bits, sources)
    plain = Stored.of(name, result)
    return Stored(name, plain.tensor, plain.bits, plain.overhead_bits, sources)


def _is_masked(result: Tensor, operand: Operand) -> bool:
    """Return whether `result` is the stored values of `operand`, or some of them and zeros."""
    values = operand.tensor
    if values is None or len(operand.stored) != 1 or values.dtype is torch.bool or result.is_quantized:
        return False
    if values.is_meta or result.is_meta or values.shape != result.shape or values.is_quantized:
        return False
    return bool(result.any()) and torch.equal(result, torch.where(result != 0, values, 0).to(result.dtype))


def _numbers(arguments: Mapping[str, Any], names: tuple[str, ...]) -> tuple[float, ...]:
    for name in names:
        value = arguments.get(name)
        if isinstance(value, Operand):
            if value.tensor is None or value.tensor.is_meta:
                return (math.nan,) * value.numel
            return tuple(value.tensor.flatten().tolist())
        if value is not None:
            return (float(value),)
    return ()


def quantise(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count x / scale + zero point, either part only where it changes more than the exponent.

    Rounding and clamping to the levels is the conversion itself, which counts nothing.
    """
    return _affine(op)


def dequantise(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count (x - zero point) * scale, as `quantise` does; `conversions` finds where it is absorbed."""
    if not scales(op.arguments):  # a tensor of PyTorch's quantised types hides them
        return [Term(op.output.numel, op.output.numel)]
    return _affine(op)


def _affine(op: Operation) -> list[Term]:
    numel = op.output.numel
    only_exponent = power_of_two(*scales(op.arguments))
    return [Term(0 if only_exponent else numel, numel if any(zero_points(op.arguments)) else 0)]


def quantises_input(formula: Formula, data: str, weight: str) -> Formula:
    """Count as `formula`, and where the weight's layer quantises its input while it runs, that too."""

    def quantised(op: Operation, sparse: IsSparse) -> list[Term]:
        terms = formula(op, sparse)
        stored = op[weight].stored
        how = stored[0].input_quantisation if len(stored) == 1 else None
        if how is None:
            return terms
        products, *rest = terms
        bare = Term(multiplications=products.multiplications, inputs=(op[weight],))  # both of its width
        return [bare, *rest, *_input_quantisation(how, op[data].numel, op[data].shape[-1], op.output.numel)]

    return quantised


def _input_quantisation(how: InputQuantisation, values: int, length: int, outputs: int) -> list[Term]:
    """Count finding the scale of each row, quantising the rows, and scaling the results back, twice.

    The scale is that of the largest magnitude, or with a zero point of the largest and smallest value.
    """
    rows = values // length
    terms = [Term(multiplications=values + 2 * outputs)]  # the input's scale, and that of the weight's row
    if how.finds_scale and not how.finds_zero_point:
        terms.append(Term(rows, values + values - rows))  # |x|, its maximum, * 1/127
    if how.finds_zero_point:
        terms.append(Term(2 * rows, 2 * (values - rows) + 2 * rows))  # as for quantized.linear_dynamic
        terms.append(Term(rows + outputs, values + outputs))  # the zero point, and its part of each result
    return terms


def quantised_dot(formula: Formula) -> Formula:
    """Count integer dot products, a bias (the input's zero point is folded into it) and the new scale."""

    def quantised(op: Operation, sparse: IsSparse) -> list[Term]:
        products, additions, _ = formula(op, sparse)
        outputs = op.output.numel
        bias = () if op["bias"] is None else (op["bias"],)
        moved = any(zero_points(op.arguments))
        return [
            products,
            additions,
            additions.sums.plus(*bias) if additions.sums else Term(additions=outputs),
            Term(multiplications=outputs, additions=outputs if moved else 0),
            Term(multiplications=outputs if op.name.endswith("_relu") else 0, inputs=op.outputs),
        ]

    return quantised


quantised_conv = quantised_dot(convolution)
quantised_linear = quantised_dot(linear)


def quantised_linear_dynamic(op: Operation, sparse: IsSparse) -> list[Term]:
    """Count finding the input's range, quantising it, integer dot products, and scaling the result back."""
    products, sums, _ = linear(op, sparse)
    values, outputs = op["input"].numel, op.output.numel
    return [
        Term(multiplications=products.multiplications, inputs=(op["weight"],)),  # both of the weight's width
        sums,
        Term(additions=2 * (values - 1)),  # the input's minimum and maximum
        Term(2, 2),  # its scale and zero point
        Term(values, values),
        Term(outputs, outputs),  # back to float32, and the bias
        Term(multiplications=outputs if "_relu" in op.name else 0),
    ]


def quantised_add(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count both inputs brought to the scale of the result, their sum and its zero point."""
    outputs = op.output.numel
    return [
        Term(2 * outputs, 2 * outputs),
        Term(multiplications=outputs if op.name.endswith("_relu") else 0, inputs=op.outputs),
    ]


def quantised_mul(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count both zero points taken away, the product, its scale and its zero point."""
    outputs = op.output.numel
    return [Term(outputs, 2 * outputs, op.reads), Term(outputs, outputs)]
