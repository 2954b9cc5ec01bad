"""Quantities in words."""

from __future__ import annotations

import math


def duration(seconds: float) -> str:
    """Return `12 s`, `34 min` or `5 h 06 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def percent(share: float) -> str:
    """Return a share of 1 as `80.46 %`."""
    return f"{100 * share:.2f} %"


def ordinal(number: int) -> str:
    """Return `1st`, `2nd`, `28th`."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def power_of_ten(value: float) -> str:
    """Return a power of ten as `10⁻⁴`."""
    return "10" + str(round(math.log10(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
