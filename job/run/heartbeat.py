"""A small object that says, every few seconds, where an attempt is: what `status` and the lineage read."""

from __future__ import annotations

import threading
from collections.abc import Callable

from job import events
from job.errors import JobError
from job.run import layout
from job.run.records import Beat
from job.store.base import Store

EVERY_SECONDS = 10.0


class Heartbeat:
    """A thread that writes what `describe` returns; a store out of reach only makes it late."""

    def __init__(self, store: Store, generation: int, describe: Callable[[], Beat]) -> None:
        self.store, self.key, self.describe = store, layout.heartbeat(generation), describe
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end; do not wait for a store that hangs."""
        self._stop.set()

    def write(self) -> None:
        """Write one heartbeat; raises the store's errors."""
        self.store.put(self.key, self.describe().encode())

    def _run(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            try:
                self.write()
            except JobError as error:
                events.warn("heartbeat_failed", reason=error.message)
