"""What PyTorch's quantised operators cost: integer dot products, and the scalings around them.

RULES waive conversions to and from formats that float32 represents exactly, such as int8. They do not
waive arithmetic: multiplying by a scale that is no power of two counts, and so does adding a zero point.
"""

from __future__ import annotations

import math

from job.score.formulas import Formula, IsSparse, Term, convolution, linear
from job.score.graph import Operation
from job.score.levels import scales, zero_points


def quantise(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count x / scale + zero point, either part only where it changes more than the exponent."""
    numel = op.output.numel
    only_exponent = all(math.frexp(scale)[0] == 0.5 for scale in scales(op.arguments))
    return [Term(0 if only_exponent else numel, numel if any(zero_points(op.arguments)) else 0)]


def dot(formula: Formula) -> Formula:
    """Count integer dot products, a bias (the input's zero point is folded into it) and the new scale."""

    def quantised(op: Operation, sparse: IsSparse) -> list[Term]:
        products, sums, _ = formula(op, sparse)
        outputs = op.output.numel
        moved = any(zero_points(op.arguments))
        return [
            products,
            sums,
            Term(additions=outputs),
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
