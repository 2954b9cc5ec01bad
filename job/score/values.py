"""The values that inference needs stored once everything is folded, each counted once."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from job.score.folding import Folding
from job.score.graph import Operand, Operation
from job.score.levels import levels_bits, scale_bits, scales, zero_points
from job.score.operations import TABLE
from job.score.storage import Storage
from job.score.stored import dtype_bits
from job.score.tally import Values


def stored_values(operations: list[Operation], folding: Folding, storage: Storage) -> Iterator[Values]:
    """Yield what `operations` (those left after folding) read, under the layer that reads it first."""
    seen: set[object] = set()
    for operation in operations:
        for key, values in _needed(operation, folding, storage):
            if key not in seen:
                seen.add(key)
                yield values


def _needed(operation: Operation, folding: Folding, storage: Storage) -> Iterator[tuple[object, Values]]:
    """Yield what `operation` needs, each with a key that is the same for the same values."""
    layer = operation.layer
    kind = TABLE[operation.name].kind if operation.name in TABLE else ""
    if operation.is_standing_batch_norm:  # x * scale + shift, whatever the statistics and the affine were
        yield ("scale", _identity(operation)), _per_channel(operation, layer, "scale", storage)
        yield ("shift", _identity(operation)), _per_channel(operation, layer, "shift", storage)
        return
    if kind == "quantise" or operation.name.startswith("quantized."):
        bits = levels_bits(operation.arguments) or dtype_bits(operation.output.dtype)
        key = ("scales", layer, scales(operation.arguments), zero_points(operation.arguments))
        yield key, _values(layer, "scales", scale_bits(operation.arguments, bits))
    if kind == "quantise":
        return  # what observers keep besides has done its work
    batch_norm = folding.shift_of.get(operation.index)
    for operand in operation.reads:
        if batch_norm is None or operand is not operation["bias"]:
            for stored in operand.stored:
                yield id(stored), Values(layer, stored.name, storage.parameters(stored))
    if batch_norm is not None:
        yield ("shift", _identity(operation)), _per_channel(batch_norm, layer, "shift", storage)


def _identity(operation: Operation) -> tuple[int, ...]:
    return tuple(id(stored) for operand in operation.reads for stored in operand.stored)


def _per_channel(batch_norm: Operation, layer: str, name: str, storage: Storage) -> Values:
    """Return one value a channel, at the bits of the batch norm's affine, or else of its statistics."""
    affine = [batch_norm[part] for part in ("weight", "bias") if batch_norm[part] is not None]
    operands: list[Operand] = affine or [batch_norm["running_mean"], batch_norm["running_var"]]
    bits = max(storage.bits(stored) for operand in operands for stored in operand.stored)
    return _values(layer, name, batch_norm["input"].shape[1] * bits)


def _values(layer: str, name: str, bits: int) -> Values:
    return Values(layer, f"{layer}.{name}".lstrip("."), Fraction(bits, 32))
