"""A small object that says, every few seconds, where an attempt is: what `status` and the lineage read."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from job import events
from job.errors import DataError, JobError
from job.run import documents
from job.store.base import AbsentError, Store

SCHEMA = "micronet.heartbeat/1"
EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class Beat:
    """Where an attempt was; what is not known yet is None."""

    phase: str
    epoch: int  # being trained, from 1
    epochs: int
    step: int  # done in that epoch
    steps_per_epoch: int
    batch_size: int
    accuracy: float | None  # on the test set, after the last whole epoch
    images_per_second: float | None  # in the last whole epoch
    unsaved_seconds: float  # since the newest durable checkpoint was taken
    time: str = ""  # UTC; set when it is written


def key(generation: int) -> str:
    """Return where an attempt's heartbeat is."""
    return f"heartbeats/{generation}.json"


def read(store: Store, generation: int) -> Beat | None:
    """Return an attempt's last heartbeat, None where there is none that can be read."""
    name = key(generation)
    try:
        content = documents.decode(documents.read(store, name).data, SCHEMA, name)
        return Beat(
            phase=documents.text(content, "phase", "[a-z]{1,20}"),
            epoch=documents.number(content, "epoch", 1),
            epochs=documents.number(content, "epochs", 1),
            step=documents.number(content, "step"),
            steps_per_epoch=documents.number(content, "steps_per_epoch", 1),
            batch_size=documents.number(content, "batch_size", 1),
            accuracy=_quantity(content, "accuracy"),
            images_per_second=_quantity(content, "images_per_second"),
            unsaved_seconds=_quantity(content, "unsaved_seconds") or 0.0,
            time=datetime.fromisoformat(documents.text(content, "time", "[0-9T:.+-]{25,40}")).isoformat(),
        )
    except (AbsentError, DataError, ValueError):
        return None


def unsaved_seconds(store: Store, attempt: dict[str, Any]) -> float:
    """Return how long an attempt that vanished had trained since its last checkpoint, by its last heartbeat.

    `attempt` is of `Checkpoints.attempts`. 0 for one that ended in order or never beat.
    """
    beat = read(store, attempt["generation"]) if attempt["reason"] == "vanished" else None
    return beat.unsaved_seconds if beat else 0.0


class Heartbeat:
    """A thread that writes what `describe` returns; a store out of reach only makes it late."""

    def __init__(self, store: Store, generation: int, describe: Callable[[], Beat]) -> None:
        self.store, self.key, self.describe = store, key(generation), describe
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
        content = asdict(self.describe()) | {"time": datetime.now(UTC).isoformat()}
        self.store.put(self.key, documents.encode(SCHEMA, content))

    def _run(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            try:
                self.write()
            except JobError as error:
                events.warn("heartbeat_failed", reason=error.message)


def _quantity(content: dict[str, Any], name: str) -> float | None:
    value = content.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise DataError(f"its {name} is no quantity")
    return float(value)
