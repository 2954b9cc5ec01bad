"""What one operator costs, from the shapes it met and from the zeros among its weights."""

from __future__ import annotations

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
    """So many multiplications and additions between `inputs`, the widest of which decides their bits.

    Without inputs they are between 32-bit values: accumulators, intermediate results, Python numbers.
    Additions in accumulators have the `sums` that they are part of, and where they come after the sums
    what is `added`. Where an operator has dot products, their multiplications and additions are its first
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
    """Return the lengths of the dot products in `left` [..., m, k] times `right` [..., k, n] or [k].

    Also how often each comes.
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


def softmax(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count n exponentials, n - 1 additions and n divisions for n values."""
    numel = op.output.numel
    return [Term(2 * numel, numel - numel // op.output.shape[op["dim"]])]


def log_softmax(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count n exponentials, n - 1 additions, a logarithm and n subtractions for n values."""
    numel = op.output.numel
    groups = numel // op.output.shape[op["dim"]]
    return [Term(numel + groups, numel - groups + numel)]
