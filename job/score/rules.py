"""The score under each rule set: parameters / 36.5e6 + operations / 10.49e9, lower is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from job.errors import UsageError
from job.score import crosscheck
from job.score.architecture import leaderboard, writeup
from job.score.bits import Declared
from job.score.graph import Graph
from job.score.official import official
from job.score.operations import TABLE
from job.score.storage import Storage
from job.score.tally import Tally
from job.score.trace import trace

RULE_SETS = ("writeup", "leaderboard", "official")


@dataclass(frozen=True)
class Unknown:
    """An operator that no row of the table counts, and where the model calls it."""

    operator: str
    layer: str
    where: str


@dataclass(frozen=True)
class Scores:
    """The score of one model under each rule set asked for, and the operators that none of them counts."""

    rule_sets: dict[str, Tally]
    unknown: tuple[Unknown, ...]
    freebie: bool  # whether `official` counts parameters and multiplications as 16-bit

    def to_json(self, per_layer: bool = False) -> dict[str, Any]:
        """Return the report's `score` section.

        `official` also says whether the freebie was applied; each rule set gets `unknown` where operators
        were left out, and `layers` if `per_layer`.
        """
        document = {name: tally.to_json() for name, tally in self.rule_sets.items()}
        for name, tally in self.rule_sets.items():
            if name == "official":
                document[name]["freebie"] = self.freebie
            if self.unknown:
                document[name]["unknown"] = [vars(operator) for operator in self.unknown]
            if per_layer:
                document[name]["layers"] = tally.layers_json()
        return document


def score(
    model: nn.Module,
    input_shape: tuple[int, ...] = (3, 32, 32),
    rule_sets: Sequence[str] = RULE_SETS,
    *,
    allow_unknown: bool = False,
    declared: Declared | None = None,
    freebie: bool = True,
) -> Scores:
    """Count what `model` does for one image of `input_shape` (channels, height, width), batch size 1.

    A copy is run once, in eval mode; `model` itself is only read. `declared` gives the bits of values
    that are quantised by simulation. `freebie=False` counts everything at its real width.

    Raises UsageError for an operator that the table does not have, unless `allow_unknown` lists it, for an
    unknown rule set, a declaration that fits nothing and a model that cannot be copied; DataError if the
    model does not run on such an image; JobError if torchstat counts a layer that it can count differently.
    """
    for name in rule_sets:
        if name not in RULE_SETS:
            raise UsageError(f"there is no rule set {name!r}", f"Choose from {', '.join(RULE_SETS)}")
    graph = trace(model, input_shape)
    unknown = _unknown(graph)
    if unknown and not allow_unknown:
        first = unknown[0]
        raise UsageError(
            f"no rule counts the operator {first.operator}, which layer {first.layer or '(model)'} calls"
            f" at {first.where}" + (f", nor {len(unknown) - 1} more" if len(unknown) > 1 else ""),
            "Pass --allow-unknown to leave such operators out and have them listed",
        )
    crosscheck.check(graph)
    declared = declared or Declared()
    declared.check(graph.stored_names(), (operation.layer for operation in graph.operations))
    storage = Storage(graph, declared, freebie)
    counters = {
        "writeup": lambda: writeup(graph),
        "leaderboard": lambda: leaderboard(graph),
        "official": lambda: official(graph, storage),
    }
    return Scores({name: counters[name]() for name in rule_sets}, unknown, storage.freebie)


def _unknown(graph: Graph) -> tuple[Unknown, ...]:
    found = (Unknown(op.name, op.layer, op.where) for op in graph.operations if op.name not in TABLE)
    return tuple(dict.fromkeys(found))
