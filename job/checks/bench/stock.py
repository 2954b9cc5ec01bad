"""Stock fastai on class folders of PNG files: fp32, its own augmentation, mixup, Adam and workers."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from job.data.cifar import CIFAR100_MEAN, CIFAR100_STD
from job.machine.device import synchronise
from job.network.wide_resnet import wide_resnet
from job.settings import Recipe

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fastai 2.8.12 uses the deprecated torch.jit.script
    from fastai.vision.all import (
        Callback,
        CrossEntropyLossFlat,
        ImageDataLoaders,
        IntToFloatTensor,
        Learner,
        MixUp,
        Normalize,
        Pipeline,
        TensorImage,
        aug_transforms,
    )

CLASSES = 100

__all__ = [
    "IntToFloatTensor",
    "Normalize",
    "Pipeline",
    "Stock",
    "TensorImage",
    "apart",
    "aug_transforms",
    "images",
]


class Clock(Callback):
    """Calls a function after each training step."""

    order = 100

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__()
        self.function = function

    def after_batch(self) -> None:
        """Call it in training, not in validation."""
        if self.learn.training:
            self.function()


class Stock:
    """A learner as fastai's documentation makes one."""

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
        self.ends: list[float] = []  # of its first step and its last
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
            cbs=[MixUp(recipe.mixup_alpha), Clock(after_step or self._note)],
        )

    def fit(self) -> None:
        """Train an epoch."""
        with self.learner.no_bar(), self.learner.no_logging():
            self.learner.fit(1, 1e-3)

    def __call__(self) -> float:
        """Return images a second from the first step's end to the last's: starting workers is left out."""
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
    """Make one in a process of its own, where nothing that this one has set for its speed or bits holds."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, recipe, device, folder))
    process.start()
    there.close()

    def measure() -> float:
        try:
            here.send(None)
            return float(here.recv())
        except (EOFError, BrokenPipeError):
            raise RuntimeError("the process that measures stock fastai has ended: see above") from None

    try:
        yield measure
    finally:
        here.close()
        process.join()


def _serve(requests: Connection, recipe: Recipe, device: torch.device, folder: Path) -> None:
    """Answer each request with a rate until the other end is closed."""
    stock = Stock(recipe, device, folder)
    with suppress(EOFError):
        while True:
            requests.recv()
            requests.send(stock())


@contextmanager
def images(count: int) -> Iterator[Path]:
    """Write `count` training images of noise, and a few to validate on, to a folder that goes away."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="micronet-bench-") as name:
        for split, number in (("train", count), ("valid", min(count, CLASSES))):
            for index in range(number):
                folder = Path(name, split, f"{index % CLASSES:02}")
                folder.mkdir(parents=True, exist_ok=True)
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
        yield Path(name)
