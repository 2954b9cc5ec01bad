"""A generated data set in CIFAR-100's format, to try the whole job on without a download.

Ten shapes in ten hues are 100 classes of 32x32 colour images. A shape lies anywhere, at any angle and in
any size, on a brighter or a darker ground, so that no single pixel identifies it: a linear classifier on
the pixels finds the hue and guesses the shape. Every shape is its own mirror image, and lighting moves a hue
by less than half the way to the next one, so that the recipe's augmentation leaves every class what it is.

Only operations that IEEE 754 defines to the last bit are used (+ - * / and square root; no sine, no sums):
numpy's others depend on the processor, and the archive's SHA-256 is part of a run's identity.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from job.data.cifar import Split
from job.data.pack import write_archive

Pixels = NDArray[np.floating[Any]]  # always float32; the stubs widen it
Shape = Callable[[Pixels, Pixels], Pixels]
Uniform = Callable[..., Pixels]

SEED = 2019
SIDE = 32  # pixels, as CIFAR-100
TRAIN_PER_CLASS = 100
TEST_PER_CLASS = 20
RADIUS = (6.0, 9.0)  # pixels; a star's points reach 1.17 times as far, to tell it from a triangle
MARGIN = 2.0  # pixels, at least, from the radius to the border: no shape is drawn cut
HUE_STEP = 36.0  # degrees from one hue to the next
HUE_JITTER = 6.0  # degrees either way; the recipe's lighting adds up to 9.5, and 18 is half way
SATURATION = (0.6, 1.0)  # this and VALUE keep a classifier from reading a shape's area off its mean colour
VALUE = (0.5, 1.0)
GROUND = (0.1, 0.9)  # grey, so that the only hue in an image is its shape's
GRADIENT = 0.15  # of grey, from the middle to the border, at most
NOISE = 0.15  # either way, for each pixel and channel

HUES = ("red", "orange", "lime", "green", "mint", "cyan", "azure", "indigo", "purple", "pink")


def _norm(u: Pixels, v: Pixels) -> Pixels:
    return np.sqrt(u * u + v * v)


def _star(u: Pixels, v: Pixels) -> Pixels:
    """Pentagram: where at most one of the five lines along its sides is crossed."""
    a, b, c, d = 0.95105652, 0.30901699, 0.58778525, 0.80901699  # sine, cosine of 72 and 36 degrees
    distances = np.stack((v, b * v + a * u, b * v - a * u, c * u - d * v, -c * u - d * v))
    second: Pixels = np.sort(distances, axis=0)[-2]
    return 0.36 - second


SHAPES: dict[str, Shape] = {
    "circle": lambda u, v: 1 - _norm(u, v),
    "ring": lambda u, v: 0.2 - abs(_norm(u, v) - 0.8),
    "square": lambda u, v: 0.71 - np.maximum(abs(u), abs(v)),
    "triangle": lambda u, v: 0.55 - np.maximum(v, 0.8660254 * abs(u) - 0.5 * v),
    "star": _star,
    "cross": lambda u, v: np.minimum(0.25 - np.minimum(abs(u), abs(v)), 0.95 - np.maximum(abs(u), abs(v))),
    "bar": lambda u, v: np.minimum(0.22 - abs(u), 1 - abs(v)),
    "pair": lambda u, v: 0.38 - _norm(u, abs(v) - 0.62),
    "crescent": lambda u, v: np.minimum(1 - _norm(u, v), _norm(u, v - 0.5) - 0.75),
    "target": lambda u, v: np.maximum(0.36 - _norm(u, v), 0.17 - abs(_norm(u, v) - 0.83)),
}
"""Name to signed distance from the outline, positive inside, in units of the radius. Even in u."""


def write(path: Path) -> str:
    """Write the data set to `path`, a `.tar.gz` in CIFAR-100's format; return its SHA-256.

    10,000 training and 2,000 test images, always the same (another `SEED` or recipe is another data
    set). The coarse classes are the shapes. Raises OSError where the file cannot be written.
    """
    generator = np.random.default_rng(SEED)
    train = generate(TRAIN_PER_CLASS, generator)
    test = generate(TEST_PER_CLASS, generator)
    classes = [f"{hue} {shape}" for shape in SHAPES for hue in HUES]
    return write_archive(path, train, test, classes, [shape for shape in SHAPES for _ in HUES])


def generate(per_class: int, generator: Generator) -> Split:
    """Draw `per_class` images of every class, in random order; label = 10 * shape + hue."""
    hues = np.repeat(np.arange(len(HUES)), per_class)
    images = np.concatenate([_draw(shape, hues, generator) for shape in SHAPES.values()])
    labels = np.concatenate([index * len(HUES) + hues for index in range(len(SHAPES))])
    order = generator.permutation(len(labels))
    return Split(images[order], labels[order])


def _draw(shape: Shape, hues: NDArray[np.int64], generator: Generator) -> NDArray[np.uint8]:
    """Return an image [3, SIDE, SIDE] of `shape` for each of the N `hues`."""
    count = len(hues)

    def uniform(low: float, high: float, *extent: int) -> Pixels:
        return low + (high - low) * generator.random((count, *(extent or (1, 1, 1))), dtype=np.float32)

    inside = _coverage(shape, uniform)
    colour = _rgb(
        HUE_STEP * hues.astype(np.float32).reshape(-1, 1, 1, 1) + uniform(-HUE_JITTER, HUE_JITTER), uniform
    )
    line = np.linspace(-1, 1, SIDE, dtype=np.float32)
    slope_x, slope_y = uniform(-GRADIENT, GRADIENT), uniform(-GRADIENT, GRADIENT)
    ground = uniform(*GROUND) + slope_x * line + slope_y * line[:, None]
    image = ground + inside * (colour - ground) + uniform(-NOISE, NOISE, 3, SIDE, SIDE)
    return np.asarray(image.clip(0, 1) * 255 + 0.5, np.uint8)


def _coverage(shape: Shape, uniform: Uniform) -> Pixels:
    """Return the share of each pixel that the shape covers, [N, 1, SIDE, SIDE], placed at random."""
    radius = uniform(*RADIUS)
    reach = SIDE / 2 - MARGIN - radius
    x = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    y = x[:, None]
    x, y = x - reach * uniform(-1, 1), y - reach * uniform(-1, 1)
    # With t = tan(angle / 2), cosine and sine are (1 - t^2, 2t) / (1 + t^2).
    t, half_turn = uniform(-1, 1), np.where(uniform(-1, 1) < 0, np.float32(-1), np.float32(1))
    cosine, sine = half_turn * (1 - t * t) / (1 + t * t), half_turn * 2 * t / (1 + t * t)
    u, v = (cosine * x + sine * y) / radius, (cosine * y - sine * x) / radius
    return np.clip(shape(u, v) * radius + 0.5, 0, 1)


def _rgb(hue: Pixels, uniform: Uniform) -> Pixels:
    """Return colours [N, 3, 1, 1] of `hue` in degrees, with random saturation and value (HSV to RGB)."""
    sector: Pixels = (np.array([5, 3, 1], np.float32).reshape(3, 1, 1) + hue / 60) % 6
    share: Pixels = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return uniform(*VALUE) * (1 - uniform(*SATURATION) * share)
