"""What the job is compared with: stock fastai as documented, and the job's step in fastai's own loop."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing import set_start_method
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from job.checks.bench.apart import Apart, answer
from job.data.cifar import CIFAR100_MEAN, CIFAR100_STD
from job.machine.device import synchronise
from job.network.wide_resnet import wide_resnet
from job.recipe import Recipe
from job.train.loader import TrainingBatches
from job.train.schedule import one_cycle
from job.train.step import Precision, loss_scaler
from job.train.trainer import adamw

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fastai 2.8.12 uses the deprecated torch.jit.script
    from fastai.vision.all import (
        Callback,
        CancelStepException,
        CrossEntropyLossFlat,
        DataLoaders,
        ImageDataLoaders,
        IntToFloatTensor,
        Learner,
        MixUp,
        Normalize,
        Pipeline,
        TensorImage,
        TrainEvalCallback,
        aug_transforms,
    )

CLASSES = 100


class StepHook(Callback):
    """Calls a function after each training step."""

    order = 100

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__()
        self.function = function

    def after_batch(self) -> None:
        """Call the function in training, not in validation."""
        if self.learn.training:
            self.function()


class Stock:
    """A learner as fastai's documentation makes one: fp32, PNG files, its augmentation, Adam and workers."""

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        folder: Path,
        after_step: Callable[[], None] | None = None,
        workers: int | None = None,
    ) -> None:
        self.batch_size = recipe.batch_size
        self.steps = 0  # of this epoch
        self.ends: list[float] = []  # times at which its first step and its last ended
        loaders = ImageDataLoaders.from_folder(
            folder,
            train="train",
            valid="valid",
            bs=recipe.batch_size,
            batch_tfms=[*aug_transforms(), Normalize.from_stats(CIFAR100_MEAN, CIFAR100_STD)],
            device=device,
            num_workers=workers,
        )
        self.learner = Learner(
            loaders,
            wide_resnet(recipe.depth, recipe.width, CLASSES),
            loss_func=CrossEntropyLossFlat(),
            cbs=[MixUp(recipe.mixup_alpha), StepHook(after_step or self._note)],
        )

    def fit(self) -> None:
        """Train an epoch."""
        with self.learner.no_bar(), self.learner.no_logging():
            self.learner.fit(1, 1e-3)

    def __call__(self) -> float:
        """Return images a second from the first step's end to the last's, so without the workers' start."""
        self.steps, self.ends = 0, []
        self.fit()
        return (self.steps - 1) * self.batch_size / (self.ends[-1] - self.ends[0])

    def _note(self) -> None:
        self.steps += 1
        if self.steps in (1, len(self.learner.dls.train)):
            synchronise(self.learner.dls.device)
            self.ends.append(time.perf_counter())


@contextmanager
def apart(recipe: Recipe, device: torch.device, folder: Path) -> Iterator[Callable[[], float]]:
    """Run stock fastai in another process; yield a function that returns images a second."""
    with closing(Apart("stock fastai", _serve, recipe, device, folder)) as process:

        def measure() -> float:
            process.ask()
            return process.answer()

        yield measure


def _serve(requests: Connection, recipe: Recipe, device: torch.device, folder: Path) -> None:
    # As in a user's process: a spawned one spawns its workers too, each of which imports fastai for seconds.
    set_start_method("fork", force=True)
    answer(requests, {"": Stock(recipe, device, folder)})


def fastai_augmentation() -> Callable[[torch.Tensor], object]:
    """Return fastai's default transforms of a training batch of bytes, [N, 3, 32, 32]."""
    normalise = Normalize.from_stats(CIFAR100_MEAN, CIFAR100_STD)
    transforms = Pipeline([IntToFloatTensor(), *aug_transforms(), normalise], split_idx=0)
    return lambda pixels: transforms(TensorImage(pixels))


@contextmanager
def images(count: int) -> Iterator[Path]:
    """Write `count` training images of noise, and a few to validate on, to a temporary folder."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="micronet-bench-") as name:
        for split, number in (("train", count), ("valid", min(count, CLASSES))):
            for index in range(number):
                folder = Path(name, split, f"{index % CLASSES:02}")
                folder.mkdir(parents=True, exist_ok=True)
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
        yield Path(name)


class RecipeEvents(Callback):
    """The recipe's step as fastai's callbacks: schedule, loss sum, loss scale, and a call after each step."""

    def __init__(self, recipe: Recipe, loader: TrainingBatches, after_step: Callable[[], None]) -> None:
        super().__init__()
        self.recipe, self.loader, self.function = recipe, loader, after_step
        self.total = torch.zeros((), device=loader.device)
        self.scaler = loss_scaler(recipe.precision, loader.device)

    def before_batch(self) -> None:
        """Follow the recipe's schedule, which the job sets at the same place."""
        steps, loader = len(self.loader), self.loader
        lr, momentum = one_cycle(self.recipe.cycles, steps, loader.epoch, loader.step)
        self.learn.opt.set_hypers(lr=lr, mom=momentum)

    def after_loss(self) -> None:
        """Sum the losses on the device, which the job reads once an epoch."""
        self.total += self.learn.loss.detach()

    def before_backward(self) -> None:
        """Scale the loss."""
        self.learn.loss_grad = self.scaler.scale(self.learn.loss_grad)

    def before_step(self) -> None:
        """Step with the loss scale, where there is one."""
        if self.scaler.is_enabled():
            self.scaler.step(self.learn.opt.opt)
            self.scaler.update()
            raise CancelStepException

    def after_batch(self) -> None:
        """Report that a training step has ended."""
        self.function()


def event_learner(
    network: nn.Module, loader: TrainingBatches, recipe: Recipe, after_step: Callable[[], None]
) -> Learner:
    """Return fastai's Learner with its own loop; it trains to the same bits as the job's loop."""
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
