"""The end of a process whose device does not answer."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from job import events
from job.errors import MachineError

TICK_SECONDS = 1.0


class Watchdog:
    """A context manager in which the process ends with 74 after `limit_seconds` without a step.

    Only blocks in `watching` count, and `progress` is as good as a step. A limit of 0 is none. `settle` is
    called with the cause before the end, in another thread than the one that waits for the device: that does
    not return, nor run a signal's handler. With `compiling` the time until the first step does not count.
    """

    def __init__(self, limit_seconds: float, settle: Callable[[str], None], compiling: bool = False) -> None:
        self.limit_seconds, self.settle = limit_seconds, settle
        self._compiling, self._watching = compiling, False
        self._moves = 0
        self._stop = threading.Event()

    def __enter__(self) -> Watchdog:
        if self.limit_seconds:
            threading.Thread(target=self._run, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()

    def progress(self) -> None:
        """Count a batch that was evaluated."""
        self._moves += 1

    def step(self) -> None:
        """Count a step of training."""
        self._compiling = False
        self._moves += 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Expect progress in the block."""
        self._moves += 1
        self._watching = True
        try:
            yield
        finally:
            self._watching = False

    def _run(self) -> None:
        # Counted in ticks: a process that was paused (SIGSTOP) has not been idle for that time.
        tick = min(TICK_SECONDS, self.limit_seconds / 10)
        seen, idle = self._moves, 0.0
        while not self._stop.wait(tick):
            waits = self._watching and not self._compiling and self._moves == seen
            idle, seen = idle + tick if waits else 0.0, self._moves
            if idle >= self.limit_seconds:
                self._give_up()

    def _give_up(self) -> None:
        cause = f"no step has ended for {self.limit_seconds:g} s: the device does not answer"
        events.warn("stuck", cause=cause)
        self.settle(cause)
        events.stopped(
            cause,
            "Run the same command on another machine, or with a longer --step-timeout if steps take so long",
            MachineError.exit_code,
        )
        os._exit(MachineError.exit_code)
