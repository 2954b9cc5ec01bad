"""The recipe on fastai's Learner; between any two steps its state can be read and restored."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job import events
from job.errors import ConfigurationError
from job.machine.processes import ALONE, Group
from job.phases import PRUNE, QUANTISE, STATISTICS, Phase
from job.recipe import Recipe
from job.run.records import Epoch, Place
from job.run.state import TrainingState, copy_off, optimizer_state, restore_optimizer
from job.train.compression import STEP_SIZE_LR_FACTOR, Compression, Teacher
from job.train.exchange import ShardedStep
from job.train.loader import Batch, TrainingBatches
from job.train.schedule import one_cycle
from job.train.step import Gradients, GraphRecorder, Precision, RecordedGradients, loss_scaler

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fastai 2.8.12 uses the deprecated torch.jit.script
    from fastai.callback.core import TrainEvalCallback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

BETA2 = 0.99
EPS = 1e-8
LR_FACTORS = (1.0, STEP_SIZE_LR_FACTOR)
"""Learning-rate factor of each parameter group: weights, then step sizes."""


def adamw(parameters: Any, lr: float, weight_decay: float) -> OptimWrapper:
    """Return fastai v1's Adam: `p *= 1 - lr wd` on every weight, then Adam's step with beta2 0.99.

    Of several groups of parameters the first alone has decay: the others are step sizes.
    """
    optimizer = OptimWrapper(
        parameters,
        torch.optim.AdamW,
        lr=lr,
        betas=(0.9, BETA2),
        eps=EPS,
        weight_decay=weight_decay,
        fused=True,
    )
    for group in optimizer.opt.param_groups[1:]:
        group["weight_decay"] = 0.0
    return optimizer


class StepLearner(Learner):
    """fastai's Learner with `take_step` as the whole of a batch; the events around epochs stay fastai's.

    fastai's own loop asks each callback about ten events a batch: 0.5 ms of a step on the host, as much as
    a GPU takes for a small network's (figures: bench/RESULTS.md).
    """

    def __init__(
        self, take_step: Callable[[Sequence[Batch]], None], *arguments: Any, **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.take_step = take_step

    def all_batches(self) -> None:
        """Take a step on the shards of each batch of the epoch; in fastai's validation there are none."""
        for shards in self.dl.steps() if self.training else ():
            self.take_step(shards)


class Trainer:
    """Trains `network` in place, an epoch at a call; no step reads the device.

    `epoch` and `step`, both from 0, are those that training continues with. `after_step` is called between
    steps, when `state` may be taken; what it raises ends the epoch there. With a `recorder` the first step's
    forward, loss and backward are recorded, and replayed from then on; each phase has one of its own. `teach`
    returns the teacher of the phases that have one. The processes of `group` share the recipe's shards.
    """

    def __init__(
        self,
        network: nn.Module,
        batches: TrainingBatches,
        recipe: Recipe,
        after_step: Callable[[], None],
        recorder: Callable[[], GraphRecorder] | None = None,
        teach: Callable[[], Teacher] | None = None,
        group: Group = ALONE,
    ) -> None:
        self.network, self.batches, self.recipe, self.after_step = network, batches, recipe, after_step
        self._at = 0, 0  # epoch and step: one value, since other threads read the place
        self.seconds_before = 0.0  # of training in this epoch, up to `started`
        self.started: float | None = None
        self.loss_total = torch.zeros((), device=batches.device)  # of the epoch's steps so far
        self.scaler = loss_scaler(recipe.precision, batches.device)
        self.recorder, self.teach, self.group = recorder, teach, group
        self.sharded: ShardedStep | None = None
        self.compression = Compression(network, recipe)
        self.model = Precision(network, recipe.precision)
        if recipe.compile:
            self.model.compile()  # in place: the state dict's keys stay, and evaluation stays eager
        self.learner = StepLearner(
            self._take_step,
            DataLoaders(batches, []),
            self.model,
            loss_func=F.cross_entropy,
            cbs=[TrainEvalCallback()],
            default_cbs=False,
        )
        self._enter(recipe.phase_at(0))

    def train_epoch(self) -> dict[str, float]:
        """Train from `step` to the end of the epoch; return what the history says of the whole epoch.

        {train_loss: mean, lr and momentum of the last step, images_per_second}
        """
        steps = len(self.batches)
        phase = self.recipe.phase_at(self.epoch)
        if phase != self.phase:
            self._enter(phase)
        self.batches.mixes = phase.name != STATISTICS
        if not self.step:
            self._begin_epoch()
        self.batches.seek(self.epoch, self.step)
        self.started = time.perf_counter()
        self.learner.fit(1)
        loss = self.loss_total.item() / steps  # waits for the device, so that the clock is honest
        self.seconds_before, self.started = self._seconds(), None
        lr, momentum = one_cycle(self.recipe.all_cycles, steps, self.epoch, steps - 1)
        speed = steps * self.recipe.batch_size / self.seconds_before
        return {
            "train_loss": loss,
            "lr": lr,
            "momentum": momentum,
            "images_per_second": round(speed, 1) or speed,
        }

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that training continues with."""
        return self._at[0]

    @property
    def step(self) -> int:
        """The step of that epoch, from 0."""
        return self._at[1]

    @property
    def place(self) -> Place:
        """Where the training is; any thread may ask."""
        return Place.of(*self._at, len(self.batches))

    def next_epoch(self) -> None:
        """Continue with the first step of the next epoch."""
        self._at, self.seconds_before = (self.epoch + 1, 0), 0.0
        self.loss_total.zero_()

    def state(self, history: Sequence[Epoch]) -> TrainingState:
        """Copy the state off the device, with the records of the finished epochs."""
        return TrainingState(
            epoch=self.epoch,
            step=self.step,
            steps_per_epoch=len(self.batches),
            network=copy_off(self.network.state_dict()),
            optimizer=optimizer_state(self.optimizer),
            scaler=self.scaler.state_dict(),
            loss_total=self.loss_total.to("cpu", copy=True),
            epoch_seconds=self._seconds(),
            history=list(history),
        )

    def restore(self, state: TrainingState) -> None:
        """Resume from `state`, to the bit; where an epoch now has other steps, at its start.

        Raises ConfigurationError where the recipe, changed since, leaves nothing to resume with, DataError
        where the optimizer's part is not of this network.
        """
        if state.epoch > self.recipe.epochs:
            raise ConfigurationError(
                f"the run has trained {state.epoch} epochs and the cycles now have {self.recipe.epochs}",
                "Give more epochs in --cycles",
            )
        self._load(state)
        self._at, self.seconds_before = (state.epoch, state.step), state.epoch_seconds
        self.loss_total.copy_(state.loss_total)
        if state.steps_per_epoch != len(self.batches):
            self._at, self.seconds_before = (state.epoch, 0), 0.0
            self.loss_total.zero_()
            events.warn("epoch_restarted", epoch=self.epoch + 1, steps_dropped=state.step)

    def _enter(self, phase: Phase) -> None:
        """Make what the steps of `phase` need; no value of the network changes."""
        self.phase = phase
        groups = self.compression.enter(phase)
        self.learner.opt = adamw(groups, self.learner.lr, self.recipe.weight_decay)
        self.optimizer: torch.optim.Optimizer = self.learner.opt.opt
        plain = Gradients(self.model, self.scaler)
        records = self.recorder if phase.name != STATISTICS else None  # which has no gradients
        self.gradients = RecordedGradients(plain, records()) if records else plain
        if self.recipe.shards > 1:
            self._shard(groups)
        learns = phase.name in (PRUNE, QUANTISE) and self.recipe.distillation > 0
        self.teacher = self.teach() if learns and self.teach else None

    def _shard(self, groups: Sequence[Sequence[nn.Parameter]]) -> None:
        if self.sharded:
            self.sharded.close()
        parameters = [parameter for group in groups for parameter in group]
        overlap = self.group.count > 1 and not self.recorder
        self.sharded = ShardedStep(self.network, parameters, self.group, self.recipe.shards, overlap)

    def _begin_epoch(self) -> None:
        images = None
        if self.compression.needs_images(self.phase, self.epoch):
            self.batches.seek(self.epoch, 0)
            images, _ = self.batches.first()
        self.compression.begin_epoch(self.phase, self.epoch, images)

    def _load(self, state: TrainingState) -> None:
        phase = self.recipe.phase_at(state.epoch)
        if phase != self.phase:
            self._enter(phase)
        try:
            self.network.load_state_dict(state.network)
        except RuntimeError as error:  # torch names the tensors and their shapes
            raise ConfigurationError(
                f"the run's network has other shapes than this recipe and data give: {error}",
                "Start the new network in its own --run",
            ) from error
        if state.step or state.epoch != phase.first:  # a phase begins with an optimizer of its own
            state.check_optimizer(self.optimizer)
            restore_optimizer(self.optimizer, state.optimizer)
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)

    def _take_step(self, shards: Sequence[Batch]) -> None:
        """Set the schedule's values, as fastai's scheduler could not after a resume in mid-epoch; step."""
        epoch, step = self.batches.epoch, self.batches.step
        learns = self.phase.name != STATISTICS
        if learns:
            lr, momentum = one_cycle(self.recipe.all_cycles, len(self.batches), epoch, step)
            for group, factor in zip(self.optimizer.param_groups, LR_FACTORS, strict=False):
                group["lr"], group["betas"] = lr * factor, (momentum, BETA2)
        compute = self._learn if learns else self._observe
        self.loss_total += self.sharded(shards, compute, learns) if self.sharded else compute(*shards[0])
        if learns:
            self.scaler.step(self.optimizer)  # leaves an fp16 step that overflowed out, without a read
            self.scaler.update()
            self.compression.after_step(self.phase)
        self._at = epoch, step + 1
        self.after_step()

    def _learn(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return a shard's loss, with its gradients in the parameters."""
        return self.gradients(images, self.teacher(images, targets) if self.teacher else targets)

    def _observe(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return a shard's loss, averaged into the norms' statistics."""
        done = (self.batches.epoch - self.phase.first) * len(self.batches) + self.batches.step
        return self.compression.observe(images, targets, done)

    def _seconds(self) -> float:
        """Return how long this epoch has been trained, over all attempts."""
        return self.seconds_before + (time.perf_counter() - self.started if self.started else 0.0)
