"""What is saved when a training is stopped, and where: real attempts, on stores that fail at that moment."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from job.errors import FencedError, JobError, MachineError, PreemptedError
from job.machine.preemption import Preemption
from job.network import compressed
from job.phases import Cycle
from job.recipe import Recipe
from job.run.outputs import History, Run
from job.run.records import Place
from job.settings import AttemptSettings
from job.store import Store, open_store
from job.store.base import RefusedError, TransientError
from job.train.attempt import Attempt
from job.train.checkpointing import Checkpointing
from job.train.trainer import Trainer
from tests.train.test_trainer import RECIPE, STEPS, batches, network

STOP = 3  # steps


class Failing:
    """A store whose writes below `folders` raise `error` while it is set; `writes` are the keys written."""

    def __init__(self, inner: Store, *folders: str) -> None:
        self._inner, self._folders = inner, folders
        self.error: JobError | None = None
        self.writes: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in ("put", "put_if_absent", "put_if_match"):
            return found

        def write(key: str, *arguments: Any) -> Any:
            if self.error and key.partition("/")[0] in self._folders:
                raise self.error
            self.writes.append(key)
            return found(key, *arguments)

        return write


class Bench:
    """A training of the recipe of test_trainer in `store`, stopped after STOP steps."""

    def __init__(self, store: Any, cache: Path, grace: float = 2) -> None:
        self.store, self.cache, self.preemption = store, cache, Preemption(grace)
        self.run = Run.open(store, RECIPE)

    @contextlib.contextmanager
    def attempt(
        self,
        after_step: Any,
        recipe: Recipe = RECIPE,
        kind: type[Trainer] = Trainer,
    ) -> Iterator[Checkpointing]:
        own = compressed.build(10, 1, 7) if recipe.compresses else network()
        chosen = AttemptSettings(checkpoint_every=3600.0)
        with Attempt.claim(self.run, own, {}, chosen, self.cache, self.preemption) as attempt:
            trainer = kind(own, batches(), recipe, lambda: after_step(checkpointing))
            if attempt.state:
                trainer.restore(attempt.state)
            checkpointing = Checkpointing(attempt, trainer, History())
            yield checkpointing

    def stopped(self, before: Any = lambda checkpointing: None) -> BaseException:
        """Return what a training raises that is stopped after STOP steps; `before` comes just before."""

        def after_step(checkpointing: Checkpointing) -> None:
            if checkpointing.trainer.step == STOP:
                before(checkpointing)
                self.preemption.request("stopped by SIGTERM")
                self.preemption.expect(checkpointing.began + 2)
            self.preemption.check()

        with (
            pytest.raises((PreemptedError, JobError)) as caught,
            self.attempt(after_step) as checkpointing,
            checkpointing.running(),
        ):
            checkpointing.trainer.train_epoch()
        return caught.value

    def kept(self) -> list[Path]:
        return list(self.cache.glob("unsaved-*"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Failing(open_store(str(tmp_path / "run")), "claims"), tmp_path / "cache")


@pytest.mark.parametrize("error", [RefusedError("the token has expired"), TransientError("no answer")])
def test_an_end_that_cannot_be_recorded_leaves_the_exit_code_and_what_is_durable(
    bench: Bench, error: JobError
) -> None:
    def refuse(checkpointing: Checkpointing) -> None:
        bench.store.error = error

    stopped = bench.stopped(refuse)
    assert isinstance(stopped, PreemptedError)
    assert stopped.exit_code == 75
    assert f"durable is epoch 1 step {STOP}" in stopped.message
    assert "lost" not in stopped.message
    assert bench.kept() == []


def out_of_reach(bench: Bench, checkpointing: Checkpointing) -> None:
    """Let the store fail, and a commit find that out."""
    bench.store.error = TransientError("no answer")
    checkpointing.save()
    while not checkpointing.saver.failing:
        threading.Event().wait(0.01)


@pytest.mark.parametrize("known", [True, False], ids=["after a failed commit", "at the last commit"])
def test_a_stop_while_the_store_is_out_of_reach_keeps_the_state_here(tmp_path: Path, known: bool) -> None:
    store = Failing(open_store(str(tmp_path / "run")), "objects", "manifests")
    bench = Bench(store, tmp_path / "cache")

    def cut(checkpointing: Checkpointing) -> None:
        if known:
            out_of_reach(bench, checkpointing)
        store.error = TransientError("no answer")

    stopped = bench.stopped(cut)
    assert isinstance(stopped, PreemptedError)
    (kept,) = bench.kept()
    assert f"the state is kept in {kept}, at epoch 1 step {STOP}" in stopped.message
    assert "no checkpoint was saved by this attempt" in stopped.message
    assert "lost" not in stopped.message
    store.error = None
    with Bench(store, tmp_path / "cache").attempt(lambda checkpointing: None) as again:
        assert (again.trainer.epoch, again.trainer.step) == (0, STOP)


def test_a_store_that_answers_again_gets_the_state_and_the_copy_here_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("job.run.saver.RETRY_SECONDS", 0.05)
    store = Failing(open_store(str(tmp_path / "run")), "objects", "manifests")
    bench = Bench(store, tmp_path / "cache")

    def cut(checkpointing: Checkpointing) -> None:
        out_of_reach(bench, checkpointing)
        keep = checkpointing.attempt.unsaved.keep

        def kept(state: Any) -> None:
            keep(state)
            assert bench.kept()
            store.error = None

        monkeypatch.setattr(checkpointing.attempt.unsaved, "keep", kept)

    stopped = bench.stopped(cut)
    assert isinstance(stopped, PreemptedError)
    assert stopped.message.endswith(f"durable is epoch 1 step {STOP}")
    assert bench.kept() == []


def test_a_fenced_attempt_keeps_nothing(tmp_path: Path) -> None:
    store = Failing(open_store(str(tmp_path / "run")), "objects", "manifests")
    bench = Bench(store, tmp_path / "cache")

    def fence(checkpointing: Checkpointing) -> None:
        store.error = FencedError("generation 2 has taken over")

    assert isinstance(bench.stopped(fence), FencedError)
    assert bench.kept() == []


@pytest.mark.parametrize(
    ("reachable", "place"), [(True, "durable is epoch 1 step 3"), (False, "the state is kept in .*step 3")]
)
def test_whatever_of_the_machine_ends_a_training_its_state_is_saved(
    tmp_path: Path, reachable: bool, place: str
) -> None:
    store = Failing(open_store(str(tmp_path / "run")), "objects", "manifests")
    bench = Bench(store, tmp_path / "cache")

    def fail(checkpointing: Checkpointing) -> None:
        if checkpointing.trainer.step == STOP:
            store.error = None if reachable else RefusedError("the token has expired")
            raise MachineError("No space left on device")

    with (
        pytest.raises(MachineError, match=f"No space left on device; {place}$"),
        bench.attempt(fail) as checkpointing,
        checkpointing.running(),
    ):
        checkpointing.trainer.train_epoch()
    assert len(bench.kept()) == (not reachable)
    store.error = None
    with Bench(store, tmp_path / "cache").attempt(lambda checkpointing: None) as again:
        assert (again.trainer.epoch, again.trainer.step) == (0, STOP)


TWO_PHASES = replace(RECIPE, cycles=(Cycle(1, 5e-3),), prune_cycles=(Cycle(1, 1e-3),), statistics_epochs=0)


class Watched(Trainer):
    """A trainer that calls `watch` after each of its assignments, as if another thread ran just then."""

    watch: Any = None

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if self.watch:
            self.watch()


class Hasty(Trainer):
    """A trainer that is a step further each time that somebody has asked for its place."""

    @property
    def place(self) -> Place:
        found = super().place
        self._at = divmod(self.epoch * len(self.batches) + self.step + 1, len(self.batches))
        return found


def test_a_heartbeat_between_any_two_assignments_is_of_the_training_s_place(bench: Bench) -> None:
    with bench.attempt(lambda checkpointing: None, TWO_PHASES, Watched) as checkpointing:
        trainer, beats = checkpointing.trainer, []
        Watched.watch = lambda self: beats.append(checkpointing._beat())
        try:
            for _ in range(TWO_PHASES.epochs):
                trainer.train_epoch()
                trainer.next_epoch()
        finally:
            Watched.watch = None
    places = [(beat.epoch, beat.step) for beat in beats]
    assert places == sorted(places)
    assert places[0] == (1, 0)
    assert set(places) - {(1, 0)} == {(epoch, step) for epoch in (1, 2) for step in range(1, STEPS + 1)}
    assert {beat.phase_epoch for beat in beats} == {1}


def test_a_heartbeat_is_of_one_place_although_the_training_moves_on_meanwhile(bench: Bench) -> None:
    with bench.attempt(lambda checkpointing: None, TWO_PHASES, Hasty) as checkpointing:
        beats = [checkpointing._beat() for _ in range(2 * STEPS)]
    assert [(beat.epoch, beat.step) for beat in beats][:STEPS] == [(1, step) for step in range(STEPS)]
    assert [(beat.phase, beat.phase_epoch) for beat in beats][STEPS:] == [
        ("dense", 1),
        *[("prune", 1)] * (STEPS - 1),
    ]
