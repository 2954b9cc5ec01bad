"""Read pickles from strangers: numpy arrays and plain containers come out, nothing else can be asked for.

Every global a pickle may name is answered with a stand-in of this module, so that neither code of the
archive's choice nor numpy's own reconstruction of unchecked shapes and dtypes ever runs.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from job.errors import DataError
from job.store.files import explain

MAX_PICKLE_BYTES = 4 * 2**30
"""CIFAR-100's largest is 155 MB; reading takes about four times the file's size in memory."""

_NUMBER_TYPE = re.compile(r"[iu][1248]")
_BYTE_ORDERS = ("|", "<", ">", "=")
_NUMPY_CORES = ("numpy.core", "numpy._core")  # before numpy 2, and since


def read_pickle(path: Path) -> dict[str, Any]:
    """Return the dictionary in a pickle, its keys as text, its arrays as writable integer ndarrays.

    Raises DataError when the file holds anything else, names any other global (the error says which),
    is cut, or is larger than MAX_PICKLE_BYTES.
    """
    try:
        size = path.stat().st_size
        if size > MAX_PICKLE_BYTES:
            raise _unreadable(path, f"{size} bytes are more than the {MAX_PICKLE_BYTES} allowed")
        return _dictionary(_Unpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load())
    except OSError as error:
        raise explain(error, path) from error
    except DataError as error:
        raise _unreadable(path, error.message) from error
    except (MemoryError, RecursionError):
        raise _unreadable(path, "it asks for more memory than there is") from None
    except Exception as error:  # a damaged pickle can raise nearly anything, by design of the format
        raise _unreadable(path, f"not a pickle, or damaged ({type(error).__name__}: {error})") from error


def _unreadable(path: Path, reason: str) -> DataError:
    name = f"{path.parent.name}/{path.name}"
    return DataError(
        f"cannot read {name}: {reason}", "Use an archive in the format of cifar-100-python.tar.gz"
    )


def _dictionary(content: Any) -> dict[str, Any]:
    if type(content) is not dict:
        raise DataError(f"it holds a {type(content).__name__}, not a dictionary")
    return {_text(key): value.array if isinstance(value, _Array) else value for key, value in content.items()}


def _text(key: Any) -> str:
    """Keys are bytes in archives that were written again by Python 3 with `encoding="bytes"`."""
    if isinstance(key, bytes):
        key = key.decode("latin1")
    if not isinstance(key, str):
        raise DataError(f"a key of the dictionary is a {type(key).__name__}, not text")
    return key


class _Dtype:
    """Stands in for `numpy.dtype`; integers only."""

    def __init__(self, name: str, *_flags: Any) -> None:
        if not isinstance(name, str) or not _NUMBER_TYPE.fullmatch(name):
            raise DataError(f"an array of type {name!r:.40} is not one of integers")
        self._name = name
        self._byte_order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in _BYTE_ORDERS:
            raise DataError(f"{state[1]!r:.40} is no byte order")
        self._byte_order = state[1]

    def resolve(self) -> np.dtype[Any]:
        return np.dtype(self._byte_order + self._name)


class _Array:
    """Stands in for `numpy.ndarray`: first empty, then filled by its state, as numpy pickles do."""

    array: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran, raw = state
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: Any) -> None:
        if isinstance(raw, str):  # a Python 2 string, read as latin1
            raw = raw.encode("latin1")
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes | bytearray) or order not in ("C", "F"):
            raise DataError("an array is not stored as plain numbers")
        if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
            raise DataError(f"{shape!r:.40} is no shape of an array")
        resolved = dtype.resolve()
        if math.prod(shape) * resolved.itemsize != len(raw):
            raise DataError(f"an array of shape {shape} and type {resolved} is stored in {len(raw)} bytes")
        self.array = np.frombuffer(raw, resolved).reshape(shape, order=order).copy()


def _reconstruct(_subtype: Any, _shape: Any, _kind: Any) -> _Array:
    return _Array()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.fill(raw, dtype, shape, order)
    return array


def _encode(text: str, encoding: str) -> bytes:
    """Protocol 2 has no bytes: Python 3 writes them there as latin1 text to be encoded."""
    if encoding not in ("latin1", "latin-1"):
        raise DataError(f"bytes are stored in the encoding {encoding!r:.40}")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    **{(f"{core}.multiarray", "_reconstruct"): _reconstruct for core in _NUMPY_CORES},
    **{(f"{core}.numeric", "_frombuffer"): _frombuffer for core in _NUMPY_CORES},
}


_BUILD = pickle.BUILD[0]


def _build(unpickler: Any) -> None:
    """On anything else BUILD would set attributes: of this module's functions, for example."""
    if not isinstance(unpickler.stack[-2], _Array | _Dtype):
        raise DataError("it sets the state of something that is no array")
    pickle._Unpickler.dispatch[_BUILD](unpickler)


class _Unpickler(pickle._Unpickler):
    """The standard library's unpickler in Python, with the stand-ins for globals.

    The one in C allocates 16 bytes for every memo index up to the largest named: seven bytes of a pickle
    (LONG_BINPUT) fill 64 GB. Here 200,000 opcodes, CIFAR-100's number, take about 0.2 s.
    """

    dispatch: ClassVar = {**pickle._Unpickler.dispatch, _BUILD: _build}

    def find_class(self, module: str, name: str) -> Any:
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise DataError(f"its pickle asks for {module}.{name}, which no data set needs")
        return stand_in
