"""Small archives in the format of cifar-100-python.tar.gz, and pickles written opcode by opcode."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any, Literal

import numpy as np


def random_split(images: int, classes: int, seed: int) -> dict[str, Any]:
    """Random pixels; every class appears when there are at least as many images as classes."""
    generator = np.random.default_rng(seed)
    return {
        "filenames": [f"image_{index}.png" for index in range(images)],
        "batch_label": "batch 1 of 1",
        "fine_labels": [index % classes for index in range(images)],
        "coarse_labels": [index % classes // 5 for index in range(images)],
        "data": generator.integers(0, 256, (images, 3072), dtype=np.uint8),
    }


def contents(train: int = 200, test: int = 100, classes: int = 10, seed: int = 0) -> dict[str, Any]:
    """Return what the files `train`, `test` and `meta` of an archive hold."""
    return {
        "train": random_split(train, classes, seed),
        "test": random_split(test, classes, seed + 1),
        "meta": {
            "fine_label_names": [f"class_{index}" for index in range(classes)],
            "coarse_label_names": [f"group_{index}" for index in range((classes + 4) // 5)],
        },
    }


def write_tar(
    path: Path, files: dict[str, bytes], folder: str = "cifar-100-python", mode: Literal["w", "w:gz"] = "w:gz"
) -> Path:
    """Write a tar of `files` in `folder`, the folder itself a member, as the real archive's is."""
    with tarfile.open(path, mode) as tar:
        top = tarfile.TarInfo(folder)
        top.type, top.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(top)
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_archive(path: Path, protocol: int = 2, folder: str = "cifar-100-python", **sizes: int) -> Path:
    """Write an archive of random images (see `contents`) as this Python pickles it."""
    files = {name: pickle.dumps(content, protocol) for name, content in contents(**sizes).items()}
    return write_tar(path, files, folder)


def python2_pickle(content: dict[str, Any]) -> bytes:
    """Return what Python 2's cPickle wrote at protocol 2: byte strings, and numpy under its old name."""
    return b"\x80\x02" + _python2(content) + b"."


def _python2(value: Any) -> bytes:
    if isinstance(value, str):
        return _binstring(value.encode("latin1"))
    if isinstance(value, int):
        return _binint(value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(key) + _python2(item) for key, item in value.items()) + b"u"
    assert isinstance(value, np.ndarray)
    assert value.dtype == np.uint8
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _binstring(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + _binstring(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + _binstring(b"|") + b"NNN" + _binint(-1) + _binint(-1) + b"K\x00tb"
    shape = b"".join(map(_binint, value.shape)) + b"\x86"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + _binstring(value.tobytes()) + b"tb"


def _binstring(data: bytes) -> bytes:
    if len(data) < 256:
        return b"U" + bytes([len(data)]) + data  # SHORT_BINSTRING
    return b"T" + struct.pack("<i", len(data)) + data  # BINSTRING


def _binint(value: int) -> bytes:
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)


def calling_pickle(module: str, function: str, argument: str) -> bytes:
    """Return a pickle that calls `module.function(argument)` when it is loaded carelessly."""
    text = argument.encode()
    call = f"c{module}\n{function}\n".encode() + b"X" + struct.pack("<I", len(text)) + text + b"\x85R"
    return b"\x80\x02}X\x04\x00\x00\x00data" + call + b"s."
