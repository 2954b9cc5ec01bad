"""What a rule set counted, line by line, and the score it comes to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

BASELINE_PARAMETERS = 36.5e6  # WideResNet-28-10, the challenge's baseline for CIFAR-100
BASELINE_OPERATIONS = 10.49e9


@dataclass(frozen=True)
class Line:
    """One operator's count in one layer. `counted` weighs the operations by their bits."""

    layer: str
    kind: str
    operator: str
    multiplications: int
    additions: int
    counted: Fraction


@dataclass(frozen=True)
class Values:
    """Stored values of one layer; `counted` weighs them by their bits, 32 being one parameter."""

    layer: str
    name: str
    counted: Fraction


@dataclass(frozen=True)
class Tally:
    """Everything one rule set counts for one model and one image. `kinds` are always shown, in order."""

    kinds: tuple[str, ...]
    lines: tuple[Line, ...]
    values: tuple[Values, ...]

    @property
    def parameters(self) -> Fraction:
        """Counted parameters."""
        return sum((value.counted for value in self.values), Fraction())

    @property
    def total(self) -> Fraction:
        """Counted operations."""
        return sum((line.counted for line in self.lines), Fraction())

    @property
    def parameter_term(self) -> float:
        """The parameters' share of the score."""
        return float(self.parameters) / BASELINE_PARAMETERS

    @property
    def operation_term(self) -> float:
        """The operations' share of the score."""
        return float(self.total) / BASELINE_OPERATIONS

    @property
    def score(self) -> float:
        """The score; lower is better."""
        return self.parameter_term + self.operation_term

    def to_json(self) -> dict[str, Any]:
        """Return the rule set's part of the report's `score` section."""
        kinds = dict.fromkeys([*self.kinds, *(line.kind for line in self.lines)])
        return {
            "parameters": number(self.parameters),
            "operations": {kind: _sums(line for line in self.lines if line.kind == kind) for kind in kinds},
            "total": number(self.total),
            "parameter_term": self.parameter_term,
            "operation_term": self.operation_term,
            "score": self.score,
        }

    def layers_json(self) -> list[dict[str, Any]]:
        """Return one row for each layer and kind, in order of execution, with the layer's parameters."""
        rows: dict[tuple[str, str], list[Line]] = {}
        for line in self.lines:
            rows.setdefault((line.layer, line.kind), []).append(line)
        parameters: dict[str, Fraction] = {}
        for value in self.values:
            parameters[value.layer] = parameters.get(value.layer, Fraction()) + value.counted
        table = [
            {"layer": layer, "kind": kind, **_sums(lines), "parameters": number(parameters.pop(layer, 0))}
            for (layer, kind), lines in rows.items()
        ]
        silent = [
            {"layer": layer, "kind": "stored", **_sums([]), "parameters": number(count)}
            for layer, count in parameters.items()
        ]
        return table + silent


def number(value: Fraction | int) -> int | float:
    """Return a whole number as int, any other as the nearest float."""
    return int(value) if Fraction(value).denominator == 1 else float(value)


def _sums(lines: Iterable[Line]) -> dict[str, Any]:
    lines = list(lines)
    return {
        "multiplications": sum(line.multiplications for line in lines),
        "additions": sum(line.additions for line in lines),
        "counted": number(sum((line.counted for line in lines), Fraction())),
    }
