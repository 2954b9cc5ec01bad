"""What a quantisation keeps of a value (so many levels) and keeps beside it (scales and zero points)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from job.score.graph import Operand

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
