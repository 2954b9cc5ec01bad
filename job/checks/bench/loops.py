"""The loops that are measured: the job's own, and the bare loop that no job can be faster than."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from job.checks.bench.timing import Stopwatch, seconds
from job.data.cifar import CIFAR100_MEAN, CIFAR100_STD
from job.machine import device as devices
from job.machine.device import synchronise
from job.machine.preemption import Preemption
from job.machine.processes import ALONE, Group
from job.network.wide_resnet import wide_resnet
from job.phases import Cycle
from job.recipe import Recipe
from job.run.outputs import History, Run
from job.settings import AttemptSettings
from job.store import open_store
from job.train.attempt import Attempt
from job.train.checkpointing import Checkpointing
from job.train.loader import Images, Normalisation, TrainingBatches
from job.train.step import GraphRecorder, Precision
from job.train.trainer import Trainer, adamw

CLASSES = 100
NEVER = 1e9  # seconds between checkpoints


def batches(
    recipe: Recipe, device: torch.device, steps: int, own: Sequence[int] | None = None
) -> TrainingBatches:
    """Return an epoch of `steps` steps over images of noise, which take as long as any others."""
    generator = np.random.default_rng(0)
    count = steps * recipe.batch_size
    pixels = torch.from_numpy(generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8))
    labels = torch.from_numpy(generator.integers(0, CLASSES, count))
    normalise = Normalisation(CIFAR100_MEAN, CIFAR100_STD, device)
    return TrainingBatches(Images(pixels.to(device), labels.to(device)), CLASSES, normalise, recipe, own)


def default_network(recipe: Recipe, device: torch.device) -> nn.Module:
    """Return the recipe's network in the memory format that the job uses."""
    model = wide_resnet(recipe.depth, recipe.width, CLASSES)
    return model.to(device).to(memory_format=torch.channels_last)


class Bare:
    """Forward, backward and optimizer step on one batch that is on the device already."""

    def __init__(self, recipe: Recipe, device: torch.device, steps: int) -> None:
        self.steps = steps
        loader = batches(recipe, device, 1)
        self.images, self.targets = loader.batch(loader.plan(), 0)
        self.network = default_network(recipe, device)
        self.model = Precision(self.network, recipe.precision)
        if recipe.compile:
            self.model.compile()
        self.optimizer = adamw(self.network.parameters(), 1e-3, recipe.weight_decay).opt

    def step(self) -> torch.Tensor:
        """Take one step; return its loss, on the device."""
        loss = F.cross_entropy(self.model(self.images), self.targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def __call__(self) -> float:
        """Return images a second."""
        return self.steps * len(self.images) / seconds(self._epoch, self.images.device)

    def _epoch(self) -> None:
        for _ in range(self.steps):
            self.step()


class Full:
    """The job's loop: an attempt at a run, with augmentation, mixup, history, heartbeat and checkpoints.

    `step_seconds` are between the ends of the steps, on the device's clock. `blocked_seconds` are what the
    training thread spent on each checkpoint, after the steps before it had ended. `lost_seconds` has an entry
    for each epoch with checkpoints: how much longer a checkpoint made the steps that ran while it was saved,
    compared with the median of the others.
    """

    def __init__(
        self,
        attempt: Attempt,
        model: nn.Module,
        loader: TrainingBatches,
        recipe: Recipe,
        recorder: Callable[[], GraphRecorder] | None = None,
        group: Group = ALONE,
    ) -> None:
        self.attempt, self.history = attempt, History()
        self.blocked_seconds: list[float] = []
        self.lost_seconds: list[float] = []
        self.step_seconds: list[float] = []
        self._during: list[bool] = []  # whether a checkpoint was being saved during the step
        self._saving = False
        self._watch = Stopwatch(loader.device)
        self.trainer = Trainer(model, loader, recipe, self._after_step, recorder, group=group)
        self.checkpointing = Checkpointing(attempt, self.trainer, self.history, group)

    def __call__(self) -> float:
        """Train an epoch; return images a second."""
        saved, stepped = len(self.blocked_seconds), len(self.step_seconds)
        self._watch = Stopwatch(self.trainer.batches.device)
        self._watch.mark()
        taken = seconds(self._epoch, self.trainer.batches.device)
        self.step_seconds += self._watch.laps()
        checkpoints, during = len(self.blocked_seconds) - saved, self._during[stepped:]
        if checkpoints and not all(during):
            self.lost_seconds.append(excess(self.step_seconds[stepped:], during) / checkpoints)
        return len(self.trainer.batches) * self.trainer.recipe.batch_size / taken

    def _epoch(self) -> None:
        self.history.add(self.trainer.train_epoch(), self.attempt.generation)
        self.trainer.next_epoch()

    def _after_step(self) -> None:
        if self.attempt.saver.due:
            synchronise(self.trainer.batches.device)  # else the copy's time would include these steps
        offered, began = self.attempt.saver.last_offer, time.perf_counter()
        self.checkpointing.after_step()
        if self.attempt.saver.last_offer != offered:
            self.blocked_seconds.append(time.perf_counter() - began)
        self._watch.mark()
        before, self._saving = self._saving, not self.attempt.saver.flush(time.monotonic())
        self._during.append(before or self._saving)


def excess(taken: Sequence[float], during: Sequence[bool]) -> float:
    """Return how much longer the steps marked in `during` took in all than the median of the others."""
    pairs = list(zip(taken, during, strict=True))
    usual = statistics.median(step for step, marked in pairs if not marked)
    return sum(step - usual for step, marked in pairs if marked)


@contextmanager
def full(
    recipe: Recipe,
    device: torch.device,
    steps: int,
    every_seconds: float = NEVER,
    store: str | None = None,
    network: nn.Module | None = None,
    recorder: Callable[[], GraphRecorder] | None = None,
    group: Group = ALONE,
    own: Sequence[int] | None = None,
) -> Iterator[Full]:
    """Make the job's loop, with the run in `store` or a temporary folder; `network` replaces the recipe's.

    It computes its `own` shards of a step, by default all, and exchanges them with the others of `group`.
    """
    recipe = replace(recipe, cycles=(Cycle(100_000, 5e-3),))
    with tempfile.TemporaryDirectory(prefix="micronet-bench-") as folder:
        run = Run.open(open_store(store or folder), recipe)
        settings = AttemptSettings(checkpoint_every=every_seconds)
        model = network or default_network(recipe, device)
        machine = devices.machine(device)
        with Attempt.claim(run, model, machine, settings, Path(folder), Preemption(30)) as attempt:
            subject = Full(attempt, model, batches(recipe, device, steps, own), recipe, recorder, group)
            with subject.checkpointing.running():
                yield subject
