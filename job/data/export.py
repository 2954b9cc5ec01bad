"""Write a data set as folders of PNG files, the layout that the 2019 notebooks read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from job.data.cifar import Dataset, Split
from job.errors import ConfigurationError, DataError
from job.store.files import SCRATCH_PREFIX, explain, scratch

MAX_NAME_BYTES = 200


def export(dataset: Dataset, target: Path) -> None:
    """Write `train_data/<class>/<index>.png` and `valid_data/<class>/<index>.png` below `target`.

    `index` is the image's position in its split. A new `target` appears as a whole or not at all; in an
    empty one that exists (it may be a mount) the two folders appear one after the other, each whole.

    Raises ConfigurationError if `target` holds anything, DataError for a class name that is no folder's.
    """
    for name in dataset.classes:
        _check_name(name)
    try:
        exists = target.is_dir()
        if exists and any(not path.name.startswith(SCRATCH_PREFIX) for path in target.iterdir()):
            raise ConfigurationError(f"{target} is not empty", "Name a new or an empty folder")
        with scratch(target if exists else target.parent) as work:
            new = work / "new"
            _write(dataset.test, dataset.classes, new / "valid_data")
            _write(dataset.train, dataset.classes, new / "train_data")
            if exists:
                for folder in sorted(new.iterdir(), reverse=True):
                    folder.rename(target / folder.name)
            else:
                new.rename(target)
    except OSError as error:
        raise explain(error, target) from error


def _check_name(name: str) -> None:
    """Class names come from the archive and must not lead out of the folder."""
    if name.startswith(".") or any(character in name for character in "/\\\0"):
        raise DataError(f"the class name {name!r:.80} cannot be a folder's", "Rename it in the archive")
    if len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise DataError(
            f"the class name {name[:40]!r}... is too long for a folder", "Shorten it in the archive"
        )


def _write(split: Split, classes: tuple[str, ...], folder: Path) -> None:
    for name in classes:
        (folder / name).mkdir(parents=True)
    for index, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(
            folder / classes[label] / f"{index}.png"
        )
