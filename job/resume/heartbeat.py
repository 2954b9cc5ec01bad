"""A small object that says, every few seconds, where an attempt is: what `status` and the lineage read."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from job import events
from job.errors import JobError
from job.store.base import AbsentError, Store

EVERY_SECONDS = 10.0


def key(generation: int) -> str:
    """Return where an attempt's heartbeat is."""
    return f"heartbeats/{generation}.json"


def unsaved_seconds(store: Store, attempt: dict[str, Any]) -> float:
    """Return how long an attempt that vanished had trained since its last checkpoint, by its last heartbeat.

    `attempt` is of `Checkpoints.attempts`. 0 for one that ended in order or that has no readable heartbeat.
    """
    if attempt["reason"] != "vanished":
        return 0.0
    try:
        return float(json.loads(store.get(key(attempt["generation"])).data)["unsaved_seconds"])
    except (AbsentError, ValueError, KeyError, TypeError):
        return 0.0


class Heartbeat:
    """A thread that writes what `describe` returns; a store out of reach only makes it late."""

    def __init__(self, store: Store, generation: int, describe: Callable[[], dict[str, Any]]) -> None:
        self.store, self.key, self.describe = store, key(generation), describe
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end; do not wait for a store that hangs."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            content = {"time": datetime.now(UTC).isoformat(), **self.describe()}
            try:
                self.store.put(self.key, json.dumps(content).encode())
            except JobError as error:
                events.warn("heartbeat_failed", reason=error.message)
