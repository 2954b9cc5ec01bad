"""What one operator costs, from the shapes it met and from the zeros among its weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from job.score.graph import Operand, Operation


@dataclass(frozen=True)
class Sums:
    """Sums of products of `factors` (of the values themselves where it is one): `counts[n]` of n terms."""

    counts: Counter[int]
    factors: tuple[Operand, ...]

    def term(self) -> Term:
        """Return their additions: n - 1 for n terms."""
        return Term(additions=sum(max(n - 1, 0) * count for n, count in self.counts.items()), sums=self)

    def plus(self, *added: Operand) -> Term:
        """Return one more addition for each sum, of `added`, or else of a 32-bit value."""
        return Term(additions=self.counts.total(), sums=self, added=added)


@dataclass(frozen=True)
class Term:
    """Multiplications and additions of `inputs`, the widest of which decides their bits.

    Without inputs they are of 32-bit values: accumulators, intermediate results, Python numbers.
    Additions in accumulators have the `sums` that they are part of; those after the sums also what is
    `added`. Where an operator has dot products, their multiplications and additions are its first
    two terms.
    """

    multiplications: int = 0
    additions: int = 0
    inputs: tuple[Operand, ...] = ()
    sums: Sums | None = None
    added: tuple[Operand, ...] | None = None


IsSparse: TypeAlias = Callable[[Operand], bool]
"""Whether the zeros of a constant are known ahead of time, so that nothing is multiplied by them."""

Formula: TypeAlias = Callable[[Operation, IsSparse], list[Term]]

Cost: TypeAlias = tuple[int, int]
"""Multiplications and additions."""


def dense(_operand: Operand) -> bool:
    """Count every weight, whatever its value."""
    return False


def free(_op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count nothing."""
    return []


def each(multiplications: int, additions: int) -> Formula:
    """Count these for each element of the result, at the width of the operator's own inputs."""

    def formula(op: Operation, _sparse: IsSparse) -> list[Term]:
        numel = op.output.numel
        # A number as the other operand is a 32-bit value; numbers elsewhere (dim, alpha) are no operands.
        inputs = () if isinstance(op["other"], int | float) else op.reads
        return [Term(multiplications * numel, additions * numel, inputs)]

    return formula


def composed(multiplications: int, additions: int) -> Formula:
    """Count these for each element of the result, in steps whose intermediate results have 32 bits."""

    def formula(op: Operation, _sparse: IsSparse) -> list[Term]:
        return [Term(multiplications * op.output.numel, additions * op.output.numel)]

    return formula


def sum_of_two(op: Operation, sparse: IsSparse) -> list[Term]:
    """Count one addition an element, and one multiplication where `alpha` scales the second operand."""
    scaled = 0 if op["alpha"] in (None, 1) else op.output.numel
    return [*each(0, 1)(op, sparse), Term(multiplications=scaled)]


def quotient(op: Operation, sparse: IsSparse) -> list[Term]:
    """Count one multiplication an element, and one addition where the quotient is rounded."""
    return [*each(1, 0)(op, sparse), Term(additions=op.output.numel if op["rounding_mode"] else 0)]


def reorder(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count one multiplication an element, of the values that are reordered and not of their indices."""
    return [Term(multiplications=op.output.numel, inputs=(op["self"],))]


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
    lengths = _lengths_per_filter(weight, sparse)
    if op["transposed"]:  # weight [inputs, ...]: each input meets its filter, and the products add up
        multiplications = sum(lengths) * (image.numel // weight.shape[0])
        return [
            Term(multiplications=multiplications, inputs=(image, weight)),
            Term(additions=max(multiplications - outputs, 0)),
            Term(additions=outputs if bias is not None else 0),
        ]
    return _dot_products(lengths, outputs // weight.shape[0], (image, weight), bias)


def linear(op: Operation, sparse: IsSparse) -> list[Term]:
    """Count a dot product with each row of the weight [outputs, inputs], the bias as one more addition."""
    weight = op["weight"]
    positions = op.output.numel // weight.shape[0]
    return _dot_products(_lengths_per_filter(weight, sparse), positions, (op["input"], weight), op["bias"])


def _lengths_per_filter(weight: Operand, sparse: IsSparse) -> list[int]:
    """Return the length of the dot product with each filter of `weight` [filters, ...]."""
    if not sparse(weight) or weight.tensor is None:
        return weight.shape[0] * [weight.numel // weight.shape[0]]
    lengths: list[int] = (weight.tensor != 0).flatten(1).sum(1).tolist()
    return lengths


def _dot_products(
    lengths: Iterable[int], times: int, factors: tuple[Operand, ...], bias: Operand | None
) -> list[Term]:
    """Count dot products of these lengths, each so many times: products, sums and biases."""
    counts = Counter(lengths)
    sums = Sums(Counter({n: count * times for n, count in counts.items()}), factors)
    products = sum(n * count for n, count in sums.counts.items())
    after = sums.plus(bias) if bias is not None else Term()
    return [Term(multiplications=products, inputs=factors), sums.term(), after]


def matrix_product(left: str, right: str, added: str = "") -> Formula:
    """Count a dot product for each element, and one more addition where `added` is (with `beta` not 0)."""

    def formula(op: Operation, sparse: IsSparse) -> list[Term]:
        outputs = op.output.numel
        lengths, times = _matrix(op[left], op[right], outputs, sparse)
        bias = op[added] if added and op["beta"] != 0 else None
        scalings = sum(op[factor] not in (None, 0, 1) for factor in ("alpha", "beta"))
        return [
            *_dot_products(lengths, times, (op[left], op[right]), bias),
            Term(multiplications=scalings * outputs),
        ]

    return formula


def _matrix(left: Operand, right: Operand, outputs: int, sparse: IsSparse) -> tuple[list[int], int]:
    """Return the lengths of the dot products, and how many of each there are.

    They are those of `left` [..., m, k] times `right` [..., k, n] or [k].
    """
    for constant, dim in ((left, -1), (right, max(-2, -len(right.shape)))):
        if sparse(constant) and constant.tensor is not None:
            lengths: list[int] = (constant.tensor != 0).sum(dim).flatten().tolist()
            return lengths, outputs // len(lengths)
    return [left.shape[-1]], outputs


def lstm(op: Operation, sparse: IsSparse) -> list[Term]:
    """Count a layer of LSTM cells: gates of the input and of the state, both biases, and the gating."""
    image, hidden = op["input"], op["hidden_size"]
    steps = image.numel // image.shape[-1]
    terms = []
    for factors, bias in (
        ((image, op["weight0"]), op["weight2"]),
        ((op.output, op["weight1"]), op["weight3"]),
    ):
        lengths = _lengths_per_filter(factors[1], sparse)
        terms += _dot_products(lengths, steps, factors, bias if op["has_biases"] else None)
    gates = Term(additions=4 * hidden * steps)  # of the input and of the state, added
    # Of each value: three sigmoids and two tanh, f * c + i * g, and o * tanh(c).
    return [*terms, gates, Term((3 * 2 + 2 + 2 + 1) * hidden * steps, (3 * 1 + 1) * hidden * steps)]


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


def reduced(of_value: Cost, of_result: Cost, own_width: bool = False) -> Formula:
    """Count these costs for each value that is read and each result that they are reduced to.

    At the width of what is read if `own_width`, else in steps whose intermediate results have 32 bits.
    """

    def formula(op: Operation, _sparse: IsSparse) -> list[Term]:
        inputs = op.reads[:1] if own_width else ()
        return [_per(op.reads[0].numel, op.output.numel, of_value, of_result, inputs)]

    return formula


def along(of_value: Cost, of_row: Cost) -> Formula:
    """Count these costs for each value and for each row of them along the dimension `dim`."""

    def formula(op: Operation, _sparse: IsSparse) -> list[Term]:
        numel, shape = op.output.numel, op.output.shape or (1,)
        return [_per(numel, numel // max(shape[op["dim"]], 1), of_value, of_row)]

    return formula


def _per(values: int, groups: int, of_value: Cost, of_group: Cost, inputs: tuple[Operand, ...] = ()) -> Term:
    multiplications, additions = (
        values * per_value + groups * per_group
        for per_value, per_group in zip(of_value, of_group, strict=True)
    )
    return Term(multiplications, additions, inputs)


def batch_norm(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count x * a + b with a, b known ahead of time; with the batch's statistics, a normalisation."""
    if op.is_standing_batch_norm:
        return [Term(op.output.numel, op.output.numel)]
    return _normalise(op, op["input"].numel // op["input"].shape[1])


def layer_norm(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count a normalisation over the last dimensions."""
    return _normalise(op, math.prod(op["normalized_shape"]))


def group_norm(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count a normalisation over each group of channels."""
    return _normalise(op, op["input"].numel // (op["input"].shape[0] * op["group"]))


def _normalise(op: Operation, n: int) -> list[Term]:
    """Count (x - mean) / sqrt(variance + eps) * weight + bias over groups of n values.

    Of each value: its part of the sum, x - mean, the square, its part of that sum, the division as a product.
    Of each group: two sums have n - 1 additions and * 1/n; + eps, 1 / sqrt.
    """
    of_value = (2 + (op["weight"] is not None), 3 + (op["bias"] is not None))
    return [_per(op.output.numel, op.output.numel // n, of_value, (3, -1))]


def total(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count n - 1 additions for each sum of n values."""
    return [_sums(op, op.reads[0].numel // max(op.output.numel, 1))]


def mean(op: Operation, sparse: IsSparse) -> list[Term]:
    """Count n - 1 additions and a multiplication by 1/n for each mean of n values."""
    return [*total(op, sparse), Term(multiplications=op.output.numel)]


def window_mean(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count the mean over a window of fixed size at each position."""
    return [_sums(op, _window(op)), Term(multiplications=op.output.numel)]


def window_maximum(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count a comparison less than the window has values, at each position."""
    return [Term(0, op.output.numel * (_window(op) - 1), (op.reads[0],))]


def adaptive_mean(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count the mean over windows whose sizes follow from input and output."""
    return [Term(op.output.numel, _window_values(op) - op.output.numel)]


def adaptive_maximum(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count the comparisons in windows whose sizes follow from input and output."""
    return [Term(0, _window_values(op) - op.output.numel, (op.reads[0],))]


def _sums(op: Operation, n: int) -> Term:
    """Return the additions of a sum of n values for each element of the result."""
    return Sums(Counter({n: op.output.numel}), (op.reads[0],)).term()


def _window(op: Operation) -> int:
    """Return the number of values under a pooling window; one size for the kernel means every side."""
    kernel: list[int] = op["kernel_size"]
    sides = next(int(character) for character in op.name if character.isdigit())
    return math.prod(kernel) if len(kernel) > 1 else int(kernel[0]) ** sides


def _window_values(op: Operation) -> int:
    """Return how many values all windows of an adaptive pooling hold together; windows may overlap."""
    sides = len(op["output_size"])
    held = [
        sum(-(-(index + 1) * size // count) - index * size // count for index in range(count))
        for size, count in zip(op.reads[0].shape[-sides:], op.output.shape[-sides:], strict=True)
    ]
    return math.prod(held) * math.prod(op.output.shape[:-sides])
