"""Which superclass a class belongs to, where the archive defines it."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.data.cifar import FOLDER, load
from tests.archives import contents


def superclasses(folder: Path, content: dict[str, Any]) -> tuple[str, ...]:
    (folder / FOLDER).mkdir(parents=True)
    for name, value in content.items():
        (folder / FOLDER / name).write_bytes(pickle.dumps(value, 2))
    return load(folder, "").superclasses


def test_each_class_has_its_own(tmp_path: Path) -> None:
    found = superclasses(tmp_path, contents(classes=12))
    assert found == ("group_0",) * 5 + ("group_1",) * 5 + ("group_2",) * 2


def test_names_may_be_bytes_and_labels_an_array(tmp_path: Path) -> None:
    content = contents(classes=6)
    content["meta"]["coarse_label_names"] = [b"a", b"b"]
    content["train"]["coarse_labels"] = np.array(content["train"]["coarse_labels"])
    assert superclasses(tmp_path, content) == ("a",) * 5 + ("b",)


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("meta", "coarse_label_names", None),
        ("meta", "coarse_label_names", ["one"]),  # label 1 has no name
        ("meta", "coarse_label_names", [1, 2]),
        ("train", "coarse_labels", None),
        ("train", "coarse_labels", [0, 1] * 100),  # a class in two superclasses
        ("train", "coarse_labels", [0]),  # a class without one
        ("train", "coarse_labels", [[0]] * 200),
        ("train", "coarse_labels", [-1] * 200),
    ],
)
def test_what_is_not_defined_for_every_class_is_unknown(
    tmp_path: Path, where: str, name: str, value: Any
) -> None:
    content = contents(classes=7)
    content[where][name] = value
    assert superclasses(tmp_path, content) == ()
