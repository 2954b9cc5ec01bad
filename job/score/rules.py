"""The score under each rule set: parameters and operations relative to a baseline's, lower is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from job.errors import UsageError
from job.score.bits import Declared
from job.score.conversions import conversions
from job.score.entry_2019 import leaderboard, writeup
from job.score.graph import Graph, Operation
from job.score.official import Storage, official
from job.score.operations import TABLE, OwnRule, own_count, own_row
from job.score.tally import ACCUMULATORS, CIFAR100_BASELINE, Baseline, Tally
from job.score.torchstat_check import cross_check
from job.score.trace import trace
from job.score.widths import Widths

RULE_SETS = ("writeup", "leaderboard", "official")

_BRANCHES = (
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "unique_dim",
    "_unique2",
)
"""Operators through which values of the image decide what is computed next."""


@dataclass(frozen=True)
class Unknown:
    """An operator that no row of the table counts, and where the model calls it."""

    operator: str
    layer: str
    where: str
    branches: bool = False  # whether the image's values decide what is computed next

    @classmethod
    def of(cls, operation: Operation) -> Unknown:
        """Describe an operation that no rule counts."""
        branches = operation.name.removeprefix("aten.") in (*_BRANCHES, "index")
        return cls(operation.name, operation.layer, operation.where, branches)

    def __str__(self) -> str:
        """Return the operator with its layer and place."""
        return f"{self.operator} in {self.layer or '(model)'}, {self.where}" + (
            " (depends on the image; the path of an image of zeros is counted)" if self.branches else ""
        )


@dataclass(frozen=True)
class Scores:
    """The score of one model under each rule set asked for, and the operators that none of them counts."""

    rule_sets: dict[str, Tally]
    unknown: tuple[Unknown, ...]
    freebie: bool  # whether `official` counts parameters and multiplications as 16-bit
    accumulators: bool = False  # whether widths of sums were declared

    def to_json(self, per_layer: bool = False) -> dict[str, Any]:
        """Return the report's `score` section.

        `official` also has whether the freebie was applied, and with declared accumulators a count of its
        own for them; each rule set has `unknown` where operators were left out, and `layers` if `per_layer`.
        """
        document = {name: tally.to_json() for name, tally in self.rule_sets.items()}
        for name, tally in self.rule_sets.items():
            if name == "official":
                document[name]["freebie"] = self.freebie
                if self.accumulators:
                    wide = tally.with_accumulators().to_json()
                    figures = {key: wide[key] for key in ("total", "operation_term", "score") if key in wide}
                    document[name]["accumulators"] = {**figures, "rule": ACCUMULATORS}
            if self.unknown:
                document[name]["unknown"] = [asdict(operator) for operator in self.unknown]
            if per_layer:
                document[name]["layers"] = [asdict(row) for row in tally.layers()]
        return document


def score(
    model: nn.Module,
    input_shape: tuple[int, ...] = (3, 32, 32),
    rule_sets: Sequence[str] = RULE_SETS,
    *,
    allow_unknown: bool = False,
    declared: Declared | None = None,
    freebie: bool = True,
    baseline: Baseline | None = CIFAR100_BASELINE,
    own_rules: Sequence[OwnRule] = (),
) -> Scores:
    """Count what `model` does for one image of `input_shape` (channels, height, width), batch size 1.

    A copy is run once, in eval mode; `model` itself is only read. `declared` has the bits of values
    that are quantised by simulation. `freebie=False` counts everything at its real width. Without a
    `baseline` there are counts and no score (sparse storage is then weighed by CIFAR-100's).
    `own_rules` count operators that the table does not have.

    Raises UsageError for an operator that no rule counts, unless `allow_unknown` lists it, for an unknown
    rule set, a declaration without effect and a model that cannot be copied; DataError if the model does
    not run on such an image; JobError if torchstat counts a layer that it can count differently.
    """
    for name in rule_sets:
        if name not in RULE_SETS:
            raise UsageError(f"there is no rule set {name!r}", f"Choose from {', '.join(RULE_SETS)}")
    graph = trace(model, input_shape)
    own = [op for op in graph.operations if op.name not in TABLE and own_count(own_rules, op) is not None]
    table = TABLE | {operation.name: own_row(own_rules) for operation in own}
    unknown = _unknown(graph, {operation.index for operation in own})
    if unknown and not allow_unknown:
        raise _refusal(unknown)
    cross_check(graph)
    converted = conversions(graph)
    if declared is not None:
        kinds = ((op.layer, table[op.name].kind) for op in graph.operations if op.name in table)
        declared.check(graph.stored_names(), (name for op in kinds for name in (op[0], ":".join(op))))
    widths = Widths(graph, table, converted, declared, freebie)
    storage = Storage(graph, widths, baseline or CIFAR100_BASELINE)
    counters = {
        "writeup": lambda: writeup(graph, baseline),
        "leaderboard": lambda: leaderboard(graph, baseline),
        "official": lambda: official(graph, storage, converted, baseline),
    }
    has_accumulators = declared is not None and bool(declared.accumulators)
    return Scores({name: counters[name]() for name in rule_sets}, unknown, widths.freebie, has_accumulators)


def _unknown(graph: Graph, own: set[int]) -> tuple[Unknown, ...]:
    """Return each operator that neither the table nor, as the operations `own`, a user's rule counts."""
    return tuple(
        dict.fromkeys(
            Unknown.of(op)
            for op in graph.operations
            if (op.name not in TABLE and op.index not in own) or _selects(op)
        )
    )


def _selects(operation: Operation) -> bool:
    """Return whether the image's values decide how many values `operation` returns."""
    return operation.name == "aten.index" and any(
        operand.is_activation and operand.dtype in (torch.bool, torch.uint8)
        for operand in operation.reads[1:]
    )


def _refusal(unknown: tuple[Unknown, ...]) -> UsageError:
    first, *others = unknown
    place = f"{first.operator}, which layer {first.layer or '(model)'} calls at {first.where}"
    more = f", nor {len(others)} more" if others else ""
    if first.branches:
        return UsageError(
            f"no rule counts the operator {place}{more}: through it the image's values decide what is"
            " computed, as in an early exit or another data-dependent branch",
            "Score each path as a model of its own, or pass --allow-unknown to count that of a zero image",
        )
    return UsageError(
        f"no rule counts the operator {place}{more}",
        "Pass --rule PACKAGE.MODULE:FUNCTION with a rule of your own, or --allow-unknown to leave such"
        " operators out and have them listed",
    )
