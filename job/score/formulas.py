"""What one operator costs, from the shapes it met and from the zeros among its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from job.score.graph import Operand, Operation


@dataclass(frozen=True)
class Term:
    """So many multiplications and additions between `inputs`, the widest of which decides their bits.

    Without inputs they are between 32-bit values: accumulators, intermediate results, Python numbers.
    Where an operator has dot products, their multiplications and additions are its first two terms.
    """

    multiplications: int = 0
    additions: int = 0
    inputs: tuple[Operand, ...] = ()


IsSparse: TypeAlias = Callable[[Operand], bool]
"""Whether the zeros of a constant are known ahead of time, so that nothing is multiplied by them."""

Formula: TypeAlias = Callable[[Operation, IsSparse], list[Term]]


def dense(_operand: Operand) -> bool:
    """Count every weight, whatever its value."""
    return False


def free(_op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count nothing."""
    return []


def each(multiplications: int, additions: int) -> Formula:
    """Count so much for each element of the result, at the width of the operator's own inputs."""

    def formula(op: Operation, _sparse: IsSparse) -> list[Term]:
        numel = op.output.numel
        # A number as the other operand is a 32-bit value; numbers elsewhere (dim, alpha) are no operands.
        inputs = () if isinstance(op["other"], int | float) else op.reads
        return [Term(multiplications * numel, additions * numel, inputs)]

    return formula


def composed(multiplications: int, additions: int) -> Formula:
    """Count so much for each element of the result, in steps whose intermediate results have 32 bits."""

    def formula(op: Operation, _sparse: IsSparse) -> list[Term]:
        return [Term(multiplications * op.output.numel, additions * op.output.numel)]

    return formula


def sum_of_two(op: Operation, sparse: IsSparse) -> list[Term]:
    """Count one addition an element, and one multiplication where `alpha` scales the second operand."""
    scaled = 0 if op["alpha"] in (None, 1) else op.output.numel
    return [*each(0, 1)(op, sparse), Term(multiplications=scaled)]


def power(op: Operation, sparse: IsSparse) -> list[Term]:
    """Count n - 1 multiplications for x^n with n of 2 to 4, else one transcendental function."""
    exponent = op["exponent"]
    repeated = isinstance(exponent, int | float) and exponent in (2, 3, 4)
    return each(int(exponent) - 1 if repeated else 1, 0)(op, sparse)


def gelu(op: Operation, sparse: IsSparse) -> list[Term]:
    """Count x/2 * (1 + erf(x / sqrt(2))), or x/2 * (1 + tanh(a * (x + b * x^3)))."""
    multiplications, additions = (7, 2) if op["approximate"] == "tanh" else (4, 1)
    return composed(multiplications, additions)(op, sparse)


def convolution(op: Operation, sparse: IsSparse) -> list[Term]:
    """Count a dot product with each filter at each position; the bias is one more addition."""
    image, weight, bias = op["input"], op["weight"], op["bias"]
    outputs = op.output.numel
    products, sums = _per_filter(weight, sparse)
    if op["transposed"]:  # weight [inputs, ...]: each input meets its filter, and the products add up
        multiplications = products * (image.numel // weight.shape[0])
        additions = max(multiplications - outputs, 0)
    else:
        positions = outputs // weight.shape[0]
        multiplications, additions = products * positions, sums * positions
    return [
        Term(multiplications=multiplications, inputs=(image, weight)),
        Term(additions=additions),
        Term(additions=outputs if bias is not None else 0),
    ]


def linear(op: Operation, sparse: IsSparse) -> list[Term]:
    """Count a dot product with each row of the weight [outputs, inputs], the bias as one more addition."""
    image, weight, outputs = op["input"], op["weight"], op.output.numel
    products, sums = _per_filter(weight, sparse)
    positions = outputs // weight.shape[0]
    return [
        Term(multiplications=products * positions, inputs=(image, weight)),
        Term(additions=sums * positions),
        Term(additions=outputs if op["bias"] is not None else 0),
    ]


def _per_filter(weight: Operand, sparse: IsSparse) -> tuple[int, int]:
    """Return products and additions of one dot product with each filter of `weight` [filters, ...].

    n non-zero weights make n products and n - 1 additions.
    """
    if not sparse(weight) or weight.tensor is None:
        return weight.numel, weight.numel - weight.shape[0]
    return _lengths((weight.tensor != 0).flatten(1).sum(1).tolist())


def _lengths(lengths: list[int]) -> tuple[int, int]:
    return sum(lengths), sum(max(length - 1, 0) for length in lengths)


def matrix_product(left: str, right: str, added: str = "") -> Formula:
    """Count a dot product for each element, and one more addition where `added` is (with `beta` not 0)."""

    def formula(op: Operation, sparse: IsSparse) -> list[Term]:
        outputs = op.output.numel
        multiplications, additions = _matrix(op[left], op[right], outputs, sparse)
        scalings = sum(op[factor] not in (None, 0, 1) for factor in ("alpha", "beta"))
        return [
            Term(multiplications=multiplications, inputs=(op[left], op[right])),
            Term(additions=additions),
            Term(scalings * outputs, outputs if added and op["beta"] != 0 else 0),
        ]

    return formula


def _matrix(left: Operand, right: Operand, outputs: int, sparse: IsSparse) -> tuple[int, int]:
    """Return products and additions of `left` [..., m, k] times `right` [..., k, n], or [k]."""
    for constant, dim in ((left, -1), (right, max(-2, -len(right.shape)))):
        if sparse(constant) and constant.tensor is not None:
            lengths = (constant.tensor != 0).sum(dim).flatten().tolist()
            products, sums = _lengths(lengths)
            times = outputs // len(lengths)  # dot products that each filter takes part in
            return products * times, sums * times
    length = left.shape[-1]
    return outputs * length, outputs * (length - 1)


def attention(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count softmax(Q K^T * scale + mask) V with every step written out, masked positions included."""
    query, key = op["query"], op["key"]
    depth, length = query.shape[-1], key.shape[-2]
    rows = query.numel // depth  # queries over batch and heads
    scores, outputs = rows * length, op.output.numel
    masked = op["is_causal"] or op["attn_mask"] is not None or op["attn_bias"] is not None
    return [
        Term(multiplications=scores * depth, inputs=(query, key)),
        Term(additions=scores * (depth - 1)),
        Term(scores, scores if masked else 0),
        Term(2 * scores, scores - rows),  # the softmax
        Term(outputs * length, outputs * (length - 1)),
    ]


def softmax(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count n exponentials, n - 1 additions and n divisions for n values."""
    numel = op.output.numel
    return [Term(2 * numel, numel - numel // op.output.shape[op["dim"]])]


def log_softmax(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count n exponentials, n - 1 additions, a logarithm and n subtractions for n values."""
    numel = op.output.numel
    groups = numel // op.output.shape[op["dim"]]
    return [Term(numel + groups, numel - groups + numel)]
