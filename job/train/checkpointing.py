"""When a training is saved: at its interval, at a notice, and once more when it is stopped."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

from job import events
from job.errors import FencedError, JobError, MachineError, PermissionRefusedError, PreemptedError
from job.machine import faults
from job.machine.faults import DeviceLostError
from job.machine.processes import ALONE, Group, PeerLostError
from job.run import records
from job.run.lineage import Heartbeat
from job.run.outputs import History
from job.run.records import Beat
from job.run.state import TrainingState
from job.train.attempt import Attempt
from job.train.trainer import Trainer

SETTLE_SECONDS = 60.0  # that the end of a failed attempt waits for what the saver holds


class Checkpointing:
    """Saves the training of an attempt while `running`, and writes its heartbeats."""

    def __init__(self, attempt: Attempt, trainer: Trainer, history: History, group: Group = ALONE) -> None:
        self.attempt, self.trainer, self.history, self.group = attempt, trainer, history, group
        self.saver, self.preemption = attempt.saver, attempt.preemption
        self.heartbeat = Heartbeat(attempt.store, attempt.generation, self._beat)
        self.began, self.noticed = time.monotonic(), False

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Save while the block trains; when it is preempted, save once more within the grace.

        Raises PreemptedError naming what is durable, or what the block raises.
        """
        self.saver.start()
        self.heartbeat.start()
        try:
            yield
        except PreemptedError as error:
            raise self._last_save(error) from None
        except (DeviceLostError, PeerLostError) as error:
            self.settle(error.message)
            raise
        except (MachineError, PermissionRefusedError) as error:
            if not self.attempt.finished:
                error.message += f"; {self._rescue()}"
            raise
        except Exception:
            self._flush()
            raise
        finally:
            self.saver.close()
            self.heartbeat.stop()

    def after_step(self) -> None:
        """Do what is due between two steps; raise what must end the training here."""
        self.saver.check()
        notice = self.attempt.poller.notice
        if notice is not None:
            self.preemption.expect(notice.gone)
        if not self.noticed and not self.preemption.requested and math.isfinite(self.preemption.gone):
            self.noticed = True  # here, or by a process on another machine
            self.saver.offer(self._state())
        elif self.saver.due:
            self.saver.offer(self._state())
        self.group.check(
            self.preemption, 2 * self.saver.save_seconds
        )  # one save may be in flight, and then the last

    def save(self) -> None:
        """Have the state as it is now saved in the background."""
        self.saver.check()
        self.saver.offer(self._state())

    def settle(self, cause: str) -> None:
        """Save what is on the host already, within SETTLE_SECONDS and the grace, and record the end's cause.

        Nothing is asked of the device, so that a thread may call it while another one waits for that.
        """
        if self._flush():
            self.attempt.end(f"failed: {cause}")

    def _last_save(self, reason: PreemptedError) -> PreemptedError:
        """Save what can be saved in time; return the error that names what is durable."""
        if self.attempt.finished:
            return PreemptedError(f"{reason.message}; the run is finished", "Run the same command again")
        state, durable = self._last_state(), self.saver.durable
        if state and (durable is None or (durable.epoch, durable.step) != (state.epoch, state.step)):
            self.saver.offer(state)
        saved = not self.saver.failing and self.saver.flush(self._half_of_grace())
        kept = ""
        if not saved and not isinstance(self.saver.error, FencedError):
            kept = self._keep_on_disk(state)  # now: a store that does not answer takes all of the grace
            saved = self.saver.flush(self.preemption.deadline)
        if isinstance(self.saver.error, FencedError):
            raise self.saver.error
        if saved:
            self.attempt.end("preempted")
        durable = self.saver.durable
        message = f"durable is {durable}" if durable else "no checkpoint was saved by this attempt"
        if not (saved and state) and not self.attempt.unsaved.kept:
            message += f", and the steps up to {self.trainer.place} are lost"
        if kept and not saved:
            message += f"; {kept}"
        return PreemptedError(f"{reason.message}; {message}", "Run the same command again")

    def _half_of_grace(self) -> float | None:
        """Return when half of the time for saving is over (time.monotonic()); None where it has no end."""
        deadline, now = self.preemption.deadline, time.monotonic()
        return None if deadline is None else now + (deadline - now) / 2

    def _rescue(self) -> str:
        """Save the state in the store if it still takes it, else locally; return a message with the place.

        The state is whole: these errors come from what is done between two steps.
        """
        state = self._last_state()
        if state and not (self.saver.error or self.saver.failing):
            self.saver.offer(state)
            if self._flush():
                return f"durable is {self.saver.durable}"
        return self._keep_on_disk(state)

    def _keep_on_disk(self, state: TrainingState | None) -> str:
        """Save the state locally; return a message with the path or the failure."""
        if state is None:
            return "the state could not be kept either"
        try:
            self.attempt.unsaved.keep(state)
        except JobError as error:  # what ends the training is the error to raise
            return f"the state could not be kept either ({error.message})"
        return f"the state is kept in {self.attempt.unsaved.path}, at {state.place}"

    def _state(self) -> TrainingState:
        return self.trainer.state(self.history.records)

    def _last_state(self) -> TrainingState | None:
        """Return the state, None where the device does not give it any more."""
        try:
            with faults.explained(""):
                return self._state()
        except JobError as error:
            events.warn("device_lost", reason=error.message)
            return None

    def _flush(self) -> bool:
        """Wait for the saver, within SETTLE_SECONDS and the grace; return whether all is saved."""
        until = time.monotonic() + SETTLE_SECONDS
        return self.saver.flush(min(until, self.preemption.deadline or until))

    def _beat(self) -> Beat:
        """Return where the training is."""
        history, trainer, place = self.history.records, self.trainer, self.trainer.place
        accuracies = [record.accuracy for record in history if record.accuracy is not None]
        safe = self.saver.durable.taken if self.saver.durable else self.began
        phase = trainer.recipe.phase_at(place.epoch - 1)
        several = len(trainer.recipe.phases) > 1
        name = phase.name if several else "training"
        return Beat(
            phase="finished" if self.attempt.finished else name,
            phase_epoch=place.epoch - phase.first if several else None,
            phase_epochs=phase.epochs if several else None,
            **place._asdict(),
            epochs=trainer.recipe.epochs,
            steps_per_epoch=len(trainer.batches),
            batch_size=trainer.recipe.batch_size,
            accuracy=accuracies[-1] if accuracies else None,
            images_per_second=history[-1].images_per_second if history else None,
            unsaved_seconds=round(time.monotonic() - safe, 1),
            time=records.now(),
        )
