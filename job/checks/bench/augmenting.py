"""The augmentation by itself: this job's against fastai's, torchvision's and one bare `grid_sample`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F
from torchvision.transforms import v2

from job.checks.bench.clock import seconds
from job.checks.bench.loops import batches
from job.checks.bench.rounds import Measured, Subject, interleave
from job.checks.bench.stock import IntToFloatTensor, Normalize, Pipeline, TensorImage, aug_transforms
from job.data.cifar import CIFAR100_MEAN, CIFAR100_STD
from job.settings import Recipe

BATCH_SIZE = 256
BATCHES = 20


def measure(device: torch.device, rounds: int) -> Measured:
    """Return images a second; only the job's have mixup, and each of torchvision's is made by itself."""
    loader = batches(Recipe(batch_size=BATCH_SIZE), device, BATCHES)
    pixels = loader.images.pixels[:BATCH_SIZE]
    floats = pixels.div(255)
    grid = torch.rand(BATCH_SIZE, 32, 32, 2, device=device) * 2 - 1
    fastai = Pipeline(
        [IntToFloatTensor(), *aug_transforms(), Normalize.from_stats(CIFAR100_MEAN, CIFAR100_STD)],
        split_idx=0,
    )
    torchvision = v2.Compose(
        [
            v2.RandomCrop(32, padding=4, padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
            v2.RandomPerspective(0.2, p=0.75),
            v2.RandomAffine(10, scale=(1.0, 1.1)),
            v2.ColorJitter(0.2, 0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(CIFAR100_MEAN, CIFAR100_STD),
        ]
    )

    def job() -> None:
        for _ in loader:
            pass

    def bare() -> None:
        F.grid_sample(floats, grid, padding_mode="reflection", align_corners=True)

    subjects = {
        "job": timed(job, BATCHES, device),
        "fastai": repeated(lambda: fastai(TensorImage(pixels)), device),
        "torchvision": timed(lambda: [torchvision(image) for image in pixels], 1, device),
        "grid_sample": repeated(bare, device),
    }
    return interleave(subjects, rounds)


def repeated(work: Callable[[], object], device: torch.device) -> Subject:
    """Return `work` on one batch, done as often as the job does it in an epoch, as a subject."""

    def whole() -> None:
        for _ in range(BATCHES):
            work()

    return timed(whole, BATCHES, device)


def timed(work: Callable[[], object], count: int, device: torch.device) -> Subject:
    """Return `work` on `count` batches as a subject."""

    def subject() -> float:
        return count * BATCH_SIZE / seconds(work, device)

    return subject
