"""A process's turn at a run: it claims the run, keeps it while it trains, and says why it ended."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from job import events
from job.errors import ConfigurationError, FencedError, JobError, MachineError, PreemptedError
from job.machine.notices import NoticePoller
from job.machine.preemption import Preemption
from job.run.checkpoints import Checkpoint, Checkpoints
from job.run.claims import lineage
from job.run.drift import drift
from job.run.heartbeat import Beat, Heartbeat, unsaved_seconds
from job.run.history import History
from job.run.outputs import HistoryCopy, Run
from job.run.saver import Saver
from job.run.state import TrainingState
from job.run.unsaved import Unsaved
from job.settings import Placement
from job.store.retry import patiently
from job.train.trainer import Trainer

STATE = "state.pt"
"""The training state's name among a checkpoint's objects."""

FIRST_NOTICE_SECONDS = 2.0  # that a start waits at most for a cloud to say that the machine is going


class Attempt:
    """The owner of a run, from its claim on.

    `state` is what training goes on with, None from the start; `outputs` what a finished run left.
    Raises PreemptedError where the machine is about to go, and what `Checkpoints.claim` raises.
    """

    def __init__(
        self, run: Run, machine: dict[str, Any], placement: Placement, preemption: Preemption
    ) -> None:
        self.run, self.store, self.preemption = run, run.store, preemption
        self.budget_seconds = placement.storage_budget
        self.unsaved = Unsaved(Path(placement.cache), run.recipe.fingerprint)
        self.poller = NoticePoller()
        self.poller.start()
        self._refuse_doomed_machine()
        self._tell_drift(machine, placement.exact)
        started = datetime.now(UTC).isoformat()
        description = {"host": socket.gethostname(), "started": started, **machine}
        description["recipe"] = run.recipe.to_json()
        self.checkpoints, found = Checkpoints.claim(self.store, run.identity, description)
        self.saved = int(found.manifest.metrics["checkpoints"]) if found else 0  # by all attempts
        self.outputs = found.objects if found and found.manifest.finished else None
        self.state = None if self.outputs else self._newest(found)
        if self.state:
            events.emit("resume", attempt=self.generation, epoch=self.state.epoch + 1, step=self.state.step)
        self.history_copy = HistoryCopy(self.store)
        self.saver = Saver(self._commit, placement.checkpoint_every, placement.storage_budget)
        self.heartbeat = Heartbeat(self.store, self.generation, self._describe)
        self.phase, self.began = "training", time.monotonic()
        self.noticed = False

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
        except MachineError as error:  # the store is full or out of reach: nothing can be told there
            if error is self.saver.error:
                self.unsaved.keep(self._state())
                error.message += f"; the state is kept in {self.unsaved.path}"
            raise
        except JobError as error:
            if self.saver.idle():
                self.checkpoints.end(
                    "fenced" if isinstance(error, FencedError) else f"failed: {error.message}"
                )
            raise
        finally:
            self.saver.close()
            self.heartbeat.stop()
            self.poller.stop()

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
        """Return the report's lineage section, this attempt told as finished, once all is saved."""
        self.saver.flush()
        self.saver.check()
        attempts = [
            attempt for attempt in self.checkpoints.attempts() if attempt["generation"] <= self.generation
        ]
        attempts[-1] |= {"ended": datetime.now(UTC).isoformat(), "reason": "finished"}
        lost = [unsaved_seconds(self.store, attempt) for attempt in attempts]
        return {
            "attempts": [
                {
                    name: attempt[name]
                    for name in ("generation", "started", "ended", "reason", "host", "device")
                }
                for attempt in attempts
            ],
            "drift": drift(attempts),
            "checkpoints": self.saved + 1,
            "lost_seconds": round(sum(lost), 1),
        }

    def _refuse_doomed_machine(self) -> None:
        notice = self.poller.first_answer(FIRST_NOTICE_SECONDS)
        if notice is not None:
            raise PreemptedError(
                f"this machine will be taken away in {max(0, round(notice.gone - time.monotonic()))} s",
                "Run the same command on another one",
            )

    def _tell_drift(self, machine: dict[str, Any], exact: bool) -> None:
        now = {"generation": 0, **machine, "recipe": self.run.recipe.to_json()}
        changes = drift([*lineage(self.store)[-1:], now])
        here = {change["field"]: (change["before"], change["now"]) for change in changes}
        if here and exact:
            listed = ", ".join(f"{field} {before!r} -> {now!r}" for field, (before, now) in here.items())
            raise MachineError(
                f"this machine is not like the one before: {listed}",
                "Use the same kind, or leave --exact out",
            )
        if here:
            events.warn("drift", **{field: f"{before} -> {now}" for field, (before, now) in here.items()})

    def _last_save(self, reason: PreemptedError) -> PreemptedError:
        """Save what can be saved in time; return the error that names what is durable."""
        if self.phase == "finished":
            return PreemptedError(f"{reason.message}; the run is finished", "Run the same command again")
        state, durable = self._state(), self.saver.durable
        if durable is None or (durable.epoch, durable.step) != (state.epoch, state.step):
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
        lost = "" if saved else f", and the steps up to epoch {state.epoch + 1} step {state.step} are lost"
        return PreemptedError(f"{reason.message}; durable is {place}{lost}", "Run the same command again")

    def _state(self) -> TrainingState:
        return self.trainer.state(self.history.records)

    def _commit(self, state: TrainingState) -> None:
        """Write one state; the saver's thread calls it."""
        if not state.is_finite():
            raise ConfigurationError(
                f"the weights are not finite in epoch {state.epoch + 1} at step {state.step}; {self._good()}",
                "Lower the learning rate in --cycles, or use --precision fp32",
            )
        self._write({STATE: state.encode()}, state.epoch, state.step)
        self.unsaved.drop()
        self.history_copy.write(History(state.history).encode())

    def _commit_outputs(self, outputs: dict[str, bytes]) -> None:
        with self.preemption.deferred():
            self._write(outputs, self.trainer.epoch, 0, finished=True)
            self.phase = "finished"
            self.checkpoints.end("finished")

    def _newest(self, found: Checkpoint | None) -> TrainingState | None:
        """Return the state that is further on: of the newest checkpoint, or what no store would take."""
        state = TrainingState.decode(found.objects[STATE]) if found else None
        kept = self.unsaved.find()
        if kept and (state is None or (kept.epoch, kept.step) > (state.epoch, state.step)):
            events.emit("unsaved_state", file=self.unsaved.path)
            return kept
        return state

    def _write(self, objects: dict[str, bytes], epoch: int, step: int, finished: bool = False) -> None:
        self.checkpoints.commit(
            objects,
            epoch=epoch,
            step=step,
            position=epoch * len(self.trainer.batches) + step,
            metrics={"checkpoints": self.saved + 1},
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
        last = self.history.records[-1] if self.history.records else {}
        accuracies = [record["accuracy"] for record in self.history.records if "accuracy" in record]
        safe = self.saver.durable.taken if self.saver.durable else self.began
        return Beat(
            phase=self.phase,
            epoch=min(self.trainer.epoch + 1, self.trainer.recipe.epochs),
            epochs=self.trainer.recipe.epochs,
            step=self.trainer.step,
            steps_per_epoch=len(self.trainer.batches),
            batch_size=self.trainer.recipe.batch_size,
            accuracy=accuracies[-1] if accuracies else None,
            images_per_second=last.get("images_per_second"),
            unsaved_seconds=round(time.monotonic() - safe, 1),
        )
