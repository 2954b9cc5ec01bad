"""Where a run stands, read from its objects alone: from a laptop, whatever the machine is doing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

from job.errors import DataError
from job.events import printable
from job.run import records
from job.run.claims import latest
from job.run.lineage import HEARTBEAT_SECONDS, REFUSED, last_beat, lineage
from job.run.records import Beat, Place
from job.run.report import Report
from job.store.base import Store, TransientError
from job.text import duration

SILENT = "silent"
SILENT_SECONDS = 3 * HEARTBEAT_SECONDS  # without a heartbeat before an attempt is called silent

WATCH_SECONDS = 5.0

MAX_SHOWN = 500  # characters of a line


@dataclass(frozen=True)
class Status:
    """Where a run stands by its objects; ages compare its clock with this machine's, None is not known."""

    uri: str
    phase: str  # finished, training or a phase, why the last attempt ended, or silent: no heartbeat for long
    attempts: int
    phase_epoch: int | None = None  # of the recipe's phase that is trained, from 1
    phase_epochs: int | None = None
    heartbeat_age_seconds: float | None = None  # of an attempt that recorded no end
    epoch: int | None = None  # from 1, by the newest of heartbeat and checkpoint
    epochs: int | None = None
    step: int | None = None  # done in that epoch
    steps_per_epoch: int | None = None
    accuracy: float | None = None  # on the test set, after the last whole epoch or, finished, of the report
    images_per_second: float | None = None
    checkpoint_epoch: int | None = None  # of the newest checkpoint, from 1
    checkpoint_step: int | None = None
    checkpoint_age_seconds: float | None = None
    lost_if_killed_now_seconds: float | None = None
    seconds_left: float | None = None

    @property
    def state(self) -> str:
        """The phase for people."""
        if self.phase != SILENT:
            part = f" {self.phase_epoch} of {self.phase_epochs}" if self.phase_epoch else ""
            return self.phase + part
        age = self.heartbeat_age_seconds
        return "no heartbeat yet" if age is None else f"no heartbeat for {duration(age)}"

    def to_json(self) -> dict[str, str | int | float | None]:
        """Return the fields as JSON values."""
        return asdict(self)


def read(store: Store, now: datetime | None = None) -> Status:
    """Return the status of the run in `store`; DataError where there is none."""
    now = now or datetime.now(UTC)
    attempts = [turn for turn in lineage(store) if turn.reason != REFUSED]
    manifest = latest(store)
    if not attempts:
        raise DataError(f"{store.uri} holds no run", "Name the --run of a training")
    if manifest is not None and manifest.finished:
        return Status(store.uri, "finished", len(attempts), accuracy=_final_accuracy(store))
    ended = attempts[-1].reason
    status = Status(
        uri=store.uri,
        phase=ended or SILENT,
        attempts=len(attempts),
        checkpoint_epoch=manifest.place.epoch if manifest else None,
        checkpoint_step=manifest.place.step if manifest else None,
        checkpoint_age_seconds=_age(manifest.saved, now) if manifest else None,
    )
    beat = last_beat(store, attempts[-1].generation)
    if beat is None:
        return status
    silence = _age(beat.time, now)
    place = max(Place(beat.epoch, beat.step), manifest.place) if manifest else Place(beat.epoch, beat.step)
    status = replace(
        status,
        heartbeat_age_seconds=None if ended else silence,
        epoch=place.epoch,
        epochs=beat.epochs,
        step=place.step,
        steps_per_epoch=beat.steps_per_epoch,
        accuracy=beat.accuracy,
        images_per_second=beat.images_per_second,
    )
    if ended or silence > SILENT_SECONDS:
        return status
    return replace(
        status,
        phase=beat.phase,
        phase_epoch=beat.phase_epoch,
        phase_epochs=beat.phase_epochs,
        lost_if_killed_now_seconds=round(beat.unsaved_seconds + silence, 1),
        seconds_left=_seconds_left(beat),
    )


def lines(status: Status) -> str:
    """Return the status for people."""
    rows = [("run", status.uri), ("state", status.state), ("attempts", str(status.attempts))]
    if status.epoch is not None:
        rows.append(
            ("epoch", f"{status.epoch} of {status.epochs}, step {status.step} of {status.steps_per_epoch}")
        )
    if status.accuracy is not None:
        rows.append(("accuracy", f"{status.accuracy:.2%} on the test set"))
    if status.images_per_second is not None:
        rows.append(("speed", f"{status.images_per_second:,.0f} images/s"))
    if status.checkpoint_age_seconds is not None:
        place = f"epoch {status.checkpoint_epoch}, step {status.checkpoint_step}"
        rows.append(("checkpoint", f"{place}; {duration(status.checkpoint_age_seconds)} old"))
    if status.lost_if_killed_now_seconds is not None:
        unsaved = duration(status.lost_if_killed_now_seconds)
        rows.append(("unsaved", f"{unsaved} of training, repeated if the attempt is killed now"))
    if status.seconds_left is not None:
        rows.append(("time left", duration(status.seconds_left)))
    return "\n".join(f"{name:<12}{printable(value)[:MAX_SHOWN]}" for name, value in rows)


class Observation(NamedTuple):
    """What was seen last, None before the store first answered, and why it does not answer now."""

    seen: Status | None
    outage: str | None

    def text(self) -> str:
        """Return it for people."""
        seen = lines(self.seen) if self.seen else ""
        outage = f"{'store':<12}out of reach, retrying: {printable(self.outage)}" if self.outage else ""
        return "\n".join(filter(None, (seen, outage)))


def watch(store: Store, every_seconds: float = WATCH_SECONDS) -> Iterator[Observation]:
    """Yield an observation every `every_seconds` until the run is finished; raises the store's errors.

    A store out of reach is no error, but part of the observation.
    """
    seen: Status | None = None
    while True:
        try:
            seen = read(store)
            yield Observation(seen, None)
        except TransientError as error:
            yield Observation(seen, error.message)
        if seen is not None and seen.phase == "finished":
            return
        time.sleep(every_seconds)


def _final_accuracy(store: Store) -> float | None:
    """Return the report's accuracy, None in the moment before it is published or where it is damaged."""
    try:
        report = Report.read(store)
    except DataError:
        return None
    return report.accuracy.final if report else None


def _age(time: str, now: datetime) -> float:
    return max(0.0, round((now - datetime.fromisoformat(time)).total_seconds(), 1))


def _seconds_left(beat: Beat) -> float | None:
    """Return the training time left at the last whole epoch's speed."""
    if not beat.images_per_second:
        return None
    steps = (beat.epochs - beat.epoch + 1) * beat.steps_per_epoch - beat.step
    seconds = steps * beat.batch_size / beat.images_per_second
    return round(seconds, 1) if seconds <= records.LARGEST else None
