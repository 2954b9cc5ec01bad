"""Conversions of activations: to integer levels and back, by one operator or written out.

RULES: conversions between formats that float32 represents exactly are not tallied. Rounding and clamping to
whole numbers is such a conversion, whether `fake_quantize` does it or `x.round().clamp(0, 15)`. A scale that
is no power of two and a zero point are arithmetic. Those of the way back, (q - zero point) * scale, count
nothing where the reader of the result absorbs them: a dot product with constant weights, whose results are
scaled anyway and have a bias, and the next quantisation, which has a scale of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from job.score.graph import Graph, Operand, Operation
from job.score.operations import TABLE
from job.score.quantised import power_of_two

CLAMPS = {"aten.clamp": ("min", "max"), "aten.hardtanh": ("min_val", "max_val")}
CARRIES = ("move", "permutation", "relu", "pool", "max pool")
"""Kinds whose result has the scale and the zero point of what they read."""


@dataclass(frozen=True)
class Conversions:
    """The operations that count nothing (indices), and by operation the bits of the levels it returns."""

    gone: frozenset[int]
    bits: dict[int, int]


def conversions(graph: Graph) -> Conversions:
    """Find the conversions among the operations of `graph`."""
    return _Search(graph).run()


@dataclass(frozen=True)
class _Clamp:
    """Bounds, at the scale of the rounding, and the operations that are part of the conversion."""

    low: float
    high: float
    gone: tuple[int, ...]

    @property
    def is_whole(self) -> bool:
        return all(math.isfinite(b) and abs(b - round(b)) < 1e-4 for b in (self.low, self.high))


@dataclass
class _Search:
    graph: Graph
    gone: set[int] = field(default_factory=set)
    bits: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.consumers = self.graph.consumers()

    def run(self) -> Conversions:
        for operation in self.graph.operations:
            if _kind(operation) == "dequantise" and self._is_absorbed(operation.index):
                self.gone.add(operation.index)
            if operation.name == "aten.round" and not operation["decimals"]:
                self._written_out(operation)
        return Conversions(frozenset(self.gone), self.bits)

    def _written_out(self, rounding: Operation) -> None:
        after = self._only_reader(rounding)
        clamp = _clamp(after) if after is not None else None
        last = rounding if clamp is None or after is None else after
        clamp = clamp or self._clamp_before(rounding)
        if clamp is None or not clamp.is_whole or clamp.high <= clamp.low:
            return
        self.gone |= {rounding.index, *clamp.gone}
        scaling = self._only_producer(self.graph.operations[min(rounding.index, *clamp.gone)])
        if scaling is not None and power_of_two(_factor(scaling) or 0.0):
            self.gone.add(scaling.index)
        bits = math.ceil(math.log2(round(clamp.high) - round(clamp.low) + 1))
        self.bits[last.index] = bits
        way_back = list(self._way_back(last))
        self.bits |= {operation.index: bits for operation in way_back}
        if way_back and self._is_absorbed(way_back[-1].index):
            self.gone |= {operation.index for operation in way_back}

    def _clamp_before(self, rounding: Operation) -> _Clamp | None:
        """Return the clamp before `rounding`, directly or with a scaling in between."""
        before = self._only_producer(rounding)
        if before is None:
            return None
        factor = _factor(before)
        if factor is None:
            return _clamp(before)
        earlier = self._only_producer(before)
        clamp = _clamp(earlier) if earlier is not None else None
        if clamp is None:
            return None
        scaling = (before.index,) if power_of_two(factor) else ()
        return _Clamp(clamp.low * factor, clamp.high * factor, (*clamp.gone, *scaling))

    def _way_back(self, levels: Operation) -> Iterator[Operation]:
        """Yield what subtracts a zero point from `levels` and multiplies them by a scale, both constants."""
        reader = self._only_reader(levels)
        while reader is not None and (_factor(reader) is not None or _shift(reader) is not None):
            yield reader
            reader = self._only_reader(reader)

    def _is_absorbed(self, index: int) -> bool:
        return all(self._absorbs(reader, index) for reader in self.consumers.get(index, []))

    def _absorbs(self, reader: int, index: int) -> bool:
        """Return whether scale and zero point of what `index` wrote cost nothing where `reader` reads it."""
        if reader == self.graph.end:
            return False
        operation = self.graph.operations[reader]
        activations = [operand for operand in operation.reads if operand.is_activation]
        kind = _kind(operation)
        if kind == "quantise":
            return True
        if kind in ("conv", "linear"):
            return len(activations) == 1
        alone = all(operand.producers == (index,) for operand in activations)
        if kind in CARRIES and alone:
            return self._is_absorbed(reader)
        # Of two summands one is brought to the scale of the other, and the sum to that of its quantisation.
        carries = kind in CARRIES or (kind == "add" and activations[-1].producers == (index,) and not alone)
        return carries and self._is_quantised_next(reader)

    def _is_quantised_next(self, index: int) -> bool:
        readers = self.consumers.get(index, [])
        return bool(readers) and all(
            reader != self.graph.end
            and (
                (kind := _kind(self.graph.operations[reader])) == "quantise"
                or (kind in CARRIES and self._is_quantised_next(reader))
            )
            for reader in readers
        )

    def _only_reader(self, operation: Operation) -> Operation | None:
        readers = self.consumers.get(operation.index, [])
        return (
            self.graph.operations[readers[0]] if len(readers) == 1 and readers[0] < self.graph.end else None
        )

    def _only_producer(self, operation: Operation) -> Operation | None:
        """Return the one producer of all that `operation` reads, if nothing else reads it."""
        producers = {producer for operand in operation.reads for producer in operand.producers}
        if len(producers) != 1 or min(producers) < 0:
            return None
        (producer,) = producers
        return self.graph.operations[producer] if len(self.consumers[producer]) == 1 else None


def _kind(operation: Operation) -> str:
    return TABLE[operation.name].kind if operation.name in TABLE else ""


def _clamp(operation: Operation) -> _Clamp | None:
    if operation.name not in CLAMPS:
        return None
    low, high = (_number(operation[name]) for name in CLAMPS[operation.name])
    return None if low is None or high is None else _Clamp(low, high, (operation.index,))


def _factor(operation: Operation) -> float | None:
    """Return the one positive number that `operation` multiplies by; None if it does not."""
    if operation.name not in ("aten.mul", "aten.div") or operation["rounding_mode"]:
        return None
    factor = _number(operation["other"])
    if factor is None and operation.name == "aten.mul":
        factor = _number(operation["self"])
    if factor is None or factor <= 0:
        return None
    return factor if operation.name == "aten.mul" else 1 / factor


def _shift(operation: Operation) -> float | None:
    """Return the one number that `operation` adds or takes away; None if it does not."""
    if operation.name not in ("aten.add", "aten.sub") or operation["alpha"] not in (None, 1):
        return None
    return _number(operation["other"])


def _number(value: object) -> float | None:
    if isinstance(value, int | float):
        return float(value)
    if (
        isinstance(value, Operand)
        and value.tensor is not None
        and value.numel == 1
        and not value.tensor.is_meta
    ):
        return float(value.tensor)
    return None
