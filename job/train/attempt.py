"""A process's turn at a run: it claims the run, resumes it, commits its states, and records why it ended."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from job import events
from job.errors import ConfigurationError, MachineError, PreemptedError
from job.machine.device import HARDWARE
from job.machine.environment import revision
from job.machine.notices import NoticePoller
from job.machine.preemption import Preemption
from job.run import claims, layout, records
from job.run.checkpoints import END_SECONDS, Checkpoints
from job.run.lineage import FINISHED, Turn, reason_of, report_drift, report_lost_attempt, to_report
from job.run.manifests import Checkpoint
from job.run.outputs import Copy, History, Run
from job.run.records import Worker
from job.run.report import Lineage
from job.run.saver import Saver, Unsaved
from job.run.state import TrainingState, largest, smallest
from job.settings import AttemptSettings
from job.store.retry import patiently
from job.train.summary import finished_outputs

MAX_TEXT = 1000  # characters of each value in an attempt's description
NONE_GOOD = "this attempt saved no checkpoint before"
FIRST_NOTICE_SECONDS = 2.0  # timeout, at a start, of asking the cloud whether it reclaims the machine


class Attempt:
    """The owner of a run, from its claim on.

    `state` is what training resumes from, None at the start; `outputs` what a finished run left. `saver`
    commits the states that it is given.
    """

    def __init__(
        self,
        run: Run,
        checkpoints: Checkpoints,
        settings: AttemptSettings,
        cache: Path,
        preemption: Preemption,
        poller: NoticePoller,
        history_copy: Copy,
        recipe_copy: Copy | None,
    ) -> None:
        self.run, self.store, self.checkpoints = run, run.store, checkpoints
        self.preemption, self.poller = preemption, poller
        self.history_copy, self.recipe_copy = history_copy, recipe_copy
        self.budget_seconds = settings.storage_budget
        self.unsaved = Unsaved(
            cache,
            run.recipe.fingerprint,
            checkpoints.generation,
            checkpoints.owner,
            lambda generation, owner: claims.is_taken(run.store, generation, owner),
        )
        self.saved = 0  # checkpoints, by all attempts
        self.state: TrainingState | None = None
        self.outputs: dict[str, bytes] | None = None
        self.saver = Saver(self._commit, settings.checkpoint_every, settings.storage_budget)
        self.finished = False

    @classmethod
    @contextlib.contextmanager
    def claim(
        cls,
        run: Run,
        network: nn.Module,
        machine: dict[str, str | None],
        settings: AttemptSettings,
        cache: Path,
        preemption: Preemption,
        processes: int | None = None,
    ) -> Iterator[Attempt]:
        """Take the run over for the block, and record the attempt's end when the block ends.

        `network` bounds the state that is read; `cache` keeps one that the store does not take; `processes`
        is how many share the work, where it can be shared. Raises ConfigurationError for a network whose
        state no checkpoint can hold, PreemptedError where the machine is about to go, and what
        `Checkpoints.claim` and the block raise.
        """
        records.require_storable(smallest(network))
        about = {"host": socket.gethostname(), "git": revision(), **machine}
        described = {name: text and events.printable(text)[:MAX_TEXT] for name, text in about.items()}
        worker = Worker.parse(
            {
                **described,
                "processes": processes,
                "started": records.now(),
                "recipe": run.recipe.to_json(),
            },
            "this attempt",
        )
        poller = NoticePoller()
        poller.start()
        try:
            _refuse_doomed_machine(poller)
            before = claims.last(run.store)
            report_drift(before, worker, HARDWARE, settings.exact)
            copies = Copy(run.store, layout.HISTORY), run.recipe_copy()
            checkpoints, found = Checkpoints.claim(run.store, run.identity, worker, run.check)
            attempt = cls(run, checkpoints, settings, cache, preemption, poller, *copies)
            try:
                if before:
                    report_lost_attempt(before, found.manifest.position if found else 0)
                attempt.resume(found, largest(network.state_dict()))
                yield attempt
            except BaseException as error:
                attempt.fail(error)
                raise
        finally:
            poller.stop()

    @property
    def generation(self) -> int:
        """The number of this attempt, from 1."""
        return self.checkpoints.generation

    def resume(self, found: Checkpoint | None, most: int) -> None:
        """Take over what the newest checkpoint holds; DataError for a state of more than `most` bytes."""
        if found:
            self.saved = found.manifest.metrics.checkpoints
        if found and found.manifest.finished:
            self.outputs = finished_outputs(found)
        else:
            self.state = self.unsaved.further(TrainingState.of(found, most) if found else None, most)
        if self.state:
            events.emit("resume", attempt=self.generation, **self.state.place._asdict())

    def fail(self, error: BaseException) -> None:
        """Record that `error` ends the attempt, unless an end is recorded or the store is what failed."""
        saved_last = isinstance(error, PreemptedError) and self.saver.started
        if self.checkpoints.ended or saved_last or isinstance(error, MachineError) or not self.saver.idle():
            return
        self.end(reason_of(error))

    def end(self, reason: str) -> None:
        """Record why the attempt ends, unless the store takes longer than END_SECONDS."""
        self.checkpoints.end_within(min(END_SECONDS, self.preemption.remaining()), reason)

    def lineage(self) -> Lineage:
        """Return the report's lineage section, with this attempt as finished, once all is saved."""
        self.saver.flush()
        self.saver.check()
        return patiently(self._lineage, self.budget_seconds)

    def finish(self, outputs: dict[str, bytes], steps_per_epoch: int) -> None:
        """Commit the run's outputs as its last checkpoint; nothing follows it."""
        self.saver.flush()
        self.saver.check()
        self.saver.close()
        patiently(lambda: self._commit_outputs(outputs, steps_per_epoch), self.budget_seconds)

    def publish(self, outputs: dict[str, bytes]) -> None:
        """Copy a finished run's outputs to where people look for them."""
        patiently(lambda: self.run.publish(outputs), self.budget_seconds)

    def _lineage(self) -> Lineage:
        turns = [turn for turn in self.checkpoints.attempts() if turn.generation < self.generation]
        turns.append(Turn(self.generation, self.checkpoints.worker, FINISHED, records.now()))
        return to_report(self.store, turns, self.saved + 1)

    def _commit(self, state: TrainingState) -> None:
        """Write one state; the saver's thread calls it."""
        if not state.is_finite():
            durable = self.saver.durable
            good = f"the checkpoint of {durable} is good" if durable else NONE_GOOD
            raise ConfigurationError(
                f"the weights are not finite after {state.place}; {good}",
                "Lower the learning rate in --cycles, or use --precision fp32",
            )
        self._write({layout.STATE: state.encode()}, state.epoch, state.step, state.steps_per_epoch)
        self.unsaved.drop(state.epoch, state.step)
        self.history_copy.write(History(state.history).encode())
        if self.recipe_copy:
            self.recipe_copy.write(self.run.encode_recipe())

    def _commit_outputs(self, outputs: dict[str, bytes], steps_per_epoch: int) -> None:
        with self.preemption.deferred():
            self._write(outputs, self.run.recipe.epochs, 0, steps_per_epoch, finished=True)
            self.finished = True
            self.checkpoints.end(FINISHED)

    def _write(
        self, objects: dict[str, bytes], epoch: int, step: int, steps_per_epoch: int, finished: bool = False
    ) -> None:
        self.checkpoints.commit(
            objects,
            epoch=epoch,
            step=step,
            position=epoch * steps_per_epoch + step,
            checkpoints=self.saved + 1,
            finished=finished,
        )
        self.saved += 1


def _refuse_doomed_machine(poller: NoticePoller) -> None:
    notice = poller.first_answer(FIRST_NOTICE_SECONDS)
    if notice is not None:
        raise PreemptedError(
            f"this machine will be taken away in {max(0, round(notice.gone - time.monotonic()))} s",
            "Run the same command on another one",
        )
