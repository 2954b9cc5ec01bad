"""What PyTorch's quantised operators cost: integer dot products, and the scalings around them.

RULES waive conversions to and from formats that float32 represents exactly, such as int8. They do not
waive arithmetic: multiplying by a scale that is no power of two counts, and so does adding a zero point.
"""

from __future__ import annotations

from job.score.formulas import Formula, IsSparse, Term, convolution, linear
from job.score.graph import Operation
from job.score.levels import power_of_two, scales, zero_points
from job.score.stored import InputQuantisation


def quantise(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count x / scale + zero point, either part only where it changes more than the exponent.

    Rounding and clamping to the levels is the conversion itself, which counts nothing.
    """
    return _affine(op)


def dequantise(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count (x - zero point) * scale, as `quantise` does; what `patterns` finds folded is not asked for."""
    if not scales(op.arguments):  # those of a tensor of PyTorch's quantised types, which hides them
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


def dot(formula: Formula) -> Formula:
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


convolve = dot(convolution)
multiply = dot(linear)


def multiply_dynamic(op: Operation, sparse: IsSparse) -> list[Term]:
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


def add(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count both inputs brought to the scale of the result, their sum and its zero point."""
    outputs = op.output.numel
    return [
        Term(2 * outputs, 2 * outputs),
        Term(multiplications=outputs if op.name.endswith("_relu") else 0, inputs=op.outputs),
    ]


def product(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count both zero points taken away, the product, its scale and its zero point."""
    outputs = op.output.numel
    return [Term(outputs, 2 * outputs, op.reads), Term(outputs, outputs)]
