"""What normalisations, poolings and other reductions cost."""

from __future__ import annotations

import math
from collections import Counter

from job.score.formulas import Formula, IsSparse, Sums, Term
from job.score.graph import Operand, Operation


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
    """Count (x - mean) / sqrt(variance + eps) * weight + bias over groups of n values."""
    numel = op.output.numel
    groups = numel // n
    return [
        Term(groups, numel - groups),  # the mean: n - 1 additions, * 1/n
        Term(0, numel),  # x - mean
        Term(numel + groups, numel - groups),  # the variance: n squares, n - 1 additions, * 1/n
        Term(groups, groups),  # + eps, 1 / sqrt
        Term(numel, 0),  # the division, as a product
        Term(numel if op["weight"] is not None else 0, numel if op["bias"] is not None else 0),
    ]


def total(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count n - 1 additions for each sum of n values."""
    return [_sums(op, _source(op).numel // op.output.numel)]


def mean(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count n - 1 additions and a multiplication by 1/n for each mean of n values."""
    return [_sums(op, _source(op).numel // op.output.numel), Term(multiplications=op.output.numel)]


def product(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count n - 1 multiplications for each product of n values."""
    return [Term(_source(op).numel - op.output.numel, 0, (_source(op),))]


def maximum(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count n - 1 comparisons for each maximum of n values."""
    return [Term(0, _source(op).numel - op.output.numel, (_source(op),))]


def window_mean(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count the mean over a window of fixed size at each position."""
    return [_sums(op, _window(op)), Term(multiplications=op.output.numel)]


def window_maximum(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count a comparison less than the window has values, at each position."""
    return [Term(0, op.output.numel * (_window(op) - 1), (_source(op),))]


def adaptive_mean(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count the mean over windows whose sizes follow from input and output."""
    return [Term(op.output.numel, _window_values(op) - op.output.numel)]


def adaptive_maximum(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count the comparisons in windows whose sizes follow from input and output."""
    return [Term(0, _window_values(op) - op.output.numel, (_source(op),))]


def variance(roots: int) -> Formula:
    """Count mean, differences, squares and their mean, and so many roots for each result."""

    def formula(op: Operation, _sparse: IsSparse) -> list[Term]:
        values, groups = _source(op).numel, op.output.numel
        return [
            Term(groups, values - groups),  # the mean
            Term(0, values),  # x - mean
            Term(values + groups, values - groups),  # squares, their sum, * 1/n
            Term(roots * groups, 0),
        ]

    return formula


def vector_norm(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count a power for each value, n - 1 additions and a root."""
    values, groups = _source(op).numel, op.output.numel
    return [Term(values + groups, values - groups)]


def log_sum_exp(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count n exponentials, n - 1 additions and a logarithm."""
    values, groups = _source(op).numel, op.output.numel
    return [Term(values + groups, values - groups)]


def running_total(op: Operation, _sparse: IsSparse) -> list[Term]:
    """Count n - 1 additions along the dimension."""
    numel = op.output.numel
    return [Term(0, numel - numel // op.output.shape[op["dim"]])]


def _sums(op: Operation, n: int) -> Term:
    """Return the additions of a sum of n values for each element of the result."""
    return Sums(Counter({n: op.output.numel}), (_source(op),)).term()


def _source(op: Operation) -> Operand:
    return op.reads[0]


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
        for size, count in zip(_source(op).shape[-sides:], op.output.shape[-sides:], strict=True)
    ]
    return math.prod(held) * math.prod(op.output.shape[:-sides])
