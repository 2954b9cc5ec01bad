"""The attempts at a run with what each end of one cost, out of the claims and the heartbeats."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from job.run import heartbeat
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


def attempts_of(store: Store, lineage: list[dict[str, Any]], report: dict[str, Any] | None) -> list[Attempt]:
    """Return the attempts that `claims.lineage` tells of; a report's where the claims are not at hand.

    Attempts that were refused, or came after the run was finished, did nothing and are left out.
    """
    finished = report["lineage"]["attempts"] if report else []
    if not lineage:
        return [_attempt(entry, None, None) for entry in finished]
    last = finished[-1]["generation"] if finished else lineage[-1]["generation"]
    return [
        _attempt(
            entry | ({"reason": "finished"} if finished and entry["generation"] == last else {}),
            heartbeat.unsaved_seconds(store, entry),
            _last_seen(store, entry["generation"]),
        )
        for entry in lineage
        if entry["reason"] != "refused" and entry["generation"] <= last
    ]


def downtimes(attempts: list[Attempt]) -> list[float | None]:
    """Return, for each attempt, the seconds until the next one began; None where not known, and at last."""
    following = [*(attempt.started for attempt in attempts[1:]), None]
    return [
        max(0.0, (begins - attempt.ended).total_seconds()) if begins and attempt.ended else None
        for attempt, begins in zip(attempts, following, strict=True)
    ]


def _attempt(entry: dict[str, Any], lost: float | None, last_seen: datetime | None) -> Attempt:
    started, ended = _time(entry["started"]), _time(entry["ended"])
    return Attempt(
        generation=entry["generation"],
        started=started,
        ended=ended or last_seen or started,
        reason=None if entry["reason"] is None else str(entry["reason"]),
        host=str(entry["host"] or "unknown"),
        device=str(entry["device"] or "unknown"),
        lost_seconds=lost,
    )


def _last_seen(store: Store, generation: int) -> datetime | None:
    beat = heartbeat.read(store, generation)
    return _time(beat.time) if beat else None


def _time(text: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
