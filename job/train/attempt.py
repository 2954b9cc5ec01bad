"""A process's turn at a run: it claims the run, keeps it while it trains, and records why it ended."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from job import events
from job.errors import (
    ConfigurationError,
    DataError,
    FencedError,
    JobError,
    MachineError,
    PermissionRefusedError,
    PreemptedError,
)
from job.machine import faults
from job.machine.device import HARDWARE
from job.machine.environment import revision
from job.machine.faults import DeviceLostError
from job.machine.notices import NoticePoller
from job.machine.preemption import Preemption
from job.run import claims, layout, records
from job.run.checkpoints import Checkpoints
from job.run.heartbeat import Heartbeat
from job.run.lineage import FINISHED, VANISHED, Turn, drift, unsaved_seconds
from job.run.outputs import Copy, History, Run
from job.run.records import Beat, Claim, Worker
from job.run.restore import Checkpoint
from job.run.saver import Saver
from job.run.state import TrainingState, largest
from job.run.unsaved import Unsaved
from job.settings import Placement
from job.store.retry import patiently
from job.train.trainer import Trainer
from job.view import stored_run

NEEDED = set(layout.OUTPUTS) - {layout.SAMPLES}
MAX_TEXT = 1000  # characters of what an attempt says of itself
END_SECONDS = 5.0  # that recording the reason of a failure may take
SETTLE_SECONDS = 60.0  # that the end of a failed attempt waits for what the saver holds
FIRST_NOTICE_SECONDS = 2.0  # that a start waits at most for a cloud to say that the machine is going


class Attempt:
    """The owner of a run, from its claim on.

    `state` is what training resumes from, None at the start; `outputs` what a finished run left.
    """

    def __init__(
        self,
        run: Run,
        checkpoints: Checkpoints,
        placement: Placement,
        preemption: Preemption,
        poller: NoticePoller,
        history_copy: Copy,
        recipe_copy: Copy | None,
    ) -> None:
        self.run, self.store, self.checkpoints = run, run.store, checkpoints
        self.preemption, self.poller = preemption, poller
        self.history_copy, self.recipe_copy = history_copy, recipe_copy
        self.budget_seconds = placement.storage_budget
        self.unsaved = Unsaved(
            Path(placement.cache),
            run.recipe.fingerprint,
            checkpoints.generation,
            checkpoints.owner,
            lambda generation, owner: claims.is_taken(run.store, generation, owner),
        )
        self.saved = 0  # checkpoints, by all attempts
        self.state: TrainingState | None = None
        self.outputs: dict[str, bytes] | None = None
        self.saver = Saver(self._commit, placement.checkpoint_every, placement.storage_budget)
        self.heartbeat = Heartbeat(self.store, self.generation, self._describe)
        self.phase, self.began = "training", time.monotonic()
        self.noticed = False

    @classmethod
    @contextlib.contextmanager
    def claim(
        cls,
        run: Run,
        network: nn.Module,
        machine: dict[str, str | None],
        placement: Placement,
        preemption: Preemption,
    ) -> Iterator[Attempt]:
        """Take the run over for the block, and record the attempt's end when the block ends.

        `network` bounds the state that is read. Raises PreemptedError where the machine is about to go, and
        what `Checkpoints.claim` and the block raise.
        """
        about = {"host": socket.gethostname(), "git": revision(), **machine}
        told = {name: text and events.printable(text)[:MAX_TEXT] for name, text in about.items()}
        described = {**told, "started": records.now(), "recipe": run.recipe.to_json()}
        worker = Worker.parse(described, "this attempt")
        poller = NoticePoller()
        poller.start()
        try:
            _refuse_doomed_machine(poller)
            before = claims.last(run.store)
            _report_drift(before, worker, placement.exact)
            copies = Copy(run.store, layout.HISTORY), run.recipe_copy()
            checkpoints, found = Checkpoints.claim(run.store, run.identity, worker, run.check)
            attempt = cls(run, checkpoints, placement, preemption, poller, *copies)
            try:
                if before:
                    _report_nothing_left(before, found)
                attempt.resume(found, largest(network.state_dict()))
                yield attempt
            except BaseException as error:
                attempt.fail(error)
                raise
        finally:
            poller.stop()

    def resume(self, found: Checkpoint | None, most: int) -> None:
        """Take over what the newest checkpoint holds; DataError for a state of more than `most` bytes."""
        if found:
            self.saved = found.manifest.metrics.checkpoints
        if found and found.manifest.finished:
            self.outputs = _finished(found)
        else:
            self.state = self._newest(found, most)
        if self.state:
            events.emit("resume", attempt=self.generation, epoch=self.state.epoch + 1, step=self.state.step)

    def fail(self, error: BaseException) -> None:
        """Record that `error` ends the attempt, unless an end is recorded or the store is what failed."""
        saved_last = isinstance(error, PreemptedError) and self.saver.started
        if self.checkpoints.ended or saved_last or isinstance(error, MachineError) or not self.saver.idle():
            return
        if isinstance(error, FencedError):
            reason = "fenced"
        elif isinstance(error, PreemptedError):
            reason = "preempted"
        else:
            reason = f"failed: {error.message if isinstance(error, JobError) else type(error).__name__}"
        self._end(reason)

    def _end(self, reason: str) -> None:
        """Record why the attempt ends, unless the store takes longer than END_SECONDS."""

        def end() -> None:
            with contextlib.suppress(JobError):  # the attempt's own error is the one to raise
                self.checkpoints.end(reason)

        ending = threading.Thread(target=end, name="end", daemon=True)
        ending.start()
        ending.join(END_SECONDS)

    @property
    def generation(self) -> int:
        """The number of this attempt, from 1."""
        return self.checkpoints.generation

    @contextlib.contextmanager
    def kept(self, trainer: Trainer, history: History) -> Iterator[None]:
        """Save while the block trains; when it is preempted, save once more within the grace.

        Raises PreemptedError naming what is durable, or what the block raises.
        """
        self.trainer, self.history = trainer, history
        self.saver.start()
        self.heartbeat.start()
        try:
            yield
        except PreemptedError as error:
            raise self._last_save(error) from None
        except DeviceLostError as error:
            self.settle(error.message)
            raise
        except (MachineError, PermissionRefusedError) as error:  # the store takes nothing any more
            if error is self.saver.error:
                error.message += f"; {self._keep()}"
            raise
        except Exception:
            self._flush()
            raise
        finally:
            self.saver.close()
            self.heartbeat.stop()

    def settle(self, cause: str) -> None:
        """Save what is on the host already, within SETTLE_SECONDS and the grace, and record the end's cause.

        Nothing is asked of the device, so that a thread may call it while another one waits for that.
        """
        if self._flush():
            self._end(f"failed: {cause}")

    def after_step(self) -> None:
        """Do what is due between two steps; raise what must end the training here."""
        self.saver.check()
        notice = self.poller.notice
        if notice is not None and not self.noticed:
            self.noticed = True
            self.preemption.expect(notice.gone)
            self.saver.offer(self._state())
        elif self.saver.due:
            self.saver.offer(self._state())
        self.preemption.check(2 * self.saver.save_seconds)  # one save may be in flight, and then the last

    def save(self) -> None:
        """Have the state as it is now saved in the background."""
        self.saver.check()
        self.saver.offer(self._state())

    def finish(self, outputs: dict[str, bytes]) -> None:
        """Commit the run's outputs as its last checkpoint; nothing follows it."""
        self.saver.flush()
        self.saver.check()
        self.saver.close()
        patiently(lambda: self._commit_outputs(outputs), self.budget_seconds)

    def publish(self, outputs: dict[str, bytes]) -> None:
        """Copy a finished run's outputs to where people look for them."""
        patiently(lambda: self.run.publish(outputs), self.budget_seconds)

    def checkpoint_age(self) -> float | None:
        """Return the seconds since this attempt's newest durable state was taken, None before the first."""
        durable = self.saver.durable
        return None if durable is None else time.monotonic() - durable.taken

    def lineage(self) -> dict[str, Any]:
        """Return the report's lineage section, with this attempt as finished, once all is saved."""
        self.saver.flush()
        self.saver.check()
        return patiently(self._lineage, self.budget_seconds)

    def _lineage(self) -> dict[str, Any]:
        turns = [turn for turn in self.checkpoints.attempts() if turn.generation < self.generation]
        turns.append(Turn(self.generation, self.checkpoints.worker, FINISHED, records.now()))
        lost = [unsaved_seconds(self.store, turn) for turn in turns]
        changes = drift([(turn.generation, turn.worker) for turn in turns])
        return {
            "attempts": [turn.to_json() for turn in turns],
            "drift": [change.model_dump() for change in changes],
            "checkpoints": self.saved + 1,
            "lost_seconds": round(sum(lost), 1),
        }

    def _last_save(self, reason: PreemptedError) -> PreemptedError:
        """Save what can be saved in time; return the error that names what is durable."""
        if self.phase == "finished":
            return PreemptedError(f"{reason.message}; the run is finished", "Run the same command again")
        state, durable = self._last_state(), self.saver.durable
        if state and (durable is None or (durable.epoch, durable.step) != (state.epoch, state.step)):
            self.saver.offer(state)
        saved = self.saver.flush(self.preemption.deadline)
        if isinstance(self.saver.error, FencedError):
            raise self.saver.error
        if saved:
            self.checkpoints.end("preempted")
        durable = self.saver.durable
        place = (
            f"epoch {durable.epoch + 1} step {durable.step}" if durable else "what this attempt began with"
        )
        here = f"epoch {self.trainer.epoch + 1} step {self.trainer.step}"
        lost = "" if saved and state else f", and the steps up to {here} are lost"
        return PreemptedError(f"{reason.message}; durable is {place}{lost}", "Run the same command again")

    def _keep(self) -> str:
        """Keep the state on this machine; return what has come of it."""
        state = self._last_state()
        if state is None:
            return "the state could not be kept either"
        try:
            self.unsaved.keep(state)
        except JobError as error:  # the store's own error is the one to raise
            return f"the state could not be kept either ({error.message})"
        return f"the state is kept in {self.unsaved.path}"

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

    def _commit(self, state: TrainingState) -> None:
        """Write one state; the saver's thread calls it."""
        if not state.is_finite():
            raise ConfigurationError(
                f"the weights are not finite in epoch {state.epoch + 1} at step {state.step}; {self._good()}",
                "Lower the learning rate in --cycles, or use --precision fp32",
            )
        self._write({layout.STATE: state.encode()}, state.epoch, state.step)
        self.unsaved.drop()
        self.history_copy.write(History(state.history).encode())
        if self.recipe_copy:
            self.recipe_copy.write(self.run.encode_recipe())

    def _commit_outputs(self, outputs: dict[str, bytes]) -> None:
        with self.preemption.deferred():
            self._write(outputs, self.trainer.epoch, 0, finished=True)
            self.phase = "finished"
            self.checkpoints.end("finished")

    def _newest(self, found: Checkpoint | None, most: int) -> TrainingState | None:
        """Return the state that is further on: of the newest checkpoint, or what no store would take."""
        state = None
        if found:
            if layout.STATE not in found.objects:
                raise DataError(f"{found.manifest.key} is a checkpoint without {layout.STATE}")
            state = TrainingState.decode(found.objects[layout.STATE], most)
            if state.epoch != len(state.history):
                raise DataError(
                    f"{found.manifest.key} is of epoch {state.epoch + 1} and has the history of "
                    f"{len(state.history)} epochs"
                )
        file, kept = self.unsaved.find(most) or ("", None)
        if kept and (state is None or (kept.epoch, kept.step) > (state.epoch, state.step)):
            events.emit("unsaved_state", file=file)
            return kept
        return state

    def _write(self, objects: dict[str, bytes], epoch: int, step: int, finished: bool = False) -> None:
        self.checkpoints.commit(
            objects,
            epoch=epoch,
            step=step,
            position=epoch * len(self.trainer.batches) + step,
            checkpoints=self.saved + 1,
            finished=finished,
        )
        self.saved += 1

    def _good(self) -> str:
        durable = self.saver.durable
        if durable is None:
            return "no checkpoint of this attempt came before"
        return f"the checkpoint of epoch {durable.epoch + 1} step {durable.step} is good"

    def _describe(self) -> Beat:
        """Return where the attempt is, for its heartbeat."""
        history = self.history.records
        accuracies = [record.accuracy for record in history if record.accuracy is not None]
        safe = self.saver.durable.taken if self.saver.durable else self.began
        return Beat(
            phase=self.phase,
            epoch=min(self.trainer.epoch + 1, self.trainer.recipe.epochs),
            epochs=self.trainer.recipe.epochs,
            step=self.trainer.step,
            steps_per_epoch=len(self.trainer.batches),
            batch_size=self.trainer.recipe.batch_size,
            accuracy=accuracies[-1] if accuracies else None,
            images_per_second=history[-1].images_per_second if history else None,
            unsaved_seconds=round(time.monotonic() - safe, 1),
            time=records.now(),
        )


def _refuse_doomed_machine(poller: NoticePoller) -> None:
    notice = poller.first_answer(FIRST_NOTICE_SECONDS)
    if notice is not None:
        raise PreemptedError(
            f"this machine will be taken away in {max(0, round(notice.gone - time.monotonic()))} s",
            "Run the same command on another one",
        )


def _report_nothing_left(before: Claim, found: Checkpoint | None) -> None:
    """Log the attempt before where it ended, or was killed, before its first checkpoint."""
    position = found.manifest.position if found else 0
    if position == (before.resumed or 0):
        reason = before.end.reason if before.end else VANISHED
        events.warn("no_checkpoint_left", by_attempt=before.generation, reason=reason)


def _report_drift(last: Claim | None, worker: Worker, exact: bool) -> None:
    """Log what differs from the attempt before; where it must be `exact`, raise.

    MachineError for other hardware, which another machine may mend, else ConfigurationError.
    """
    changes = drift([(last.generation, last.attempt), (last.generation + 1, worker)]) if last else []
    if changes and exact:
        listed = ", ".join(f"{change.field} {change.before!r} -> {change.now!r}" for change in changes)
        if {change.field for change in changes} <= set(HARDWARE):
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


def _finished(found: Checkpoint) -> dict[str, bytes]:
    """Return a finished run's outputs; DataError where they are not what such a run leaves."""
    name = found.manifest.key
    missing, more = NEEDED - found.objects.keys(), found.objects.keys() - set(layout.OUTPUTS)
    if missing or more:
        raise DataError(f"{name} is of a finished run and has not its outputs, {', '.join(layout.OUTPUTS)}")
    stored_run.parse_report(found.objects[layout.REPORT], f"the report of {name}")
    return found.objects
