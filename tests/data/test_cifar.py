"""Arrays out of archives of every writer, what is refused, and the statistics."""

from __future__ import annotations

import math
import pickle
import statistics as reference
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torchvision

from job.data.archive import fetch, parse_source
from job.data.cifar import CIFAR100_SHA256, FOLDER, Dataset, Split, load, statistics
from job.data.extract import unpack
from job.errors import DataError
from tests.archives import contents, python2_pickle, write_archive, write_tar


def write_folder(folder: Path, files: dict[str, Any], protocol: int = 2) -> Path:
    (folder / FOLDER).mkdir(parents=True)
    for name, content in files.items():
        (folder / FOLDER / name).write_bytes(pickle.dumps(content, protocol))
    return folder


def test_the_arrays_are_those_written(tmp_path: Path) -> None:
    written = contents(train=200, test=100, classes=7)
    dataset = load(write_folder(tmp_path, written), "ab" * 32)
    assert dataset.sha256 == "ab" * 32
    assert dataset.classes == tuple(f"class_{index}" for index in range(7))
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        assert split.images.shape == (len(written[name]["data"]), 3, 32, 32)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        assert split.labels.tolist() == written[name]["fine_labels"]
        # Byte 1024 c + 32 y + x of a row is channel c, row y, column x.
        assert split.images[5, 2, 31, 7] == written[name]["data"][5, 2 * 1024 + 31 * 32 + 7]
        assert split.images.flags.writeable
        assert split.images.flags.c_contiguous
    assert len(dataset.train) == 200


def test_keys_labels_and_names_may_be_bytes_and_arrays(tmp_path: Path) -> None:
    files = contents(classes=3)
    as_bytes = {
        name: {key.encode(): value for key, value in content.items()} for name, content in files.items()
    }
    as_bytes["meta"][b"fine_label_names"] = [b"a", "b\u00e9".encode(), b"c"]
    as_bytes["train"][b"fine_labels"] = np.array(files["train"]["fine_labels"], dtype=np.int16)
    dataset = load(write_folder(tmp_path, as_bytes), "")
    assert dataset.classes == ("a", "b\u00e9", "c")
    assert dataset.train.labels.tolist() == files["train"]["fine_labels"]


class ForeignReader(torchvision.datasets.CIFAR100):  # type: ignore[misc]
    """torchvision's reader; only the MD5s of the one true archive are taken away."""

    train_list: ClassVar = [["train", None]]
    test_list: ClassVar = [["test", None]]
    meta: ClassVar = {"filename": "meta", "key": "fine_label_names", "md5": None}


@pytest.mark.parametrize("python2", [False, True])
def test_torchvision_reads_the_same_folder(tmp_path: Path, python2: bool) -> None:
    if python2:
        files = {name: python2_pickle(content) for name, content in contents().items()}
        path = write_tar(tmp_path / "archive.tar.gz", files)
    else:
        path = write_archive(tmp_path / "archive.tar.gz")
    archive = fetch([parse_source(str(path))], tmp_path / "cache")
    folder = unpack(archive, tmp_path / "cache")
    dataset = load(folder, archive.sha256)
    for train, split in ((True, dataset.train), (False, dataset.test)):
        foreign = ForeignReader(str(folder), train=train)
        assert np.array_equal(foreign.data, split.images.transpose(0, 2, 3, 1))
        assert foreign.targets == split.labels.tolist()
        assert tuple(foreign.classes) == dataset.classes


def broken(change: str) -> dict[str, Any]:
    files = contents(train=20, test=20, classes=5)
    train, meta = files["train"], files["meta"]
    if change == "no images":
        del train["data"]
    elif change == "no labels":
        del train["fine_labels"]
    elif change == "no names":
        del meta["fine_label_names"]
    elif change == "images of floats":
        train["data"] = train["data"].tolist()
    elif change == "images of 16 bits":
        train["data"] = train["data"].astype(np.uint16)
    elif change == "images of another size":
        train["data"] = train["data"][:, :784]
    elif change == "images in four dimensions":
        train["data"] = train["data"].reshape(-1, 3, 32, 32)
    elif change == "no image at all":
        train["data"], train["fine_labels"] = train["data"][:0], []
    elif change == "a label missing":
        train["fine_labels"].pop()
    elif change == "a label too many":
        train["fine_labels"].append(0)
    elif change == "a label too large":
        train["fine_labels"][3] = 5
    elif change == "a label far too large":
        train["fine_labels"][3] = 2**70
    elif change == "a negative label":
        train["fine_labels"][3] = -1
    elif change == "a label of text":
        train["fine_labels"][3] = "cat"
    elif change == "a label that is true":
        train["fine_labels"][3] = True
    elif change == "one class":
        meta["fine_label_names"], train["fine_labels"] = ["a"], [0] * 20
    elif change == "a name twice":
        meta["fine_label_names"][1] = meta["fine_label_names"][0]
    elif change == "an empty name":
        meta["fine_label_names"][1] = ""
    elif change == "a name that is a number":
        meta["fine_label_names"][1] = 3
    return files


CHANGES = [
    "no images", "no labels", "no names", "images of floats", "images of 16 bits", "images of another size",
    "images in four dimensions", "no image at all", "a label missing", "a label too many",
    "a label too large", "a label far too large", "a negative label", "a label of text",
    "a label that is true", "one class", "a name twice", "an empty name", "a name that is a number",
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_refused(tmp_path: Path, change: str) -> None:
    with pytest.raises(DataError, match=r"cifar-100-python/(train|meta)") as caught:
        load(write_folder(tmp_path, broken(change)), "")
    assert caught.value.exit_code == 65


def test_the_unbroken_archive_is_taken(tmp_path: Path) -> None:
    load(write_folder(tmp_path, broken("nothing")), "")


def dataset_of(images: np.ndarray[Any, Any], sha256: str = "") -> Dataset:
    split = Split(images, np.zeros(len(images), np.int64))
    return Dataset(split, split, ("a", "b"), sha256)


def test_statistics_are_those_of_the_pixels() -> None:
    images = np.random.default_rng(3).integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)
    mean, std = statistics(dataset_of(images))
    for channel in range(3):
        values = [value / 255 for value in images[:, channel].ravel().tolist()]
        assert mean[channel] == pytest.approx(reference.fmean(values), rel=1e-12)
        assert std[channel] == pytest.approx(reference.pstdev(values), rel=1e-12)


def test_statistics_of_half_black_and_half_white() -> None:
    images = np.zeros((2, 3, 32, 32), np.uint8)
    images[1, 0] = 255
    images[:, 2] = 51
    assert statistics(dataset_of(images)) == ((0.5, 0.0, 0.2), (0.5, 1.0, 1.0))


def test_statistics_stay_exact_for_many_white_pixels() -> None:
    images = np.full((5000, 3, 32, 32), 255, np.uint8)
    images[0, :, 0, 0] = 254
    pixels = 5000 * 1024
    mean, std = statistics(dataset_of(images))
    assert mean[0] == pytest.approx(1 - 1 / (255 * pixels), rel=1e-15)
    assert std[0] == pytest.approx(math.sqrt((pixels - 1) / pixels**2) / 255, rel=1e-9)


def test_cifar_100_has_the_constants_of_2019() -> None:
    images = np.zeros((1, 3, 32, 32), np.uint8)
    assert CIFAR100_SHA256 == "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
    assert statistics(dataset_of(images, CIFAR100_SHA256)) == (
        (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
        (0.26733428587924035, 0.2564384629170881, 0.2761504713256853),
    )
