"""What happens around fastai's steps. None of it reads the device."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from job.settings import Recipe
from job.train.loader import TrainingBatches
from job.train.schedule import one_cycle

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fastai 2.8.12 uses the deprecated torch.jit.script
    from fastai.callback.core import Callback, CancelStepException


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
        """Add the step's loss, without the graph that it hangs on (16 MB, batches of 256)."""
        self.total += self.learn.loss.detach()


class LossScale(Callback):
    """Scale the loss of fp16 steps; the fused optimizer leaves a step that overflowed out by itself.

    fastai's own callback asks the device for the scale after each step.
    """

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        super().__init__()
        self.scaler = scaler

    def before_backward(self) -> None:
        """Scale what the gradients are taken of."""
        self.learn.loss_grad = self.scaler.scale(self.learn.loss_grad)

    def before_step(self) -> None:
        """Do the step with the scale taken out again, in fastai's place."""
        self.scaler.step(self.learn.opt.opt)
        self.scaler.update()
        raise CancelStepException


class StepHook(Callback):
    """Call a function after each step."""

    order = 100  # when every other callback is done with the step

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__()
        self.function = function

    def after_batch(self) -> None:
        """Call it."""
        self.function()
