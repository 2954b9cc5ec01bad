import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from job.view.predictions import MAX_UNPACKED, Predictions, heat

LABEL = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 3])
PREDICTION = np.array([0, 0, 1, 1, 1, 1, 2, 3, 0, 2])
NAMES = ("a", "b", "c", "d")


def npz(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def predictions(
    superclasses: tuple[str, ...] = ("x", "x", "y", "y"), classes: tuple[str, ...] = NAMES
) -> Predictions:
    return Predictions(LABEL, PREDICTION, classes, superclasses)


def test_classes_come_worst_first_with_what_they_are_taken_for() -> None:
    classes = predictions().per_class()
    assert [(result.name, result.correct, result.total) for result in classes] == [
        ("d", 0, 1),
        ("c", 1, 3),
        ("a", 2, 4),
        ("b", 2, 2),
    ]
    assert [(result.predicted_as, result.predicted_count) for result in classes] == [
        ("c", 1),
        ("a", 1),  # as often as "d": the first of equals
        ("b", 2),
        (None, 0),
    ]
    assert [result.superclass for result in classes] == ["y", "y", "x", "x"]


def test_confusion_by_superclass() -> None:
    confusion = predictions().confusion()
    assert confusion is not None
    assert confusion.names == ("x", "y")
    assert confusion.counts.tolist() == [[6, 0], [1, 3]]
    cells = {
        (cell.row, cell.column): (cell.count, cell.share, cell.opacity) for cell in heat(confusion).cells
    }
    assert cells == {(0, 0): (6, 1, 1), (1, 0): (1, 0.25, 1), (1, 1): (3, 0.75, 0.75)}
    assert "y for x, 25.0%" in heat(confusion).alt


def test_without_names_there_are_numbers_and_no_confusion() -> None:
    unnamed = predictions((), ())
    assert [result.name for result in unnamed.per_class()] == ["class 3", "class 2", "class 0", "class 1"]
    assert unnamed.confusion() is None
    assert predictions(("x",) * 4).confusion() is None  # of one superclass there is nothing to confuse


def test_a_file_is_read_with_its_names_and_without() -> None:
    found = Predictions.decode(npz(label=LABEL, prediction=PREDICTION, classes=np.array(NAMES)))
    assert (found.label.tolist(), found.classes, found.superclasses) == (LABEL.tolist(), NAMES, ())


IMAGES = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)


def with_mistakes(mistakes: object = (7, 2), images: object = IMAGES) -> bytes:
    return npz(
        label=LABEL, prediction=PREDICTION, classes=NAMES, mistakes=np.array(mistakes), mistake_images=images
    )


def test_mistakes_have_their_image_and_both_names() -> None:
    found = Predictions.decode(with_mistakes()).worst_mistakes()
    assert found is not None
    assert [(each.index, each.name, each.predicted_as) for each in found] == [(7, "c", "d"), (2, "a", "b")]
    for each, pixels in zip(found, IMAGES, strict=True):
        assert (np.asarray(Image.open(io.BytesIO(each.png))) == pixels.transpose(1, 2, 0)).all()


def test_a_file_without_mistakes_is_read() -> None:
    assert Predictions.decode(npz(label=LABEL, prediction=PREDICTION)).worst_mistakes() is None
    none = with_mistakes(np.zeros(0, np.int64), np.zeros((0, 3, 32, 32), np.uint8))
    assert Predictions.decode(none).worst_mistakes() == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (with_mistakes((7, 10)), "out of bounds"),
        (with_mistakes((7, -1)), "out of bounds"),
        (with_mistakes((7, 0)), "correct answer"),
        (with_mistakes((7,)), "not every mistake"),
        (with_mistakes((7.0, 2.0)), "not every mistake"),
        (with_mistakes(images=IMAGES[:, :2]), "no images"),
        (with_mistakes(images=IMAGES.astype(float)), "no images"),
        (with_mistakes(images=np.zeros((2, 3, 65, 4), np.uint8)), "no images"),
        (with_mistakes(images=np.zeros((2, 3, 0, 4), np.uint8)), "no images"),
        (with_mistakes(images=IMAGES[0]), "size that it states"),
        (with_mistakes((7,) * 101, np.zeros((101, 3, 1, 1), np.uint8)), "more than 100"),
        (npz(label=LABEL, prediction=PREDICTION, mistakes=np.array([7])), "mistake_images"),
    ],
)
def test_mistakes_that_no_run_wrote_are_refused(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Predictions.decode(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 not a zip",
        npz(label=LABEL),
        npz(label=LABEL, prediction=PREDICTION[:-1]),
        npz(label=LABEL, prediction=PREDICTION.astype(float)),
        npz(label=LABEL - 1, prediction=PREDICTION),
        npz(label=LABEL, prediction=PREDICTION + 10**12),
        npz(label=LABEL[:0], prediction=PREDICTION[:0]),
        npz(label=LABEL, prediction=PREDICTION, classes=np.array(["a", "b", "c"])),  # label 3 has no name
        npz(label=LABEL, prediction=PREDICTION, classes=np.array(NAMES), superclasses=np.array(["x"])),
        npz(label=LABEL, prediction=PREDICTION, classes=np.array([1, 2, 3, 4])),
        npz(label=np.array([object()], object), prediction=PREDICTION),
    ],
)
def test_what_is_damaged_or_hostile_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - many causes
        Predictions.decode(content)


WHOLE = npz(label=LABEL, prediction=PREDICTION)


def member(header: bytes) -> bytes:
    """A file whose label is one array with this header, and no bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("label.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    return buffer.getvalue()


def changed(content: bytes, at: bytes, to: bytes) -> bytes:
    assert at in content
    return content.replace(at, to)


@pytest.mark.parametrize(
    "content",
    [
        member(b"{'descr': '<i8', 'fortran_order': False, 'shape': (985162418487296,), }\n"),
        member(b"{'descr': '<i8', 'fortran_order': False, 'shape': (-1,), }\n"),
        member(b"{'descr': '|O', 'fortran_order': False, 'shape': (0,), }\n"),
        member(b"{'descr': '<U2000000000', 'fortran_order': False, 'shape': (0,), }\n"),
        member(b"(" * 9000),
        member(b"-" * 9000 + b"1"),
        member(b"{'descr': '<i8', 'fortran_order': False, 'shape': (" + b"9" * 9000 + b",), }"),
        changed(WHOLE, b"-\x00\x00\x00\x08\x00", b"-\x00\x01\x00\x08\x00"),
        WHOLE[:80] + b"\xff" * 40 + WHOLE[120:],
    ],
    ids=["7 PiB", "negative", "objects", "wide", "deep", "signs", "digits", "encrypted", "bad deflate"],
)
def test_a_hostile_array_is_refused_before_it_is_made(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - many causes
        Predictions.decode(content)


def test_many_classes_take_no_square_of_memory() -> None:
    label = np.arange(10_000)
    tracemalloc.start()
    classes = Predictions(label, label[::-1].copy(), (), ()).per_class()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(classes) == 10_000
    assert peak < 2**25


def test_a_bomb_is_not_unpacked() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("label.npy", bytes(MAX_UNPACKED + 1))
    with pytest.raises(ValueError, match="unpacks to more"):
        Predictions.decode(buffer.getvalue())


def test_only_the_file_that_the_report_speaks_of() -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        Predictions.decode(npz(label=LABEL, prediction=PREDICTION), "0" * 64)
