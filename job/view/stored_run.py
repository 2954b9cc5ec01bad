"""A run as its objects describe it, read and checked: the page trusts nothing that is in a bucket.

A run that is not finished, or of which only some files were copied, has less to show and is no error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

from job.data.cifar import CIFAR100_SHA256
from job.errors import DataError
from job.run import documents, layout, records
from job.run.lineage import FINISHED, REFUSED, Turn, last_beat, lineage, unsaved_seconds
from job.run.records import Epoch, Identity, Scalar, Worker
from job.run.report import AttemptEntry, Report
from job.store.base import AbsentError, Store
from job.view import status
from job.view.predictions import Predictions
from job.view.status import Status

MAX_BYTES = 2**25
"""Of one file: predictions for 10,000 images take 100 kB, the history of 600 epochs 130 kB."""

PNG = b"\x89PNG\r\n\x1a\n"

REASONS = {
    "finished": "finished the run",
    "preempted": "was preempted and saved its work",
    "vanished": "was killed, or lost its machine",
    "fenced": "was replaced by a newer attempt",
    "unreadable": "left a claim that cannot be read",
}

Content = TypeVar("Content")


@dataclass(frozen=True)
class AttemptSummary:
    """One attempt, its times in UTC; what is not known is None."""

    generation: int
    started: datetime | None
    ended: datetime | None  # for one that vanished, its last heartbeat
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


@dataclass(frozen=True)
class StoredRun:
    """A run; `report` is None until it is finished, `status` from then on."""

    uri: str
    report: Report | None
    recipe: dict[str, Scalar]
    history: list[Epoch]  # in order
    attempts: list[AttemptSummary]
    status: Status | None
    predictions: Predictions | None
    samples: bytes | None  # a PNG

    @property
    def name(self) -> str:
        """The name of the run's folder: the last part of its address."""
        return self.uri.rstrip("/").rpartition("/")[2]

    @property
    def identity(self) -> str:
        """The run's hash, which recipe.json and report.json hold; empty where neither was found."""
        return str(self.report.run.id if self.report else self.recipe.get("identity", ""))

    @property
    def on_cifar100(self) -> bool:
        """Return whether it trains on CIFAR-100, the data set for which the challenge asks 80 %."""
        sha256 = self.report.data.sha256 if self.report else self.recipe.get("data_sha256")
        return bool(sha256 == CIFAR100_SHA256)

    @property
    def evaluated(self) -> list[Epoch]:
        """The epochs after which the network was evaluated on the test set."""
        return [
            record for record in self.history if record.accuracy is not None and record.test_loss is not None
        ]


def read(store: Store) -> StoredRun:
    """Return what `store` holds of a run; DataError where it holds none, or a file is not what it should be.

    Raises the store's errors.
    """
    report = Report.read(store)
    history = _file(store, layout.HISTORY, _history) or []
    turns = lineage(store)
    if report is None and not history and not turns:
        raise DataError(f"{store.uri} holds no run", "Name the --run of a training")
    sha256 = report.predictions.sha256 if report else None
    predictions = _file(store, layout.PREDICTIONS, lambda data, _: Predictions.decode(data, sha256))
    return StoredRun(
        uri=store.uri,
        report=report,
        recipe=_file(store, layout.RECIPE, _recipe) or {},
        history=history,
        attempts=_attempts(store, turns, report),
        status=status.read(store) if turns and report is None else None,
        predictions=predictions,
        samples=_file(store, layout.SAMPLES, _png),
    )


def runs_at(store: Store) -> list[str]:
    """Return the address of the run in `store` or, where it holds none itself, of each run below it.

    Other files may lie next to the runs, such as the page that compares them.
    """
    found = [entry.key.rpartition("/") for entry in store.list()]
    runs = sorted({folder for folder, _, name in found if name in (layout.RECIPE, layout.REPORT)})
    itself = "" in runs or any(folder.split("/")[0] == layout.CLAIMS for folder, _, _ in found)
    return [store.uri] if itself or not runs else [f"{store.uri}/{run}" for run in runs]


def _file(store: Store, key: str, parse: Callable[[bytes, str], Content]) -> Content | None:
    """Return the parsed file, None where there is none."""
    name = f"{store.uri}/{key}"
    try:
        data = documents.fetch(store, key, MAX_BYTES).data
    except AbsentError:
        return None
    if len(data) > MAX_BYTES:
        raise _mistaken(name, f"it is larger than {MAX_BYTES} bytes")
    try:
        return parse(data, name)
    except ValueError as error:
        raise _mistaken(name, str(error)) from error


def _history(data: bytes, name: str) -> list[Epoch]:
    return records.epochs([documents.json_object(line, name) for line in data.splitlines()], name)


def _recipe(data: bytes, name: str) -> dict[str, Scalar]:
    found = Identity.parse(documents.json_object(data, name), name)
    return {**found.recipe, **({"identity": found.identity} if found.identity else {})}


def _png(data: bytes, _: str) -> bytes:
    if not data.startswith(PNG):
        raise ValueError("no PNG")
    return data


def _mistaken(name: str, reason: str) -> DataError:
    return DataError(
        f"{name} is not what this program wrote ({reason})",
        "Find out what has changed the file, or move it away",
    )


def _attempts(store: Store, turns: list[Turn], report: Report | None) -> list[AttemptSummary]:
    """Return the attempts of the claims, or of the report where the claims were not copied with it.

    Attempts that were refused, or came after the run was finished, did nothing and are left out.
    """
    finished = report.lineage.attempts if report else []
    if not turns:
        return [_attempt(_reported(entry), None, None) for entry in finished]
    last = finished[-1].generation if finished else turns[-1].generation
    return [
        _attempt(
            replace(turn, reason=FINISHED) if finished and turn.generation == last else turn,
            unsaved_seconds(store, turn),
            _last_seen(store, turn.generation),
        )
        for turn in turns
        if turn.reason != REFUSED and turn.generation <= last
    ]


def downtimes(attempts: list[AttemptSummary]) -> list[float | None]:
    """Return, for each attempt, the seconds until the next one began; None for the last and where unknown."""
    following = [*(attempt.started for attempt in attempts[1:]), None]
    return [
        max(0.0, (begins - attempt.ended).total_seconds()) if begins and attempt.ended else None
        for attempt, begins in zip(attempts, following, strict=True)
    ]


def _reported(entry: AttemptEntry) -> Turn:
    """Return an attempt as a report describes it; its times are text of any kind."""
    worker = Worker.model_construct(
        started=entry.started, host=entry.host, device=entry.device, processes=entry.processes
    )
    return Turn(entry.generation, worker, entry.reason, entry.ended)


def _attempt(turn: Turn, lost: float | None, last_seen: datetime | None) -> AttemptSummary:
    host, several = turn.worker.host or "unknown", turn.worker.processes
    started, ended = _time(turn.worker.started), _time(turn.ended)
    return AttemptSummary(
        generation=turn.generation,
        started=started,
        ended=ended or last_seen or started,
        reason=turn.reason,
        host=f"{host}, {several} processes" if several else host,
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
