"""The folders of PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from job.data.cifar import Dataset, Split
from job.data.pack import export
from job.errors import ConfigurationError, DataError, MachineError, PermissionRefusedError
from tests.disks import tiny_disk


def dataset(classes: tuple[str, ...] = ("cat", "b c"), images: int = 6) -> Dataset:
    generator = np.random.default_rng(1)

    def split(count: int) -> Split:
        labels = np.arange(count) % len(classes)
        return Split(generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), labels.astype(np.int64))

    return Dataset(split(images), split(3), classes, "")


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


TREE = {
    "train_data/cat/0.png", "train_data/cat/2.png", "train_data/cat/4.png",
    "train_data/b c/1.png", "train_data/b c/3.png", "train_data/b c/5.png",
    "valid_data/cat/0.png", "valid_data/cat/2.png", "valid_data/b c/1.png",
}  # fmt: skip


@pytest.mark.parametrize("exists", [False, True])
def test_every_image_is_a_file_of_its_class(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "sub" / "png"
    if exists:
        target.mkdir(parents=True)
    written = dataset()
    export(written, target)
    assert tree(target) == TREE
    assert [path.name for path in target.parent.iterdir()] == ["png"]
    assert {path.name for path in target.iterdir()} == {"train_data", "valid_data"}
    pixels = np.asarray(Image.open(target / "train_data" / "b c" / "3.png"))
    assert np.array_equal(pixels, written.train.images[3].transpose(1, 2, 0))


def test_an_image_folder_reader_finds_the_classes(tmp_path: Path) -> None:
    export(dataset(), tmp_path / "png")
    folder = torchvision.datasets.ImageFolder(str(tmp_path / "png" / "train_data"))
    assert folder.classes == ["b c", "cat"]
    assert len(folder) == 6


def test_a_class_without_images_has_its_folder(tmp_path: Path) -> None:
    export(dataset(("a", "b", "c", "d", "e"), images=3), tmp_path / "png")
    assert (tmp_path / "png" / "train_data" / "e").is_dir()


def test_a_folder_that_holds_anything_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ConfigurationError, match="not empty") as caught:
        export(dataset(), tmp_path)
    assert caught.value.exit_code == 78
    assert tree(tmp_path) == {"mine"}
    with pytest.raises(ConfigurationError):
        export(dataset(), tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize(
    "name", ["../evil", "..", ".", "/tmp/evil", "a/b", "a\\b", "a\0b", ".hidden", "x" * 300]
)
def test_a_class_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        export(dataset(("cat", name)), tmp_path / "sub" / "png")
    assert caught.value.exit_code == 65
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_leaves_nothing(tmp_path: Path, exists: bool) -> None:
    noise = dataset(images=600)  # 3 KB each
    with tiny_disk(tmp_path / "disk") as disk:
        target = disk / "png"
        if exists:
            target.mkdir()
        with pytest.raises(MachineError) as caught:
            export(noise, target)
        assert caught.value.exit_code == 74
        assert not tree(disk)


def test_a_folder_without_the_right_to_write_is_refused(nobody: Path) -> None:
    with pytest.raises(PermissionRefusedError):
        export(dataset(), nobody / "png")
