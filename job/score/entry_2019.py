"""The rule sets `writeup` and `leaderboard`: the 2019 entry's own counts, from shapes, without bits or zeros.

A multiplication counts 1/2, an addition 1, a parameter 1, and operators that the sets do not name nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

from torch import nn

from job.score import formulas as f
from job.score.graph import Graph, Operation
from job.score.operations import TABLE
from job.score.tally import Baseline, Line, Tally, Values

Count = Callable[[Operation], tuple[int, int] | None]


def writeup(graph: Graph, baseline: Baseline | None) -> Tally:
    """Count the convolutions and linear layers without their biases, and the average pools."""
    return _tally(graph, ("conv", "linear", "pool"), _writeup_count, baseline)


def leaderboard(graph: Graph, baseline: Baseline | None) -> Tally:
    """Count as `writeup`, and one multiplication for each element that a ReLU *module* passes."""
    return _tally(graph, ("conv", "linear", "pool", "relu"), _leaderboard_count, baseline)


def _tally(graph: Graph, kinds: tuple[str, ...], count: Count, baseline: Baseline | None) -> Tally:
    def lines() -> Iterator[Line]:
        for operation in graph.operations:
            counted = count(operation)
            if counted is not None:
                multiplications, additions = counted
                weighed = Fraction(multiplications, 2) + additions
                yield Line(
                    operation.layer,
                    TABLE[operation.name].kind,
                    operation.name,
                    multiplications,
                    additions,
                    weighed,
                    weighed,
                )

    values = tuple(
        Values(stored.name.rpartition(".")[0], stored.name, Fraction(stored.tensor.numel()))
        for stored in graph.parameters
    )
    return Tally(kinds, tuple(lines()), values, baseline)


def _writeup_count(operation: Operation) -> tuple[int, int] | None:
    row = TABLE.get(operation.name)
    if row is None or row.kind not in ("conv", "linear", "pool"):
        return None
    terms = row.cost(operation, f.dense)
    if row.kind == "linear" and all(operand.is_activation for operand in operation.reads):
        return None  # a product of two activations is no layer
    if row.kind != "pool":
        terms = terms[:2]  # the dot products, without biases
    multiplications = sum(term.multiplications for term in terms)
    additions = sum(term.additions for term in terms)
    if row.kind == "pool":
        additions += operation.output.numel  # hw additions a channel, where the rules need hw - 1
    return multiplications, additions


def _leaderboard_count(operation: Operation) -> tuple[int, int] | None:
    if issubclass(operation.layer_type, nn.ReLU | nn.ReLU6) and operation.name in (
        "aten.relu",
        "aten.hardtanh",
    ):
        return operation.output.numel, 0
    return _writeup_count(operation)
