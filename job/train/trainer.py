"""The recipe on fastai's Learner; between any two steps its state can be taken and given back."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job.resume.state import (
    TrainingState,
    copy_off,
    optimizer_state,
    restore_optimizer,
)
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


class LossSum(Callback):
    """Sum the loss of the epoch's steps on the device, where nothing has to wait for it."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.total = torch.zeros((), device=device)

    def after_loss(self) -> None:
        """Add the step's loss."""
        self.total += self.learn.loss


class StepHook(Callback):
    """Call a function after each step."""

    order = 100  # when every other callback is done with the step

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__()
        self.function = function

    def after_batch(self) -> None:
        """Call it."""
        self.function()


def adamw(parameters: Any, lr: float, weight_decay: float) -> OptimWrapper:
    """Return fastai v1's Adam: `p *= 1 - lr wd` on every parameter, then Adam's step with beta2 0.99."""
    return OptimWrapper(
        parameters,
        torch.optim.AdamW,
        lr=lr,
        betas=(0.9, BETA2),
        eps=EPS,
        weight_decay=weight_decay,
        fused=True,
    )


class Trainer:
    """Trains `network` in place, an epoch at a call; no step reads the device.

    `epoch` and `step`, both from 0, are those that training goes on with. `after_step` is called between
    steps, when `state` may be taken; what it raises ends the epoch there.
    """

    def __init__(
        self, network: nn.Module, batches: TrainingBatches, recipe: Recipe, after_step: Callable[[], None]
    ) -> None:
        self.network, self.batches, self.recipe, self.after_step = network, batches, recipe, after_step
        self.epoch = self.step = 0
        self.seconds_before = 0.0  # of training in this epoch, up to `started`
        self.started: float | None = None
        self.loss_sum = LossSum(batches.device)
        self.learner = Learner(
            DataLoaders(batches, []),
            Precision(network, recipe.precision),
            loss_func=F.cross_entropy,
            opt_func=partial(adamw, weight_decay=recipe.weight_decay),
            wd_bn_bias=True,
            cbs=[TrainEvalCallback(), OneCycle(recipe, batches), self.loss_sum, StepHook(self._after_step)],
            default_cbs=False,
        )
        self.learner.create_opt()

    def train_epoch(self) -> dict[str, Any]:
        """Train from `step` to the end of the epoch; return what the history says of the whole epoch.

        {epoch (from 1), train_loss: mean, lr and momentum of the last step, images_per_second}
        """
        steps = len(self.batches)
        self.batches.seek(self.epoch, self.step)
        self.started = time.perf_counter()
        self.learner.fit(1)
        loss = self.loss_sum.total.item() / steps  # waits for the device, so that the clock is honest
        self.seconds_before, self.started = self._seconds(), None
        lr, momentum = one_cycle(self.recipe.cycles, steps, self.epoch, steps - 1)
        return {
            "epoch": self.epoch + 1,
            "train_loss": loss,
            "lr": lr,
            "momentum": momentum,
            "images_per_second": round(steps * self.recipe.batch_size / self.seconds_before, 1),
        }

    def next_epoch(self) -> None:
        """Go on to the first step of the next epoch."""
        self.epoch, self.step, self.seconds_before = self.epoch + 1, 0, 0.0
        self.loss_sum.total.zero_()

    def state(self, history: list[dict[str, Any]]) -> TrainingState:
        """Copy the state off the device, with the records of the finished epochs."""
        return TrainingState(
            epoch=self.epoch,
            step=self.step,
            network=copy_off(self.network.state_dict()),
            optimizer=optimizer_state(self.learner.opt.opt),
            loss_total=self.loss_sum.total.to("cpu", copy=True),
            epoch_seconds=self._seconds(),
            history=list(history),
        )

    def restore(self, state: TrainingState) -> None:
        """Go on from `state`, to the bit."""
        self.epoch, self.step, self.seconds_before = state.epoch, state.step, state.epoch_seconds
        self.network.load_state_dict(state.network)
        restore_optimizer(self.learner.opt.opt, state.optimizer)
        self.loss_sum.total.copy_(state.loss_total)

    def _after_step(self) -> None:
        self.step = self.batches.step + 1
        self.after_step()

    def _seconds(self) -> float:
        """Return how long this epoch has been trained, over all attempts."""
        return self.seconds_before + (time.perf_counter() - self.started if self.started else 0.0)
