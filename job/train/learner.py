"""The recipe wired to fastai's Learner: optimizer, schedule, precision, and what an epoch is summed up in."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job.settings import Recipe
from job.train.loader import TrainingBatches
from job.train.schedule import one_cycle

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fastai 2.8.12 uses the deprecated torch.jit.script
    from fastai.callback.core import Callback, TrainEvalCallback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

BETA2 = 0.99
EPS = 1e-8


class Precision(nn.Module):
    """Run a network under autocast (bf16) or as it is (fp32); logits come out in float32."""

    def __init__(self, network: nn.Module, precision: str) -> None:
        super().__init__()
        self.network = network
        self.enabled = precision == "bf16"

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, 3, H, W] float32 to [N, classes] float32."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.enabled):
            logits: Tensor = self.network(images)
        return logits.float()


class OneCycle(Callback):
    """Set learning rate and momentum before each step, from the batch's own (epoch, step).

    fastai's own schedulers read `pct_train`, which is wrong after a resume in mid-epoch.
    """

    def __init__(self, recipe: Recipe, batches: TrainingBatches) -> None:
        super().__init__()
        self.recipe, self.batches = recipe, batches

    def before_batch(self) -> None:
        """Look the step up in the schedule."""
        lr, momentum = one_cycle(self.recipe.cycles, len(self.batches), self.batches.epoch, self.batches.step)
        self.learn.opt.set_hypers(lr=lr, mom=momentum)


class MeanLoss(Callback):
    """Sum the loss on the device; reading `value` is the epoch's one wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.total, self.steps = torch.zeros(()), 0

    def before_train(self) -> None:
        """Start the epoch's sum."""
        self.total, self.steps = torch.zeros((), device=next(self.learn.model.parameters()).device), 0

    def after_loss(self) -> None:
        """Add the step's loss."""
        self.total += self.learn.loss
        self.steps += 1

    @property
    def value(self) -> float:
        """Mean over the epoch's steps."""
        return self.total.item() / self.steps


def adamw(parameters: Any, lr: float, weight_decay: float) -> OptimWrapper:
    """Return fastai v1's Adam: `p *= 1 - lr wd` on every parameter, then the step of Adam with beta2 0.99."""
    return OptimWrapper(
        parameters,
        torch.optim.AdamW,
        lr=lr,
        betas=(0.9, BETA2),
        eps=EPS,
        weight_decay=weight_decay,
        fused=True,
    )


class StepHook(Callback):
    """Call a function after each step."""

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__()
        self.function = function

    def after_batch(self) -> None:
        """Call it."""
        self.function()


def build_learner(
    network: nn.Module, batches: TrainingBatches, recipe: Recipe, after_step: Callable[[], None]
) -> Learner:
    """Return a Learner that trains `network` in place; nothing of it reads the device in a step."""
    return Learner(
        DataLoaders(batches, []),
        Precision(network, recipe.precision),
        loss_func=F.cross_entropy,
        opt_func=partial(adamw, weight_decay=recipe.weight_decay),
        wd_bn_bias=True,
        cbs=[TrainEvalCallback(), OneCycle(recipe, batches), MeanLoss(), StepHook(after_step)],
        default_cbs=False,
    )


def train_epoch(learner: Learner, epoch: int) -> dict[str, Any]:
    """Train for one epoch (counted from 0); return what the history says of it.

    {epoch (from 1), train_loss, lr and momentum of the last step, images_per_second}
    """
    batches: TrainingBatches = learner.dls.train
    batches.epoch = epoch
    started = time.perf_counter()
    learner.fit(1)
    loss = learner.mean_loss.value  # waits for the device, so that the clock below is honest
    seconds = time.perf_counter() - started
    hypers = learner.opt.hypers[0]
    return {
        "epoch": epoch + 1,
        "train_loss": loss,
        "lr": hypers["lr"],
        "momentum": hypers["mom"],
        "images_per_second": round(len(batches) * batches.recipe.batch_size / seconds, 1),
    }
