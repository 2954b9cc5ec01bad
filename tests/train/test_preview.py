import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from job.commands.data import data
from job.data.cifar import Split
from job.recipe import Recipe
from job.train.preview import AUGMENTED, GAP, MIXED, ROWS, sheet
from tests.archives import write_archive


@pytest.fixture
def split() -> Split:
    """Twelve classes of three images, each of one colour, which no augmentation moves."""
    labels = np.repeat(np.arange(12), 3)
    images = np.repeat((20 * np.arange(12) + 10).astype(np.uint8), 3)
    return Split(np.broadcast_to(images[:, None, None, None], (36, 3, 32, 32)).copy(), labels)


def tiles(png: bytes) -> np.ndarray:
    """Return the images of a sheet, [rows, columns, 32, 32, 3]."""
    picture = np.asarray(Image.open(io.BytesIO(png)))
    rows, columns = (size // (32 + GAP) for size in picture.shape[:2])
    return np.array(
        [
            [
                picture[GAP + row * (32 + GAP) :, GAP + column * (32 + GAP) :][:32, :32]
                for column in range(columns)
            ]
            for row in range(rows)
        ]
    )


def test_the_originals_are_in_the_first_column(split: Split) -> None:
    found = tiles(sheet(split, 12, Recipe()))
    assert found.shape == (ROWS, 1 + AUGMENTED + MIXED, 32, 32, 3)
    # Eight classes spread over twelve, both ends among them: 0, 1.57, 3.14, ... 11.
    shown = [(int(tile[0, 0, 0]) - 10) // 20 for tile in found[:, 0]]
    assert shown == [0, 2, 3, 5, 6, 8, 9, 11]
    assert all((tile == tile[0, 0]).all() for tile in found[:, 0])


def test_augmented_images_stand_in_their_own_row(split: Split) -> None:
    found = tiles(sheet(split, 12, Recipe())).astype(int)
    assert all((tile == tile[0, 0]).all() for row in found for tile in row)  # of one colour still
    means = found.mean((2, 3, 4))
    # Brightness moves a logit by 0.41 at most and contrast by a quarter; a mixed image may go further.
    original = np.log((found[:, :1, 0, 0, 0] / 255) / (1 - found[:, :1, 0, 0, 0] / 255))
    seen = np.log((means[:, 1 : 1 + AUGMENTED] / 255) / (1 - means[:, 1 : 1 + AUGMENTED] / 255))
    bound = 1.25 * (np.abs(original) + 0.41) + 0.2
    assert (np.abs(seen) <= bound).all()
    assert (np.sign(seen) == np.sign(original))[np.abs(original[:, 0]) > 0.6].all()
    assert len({tuple(row) for row in means[:, 1:].T}) == AUGMENTED + MIXED  # no two epochs alike


def test_the_seed_decides(split: Split) -> None:
    first = sheet(split, 12, Recipe())
    assert sheet(split, 12, Recipe()) == first
    assert sheet(split, 12, Recipe(seed=1)) != first


def test_what_the_recipe_leaves_out_is_not_shown(split: Split) -> None:
    assert tiles(sheet(split, 12, replace(Recipe(), mixup_alpha=0.0))).shape[1] == 1 + AUGMENTED


def test_a_tiny_set_and_a_larger_picture(split: Split) -> None:
    few = Split(split.images[:2], split.labels[:2])
    small, large = (Image.open(io.BytesIO(sheet(few, 12, Recipe(), scale))) for scale in (1, 3))
    assert small.height == 32 + 2 * GAP
    assert large.size == (3 * small.width, 3 * small.height)
    assert (np.asarray(large)[1::3, 1::3] == np.asarray(small)).all()


def test_the_command_draws_it(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "tiny.tar.gz", train=40, test=20, classes=5)
    target = tmp_path / "new" / "sheet.png"
    done = CliRunner().invoke(
        data, ["--data", str(archive), "--cache", str(tmp_path), "--preview", str(target)]
    )
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == str(target)
    assert Image.open(target).size == tuple(3 * (count * (32 + GAP) + GAP) for count in (9, 5))
