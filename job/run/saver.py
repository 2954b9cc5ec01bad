"""Save training states: in the background to the run's store, or on this machine's disk where that fails.

The training thread pays for the copy off the device alone.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from job import events
from job.errors import DataError, JobError, MachineError
from job.run import layout
from job.run.records import Place
from job.run.state import TrainingState
from job.store.base import AbsentError, TransientError
from job.store.local import LocalStore

DIGEST_BYTES = hashlib.sha256().digest_size
RETRY_SECONDS = 5.0  # between attempts to save while the store is out of reach


@dataclass(frozen=True)
class Durable:
    """The newest state that is safe, and when (time.monotonic()) it had been taken."""

    epoch: int  # from 0; the epoch and step that training continues with
    step: int
    place: Place
    taken: float

    def __str__(self) -> str:
        return str(self.place)


class Saver:
    """A thread that commits the newest state it was given: one in flight, one waiting, older ones dropped.

    `commit` serialises, uploads and commits one state; it runs in the thread. While it raises
    TransientError (the store is out of reach) the newest state is tried again until `budget_seconds` after
    the start of the first commit that failed; any other error, or the end of the budget, is raised by the
    next `check`.
    """

    def __init__(
        self, commit: Callable[[TrainingState], None], every_seconds: float, budget_seconds: float
    ) -> None:
        self.commit, self.every_seconds, self.budget_seconds = commit, every_seconds, budget_seconds
        self.durable: Durable | None = None
        self.save_seconds = 0.0  # how long the last commit took
        self.error: Exception | None = None
        self.last_offer = self.last_success = time.monotonic()
        self._condition = threading.Condition()
        self._waiting: tuple[TrainingState, float] | None = None
        self._busy = self._closed = False
        self._failing_since: float | None = None  # when the first failed commit since a success had started
        self._thread = threading.Thread(target=self._run, name="saver", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def started(self) -> bool:
        """Return whether the thread has been started."""
        return self._thread.ident is not None

    @property
    def due(self) -> bool:
        """Return whether the interval has passed since the last state was offered."""
        return time.monotonic() - self.last_offer >= self.every_seconds

    @property
    def failing(self) -> bool:
        """Return whether the store was out of reach at the last commit."""
        return self._failing_since is not None

    def age(self) -> float | None:
        """Return the seconds since the newest durable state was taken, None before the first."""
        return None if self.durable is None else time.monotonic() - self.durable.taken

    def offer(self, state: TrainingState) -> None:
        """Hand over a state and return at once; it replaces one that still waits."""
        with self._condition:
            self.last_offer = time.monotonic()
            self._waiting = (state, self.last_offer)
            self._condition.notify_all()

    def check(self) -> None:
        """Raise what has ended the thread, if anything has."""
        if self.error is not None:
            raise self.error

    def flush(self, deadline: float | None = None) -> bool:
        """Wait until all is saved or `deadline` (time.monotonic()); return whether all is saved."""
        with self._condition:
            self._condition.wait_for(
                lambda: self.error is not None or not (self._busy or self._waiting),
                None if deadline is None else max(0.0, deadline - time.monotonic()),
            )
            return self.error is None and not (self._busy or self._waiting)

    def idle(self, seconds: float = 10.0) -> bool:
        """Drop what waits; return whether the thread has become idle within `seconds`."""
        with self._condition:
            self._waiting = None
        self.flush(time.monotonic() + seconds)
        return not self._busy

    def close(self) -> None:
        """Let the thread end after what it is doing; what waits is not saved."""
        with self._condition:
            self._closed = True
            self._waiting = None
            self._condition.notify_all()

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            try:
                self._save(*taken)
            except Exception as error:
                self._fail(error)
                return

    def _take(self) -> tuple[TrainingState, float] | None:
        with self._condition:
            self._busy = False
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._closed or self._waiting)
            if self._closed:
                return None
            taken, self._waiting, self._busy = self._waiting, None, True
            return taken

    def _save(self, state: TrainingState, taken: float) -> None:
        started = time.monotonic()
        events.phase("saving", **state.place._asdict())
        try:
            self.commit(state)
        except TransientError as error:
            if self._failing_since is None:
                self._failing_since = started
            self._put_back(state, taken, time.monotonic() - self._failing_since, error)
            return
        self._failing_since = None
        self.last_success = time.monotonic()
        self.save_seconds = self.last_success - started
        self.durable = Durable(state.epoch, state.step, state.place, taken)
        events.emit("checkpoint", **state.place._asdict(), seconds=round(self.save_seconds, 2))

    def _put_back(self, state: TrainingState, taken: float, outage: float, error: TransientError) -> None:
        if outage > self.budget_seconds:
            raise MachineError(
                f"nothing could be saved for {outage:.0f} s ({error.message})",
                "Run the same command where the storage can be reached",
            ) from error
        since_last = round(time.monotonic() - self.last_success)
        events.warn("checkpoint_delayed", seconds_since_last=since_last, reason=error.message)
        with self._condition:
            if self._waiting is None:
                self._waiting = (state, taken)
            self._condition.wait_for(lambda: self._closed, RETRY_SECONDS)

    def _fail(self, error: Exception) -> None:
        with self._condition:
            self.error, self._busy = error, False
            self._condition.notify_all()


class Unsaved:
    """The states of one run and recipe in `folder`, which other runs may share.

    A file is named by the recipe's fingerprint and by the generation and owner of the attempt that kept it.
    `is_attempt` returns whether the run has an attempt of that generation and owner: what another run kept
    is neither read nor deleted.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        generation: int,
        owner: str,
        is_attempt: Callable[[int, str], bool],
    ) -> None:
        self._folder, self._store = folder, LocalStore(folder)
        self._fingerprint, self._is_attempt = fingerprint, is_attempt
        self._own = layout.unsaved(fingerprint, generation, owner)
        self._found: list[str] = []
        self.kept: tuple[int, int] | None = None  # epoch and step of the state that this attempt keeps

    @property
    def path(self) -> str:
        """Where this attempt keeps its state, for people."""
        return f"{self._store.uri}/{self._own}"

    def keep(self, state: TrainingState) -> None:
        """Write the state; MachineError when the disk is full."""
        data = state.encode()
        self.kept = (state.epoch, state.step)  # before the write, during which an older one may be saved
        try:
            self._store.put(self._own, hashlib.sha256(data).digest() + data)
        except JobError:
            self.kept = None
            raise

    def find(self, most: int) -> tuple[str, TrainingState] | None:
        """Return the file and the furthest state, of at most `most` bytes; None where none is whole."""
        if (self._folder / layout.unsaved_before(self._fingerprint)).exists():
            name = f"{self._store.uri}/{layout.unsaved_before(self._fingerprint)}"
            events.warn("unsaved_state_ignored", file=name, reason="its name does not identify its run")
        names = [path.name for path in self._folder.glob(layout.unsaved(self._fingerprint, "*", "*"))]
        kept = {name: layout.keeper_of(name) for name in names}
        self._found = [name for name, keeper in kept.items() if keeper and self._is_attempt(*keeper)]
        states = [(name, state) for name in self._found if (state := self._read(name, most))]
        if not states:
            return None
        name, state = max(states, key=lambda pair: (pair[1].epoch, pair[1].step))
        return f"{self._store.uri}/{name}", state

    def further(self, state: TrainingState | None, most: int) -> TrainingState | None:
        """Return the state that is further on: `state`, or what `find` returns."""
        file, kept = self.find(most) or ("", None)
        if kept and (state is None or (kept.epoch, kept.step) > (state.epoch, state.step)):
            events.emit("unsaved_state", file=file)
            return kept
        return state

    def drop(self, epoch: int, step: int) -> None:
        """Remove what is found and, up to that place (from 0), what this attempt keeps: it is saved."""
        if self.kept is None or self.kept <= (epoch, step):  # not one kept while an older one was saved
            self._store.delete(self._own)
            self.kept = None
        for name in self._found:
            self._store.delete(name)
        self._found = []

    def _read(self, name: str, most: int) -> TrainingState | None:
        try:
            content = self._store.get(name).data
            digest, data = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
            return TrainingState.decode(data, most) if hashlib.sha256(data).digest() == digest else None
        except (AbsentError, DataError):
            return None
