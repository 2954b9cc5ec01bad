"""What the network predicted for each test image: worst classes, confusion by superclass, worst mistakes."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_UNPACKED = 2**26  # bytes; ten thousand images with five answers each take 0.6 MB
MAX_CLASSES = 10_000
MAX_SUPERCLASSES = 100  # that a picture can show
MAX_NAME = 60  # characters shown
MAX_MISTAKES, MAX_SIDE = 100, 64  # images that a page shows, and their pixels across


@dataclass(frozen=True)
class ClassResult:
    """The predictions for one class's images; `predicted_as` is the most frequent wrong one, None without."""

    name: str
    superclass: str | None
    correct: int
    total: int
    predicted_as: str | None
    predicted_count: int


@dataclass(frozen=True)
class Confusion:
    """The confusion by superclass: `counts` [true, predicted] of the test images."""

    names: tuple[str, ...]
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class Mistake:
    """A misclassified test image, as a PNG, with the name of its class and of the predicted one."""

    index: int  # in the test set, from 0
    name: str
    predicted_as: str
    png: bytes


@dataclass(frozen=True)
class Predictions:
    """Labels and predictions of N images; `classes` and `superclasses` (of each class) are () where unknown.

    `mistakes` are indices of misclassified images, the largest loss first, and `images` their pixels; None
    where an older version wrote the file.
    """

    label: NDArray[np.int64]  # [N]
    prediction: NDArray[np.int64]  # [N]
    classes: tuple[str, ...]
    superclasses: tuple[str, ...]
    mistakes: NDArray[np.int64] | None = None  # [M]
    images: NDArray[np.uint8] | None = None  # [M, 3, H, W]

    @classmethod
    def decode(cls, data: bytes, sha256: str | None = None) -> Predictions:
        """Read `predictions.npz`; ValueError where it is damaged or not the one with that SHA-256."""
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError("its SHA-256 is not the report's")
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                if sum(member.file_size for member in packed.infolist()) > MAX_UNPACKED:
                    raise ValueError(f"it unpacks to more than {MAX_UNPACKED} bytes")
                label, prediction = _array(packed, "label"), _array(packed, "prediction")
                classes, superclasses = (_names(packed, name) for name in ("classes", "superclasses"))
                found = cls(label, prediction, classes, superclasses, *_mistakes(packed))
            _check(found)
        except Exception as error:  # a damaged file makes zipfile and numpy raise anything
            raise ValueError(str(error)[:200]) from error
        return found

    def per_class(self) -> list[ClassResult]:
        """Return every class that the test set has, the worst first."""
        size = 1 + int(max(self.label.max(), self.prediction.max()))
        totals = np.bincount(self.label, minlength=size)
        correct = np.bincount(self.label[self.label == self.prediction], minlength=size)
        wrong = self.label != self.prediction
        pairs, counts = np.unique(self.label[wrong] * size + self.prediction[wrong], return_counts=True)
        worst: dict[int, tuple[int, int]] = {}  # of each class its most frequent mistake and that one's count
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
            if count > worst.get(pair // size, (0, 0))[1]:
                worst[pair // size] = (pair % size, count)
        order = sorted(
            np.flatnonzero(totals).tolist(), key=lambda index: (correct[index] / totals[index], index)
        )
        return [
            ClassResult(
                name=self._name(index),
                superclass=self.superclasses[index] if self.superclasses else None,
                correct=int(correct[index]),
                total=int(totals[index]),
                predicted_as=self._name(worst[index][0]) if index in worst else None,
                predicted_count=worst[index][1] if index in worst else 0,
            )
            for index in order
        ]

    def confusion(self) -> Confusion | None:
        """Return the confusion by superclass; None where the superclasses are unknown or too many."""
        names = tuple(dict.fromkeys(self.superclasses))
        if not 2 <= len(names) <= MAX_SUPERCLASSES:
            return None
        of_class = np.array([names.index(name) for name in self.superclasses])
        counts = _matrix(of_class[self.label], of_class[self.prediction], len(names))
        return Confusion(names, counts)

    def worst_mistakes(self) -> list[Mistake] | None:
        """Return the misclassified images that the file holds, the largest loss first; None without any."""
        if self.mistakes is None or self.images is None:
            return None
        return [
            Mistake(
                index,
                self._name(int(self.label[index])),
                self._name(int(self.prediction[index])),
                _png(pixels),
            )
            for index, pixels in zip(self.mistakes.tolist(), self.images, strict=True)
        ]

    def _name(self, index: int) -> str:
        return self.classes[index] if self.classes else f"class {index}"


@dataclass(frozen=True)
class Cell:
    """Images of class `row` predicted as `column`; `share` of the row, 0 to 1, and `opacity` to draw."""

    row: int
    column: int
    count: int
    share: float
    opacity: float


@dataclass(frozen=True)
class Heat:
    """A confusion matrix as cells to draw.

    `size` per cent of the box are one cell's side; cells without images are left out.
    """

    names: tuple[str, ...]
    size: float
    cells: list[Cell]
    alt: str


def heat(confusion: Confusion) -> Heat:
    """Draw a confusion matrix: the diagonal on a scale up to 1, the errors on one up to the largest."""
    totals = confusion.counts.sum(1).clip(min=1)
    share = confusion.counts / totals[:, None]
    errors = [(share[row, column], row, column) for row in range(len(share)) for column in range(len(share))]
    errors = sorted((error for error in errors if error[1] != error[2] and error[0] > 0), reverse=True)
    largest = errors[0][0] if errors else 1.0
    cells = [
        Cell(
            row=row,
            column=column,
            count=int(confusion.counts[row, column]),
            share=float(value),
            opacity=round(float(value if row == column else value / largest), 3),
        )
        for row, values in enumerate(share)
        for column, value in enumerate(values)
        if value > 0
    ]
    return Heat(confusion.names, 100 / len(confusion.names), cells, _alt(confusion.names, errors))


def _matrix(rows: NDArray[np.int64], columns: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Return [3, H, W] as a PNG."""
    from PIL import Image  # 0.05 s, which the status does without

    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def _array(packed: zipfile.ZipFile, name: str, dimensions: int = 1) -> NDArray[Any]:
    """Return an array of the file, of the size that its header states."""
    file = io.BytesIO(packed.read(f"{name}.npy"))
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"its {name} is of an unknown version")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    stored = file.read()
    if dtype.hasobject or len(shape) != dimensions or math.prod(shape) * dtype.itemsize != len(stored):
        raise ValueError(f"its {name} is not of the size that it states")
    if min(shape) < 0:
        raise ValueError(f"its {name} has a negative size")
    return np.frombuffer(stored, dtype).reshape(shape)


def _names(packed: zipfile.ZipFile, name: str) -> tuple[str, ...]:
    if f"{name}.npy" not in packed.namelist():
        return ()
    names = _array(packed, name)
    if names.dtype.kind != "U" or len(names) > MAX_CLASSES:
        raise ValueError(f"its {name} are not names")
    texts = tuple(str(value)[:MAX_NAME] for value in names)
    for text in texts:
        text.encode()
    return texts


def _mistakes(packed: zipfile.ZipFile) -> tuple[NDArray[Any], NDArray[Any]] | tuple[()]:
    if "mistakes.npy" not in packed.namelist():
        return ()
    return _array(packed, "mistakes"), _array(packed, "mistake_images", dimensions=4)


def _check(found: Predictions) -> None:
    label, prediction, classes = found.label, found.prediction, found.classes
    if label.dtype != np.int64 or prediction.dtype != np.int64 or label.ndim != 1 or not len(label):
        raise ValueError("it holds no labels")
    if label.shape != prediction.shape:
        raise ValueError("it holds another number of predictions than labels")
    classes_named = np.concatenate((label, prediction))
    if classes_named.min() < 0 or classes_named.max() >= (len(classes) or MAX_CLASSES):
        raise ValueError("a label is out of bounds")
    if found.superclasses and len(found.superclasses) != len(classes):
        raise ValueError("not every class has a superclass")
    if found.mistakes is not None and found.images is not None:
        _check_mistakes(found, found.mistakes, found.images)


def _check_mistakes(found: Predictions, mistakes: NDArray[Any], images: NDArray[Any]) -> None:
    count, channels, *sides = images.shape
    if images.dtype != np.uint8 or channels != 3 or not 1 <= min(sides) <= max(sides) <= MAX_SIDE:
        raise ValueError("its mistake_images are no images")
    if count > MAX_MISTAKES:
        raise ValueError(f"it has more than {MAX_MISTAKES} mistakes")
    if mistakes.dtype != np.int64 or len(mistakes) != len(images):
        raise ValueError("not every mistake has an image")
    if len(mistakes) and not 0 <= mistakes.min() <= mistakes.max() < len(found.label):
        raise ValueError("a mistake is out of bounds")
    if (found.label[mistakes] == found.prediction[mistakes]).any():
        raise ValueError("a mistake is a correct answer")


def _alt(names: tuple[str, ...], errors: list[tuple[float, int, int]]) -> str:
    if not errors:
        return "Every image was given its superclass."
    listed = "; ".join(f"{names[row]} for {names[column]}, {share:.1%}" for share, row, column in errors[:3])
    return f"Most often mistaken: {listed}."
