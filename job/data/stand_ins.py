"""Replacements for the globals in a pickle: functions that build integer arrays of checked shape."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.errors import DataError

MAX_DIMENSIONS = 8

_NUMBER_TYPE = re.compile(r"[iu][1248]")
_BYTE_ORDERS = ("|", "<", ">", "=")
_NUMPY_CORES = ("numpy.core", "numpy._core")  # before numpy 2, and since


class Dtype:
    """Stands in for `numpy.dtype`; integers only."""

    def __init__(self, name: str, *_flags: Any) -> None:
        if not isinstance(name, str) or not _NUMBER_TYPE.fullmatch(name):
            raise DataError("an array is not one of integers")
        self._name = name
        self._byte_order = "|"

    def set_byte_order(self, byte_order: Any) -> None:
        """Take one of numpy's characters; raises DataError for anything else."""
        if byte_order not in _BYTE_ORDERS:
            raise DataError("an array has an unknown byte order")
        self._byte_order = byte_order

    def resolve(self) -> np.dtype[Any]:
        """Return numpy's own."""
        return np.dtype(self._byte_order + self._name)


class Array:
    """Stands in for `numpy.ndarray`: first empty, then filled by its state, as numpy pickles do."""

    array: NDArray[Any] | None = None

    def fill(self, raw: Any, dtype: Any, shape: Any, order: Any) -> None:
        """Copy the numbers in `raw` to `array`; raises DataError where type, shape and size do not agree."""
        if isinstance(raw, str):  # a Python 2 string, read as latin1
            raw = raw.encode("latin1")
        if not isinstance(dtype, Dtype) or not isinstance(raw, bytes | bytearray) or order not in ("C", "F"):
            raise DataError("an array is not stored as plain numbers")
        if not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS:
            raise DataError("an array has no shape, or too many dimensions")
        if not all(type(side) is int and side >= 0 for side in shape):
            raise DataError("an array has a side that is not a length")
        resolved = dtype.resolve()
        if math.prod(shape) * resolved.itemsize != len(raw):
            raise DataError(f"an array of another shape is stored in {len(raw)} bytes of type {resolved}")
        self.array = np.frombuffer(raw, resolved).reshape(shape, order=order).copy()


def _reconstruct(_subtype: Any, _shape: Any, _kind: Any) -> Array:
    return Array()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> Array:
    array = Array()
    array.fill(raw, dtype, shape, order)
    return array


def _encode(text: str, encoding: str) -> bytes:
    """Return the bytes that protocol 2 stores as latin1 text."""
    if encoding not in ("latin1", "latin-1"):
        raise DataError("bytes are stored in another encoding than latin1")
    return text.encode("latin1")


GLOBALS: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": Array,
    "numpy.dtype": Dtype,
    "_codecs.encode": _encode,
    **{f"{core}.multiarray._reconstruct": _reconstruct for core in _NUMPY_CORES},
    **{f"{core}.numeric._frombuffer": _frombuffer for core in _NUMPY_CORES},
}
