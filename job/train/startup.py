"""How long a process takes to its first step, and with what."""

from __future__ import annotations

import os
import time
from pathlib import Path

from job import events


class Startup:
    """A stopwatch that starts with the process; the first step ends it with an event."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last = 0.0

    def lap(self, part: str) -> None:
        """Note that `part` of the start is over."""
        now = process_seconds()
        self._seconds[part] = round(now - self._last, 2)
        self._last = now

    def first_step(self) -> None:
        """Tell all parts, once; to be called after each step."""
        if "step" not in self._seconds:
            self.lap("step")
            events.emit("first_step", after_seconds=round(self._last, 2), **self._seconds)


def process_seconds() -> float:
    """Return how long this process has run (Linux: field 22 of proc(5)'s stat, in clock ticks)."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
