"""The mean over seeds and how well it is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean of `count` values and the half width of its 95 % interval; None for a single value."""

    mean: float
    half_width: float | None
    count: int


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of independent, roughly normal values and its interval by Student's t."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, None, count)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return Estimate(mean, student_quantile(CONFIDENCE, count - 1) * deviation / math.sqrt(count), count)


def student_quantile(confidence: float, degrees: int) -> float:
    """Return the t that |T| stays below with probability `confidence`, for `degrees` of freedom.

    Bisects the closed form of the distribution, so that no table ends and scipy (0.7 s) is not imported.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _coverage(middle, degrees) < confidence else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _coverage(theta: float, degrees: int) -> float:
    """Return P(|T| < tan(theta) sqrt(degrees)): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for power in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine * cosine * (power - 1) / power
        total += term
    return (theta + sine * total) * 2 / math.pi if odd else sine * total
