"""A contact sheet of training images as the network gets them, made by the training's own batches."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from job.data.cifar import Split
from job.recipe import Recipe
from job.train.loader import Images, Normalisation, TrainingBatches

ROWS = 8
AUGMENTED = 6  # epochs shown of each image
MIXED = 2  # and further ones with mixup
GAP = 3  # pixels between two images
GROUND = 128  # grey between them
CPU = torch.device("cpu")


def sheet(split: Split, classes: int, recipe: Recipe, scale: int = 1) -> bytes:
    """Return a PNG: each row an image as it is, then augmented, then mixed with another of the sheet.

    The rows are of different classes where there are enough. Of the recipe its seed, augmentation and
    mixup alone count, so that equal ones give equal sheets. `scale` enlarges it by whole pixels; without
    mixup those columns are left out.
    """
    chosen = _rows(split)
    images = Images.of(Split(split.images[chosen], split.labels[chosen]), CPU)
    columns = [torch.from_numpy(split.images[chosen]).float().div(255)]
    columns += [
        _augmented(images, classes, replace(recipe, mixup_alpha=0.0), epoch) for epoch in range(AUGMENTED)
    ]
    if recipe.mixup_alpha:
        columns += [_augmented(images, classes, recipe, AUGMENTED + number) for number in range(MIXED)]
    picture = Image.fromarray(_tile(torch.stack(columns, dim=1)))
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _rows(split: Split) -> NDArray[np.int64]:
    """Return the first image of each of at most ROWS classes, spread over all of them."""
    _, first = np.unique(split.labels, return_index=True)
    spread = np.linspace(0, len(first) - 1, min(ROWS, len(first))).round().astype(np.int64)
    return np.asarray(first[spread], np.int64)


def _augmented(images: Images, classes: int, recipe: Recipe, epoch: int) -> torch.Tensor:
    """Return `images` as the only batch of an epoch, [N, 3, H, W] float32 in [0, 1], in their own order."""
    as_they_are = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), CPU)
    recipe = replace(recipe, batch_size=len(images), shards=1, holdout=0)
    batches = TrainingBatches(images, classes, as_they_are, recipe)
    batches.seek(epoch, 0)
    plan = batches.plan()
    shuffled, _ = batches.batch(plan, 0)
    return shuffled[plan.order[0].argsort()]


def _tile(images: torch.Tensor) -> NDArray[np.uint8]:
    """Lay images [rows, columns, 3, S, S] in [0, 1] out as one picture [H, W, 3]."""
    rows, columns, _, size, _ = images.shape
    picture = np.full(((size + GAP) * rows + GAP, (size + GAP) * columns + GAP, 3), GROUND, np.uint8)
    pixels = images.mul(255).round().clamp(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()
    for row in range(rows):
        for column in range(columns):
            top, left = GAP + row * (size + GAP), GAP + column * (size + GAP)
            picture[top : top + size, left : left + size] = pixels[row, column]
    return picture
