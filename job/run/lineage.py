"""The attempts at a run, how each ended, what that cost, and what changed between them: for people."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from job.errors import ConfigurationError, DataError
from job.run import claims, layout
from job.run.documents import Record
from job.run.records import Beat, Number, Text, Worker
from job.settings import Recipe
from job.store.base import AbsentError, Store

VANISHED, UNREADABLE, REFUSED, FINISHED = "vanished", "unreadable", "refused", "finished"
"""Reasons that are not an attempt's own words, or that others act on."""

OF_ONE_ATTEMPT = ("host", "started", "recipe", "git")
"""What a claim says besides what the attempt's bits depend on."""


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

    def to_json(self) -> dict[str, str | int | None]:
        """Return the entry of the report's lineage."""
        return {
            "generation": self.generation,
            "started": self.worker.started,
            "ended": self.ended,
            "reason": self.reason,
            "host": self.worker.host,
            "device": self.worker.device,
        }


class Drift(Record):
    """A field of the machine or the recipe that differs from the attempt before."""

    generation: Number
    field: Text
    before: Text | None
    now: Text | None


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


def _circumstances(worker: Worker) -> dict[str, str | None]:
    """Return what an attempt's bits depend on, as text."""
    given = worker.model_dump(exclude_unset=True)
    fields = {field: value for field, value in given.items() if field not in OF_ONE_ATTEMPT}
    recipe = Recipe.before() | worker.recipe if worker.recipe else {}
    fields |= {f"recipe.{field}": value for field, value in recipe.items()}
    return {field: None if value is None else str(value) for field, value in fields.items()}
