"""Times on the device's own clock: a GPU's steps are only launched when their call returns."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import torch

from job.machine.device import synchronise


class Stopwatch:
    """Collects marks between a device's pieces of work; nothing waits for the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._events: list[torch.Event] = []
        self._times: list[float] = []

    def mark(self) -> None:
        """Note where all work given so far ends: by an event on a GPU, on a processor by the time now."""
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
    """Return what `work` takes until the device has done it, with nothing of before still to do."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started
