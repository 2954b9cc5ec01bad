"""How speed is measured: on the device's own clock, subjects in turn, with the spread of the rounds."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TypedDict

import torch

from job import events
from job.machine.device import synchronise
from job.view.comparison import estimate

Subject = Callable[[], float]
"""Something that is measured: each call returns a rate."""

Measured = dict[str, list[float]]
"""The rates of each subject, one a round."""


class Spread(TypedDict):
    """The median, the lowest and the highest of `n` values."""

    median: float
    low: float
    high: float
    n: int


class SpreadWithMean(Spread):
    """A spread with the mean and the half width of its 95 % confidence interval, None for a single value."""

    mean: float
    half_width: float | None


class Stopwatch:
    """Collects marks between a device's pieces of work; nothing waits for the device until they are read.

    A GPU's steps are only launched when their call returns, so a host's clock would not time them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._events: list[torch.Event] = []
        self._times: list[float] = []

    def mark(self) -> None:
        """Note the end of all work given so far: by an event on a GPU, by the time now on a processor."""
        if self.device.type == "cpu":
            self._times.append(time.perf_counter())
        else:
            event = torch.Event(self.device, enable_timing=True)
            event.record()
            self._events.append(event)

    def laps(self) -> list[float]:
        """Return the seconds between the marks, once the device has passed the last."""
        if self.device.type == "cpu":
            return [later - earlier for earlier, later in pairwise(self._times)]
        synchronise(self.device)
        return [earlier.elapsed_time(later) / 1e3 for earlier, later in pairwise(self._events)]  # from ms


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return how long the device takes for `work`, after the work it was given before."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def interleave(subjects: Mapping[str, Subject], rounds: int) -> Measured:
    """Return the rate of each subject in each of `rounds`, after one call of each that is not measured.

    The order changes, so that no subject always suffers from what another leaves behind, such as workers that
    end: three subjects have all their orders in six rounds.
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
    """Return the names in a round's order: rotated by one each round, and reversed in every other."""
    first = number % len(names)
    turned = [*names[first:], *names[:first]]
    return turned[::-1] if number % 2 else turned


def spread(values: list[float]) -> Spread:
    """Return the spread of `values`."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "n": len(values),
    }


def ratio(measured: Measured, one: str, other: str) -> SpreadWithMean:
    """Return the ratio of `one` to `other`, each taken within a round."""
    return with_mean([a / b for a, b in zip(measured[one], measured[other], strict=True)])


def difference(measured: Measured, one: str, other: str) -> SpreadWithMean:
    """Return how many seconds `one` takes longer than `other`, each difference taken within a round."""
    return with_mean([1 / a - 1 / b for a, b in zip(measured[one], measured[other], strict=True)])


def with_mean(values: list[float]) -> SpreadWithMean:
    """Return the spread of `values` with their mean and its 95 % confidence interval."""
    mean = estimate(values)
    return {**spread(values), "mean": mean.mean, "half_width": mean.half_width}
