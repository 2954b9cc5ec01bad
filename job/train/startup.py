"""How long the program takes to its first step, and with what."""

from __future__ import annotations

import time

import torch

from job import STARTED, events
from job.machine.device import synchronise


class Startup:
    """A stopwatch that started with the program; the first step ends it with an event."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last = STARTED

    def lap(self, part: str) -> None:
        """Note that `part` of the start is over."""
        now = time.monotonic()
        self._seconds[part] = round(now - self._last, 2)
        self._last = now

    def first_step(self, device: torch.device) -> None:
        """Log all parts when the first step has ended on `device`, once; to be called after each step."""
        if "step" not in self._seconds:
            synchronise(device)  # this once: a device's steps are only launched when the call returns
            self.lap("step")
            events.emit("first_step", after_seconds=round(self._last - STARTED, 2), **self._seconds)
