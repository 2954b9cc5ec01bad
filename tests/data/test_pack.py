import gzip
import hashlib
import pickle
import stat
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.data.cifar import Split
from job.data.pack import write_archive

CLASSES = ["apple", "pear", "oak"]
SUPERCLASSES = ["fruit", "fruit", "tree"]


def make_split(count: int, seed: int) -> Split:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return Split(images, generator.integers(0, 3, count))


@pytest.fixture
def splits() -> tuple[Split, Split]:
    return make_split(50, seed=1), make_split(7, seed=2)


def read(path: Path, name: str) -> dict[str, Any]:
    with tarfile.open(path) as tar:
        file = tar.extractfile(f"cifar-100-python/{name}")
        assert file
        return pickle.load(file, encoding="latin1")


def test_everything_written_is_read_back(tmp_path: Path, splits: tuple[Split, Split]) -> None:
    write_archive(tmp_path / "a.tar.gz", *splits, CLASSES, SUPERCLASSES)

    for name, split in zip(("train", "test"), splits, strict=True):
        content = read(tmp_path / "a.tar.gz", name)
        assert set(content) == {"batch_label", "coarse_labels", "data", "filenames", "fine_labels"}
        assert content["data"].dtype == np.uint8
        # A row is the red plane, then green, then blue, each row by row.
        np.testing.assert_array_equal(content["data"][:, 1024 + 32 * 5 + 6], split.images[:, 1, 5, 6])
        np.testing.assert_array_equal(content["data"].reshape(-1, 3, 32, 32), split.images)
        assert content["fine_labels"] == list(split.labels)
        assert content["coarse_labels"] == [{0: 0, 1: 0, 2: 1}[label] for label in split.labels]
        assert len(set(content["filenames"])) == len(split)
    assert read(tmp_path / "a.tar.gz", "meta") == {
        "fine_label_names": CLASSES,
        "coarse_label_names": ["fruit", "tree"],
    }


def test_the_pickles_are_of_protocol_2(tmp_path: Path, splits: tuple[Split, Split]) -> None:
    write_archive(tmp_path / "a.tar.gz", *splits, CLASSES, SUPERCLASSES)

    starts = {}
    with tarfile.open(tmp_path / "a.tar.gz") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file
            starts[member.name] = file.read(2)
    assert starts == {f"cifar-100-python/{name}": b"\x80\x02" for name in ("train", "test", "meta")}


def test_the_bytes_depend_on_the_content_alone(tmp_path: Path, splits: tuple[Split, Split]) -> None:
    digests = [write_archive(tmp_path / name, *splits, CLASSES, SUPERCLASSES) for name in ("a.tar.gz", "b")]

    contents = [(tmp_path / name).read_bytes() for name in ("a.tar.gz", "b")]
    assert contents[0] == contents[1]
    assert digests == [hashlib.sha256(contents[0]).hexdigest()] * 2
    with tarfile.open(tmp_path / "b") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.isreg()
            assert stat.S_IMODE(member.mode) == 0o644


def test_gzip_header_has_no_time_or_name_and_blocks_are_stored(
    tmp_path: Path, splits: tuple[Split, Split]
) -> None:
    write_archive(tmp_path / "a.tar.gz", *splits, CLASSES, SUPERCLASSES)

    content = (tmp_path / "a.tar.gz").read_bytes()
    payload = gzip.decompress(content)  # checks the CRC and the size as well
    blocks = -(-len(payload) // 65535)
    assert blocks > 1
    assert content[:11] == bytes.fromhex("1f8b 08 00 00000000 00 ff 00")
    assert len(content) == 10 + 5 * blocks + len(payload) + 8
    assert content[15 : 15 + 65535] == payload[:65535]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, splits: tuple[Split, Split]) -> None:
    target = tmp_path / "taken"
    target.mkdir()

    with pytest.raises(OSError, match="taken"):
        write_archive(target, *splits, CLASSES, SUPERCLASSES)

    assert list(tmp_path.iterdir()) == [target]
