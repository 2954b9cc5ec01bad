"""The rule set `official`: the challenge's rules applied to everything the network does."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from job.score.folding import Folding, fold
from job.score.formulas import Term
from job.score.graph import Graph, Operand, Operation
from job.score.operations import TABLE
from job.score.storage import Storage
from job.score.tally import Line, Tally, Values


def official(graph: Graph, storage: Storage) -> Tally:
    """Count every operator and every stored value of `graph`, folded, by the bits in `storage`.

    Operators without a row are left out; whoever calls has refused or listed them.
    """
    folding = fold(graph)
    left = [operation for operation in graph.operations if operation.index not in folding.gone]
    lines = (line for operation in left for line in _line(operation, folding, storage))
    return Tally((), tuple(lines), tuple(_values(left, folding, storage)))


def _line(operation: Operation, folding: Folding, storage: Storage) -> Iterator[Line]:
    row = TABLE.get(operation.name)
    if row is None or row.kind == "move":
        return
    terms = row.cost(operation, storage.is_sparse)
    if operation.index in folding.shift_of and operation["bias"] is None:
        terms.append(Term(additions=operation.output.numel))  # the batch norm's shift is its bias now
    counted = sum(
        term.multiplications * storage.multiplication_bits(operation, term)
        + term.additions * storage.addition_bits(operation, term)
        for term in terms
    )
    yield Line(
        operation.layer,
        row.kind if row.kind != "linear" or _has_weight(operation) else "matmul",
        operation.name,
        sum(term.multiplications for term in terms),
        sum(term.additions for term in terms),
        Fraction(counted, 32),
    )


def _has_weight(operation: Operation) -> bool:
    return any(not operand.is_activation for operand in operation.reads)


def _values(operations: list[Operation], folding: Folding, storage: Storage) -> Iterator[Values]:
    """Yield each stored value once, under the layer that reads it first."""
    seen: set[object] = set()
    for operation in operations:
        for key, values in _read_values(operation, folding, storage):
            if key not in seen:
                seen.add(key)
                yield values


def _read_values(operation: Operation, folding: Folding, storage: Storage) -> Iterator[tuple[object, Values]]:
    """Yield what `operation` needs stored, each with a key that is the same for the same values."""
    layer = operation.layer
    if operation.is_standing_batch_norm:  # x * scale + shift, whatever the statistics and the affine were
        each = _channel_values(operation, storage)
        yield ("scale", _identity(operation)), Values(layer, f"{layer}.scale", each)
        yield ("shift", _identity(operation)), Values(layer, f"{layer}.shift", each)
        return
    shift = folding.shift_of.get(operation.index)
    for operand in operation.reads:
        if shift is None or operand is not operation["bias"]:
            for stored in operand.stored:
                yield id(stored), Values(layer, stored.name, storage.parameters(stored))
    if shift is not None:
        yield (
            ("shift", _identity(operation)),
            Values(layer, f"{shift.layer}.shift", _channel_values(shift, storage)),
        )


def _identity(operation: Operation) -> tuple[int, ...]:
    return tuple(id(stored) for operand in operation.reads for stored in operand.stored)


def _channel_values(batch_norm: Operation, storage: Storage) -> Fraction:
    """Return what one value a channel counts, at the bits of the affine (or else the statistics)."""
    affine = [batch_norm[name] for name in ("weight", "bias") if batch_norm[name] is not None]
    operands: list[Operand] = affine or [batch_norm["running_mean"], batch_norm["running_var"]]
    bits = max(storage.bits(stored) for operand in operands for stored in operand.stored)
    return Fraction(batch_norm["input"].shape[1] * bits, 32)
