"""Write images in the format of `cifar-100-python.tar.gz`, the same bytes on every machine."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from job.data.cifar import FOLDER, PIXELS, Split
from job.store.files import scratch

STORED_BLOCK = 0xFFFF  # bytes at most in a stored block (RFC 1951, section 3.2.4)


def write_archive(
    path: Path, train: Split, test: Split, classes: Sequence[str], superclasses: Sequence[str]
) -> str:
    """Write the archive to `path`, whole or not at all; return its SHA-256.

    Labels index `classes`; `superclasses` names the coarse class of each. Neither times nor owners go in,
    and the gzip blocks are stored, not compressed, because zlib and zlib-ng turn the same bytes into
    different ones. Raises OSError where the file cannot be written.
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
