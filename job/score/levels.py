"""What a quantisation keeps of a value (levels) and with it (scales, zero points), and computed constants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from job.score.graph import Operand
from job.score.stored import Stored

SCALES = ("scale", "scales", "output_scale", "Y_scale_i")
ZERO_POINTS = ("zero_point", "zero_points", "output_zero_point", "Y_zero_point_i")
"""The names that the arguments have in PyTorch's quantising and quantised operators."""


def levels_bits(arguments: Mapping[str, Any]) -> int | None:
    """Return the bits of the levels that a (simulated) quantisation keeps; None for any other operator."""
    low, high = arguments.get("quant_min"), arguments.get("quant_max")
    return None if low is None or high is None else math.ceil(math.log2(high - low + 1))


def scales(arguments: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the scales, one for the tensor or one for each channel; nan where they are not known."""
    return _numbers(arguments, SCALES)


def zero_points(arguments: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the zero points as `scales` does; without any the quantisation is symmetric."""
    return _numbers(arguments, ZERO_POINTS)


def scale_bits(arguments: Mapping[str, Any], bits: int) -> int:
    """Return the bits of the scales, 32 each, and of the zero points, `bits` each unless all are 0."""
    points = zero_points(arguments)
    return 32 * len(scales(arguments)) + (bits * len(points) if any(points) else 0)


def power_of_two(*factors: float) -> bool:
    """Return whether multiplying by each of `factors` changes no more than the exponent of a float."""
    return all(math.frexp(factor)[0] == 0.5 for factor in factors)


def computed(name: str, result: Tensor, arguments: Mapping[str, Any], reads: Sequence[Operand]) -> Stored:
    """Return the stored value that a constant computed ahead of time from `reads` is.

    A (de)quantised one has the bits of its levels, one in which values of a stored tensor were only set to
    0 the bits of that tensor, and any other those of its dtype.
    """
    sources = tuple(
        {
            id(source): source
            for operand in reads
            for stored in operand.stored
            for source in stored.sources or (stored,)
        }.values()
    )
    bits = levels_bits(arguments)
    if bits is not None:
        quantised = arguments["input"] if isinstance(arguments.get("input"), Operand) else reads[0]
        if len(quantised.stored) == 1 and not quantised.dtype.is_floating_point:
            # Integers that are read as fractions: the stored values are theirs, under their name.
            (integers,) = quantised.stored
            bits = min(bits, integers.bits)
            return Stored(integers.name, result, bits, scale_bits(arguments, bits), sources)
        return Stored(name, result, bits, scale_bits(arguments, bits), sources)
    kept = next((operand.stored[0] for operand in reads if _is_masked(result, operand)), None)
    if kept is not None:
        return Stored(name, result, kept.bits, kept.overhead_bits, sources)
    plain = Stored.of(name, result)
    return Stored(name, plain.tensor, plain.bits, plain.overhead_bits, sources)


def _is_masked(result: Tensor, operand: Operand) -> bool:
    """Return whether `result` is the stored values of `operand`, or some of them and zeros."""
    values = operand.tensor
    if values is None or len(operand.stored) != 1 or values.dtype is torch.bool or result.is_quantized:
        return False
    if values.is_meta or result.is_meta or values.shape != result.shape or values.is_quantized:
        return False
    return bool(result.any()) and torch.equal(result, torch.where(result != 0, values, 0).to(result.dtype))


def _numbers(arguments: Mapping[str, Any], names: tuple[str, ...]) -> tuple[float, ...]:
    for name in names:
        value = arguments.get(name)
        if isinstance(value, Operand):
            if value.tensor is None or value.tensor.is_meta:
                return (math.nan,) * value.numel
            return tuple(value.tensor.flatten().tolist())
        if value is not None:
            return (float(value),)
    return ()
