"""Batches made on the device from resident uint8 images: no workers, no files, no copies from the host."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from job.data.cifar import Split
from job.data.dataset import PreparedData
from job.errors import ConfigurationError
from job.recipe import Recipe
from job.train import augment
from job.train.augment import Mix

ONCE = -1
"""Epoch number that seeds the hold-out split."""


def random_generator(device: torch.device, seed: int, epoch: int) -> torch.Generator:
    """Return the generator of an epoch or, with `ONCE`, of the run on `device`: no random state is stored."""
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


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
        generator = random_generator(torch.device("cpu"), seed, ONCE)
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


class Plan(NamedTuple):
    """All that an epoch draws, before its first step: the steps then only apply it.

    A row is a shard, of B images: a step has as many rows as the recipe has shards.
    """

    order: Tensor  # [R, B] int64, the images of each of R rows
    transforms: augment.Transforms  # of [R, B] images
    mix: Mix | None  # for [R, B] images


Batch = tuple[Tensor, Tensor]
"""Images [B, 3, H, W] float32 normalised channels_last, and soft targets [B, classes]."""


class TrainingBatches:
    """The augmented, mixed batches of an epoch, each a pure function of (seed, epoch, step).

    A step's batch is cut into the recipe's shards, each mixed in itself; `own` are those that are made here.
    Iterating gives them one by one, `steps` those of a step together, from the step that `seek` has set to
    the epoch's end; the last partial batch is dropped. `epoch` and `step` are those of the shards given last.
    Without `mixes` there is no mixup.
    """

    mixes = True

    def __init__(
        self,
        images: Images,
        classes: int,
        normalise: Normalisation,
        recipe: Recipe,
        own: Sequence[int] | None = None,
    ) -> None:
        self.images, self.normalise, self.recipe = images, normalise, recipe
        self.own = own if own is not None else range(recipe.shards)
        self.one_hot = torch.eye(classes, device=self.device)
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

    def __iter__(self) -> Iterator[Batch]:
        for shards in self.steps():
            yield from shards

    def steps(self) -> Iterator[list[Batch]]:
        """Yield each step's own shards."""
        plan = self.plan()
        for step in range(self.start, len(self)):
            self.step = step
            yield [self.batch(plan, step * self.recipe.shards + shard) for shard in self.own]

    def first(self) -> Batch:
        """Make the first shard of the epoch's first step, whichever are this process's own."""
        return self.batch(self.plan(), 0)

    def plan(self) -> Plan:
        """Draw the epoch at once: a step then only applies its part, in half as many operators."""
        recipe = self.recipe
        shape = len(self) * recipe.shards, recipe.batch_size // recipe.shards
        count = shape[0] * shape[1]
        generator = random_generator(self.device, recipe.seed, self.epoch)
        order = torch.randperm(len(self.images), generator=generator, device=self.device)[:count]
        choices = augment.draw(count, recipe.crop_padding, generator)
        transforms = augment.prepare(choices, self.images.pixels.shape[-1])
        return Plan(
            order.view(shape),
            augment.Transforms(*(each.view(*shape, *each.shape[1:]) for each in transforms)),
            augment.draw_mix(*shape, recipe.mixup_alpha, generator)
            if recipe.mixup_alpha and self.mixes
            else None,
        )

    def batch(self, plan: Plan, row: int) -> Batch:
        """Make the shard of a row as `plan` has it."""
        index = plan.order[row]
        pixels = self.images.pixels.index_select(0, index).div(255)
        images = augment.augment(pixels, augment.Transforms(*(each[row] for each in plan.transforms)))
        images = self.normalise(images)
        targets = self.one_hot.index_select(0, self.images.labels.index_select(0, index))
        if plan.mix:
            return augment.mix(images, targets, Mix(plan.mix.share[row], plan.mix.partner[row]))
        return images, targets


class DeviceData:
    """A data set as one recipe uses it, on the device: training batches, hold-out and test images.

    `own` are this process's shards of each batch.

    Raises ConfigurationError where the hold-out or the batch is larger than the data.
    """

    def __init__(
        self, data: PreparedData, recipe: Recipe, device: torch.device, own: Sequence[int] | None = None
    ) -> None:
        dataset = data.dataset
        training, self.holdout = Images.of(dataset.train, device).split(recipe.holdout, recipe.seed)
        if len(training) < recipe.batch_size:
            raise ConfigurationError(
                f"{len(training)} training images are less than one batch of {recipe.batch_size}",
                "Lower --batch-size or --holdout",
            )
        self.test = Images.of(dataset.test, device)
        self.normalise = Normalisation(data.mean, data.std, device)
        self.batches = TrainingBatches(training, len(dataset.classes), self.normalise, recipe, own)
