"""Convert Fashion-MNIST, 70,000 real images, into CIFAR-100's tar format.

    apt-get install dataset-fashion-mnist
    python -m bench.fashion_mnist OUT.tar.gz

Train is the first 50,000 of the package's 60,000 training images (the last 10,000 are left out, so that an
epoch has CIFAR-100's size), test its 10,000 test images. 28x28 is padded with two black pixels a side to
32x32; the three channels are equal. Prints the archive's SHA-256.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from job.data.cifar import Split
from job.data.pack import write_archive

SOURCE = Path("/usr/share/datasets/fashion-mnist")
TRAIN_IMAGES = 50_000
NAMES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of bytes: two zeros, type 8, the number of axes, each axis as a big-endian int32."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise SystemExit(f"{path} is not an IDX file of bytes")
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def read_split(name: str, count: int) -> Split:
    """Return the first `count` images of the package's file `name`, as [N, 3, 32, 32], and their labels."""
    grey = np.pad(read_idx(SOURCE / f"{name}-images-idx3-ubyte.gz")[:count], ((0, 0), (2, 2), (2, 2)))
    labels = read_idx(SOURCE / f"{name}-labels-idx1-ubyte.gz")[:count]
    return Split(np.repeat(grey[:, None], 3, axis=1), labels.astype(np.int64))


def main() -> None:
    """Convert, and print the SHA-256."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m bench.fashion_mnist OUT.tar.gz")
    if not SOURCE.is_dir():
        raise SystemExit(f"{SOURCE} is not there: apt-get install dataset-fashion-mnist")
    train, test = read_split("train", TRAIN_IMAGES), read_split("t10k", 10_000)
    print(write_archive(Path(sys.argv[1]), train, test, NAMES, NAMES))


if __name__ == "__main__":
    main()
