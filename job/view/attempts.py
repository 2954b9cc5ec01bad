"""The attempts at a run with what each end of one cost, out of the claims and the heartbeats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from job.run.lineage import FINISHED, REFUSED, Turn, last_beat, unsaved_seconds
from job.run.records import Worker
from job.store.base import Store

REASONS = {
    "finished": "finished the run",
    "preempted": "was told to go and saved its work",
    "vanished": "was killed or lost without a word",
    "fenced": "was replaced by a newer attempt",
    "unreadable": "left a claim that cannot be read",
}


@dataclass(frozen=True)
class Attempt:
    """One process's turn. Times are in UTC; what is not known is None."""

    generation: int
    started: datetime | None
    ended: datetime | None  # for one that vanished, when it was last heard of
    reason: str | None  # None: it still runs, or has not been missed yet
    host: str
    device: str
    lost_seconds: float | None  # of training that the next attempt had to repeat

    @property
    def outcome(self) -> str:
        """How it ended, in words."""
        if self.reason is None:
            return "has not ended"
        return REASONS.get(self.reason, self.reason)


def attempts_of(store: Store, lineage: list[Turn], report: dict[str, Any] | None) -> list[Attempt]:
    """Return the attempts of the claims, or of the report where the claims were not copied with it.

    Attempts that were refused, or came after the run was finished, did nothing and are left out.
    """
    finished = report["lineage"]["attempts"] if report else []
    if not lineage:
        return [_attempt(_reported(entry), None, None) for entry in finished]
    last = finished[-1]["generation"] if finished else lineage[-1].generation
    return [
        _attempt(
            replace(turn, reason=FINISHED) if finished and turn.generation == last else turn,
            unsaved_seconds(store, turn),
            _last_seen(store, turn.generation),
        )
        for turn in lineage
        if turn.reason != REFUSED and turn.generation <= last
    ]


def downtimes(attempts: list[Attempt]) -> list[float | None]:
    """Return, for each attempt, the seconds until the next one began; None where not known, and at last."""
    following = [*(attempt.started for attempt in attempts[1:]), None]
    return [
        max(0.0, (begins - attempt.ended).total_seconds()) if begins and attempt.ended else None
        for attempt, begins in zip(attempts, following, strict=True)
    ]


def _reported(entry: dict[str, Any]) -> Turn:
    """Return what a report says of an attempt; its times are text of any kind."""
    worker = Worker.model_construct(started=entry["started"], host=entry["host"], device=entry["device"])
    return Turn(entry["generation"], worker, entry["reason"], entry["ended"])


def _attempt(turn: Turn, lost: float | None, last_seen: datetime | None) -> Attempt:
    started, ended = _time(turn.worker.started), _time(turn.ended)
    return Attempt(
        generation=turn.generation,
        started=started,
        ended=ended or last_seen or started,
        reason=turn.reason,
        host=turn.worker.host or "unknown",
        device=turn.worker.device or "unknown",
        lost_seconds=lost,
    )


def _last_seen(store: Store, generation: int) -> datetime | None:
    beat = last_beat(store, generation)
    return _time(beat.time) if beat else None


def _time(text: str | None) -> datetime | None:
    try:
        time = datetime.fromisoformat(text or "")
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
