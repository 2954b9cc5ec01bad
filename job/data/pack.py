"""Write a data set: as an archive like `cifar-100-python.tar.gz`, or as folders of PNG files."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from job.data.cifar import FOLDER, PIXELS, Dataset, Split
from job.errors import ConfigurationError, DataError
from job.store.files import SCRATCH_PREFIX, explain, scratch

MAX_NAME_BYTES = 200  # of a class's folder
STORED_BLOCK = 0xFFFF  # bytes at most in a stored block (RFC 1951, section 3.2.4)


def write_archive(
    path: Path, train: Split, test: Split, classes: Sequence[str], superclasses: Sequence[str]
) -> str:
    """Write the archive to `path`, whole or not at all, the same bytes on every machine; return its SHA-256.

    Labels index `classes`; `superclasses` names the coarse class of each. It holds no times or owners, and
    the gzip blocks are stored, not compressed, because zlib and zlib-ng compress the same bytes to different
    ones. Raises OSError where the file cannot be written.
    """
    coarse_names = list(dict.fromkeys(superclasses))
    coarse_labels = [coarse_names.index(name) for name in superclasses]
    content = _tar(
        {
            "train": _batch("train", train, coarse_labels),
            "test": _batch("test", test, coarse_labels),
            "meta": {"fine_label_names": list(classes), "coarse_label_names": coarse_names},
        }
    )
    digest = hashlib.sha256()
    with scratch(path.parent) as work:
        with (work / path.name).open("wb") as file:
            for chunk in _gzip_stored(content):
                file.write(chunk)
                digest.update(chunk)
        (work / path.name).replace(path)
    return digest.hexdigest()


def _batch(name: str, split: Split, coarse_labels: list[int]) -> dict[str, Any]:
    """Return what the pickle of a split holds; the keys are text, as after reading a Python 2 pickle."""
    labels = split.labels.tolist()
    return {
        "batch_label": f"{name} batch 1 of 1",
        "coarse_labels": [coarse_labels[label] for label in labels],
        "data": split.images.reshape(-1, PIXELS),
        "filenames": [f"{name}_{index:06d}.png" for index in range(len(labels))],
        "fine_labels": labels,
    }


def _tar(members: dict[str, dict[str, Any]]) -> memoryview:
    """Return a tar file of the `members`, pickled, from 1970 and owned by number 0."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            pickled = pickle.dumps(content, protocol=2)  # the protocol of the real file
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(pickled)
            tar.addfile(member, io.BytesIO(pickled))
    return buffer.getbuffer()


def _gzip_stored(content: memoryview) -> Iterator[bytes | memoryview]:
    """Yield `content` as a gzip file (RFC 1952) in pieces: header, stored blocks, checksum and size."""
    yield b"\x1f\x8b\x08" + bytes(6) + b"\xff"  # deflate; no flags, no time; unknown system
    for start in range(0, len(content), STORED_BLOCK):
        block = content[start : start + STORED_BLOCK]
        is_last = start + STORED_BLOCK >= len(content)
        length = len(block)
        yield bytes([is_last]) + length.to_bytes(2, "little") + (length ^ 0xFFFF).to_bytes(2, "little")
        yield block
    yield zlib.crc32(content).to_bytes(4, "little") + (len(content) % 2**32).to_bytes(4, "little")


def export(dataset: Dataset, target: Path) -> None:
    """Write `train_data/<class>/<index>.png` and `valid_data/<class>/<index>.png` below `target`.

    The 2019 notebooks read that layout. `index` is the image's position in its split. A new `target` appears
    whole or not at all; in an empty one that exists (it may be a mount) each of the two folders does.

    Raises ConfigurationError if `target` is not empty, DataError for a class name that cannot be a folder's.
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
    """Raise DataError for a class name, which comes from the archive, that would lead out of the folder."""
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
