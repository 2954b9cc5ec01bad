"""Measuring subjects in turn, so that what the machine does meanwhile meets all of them."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from job import events
from job.view.comparison import estimate

Subject = Callable[[], float]
Measured = dict[str, list[float]]


def interleave(subjects: Mapping[str, Subject], rounds: int) -> Measured:
    """Return what each subject gave in each of `rounds`; three subjects have all their orders in six rounds.

    Whoever came always after the same one would bear what that leaves behind, such as workers that end. A
    subject returns a rate. Each is called once before, which is not measured.
    """
    names = list(subjects)
    for name in names:
        subjects[name]()
    measured: Measured = {name: [] for name in names}
    for number in range(rounds):
        for name in order(names, number):
            gc.collect()
            measured[name].append(subjects[name]())
        events.emit("round", number=number + 1, of=rounds, **{name: measured[name][-1] for name in names})
    return measured


def order(names: list[str], number: int) -> list[str]:
    """Return the names as a round takes them: turned by one each time, and every other time backwards."""
    first = number % len(names)
    turned = [*names[first:], *names[:first]]
    return turned[::-1] if number % 2 else turned


def spread(values: list[float]) -> dict[str, Any]:
    """Return {median, low, high, n}, low and high being the extremes."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "n": len(values),
    }


def ratio(measured: Measured, one: str, other: str) -> dict[str, Any]:
    """Return `with_mean` of `one` over `other`, paired by round."""
    return with_mean([a / b for a, b in zip(measured[one], measured[other], strict=True)])


def difference(measured: Measured, one: str, other: str) -> dict[str, Any]:
    """Return `with_mean` of the seconds that `one` takes longer than `other`, paired by round."""
    return with_mean([1 / a - 1 / b for a, b in zip(measured[one], measured[other], strict=True)])


def with_mean(values: list[float]) -> dict[str, Any]:
    """Return the spread of `values` with their mean and its 95 % half width, None for a single one."""
    mean = estimate(values)
    return {**spread(values), "mean": mean.mean, "half_width": mean.half_width}
