"""What a step costs the host besides its operators: the job's loop, and fastai's own, which sends events."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from job.checks.bench.clock import seconds
from job.checks.bench.loops import CLASSES, batches, full
from job.checks.bench.rounds import Measured, interleave
from job.settings import Recipe
from job.train.loader import TrainingBatches
from job.train.schedule import one_cycle
from job.train.step import Gradients, Precision, loss_scaler
from job.train.trainer import BETA2, adamw

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fastai 2.8.12 uses the deprecated torch.jit.script
    from fastai.callback.core import Callback, CancelStepException, TrainEvalCallback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner

STEPS = 200
BATCH_SIZE = 2  # operators as short as they get


def cheap_network() -> nn.Sequential:
    """Return a network of three operators and 400 numbers, [N, 3, 32, 32] to [N, CLASSES]."""
    return nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3, CLASSES))


class RecipeEvents(Callback):
    """The recipe's step as callbacks: schedule, loss sum, fp16's loss scale, and a call after each step."""

    def __init__(self, recipe: Recipe, loader: TrainingBatches, after_step: Callable[[], None]) -> None:
        super().__init__()
        self.recipe, self.loader, self.function = recipe, loader, after_step
        self.total = torch.zeros((), device=loader.device)
        self.scaler = loss_scaler(recipe.precision, loader.device)

    def before_batch(self) -> None:
        """Look the step up in the schedule."""
        steps, loader = len(self.loader), self.loader
        lr, momentum = one_cycle(self.recipe.cycles, steps, loader.epoch, loader.step)
        self.learn.opt.set_hypers(lr=lr, mom=momentum)

    def after_loss(self) -> None:
        """Sum the losses."""
        self.total += self.learn.loss.detach()

    def before_backward(self) -> None:
        """Scale the loss."""
        self.learn.loss_grad = self.scaler.scale(self.learn.loss_grad)

    def before_step(self) -> None:
        """Step through the scaler, where there is one."""
        if self.scaler.is_enabled():
            self.scaler.step(self.learn.opt.opt)
            self.scaler.update()
            raise CancelStepException

    def after_batch(self) -> None:
        """Call the function."""
        self.function()


def event_learner(
    network: nn.Module, loader: TrainingBatches, recipe: Recipe, after_step: Callable[[], None]
) -> Learner:
    """Return fastai's Learner with fastai's own loop; it trains to the job's bits."""
    learner = Learner(
        DataLoaders(loader, []),
        Precision(network, recipe.precision),
        loss_func=F.cross_entropy,
        opt_func=partial(adamw, weight_decay=recipe.weight_decay),
        wd_bn_bias=True,
        cbs=[TrainEvalCallback(), RecipeEvents(recipe, loader, after_step)],
        default_cbs=False,
    )
    learner.create_opt()
    return learner


def measure(recipe: Recipe, device: torch.device, rounds: int) -> Measured:
    """Return steps a second of the job's loop, of fastai's, and of their operators by themselves.

    All three make their batches, and the first two do after a step what an attempt at a run does.
    """
    recipe = replace(recipe, batch_size=BATCH_SIZE, compile=False)
    model, loader = Precision(cheap_network().to(device), recipe.precision), batches(recipe, device, STEPS)
    scaler = loss_scaler(recipe.precision, device)
    gradients, optimizer = Gradients(model, scaler), adamw(model.parameters(), 1e-3, recipe.weight_decay).opt
    total = torch.zeros((), device=device)

    def operators() -> None:
        for images, targets in loader:
            total.add_(gradients(images, targets))
            for group in optimizer.param_groups:
                group["lr"], group["betas"] = 1e-3, (0.9, BETA2)
            scaler.step(optimizer)
            scaler.update()

    with full(recipe, device, STEPS, network=cheap_network().to(device)) as job:
        job.trainer.after_step = job.checkpointing.after_step  # without the bench's own clocks
        events = event_learner(
            cheap_network().to(device), batches(recipe, device, STEPS), recipe, job.checkpointing.after_step
        )
        return interleave(
            {
                "job": lambda: job() / BATCH_SIZE,
                "fastai": lambda: STEPS / seconds(lambda: events.fit(1), device),
                "operators": lambda: STEPS / seconds(operators, device),
            },
            rounds,
        )
