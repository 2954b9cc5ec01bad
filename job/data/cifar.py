"""The data set in memory: CIFAR-100's three pickles, or others in their format, as checked arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.data.unpickle import read_pickle
from job.errors import DataError

FOLDER = "cifar-100-python"
FILES = ("train", "test", "meta")

CIFAR100_SHA256 = "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
CIFAR100_MEAN = (0.5070751592371323, 0.48654887331495095, 0.4409178433670343)
CIFAR100_STD = (0.26733428587924035, 0.2564384629170881, 0.2761504713256853)
"""The constants the 2019 entry normalised with; those of the training images, to five digits."""

CHANNELS, SIDE = 3, 32
PIXELS = CHANNELS * SIDE * SIDE
MAX_CLASSES = 10_000
MAX_NAME = 200  # characters of a class name

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Split:
    """`images` uint8 [N, 3, 32, 32] in R, G, B and `labels` int64 [N], both writable and contiguous."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Two splits, the name of each label's class, and the SHA-256 of the archive that they are from.

    `superclasses` has that of each class, () where the archive does not define it.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    sha256: str
    superclasses: tuple[str, ...] = ()


def load(folder: Path, sha256: str) -> Dataset:
    """Read the data set that `unpack` put in `folder`; labels count from 0 below the number of classes.

    Raises DataError naming the file and what is wrong with it.
    """
    home = folder / FOLDER
    content = {name: read_pickle(home / name) for name in FILES}
    classes = _classes(content["meta"])
    train, test = (_split(content[name], name, len(classes)) for name in ("train", "test"))
    superclasses = _superclasses(content["meta"], content["train"], train.labels, len(classes))
    return Dataset(train, test, classes, sha256, superclasses)


def statistics(dataset: Dataset) -> tuple[Channels, Channels]:
    """Return mean and standard deviation per channel, pixels counted from 0 to 1.

    CIFAR-100's are the constants above; another set's are those of its training images (population),
    summed in integers and so the same everywhere. A channel of one colour has deviation 1, so that it
    normalises to zeros.
    """
    if dataset.sha256 == CIFAR100_SHA256:
        return CIFAR100_MEAN, CIFAR100_STD
    pixels = len(dataset.train) * SIDE * SIDE
    means, deviations = [], []
    for channel in range(CHANNELS):
        values = dataset.train.images[:, channel]
        total = int(values.sum(dtype=np.uint64))
        squares = int(np.square(values, dtype=np.uint16).sum(dtype=np.uint64))
        means.append(total / (255 * pixels))
        deviations.append(math.sqrt(pixels * squares - total**2) / (255 * pixels) or 1.0)
    return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])


def _classes(meta: dict[str, Any]) -> tuple[str, ...]:
    names = meta.get("fine_label_names")
    if not isinstance(names, list | tuple):
        raise _wrong("meta", "it has no list `fine_label_names`")
    if not 2 <= len(names) <= MAX_CLASSES:
        raise _wrong("meta", f"{len(names)} classes, where 2 to {MAX_CLASSES} make a data set")
    names = _texts(names)
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
        raise _wrong("meta", "`fine_label_names` are not different names")
    _check_names(names, "fine_label_names")
    return tuple(names)


def _texts(names: Iterable[Any]) -> list[Any]:
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]


def _check_names(names: Iterable[str], field: str) -> None:
    """Raise DataError for a name that the weights, the predictions or the page could not hold."""
    for number, name in enumerate(names):
        if len(name) > MAX_NAME:
            raise _wrong("meta", f"`{field}`[{number}] has {len(name)} characters, more than {MAX_NAME}")
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise _wrong("meta", f"`{field}`[{number}] cannot be written as UTF-8") from error


def _superclasses(
    meta: dict[str, Any], train: dict[str, Any], labels: NDArray[np.int64], classes: int
) -> tuple[str, ...]:
    """Return the superclass of each class; () unless the training images have exactly one for each."""
    names, coarse = meta.get("coarse_label_names"), train.get("coarse_labels")
    coarse = coarse.tolist() if isinstance(coarse, np.ndarray) and coarse.ndim == 1 else coarse
    if not isinstance(names, list | tuple) or not isinstance(coarse, list | tuple):
        return ()
    names = _texts(names)
    if not all(isinstance(name, str) for name in names):
        return ()
    if not all(type(index) is int and 0 <= index < len(names) for index in coarse):
        return ()
    pairs = set(zip(labels.tolist(), coarse, strict=False))
    of_class = dict(pairs)
    if not len(pairs) == len(of_class) == classes:
        return ()
    superclasses = tuple(names[of_class[label]] for label in range(classes))
    _check_names(superclasses, "coarse_label_names")
    return superclasses


def _split(content: dict[str, Any], name: str, classes: int) -> Split:
    images, labels = content.get("data"), content.get("fine_labels")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        raise _wrong(name, "`data` is not an array of bytes")
    if images.ndim != 2 or images.shape[1] != PIXELS or not len(images):
        raise _wrong(name, f"`data` has the shape {images.shape} and not [N, {PIXELS}]")
    if isinstance(labels, list) and all(type(label) is int for label in labels):
        labels = np.array(labels, dtype=object)
    if not isinstance(labels, np.ndarray) or labels.shape != (len(images),):
        raise _wrong(name, f"`fine_labels` is not a list of {len(images)} numbers")
    if labels.min() < 0 or labels.max() >= classes:
        raise _wrong(name, f"a label is outside 0 to {classes - 1}")
    return Split(images.reshape(-1, CHANNELS, SIDE, SIDE), labels.astype(np.int64))


def _wrong(name: str, reason: str) -> DataError:
    return DataError(f"{FOLDER}/{name}: {reason}", "Use an archive in the format of cifar-100-python.tar.gz")
