"""Learning rate and momentum as a pure function of (epoch, step): fastai v1's one-cycle policy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from job.phases import Cycle

WARM_UP = 0.3  # share of a cycle's steps on the way up
START_DIVISOR = 25.0  # first learning rate = lr_max / 25
FINAL_DIVISOR = 25e4  # last learning rate = lr_max / 250,000
MOMENTUM_HIGH, MOMENTUM_LOW = 0.95, 0.85


def one_cycle(cycles: Sequence[Cycle], steps_per_epoch: int, epoch: int, step: int) -> tuple[float, float]:
    """Return (learning rate, momentum) of the step: cosine up, cosine down, once a cycle.

    Momentum (Adam's beta1) runs against the learning rate. As in fastai v1's `OneCycleScheduler`,
    the first phase has int(0.3 n) of a cycle's n steps, the peak falls on the step after it, and the
    final values would be reached one step past the end. Raises IndexError past the last cycle.
    """
    for cycle in cycles:
        if epoch < cycle.epochs:
            break
        epoch -= cycle.epochs
    else:
        raise IndexError("the epoch lies past the last cycle")
    steps = cycle.epochs * steps_per_epoch
    position = epoch * steps_per_epoch + step
    rising = int(steps * WARM_UP)
    if position < rising:
        progress = position / rising
        return (
            _cosine(cycle.lr_max / START_DIVISOR, cycle.lr_max, progress),
            _cosine(MOMENTUM_HIGH, MOMENTUM_LOW, progress),
        )
    progress = (position - rising) / (steps - rising)
    return (
        _cosine(cycle.lr_max, cycle.lr_max / FINAL_DIVISOR, progress),
        _cosine(MOMENTUM_LOW, MOMENTUM_HIGH, progress),
    )


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (math.cos(math.pi * progress) + 1)
