"""The attempts at a run: their heartbeats, how each ended, what that cost, and what changed between them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import pairwise

from job import events
from job.errors import (
    ConfigurationError,
    DataError,
    FencedError,
    JobError,
    MachineError,
    PreemptedError,
)
from job.recipe import Recipe
from job.run import claims, layout
from job.run.records import Beat, Claim, Worker
from job.run.report import AttemptEntry, Drift, Lineage
from job.store.base import AbsentError, Store

VANISHED, UNREADABLE, REFUSED, FINISHED = "vanished", "unreadable", "refused", "finished"
"""Reasons that are not an attempt's own words, or that others act on."""

OF_ONE_ATTEMPT = ("host", "started", "recipe", "git", "processes")
"""Fields of a claim that do not affect the result's bits and are not compared for drift."""

HEARTBEAT_SECONDS = 10.0
"""Between two heartbeats of an attempt."""


class Heartbeat:
    """A thread that stores what `describe` returns every few seconds; a store out of reach only delays it."""

    def __init__(self, store: Store, generation: int, describe: Callable[[], Beat]) -> None:
        self._store, self._key, self._describe = store, layout.heartbeat(generation), describe
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
        self._store.put(self._key, self._describe().encode())

    def _run(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self.write()
            except JobError as error:
                events.warn("heartbeat_failed", reason=error.message)


@dataclass(frozen=True)
class Turn:
    """One attempt's turn at the run.

    `resumed` is the position it resumed from, `position` that of the newest checkpoint it left. `reason` is
    "vanished" where an earlier attempt recorded no end, None where the last has not yet, and "unreadable"
    where the claim itself is damaged.
    """

    generation: int
    worker: Worker
    reason: str | None = None
    ended: str | None = None
    resumed: int | None = None
    position: int | None = None

    def entry(self) -> AttemptEntry:
        """Return the entry of the report's lineage, which only ended attempts have."""
        assert self.reason is not None
        processes = self.worker.processes
        return AttemptEntry(
            generation=self.generation,
            started=self.worker.started,
            ended=self.ended,
            reason=self.reason,
            host=self.worker.host,
            device=self.worker.device,
            **({} if processes is None else {"processes": processes}),
        )


def reason_of(error: BaseException) -> str:
    """Return the reason that an attempt's claim records where `error` ends it."""
    if isinstance(error, FencedError):
        return "fenced"
    if isinstance(error, PreemptedError):
        return "preempted"
    return f"failed: {error.message if isinstance(error, JobError) else type(error).__name__}"


def to_report(store: Store, turns: list[Turn], checkpoints: int) -> Lineage:
    """Return the report's lineage of `turns`, in order, all ended; raises the store's errors."""
    return Lineage(
        attempts=[turn.entry() for turn in turns],
        drift=drift([(turn.generation, turn.worker) for turn in turns]),
        checkpoints=checkpoints,
        lost_seconds=round(sum(unsaved_seconds(store, turn) for turn in turns), 1),
    )


def lineage(store: Store) -> list[Turn]:
    """Return every attempt in order."""
    head = claims.read_head(store).head
    following = head.position if head else None
    turns: list[Turn] = []
    for generation in reversed(claims.generations(store)):
        claim = claims.find(store, generation)
        if claim is None:
            turns.append(Turn(generation, Worker(), UNREADABLE, position=following))
            continue
        if claim.end:
            reason, ended, position = claim.end.reason, claim.end.ended, claim.end.position
            turns.append(Turn(generation, claim.attempt, reason, ended, claim.resumed, position))
        else:
            silent = VANISHED if turns else None
            turns.append(Turn(generation, claim.attempt, silent, resumed=claim.resumed, position=following))
        following = following if claim.resumed is None else claim.resumed
    return turns[::-1]


def last_beat(store: Store, generation: int) -> Beat | None:
    """Return an attempt's last heartbeat, None where there is none that can be read."""
    try:
        return Beat.read(store, layout.heartbeat(generation))
    except (AbsentError, DataError, ConfigurationError):
        return None


def unsaved_seconds(store: Store, turn: Turn) -> float:
    """Return how long an attempt that vanished had trained since its last checkpoint, by its last heartbeat.

    0 for one that ended in order or has no heartbeat.
    """
    beat = last_beat(store, turn.generation) if turn.reason == VANISHED else None
    return beat.unsaved_seconds if beat else 0.0


def drift(attempts: list[tuple[int, Worker]]) -> list[Drift]:
    """Return whatever differs between each attempt, by generation, and the one before."""
    found = []
    for (_, before), (generation, worker) in pairwise(attempts):
        old, new = _circumstances(before), _circumstances(worker)
        found += [
            Drift(generation=generation, field=field, before=old[field], now=new[field])
            for field in sorted(old.keys() & new.keys())
            if old[field] != new[field]
        ]
    return found


def report_drift(last: Claim | None, worker: Worker, hardware: Collection[str], exact: bool) -> None:
    """Log what differs from the attempt before, of claim `last`; where it must be `exact`, raise.

    MachineError where all of it is `hardware`, which another machine may mend, else ConfigurationError.
    """
    changes = drift([(last.generation, last.attempt), (last.generation + 1, worker)]) if last else []
    if changes and exact:
        listed = ", ".join(f"{change.field} {change.before!r} -> {change.now!r}" for change in changes)
        if {change.field for change in changes} <= set(hardware):
            raise MachineError(
                f"this machine is not like the one before: {listed}",
                "Use the same kind, or leave --exact out",
            )
        raise ConfigurationError(
            f"the software is not that of the attempt before: {listed}",
            "Use the same image, code and environment, or leave --exact out",
        )
    if changes:
        events.warn("drift", **{change.field: f"{change.before} -> {change.now}" for change in changes})


def report_lost_attempt(last: Claim, position: int) -> None:
    """Warn if the previous attempt committed no checkpoint beyond the one it resumed from.

    `position` is that of the newest checkpoint, 0 where there is none.
    """
    if position == (last.resumed or 0):
        reason = last.end.reason if last.end else VANISHED
        events.warn("no_checkpoint_left", by_attempt=last.generation, reason=reason)


def _circumstances(worker: Worker) -> dict[str, str | None]:
    """Return what an attempt's bits depend on, as text."""
    given = worker.model_dump(exclude_unset=True)
    fields = {field: value for field, value in given.items() if field not in OF_ONE_ATTEMPT}
    recipe = Recipe.before() | worker.recipe if worker.recipe else {}
    fields |= {f"recipe.{field}": value for field, value in recipe.items()}
    return {field: None if value is None else str(value) for field, value in fields.items()}
