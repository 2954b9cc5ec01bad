import hashlib
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from job.data import demo
from job.data.archive import fetch, parse_source
from job.data.cifar import load
from job.data.extract import unpack

SHA256 = "ad482118a6bad536dea4a3671073913c60bf322881a2a57748ef6aebc66c2b1b"
"""Of the archive. Another one is another data set: measure the README's figures for --demo again."""

Archive = tuple[Path, str]  # and its SHA-256
Content = dict[str, dict[str, Any]]
Pixels = NDArray[np.floating[Any]]
Named = tuple[Pixels, NDArray[np.str_]]

CENTRE_HUES = {"red": 0, "orange": 36, "lime": 72, "green": 108, "mint": 144}
CENTRE_HUES |= {"cyan": 180, "azure": 216, "indigo": 252, "purple": 288, "pink": 324}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    path = tmp_path_factory.mktemp("demo") / "demo.tar.gz"
    return path, demo.write(path)


@pytest.fixture(scope="module")
def content(archive: Archive) -> Content:
    unpickled = {}
    with tarfile.open(archive[0]) as tar:
        for name in ("train", "test", "meta"):
            file = tar.extractfile(f"cifar-100-python/{name}")
            assert file
            unpickled[name] = pickle.load(file)
    return unpickled


@pytest.fixture(scope="module")
def test_split(content: Content) -> Named:
    """Images in [0, 1], [2000, 32, 32, 3], and their classes' names."""
    images = content["test"]["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) / 255
    names = np.array(content["meta"]["fine_label_names"])
    return images, names[content["test"]["fine_labels"]]


def test_the_archive_is_the_same_on_every_machine(archive: Archive) -> None:
    path, digest = archive

    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest == SHA256


def test_the_archive_is_the_same_without_the_processors_vector_units(
    archive: Archive, tmp_path: Path
) -> None:
    from numpy._core._multiarray_umath import (  # type: ignore[import-not-found]
        __cpu_dispatch__,
        __cpu_features__,
    )

    used = [feature for feature in __cpu_dispatch__ if __cpu_features__[feature]]
    program = "import sys, pathlib; from job.data import demo; print(demo.write(pathlib.Path(sys.argv[1])))"

    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "again.tar.gz")],
        env=os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(used), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert result.stdout.strip() == archive[1]


def test_a_hundred_classes_are_ten_shapes_in_ten_hues(content: Content) -> None:
    meta = content["meta"]
    fine, coarse = meta["fine_label_names"], meta["coarse_label_names"]

    assert len(set(fine)) == 100
    assert len(set(coarse)) == 10
    assert {name.split()[0] for name in fine} == set(CENTRE_HUES)
    for split in (content["train"], content["test"]):
        for label, superclass in zip(split["fine_labels"], split["coarse_labels"], strict=True):
            assert fine[label].split()[1] == coarse[superclass]


def test_superclasses_are_the_shapes(archive: Archive, tmp_path: Path) -> None:
    verified = fetch([parse_source(str(archive[0]))], tmp_path)
    dataset = load(unpack(verified, tmp_path), verified.sha256)
    for name, superclass in zip(dataset.classes, dataset.superclasses, strict=True):
        assert name.endswith(superclass)


@pytest.mark.parametrize(("name", "per_class"), [("train", 100), ("test", 20)])
def test_classes_are_balanced_and_mixed(content: Content, name: str, per_class: int) -> None:
    labels = np.array(content[name]["fine_labels"])

    assert content[name]["data"].shape == (100 * per_class, 3072)
    assert content[name]["data"].dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(labels), [per_class] * 100)
    # In random order 1 pair of neighbours in 100 has one class; in class order 99 % do.
    assert np.mean(labels[1:] == labels[:-1]) < 0.03


def test_no_image_comes_twice(content: Content) -> None:
    images = [row.tobytes() for name in ("train", "test") for row in content[name]["data"]]

    assert len(set(images)) == 12_000


@pytest.mark.parametrize(
    ("shape", "inside", "outside"),
    [
        ("circle", [(0, 0), (0.9, 0), (0.65, 0.65)], [(1.1, 0), (0.75, 0.75)]),
        ("ring", [(0.8, 0), (0, -0.8)], [(0, 0), (0.5, 0), (1.1, 0)]),
        ("square", [(0, 0), (0.65, 0.65)], [(0.8, 0), (0, -0.8)]),
        ("triangle", [(0, 0), (0, -0.9), (0.8, 0.45)], [(0, 0.6), (0.5, -0.5)]),
        ("star", [(0, 0), (0, 0.9), (0.86, 0.28), (0.53, -0.73)], [(0, -0.6), (0.5, 0.69)]),
        ("cross", [(0, 0), (0.9, 0), (0, -0.9)], [(0.5, 0.5), (1.1, 0)]),
        ("bar", [(0, 0), (0, 0.9), (0, -0.9)], [(0.4, 0), (0, 1.1)]),
        ("pair", [(0, 0.62), (0, -0.62)], [(0, 0), (0.62, 0), (0, 1.1)]),
        ("crescent", [(0, -0.7), (0.9, 0)], [(0, 0.5), (0, 0), (0, 1.1)]),
        ("target", [(0, 0), (0.83, 0), (0, -0.83)], [(0.5, 0), (0, 0.5), (1.1, 0)]),
    ],
)
def test_a_shape_is_what_its_name_says(
    shape: str, inside: list[tuple[float, float]], outside: list[tuple[float, float]]
) -> None:
    for points, sign in ((inside, 1), (outside, -1)):
        for u, v in points:
            distance = demo.SHAPES[shape](np.array([u], np.float32), np.array([v], np.float32))
            assert np.sign(distance) == sign, (u, v)


@pytest.mark.parametrize("shape", demo.SHAPES)
def test_a_shape_is_its_own_mirror_image_and_within_the_margin(shape: str) -> None:
    u, v = np.random.default_rng(3).uniform(-2, 2, (2, 10_000)).astype(np.float32)
    distance = demo.SHAPES[shape](u, v)

    np.testing.assert_array_equal(distance, demo.SHAPES[shape](-u, v))
    reach = np.sqrt(u * u + v * v)[distance > 0].max()
    assert reach * max(demo.RADIUS) < max(demo.RADIUS) + demo.MARGIN


def chroma_of(images: Pixels) -> Pixels:
    return images.max(-1) - images.min(-1)


def test_shapes_lie_left_as_often_as_right_and_high_as_often_as_low(test_split: Named) -> None:
    images, names = test_split
    coloured = chroma_of(images) > 0.35
    line = np.arange(32) - 15.5

    for shape in demo.SHAPES:
        chosen = coloured[[name.endswith(shape) for name in names]]
        for axis in (1, 2):
            centres = (chosen.sum(3 - axis) * line).sum(1) / chosen.sum((1, 2)).clip(1)
            standard_error = centres.std() / np.sqrt(len(centres))
            assert standard_error > 0.1  # they do lie here and there
            assert abs(centres.mean()) < 4 * standard_error, shape


def hue_of(images: Pixels) -> Pixels:
    """Return the hue in degrees of each image's most colourful pixels, 7 in 100."""
    chroma = chroma_of(images)
    strongest = chroma >= np.quantile(chroma, 0.93, axis=(1, 2), keepdims=True)
    red, green, blue = (images * strongest[..., None]).sum((1, 2)).T
    return np.degrees(np.arctan2(np.sqrt(3) / 2 * (green - blue), red - (green + blue) / 2)) % 360


@pytest.mark.parametrize("brightness", [0.4, 0.5, 0.6])
@pytest.mark.parametrize("contrast", [0.8, 1, 1.25])
def test_hues_stay_apart_in_any_lighting(test_split: Named, brightness: float, contrast: float) -> None:
    images, names = test_split
    images = images.clip(1e-7, 1 - 1e-7)
    logits = contrast * (np.log(images / (1 - images)) + np.log(brightness / (1 - brightness)))

    hues = hue_of(1 / (1 + np.exp(-logits)))

    expected = np.array([CENTRE_HUES[name.split()[0]] for name in names])
    distance = np.abs((hues - expected + 180) % 360 - 180)
    assert np.mean(distance < 18) > 0.99  # nearer to the class's hue than to any other


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "classifier",
    [
        RidgeClassifier(alpha=1e4),
        LogisticRegression(C=3e-3, max_iter=8),
        pytest.param(LogisticRegression(C=3e-3, max_iter=40), marks=pytest.mark.soak),
    ],
    ids=["ridge", "logistic of few steps", "logistic"],
)
def test_a_linear_classifier_cannot_tell_the_classes(
    content: Content, classifier: RidgeClassifier | LogisticRegression
) -> None:
    """With about the best penalties; converged ones reach 0.101 and 0.201 (`bench/linear_baseline.py`)."""
    scaler = StandardScaler()
    train = scaler.fit_transform(content["train"]["data"].astype(np.float32))
    test = scaler.transform(content["test"]["data"].astype(np.float32))

    classifier.fit(train, content["train"]["fine_labels"])

    accuracy = classifier.score(test, content["test"]["fine_labels"])
    assert 0.08 < accuracy < 0.25  # above chance, 0.01: it did learn the hues
