"""Batches made on the device from resident uint8 images: no workers, no files, no copies from the host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from job.data.cifar import Split
from job.settings import Recipe
from job.train import augment, mixup, rng


@dataclass(frozen=True)
class Images:
    """Labelled images on the device they are used on."""

    pixels: Tensor  # [N, 3, H, W] uint8
    labels: Tensor  # [N] int64

    @classmethod
    def of(cls, split: Split, device: torch.device) -> Images:
        """Copy a split of the data set to `device`."""
        return cls(torch.from_numpy(split.images).to(device), torch.from_numpy(split.labels).to(device))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Images:
        return Images(self.pixels[index], self.labels[index])

    def split(self, count: int, seed: int) -> tuple[Images, Images]:
        """Return (the others, `count` images drawn once for `seed`)."""
        generator = rng.generator(torch.device("cpu"), seed, rng.EPOCH, rng.EPOCH)
        order = torch.randperm(len(self), generator=generator).to(self.labels.device)
        return self[order[count:].sort().values], self[order[:count].sort().values]


class Normalisation:
    """Channel statistics on the device: uint8 pixels to the network's input."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        self.mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise `images` [N, C, H, W] in [0, 1] in place; return them in channels_last layout."""
        return images.sub_(self.mean).div_(self.std).contiguous(memory_format=torch.channels_last)


class TrainingBatches:
    """The augmented, mixed batches of an epoch, each a pure function of (seed, epoch, step).

    Iterating gives (images [B, 3, H, W] float32 normalised channels_last, soft targets [B, classes]) from
    the step that `seek` has set to the epoch's end; the last partial batch is dropped. `epoch` and `step`
    are those of the batch given last.
    """

    def __init__(self, images: Images, classes: int, normalise: Normalisation, recipe: Recipe) -> None:
        self.images, self.classes, self.normalise, self.recipe = images, classes, normalise, recipe
        self.seek(0, 0)

    def seek(self, epoch: int, step: int) -> None:
        """Let the next iteration start at this epoch and step, both from 0."""
        self.epoch = epoch
        self.step = self.start = step

    @property
    def device(self) -> torch.device:
        """Where the images are; fastai moves the network there."""
        return self.images.labels.device

    def __len__(self) -> int:
        return len(self.images) // self.recipe.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = rng.generator(self.device, self.recipe.seed, self.epoch, rng.EPOCH)
        order = torch.randperm(len(self.images), generator=generator, device=self.device)
        batches = order[: len(self) * self.recipe.batch_size].view(len(self), -1)
        for step in range(self.start, len(self)):
            self.step = step
            yield self.batch(batches[step])

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Make the batch of the current step out of the images at `index` [B]."""
        recipe = self.recipe
        generator = rng.generator(self.device, recipe.seed, self.epoch, self.step)
        pixels = self.images.pixels[index].float().div_(255)
        images = augment.augment(pixels, augment.draw(len(index), recipe.crop_padding, generator))
        images = self.normalise(images)
        targets = F.one_hot(self.images.labels[index], self.classes).float()
        if recipe.mixup_alpha:
            images, targets = mixup.mix(
                images, targets, mixup.draw(len(index), recipe.mixup_alpha, generator)
            )
        return images, targets
