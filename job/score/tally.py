"""What a rule set counted, line by line, and the resulting score."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

from job.errors import UsageError

ACCUMULATORS = (
    "RULES: an operation whose widest input has b bits counts b/32. The sums have the width that was declared"
    " for accumulators, exact ones that of an integer adder tree; the score itself counts them at 32 bits"
)


@dataclass(frozen=True)
class Baseline:
    """The network that a score is relative to: 1 for its parameters and 1 for its operations."""

    name: str
    parameters: float
    operations: float

    @classmethod
    def parse(cls, text: str) -> Baseline:
        """Read a name in `BASELINES` or `PARAMETERS,OPERATIONS`; raise UsageError if it is neither."""
        if text in BASELINES:
            return BASELINES[text]
        try:
            parameters, operations = map(float, text.split(","))
        except ValueError:
            parameters = operations = 0.0
        if not (0 < parameters < float("inf") and 0 < operations < float("inf")):
            raise UsageError(
                f"--baseline: {text!r} is not a baseline",
                f"Write {', '.join(BASELINES)} or PARAMETERS,OPERATIONS, for example 6.9e6,1170e6",
            )
        return cls("the given baseline", parameters, operations)

    def score(self, parameters: Fraction, operations: Fraction) -> float:
        """Return the score of `parameters` and `operations`."""
        return float(parameters) / self.parameters + float(operations) / self.operations


CIFAR100_BASELINE = Baseline("CIFAR-100", 36.5e6, 10.49e9)  # WideResNet-28-10 on 3,32,32
IMAGENET_BASELINE = Baseline("ImageNet", 6.9e6, 1170e6)  # MobileNetV2 1.4 on 3,224,224
BASELINES = {"cifar100": CIFAR100_BASELINE, "imagenet": IMAGENET_BASELINE}


def usual_baseline(input_shape: tuple[int, ...]) -> Baseline | None:
    """Return the baseline for images of CIFAR-100's shape; None for others, which could be any task's."""
    return CIFAR100_BASELINE if input_shape == (3, 32, 32) else None


@dataclass(frozen=True)
class Line:
    """One operator's count in one layer. `counted` weighs the operations by their bits.

    `accumulated` is the same with sums of the width that was declared for accumulators.
    """

    layer: str
    kind: str
    operator: str
    multiplications: int
    additions: int
    counted: Fraction
    accumulated: Fraction


@dataclass(frozen=True)
class Values:
    """Stored values of one layer; `counted` weighs them by their bits, 32 being one parameter."""

    layer: str
    name: str
    counted: Fraction


@dataclass(frozen=True)
class OperationTotals:
    """The operations of several lines."""

    multiplications: int
    additions: int
    counted: int | float

    @classmethod
    def of(cls, lines: Iterable[Line]) -> OperationTotals:
        """Add up `lines`."""
        lines = list(lines)
        return cls(
            sum(line.multiplications for line in lines),
            sum(line.additions for line in lines),
            number(sum((line.counted for line in lines), Fraction())),
        )


@dataclass(frozen=True)
class LayerRow:
    """The operations of one kind in one layer, and in the layer's first row what it stores."""

    layer: str
    kind: str
    multiplications: int
    additions: int
    counted: int | float
    parameters: int | float


@dataclass(frozen=True)
class Tally:
    """Everything one rule set counts for one model and one image. `kinds` are always shown, in order.

    `baseline` is None where there is none for such an image; then there is no score.
    """

    kinds: tuple[str, ...]
    lines: tuple[Line, ...]
    values: tuple[Values, ...]
    baseline: Baseline | None = CIFAR100_BASELINE

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
        """The parameters' part of the score."""
        return self.part(parameters=self.parameters)

    @property
    def operation_term(self) -> float:
        """The operations' part of the score."""
        return self.part(operations=self.total)

    @property
    def score(self) -> float:
        """The score; lower is better. Raises UsageError without a baseline."""
        return self.parameter_term + self.operation_term

    def part(self, parameters: Fraction = Fraction(), operations: Fraction = Fraction()) -> float:
        """Return what these parameters and operations add to the score."""
        if self.baseline is None:
            raise UsageError("there is no score without a baseline", "Name one with --baseline")
        return self.baseline.score(parameters, operations)

    def with_accumulators(self) -> Tally:
        """Return the same count with sums of the declared widths."""
        return replace(self, lines=tuple(replace(line, counted=line.accumulated) for line in self.lines))

    def operations(self) -> dict[str, OperationTotals]:
        """Return the operations of each kind."""
        kinds = dict.fromkeys([*self.kinds, *(line.kind for line in self.lines)])
        return {kind: OperationTotals.of(line for line in self.lines if line.kind == kind) for kind in kinds}

    def layers(self) -> list[LayerRow]:
        """Return one row for each layer and kind, in order of execution, with the layer's parameters."""
        rows: dict[tuple[str, str], list[Line]] = {}
        for line in self.lines:
            rows.setdefault((line.layer, line.kind), []).append(line)
        parameters: dict[str, Fraction] = {}
        for value in self.values:
            parameters[value.layer] = parameters.get(value.layer, Fraction()) + value.counted
        table = [
            LayerRow(
                layer, kind, **vars(OperationTotals.of(lines)), parameters=number(parameters.pop(layer, 0))
            )
            for (layer, kind), lines in rows.items()
        ]
        silent = [
            LayerRow(layer, "stored", 0, 0, 0, parameters=number(count))
            for layer, count in parameters.items()
        ]
        return table + silent

    def to_json(self) -> dict[str, Any]:
        """Return the rule set's part of the report's `score` section."""
        counts = {
            "parameters": number(self.parameters),
            "operations": {kind: asdict(sums) for kind, sums in self.operations().items()},
            "total": number(self.total),
        }
        if self.baseline is None:
            return counts
        terms = {"parameter_term": self.parameter_term, "operation_term": self.operation_term}
        return {**counts, **terms, "score": self.score}


def number(value: Fraction | int) -> int | float:
    """Return a whole number as int, any other as the nearest float."""
    return int(value) if Fraction(value).denominator == 1 else float(value)
