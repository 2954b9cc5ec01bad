"""Pickles of every writer that there is are read; pickles that ask for anything else are refused."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import resource
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.data import stand_ins, unpickle
from job.data.unpickle import read_pickle
from job.errors import DataError, PermissionRefusedError
from tests.archives import calling_pickle, contents, python2_pickle


def read(tmp_path: Path, data: bytes) -> dict[str, Any]:
    path = tmp_path / "train"
    path.write_bytes(data)
    return read_pickle(path)


def opcodes(data: bytes) -> set[str]:
    return {opcode.name for opcode, _, _ in pickletools.genops(data)}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_python_3_is_read(tmp_path: Path, protocol: int) -> None:
    written = contents(train=20)["train"]
    found = read(tmp_path, pickle.dumps(written, protocol))
    assert np.array_equal(found.pop("data"), written.pop("data"))
    assert found == written


def test_what_python_2_wrote_is_read(tmp_path: Path) -> None:
    written = contents(train=20)["train"]
    data = python2_pickle(written)
    assert {"BINSTRING", "SHORT_BINSTRING", "GLOBAL", "BUILD"} <= opcodes(data)
    assert b"numpy.core.multiarray\n_reconstruct" in data
    assert np.array_equal(
        pickle.loads(data, encoding="latin1")["data"], written["data"]
    )  # it is a right pickle
    found = read(tmp_path, data)
    assert np.array_equal(found.pop("data"), written.pop("data"))
    assert found == written


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_bytes_of_protocol_2_are_read_under_both_names_of_numpy(tmp_path: Path, core: str) -> None:
    written = {
        b"data": np.arange(12, dtype=np.uint8).reshape(3, 4),
        b"labels": np.array([1, -2], dtype=">i4"),
    }
    data = pickle.dumps(written, 2).replace(b"numpy._core", core.encode())
    assert b"_codecs\nencode" in data
    found = read(tmp_path, data)
    assert found["data"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert found["labels"].tolist() == [1, -2]


def test_an_array_in_column_order_keeps_its_rows(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    for protocol in (2, 5):
        found = read(tmp_path, pickle.dumps({"data": array}, protocol))["data"]
        assert found.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert found.flags.writeable


CALLS = [
    ("os", "system"),
    ("posix", "system"),
    ("builtins", "eval"),
    ("__builtin__", "eval"),
    ("subprocess", "Popen"),
    ("numpy", "load"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.testing._private.utils", "runstring"),
    ("_codecs", "decode"),
    ("builtins", "getattr"),
    ("job.data.unpickle", "read_pickle"),
]


@pytest.mark.parametrize(("module", "function"), CALLS)
def test_a_call_is_refused_by_name(tmp_path: Path, module: str, function: str) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(DataError, match=f"asks for {module}.{function}") as caught:
        read(tmp_path, calling_pickle(module, function, f"touch {marker}"))
    assert caught.value.exit_code == 65
    assert "train" in caught.value.message
    assert not marker.exists()


def test_the_call_would_work_in_a_careless_reader(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickle.loads(calling_pickle("os", "system", f"touch {marker}"))
    assert marker.exists()


def test_a_class_of_the_writers_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="asks for pathlib"):
        read(tmp_path, pickle.dumps({"data": Path("x")}))
    with pytest.raises(DataError, match=r"copyreg|copy_reg"):
        read(tmp_path, b"\x80\x02ccopy_reg\n_reconstructor\n.")


def array_pickle(shape: bytes, dtype: bytes = b"u1", raw: bytes = b"abcd", order: bytes = b"|") -> bytes:
    """An array as protocol 2 has it, with parts of one's own choice."""

    def text(value: bytes) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value

    return (
        b"\x80\x02}" + text(b"data") + b"cnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape
        + b"cnumpy\ndtype\n" + text(dtype) + b"K\x00K\x01\x87R(K\x03" + text(order)
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(raw)]) + raw + b"tbs."
    )  # fmt: skip


def test_the_hand_made_array_is_right(tmp_path: Path) -> None:
    assert read(tmp_path, array_pickle(b"K\x04\x85"))["data"].tolist() == [97, 98, 99, 100]


HUGE = b"J\xff\xff\xff\x7f"
ARRAYS = {
    "more numbers than are stored": array_pickle(b"K\x05\x85"),
    "fewer": array_pickle(b"K\x03\x85"),
    "far more": array_pickle(HUGE + HUGE + b"\x86"),
    "so many that they are none": array_pickle(HUGE + HUGE + b"K\x00\x87", raw=b"abcd"),
    "negative sides": array_pickle(b"J\xff\xff\xff\xffJ\xfc\xff\xff\xff\x86"),
    "a shape that is a number": array_pickle(b"K\x04"),
    "a shape of text": array_pickle(b"U\x014\x85"),
    "objects": array_pickle(b"K\x04\x85", dtype=b"O"),
    "records": array_pickle(b"K\x04\x85", dtype=b"u1,u1"),
    "text": array_pickle(b"K\x04\x85", dtype=b"S4"),
    "floats": array_pickle(b"K\x01\x85", dtype=b"f4"),
    "a strange byte order": array_pickle(b"K\x04\x85", order=b"!"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_wrong_array_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError):
        read(tmp_path, ARRAYS[name])


def test_state_cannot_be_set_on_anything_but_arrays(tmp_path: Path) -> None:
    before = dict(vars(stand_ins._encode))
    with pytest.raises(DataError, match="not an array"):
        read(tmp_path, b"\x80\x02c_codecs\nencode\n}U\x04evilK\x01sb.")
    with pytest.raises(DataError):
        read(tmp_path, b"\x80\x02cnumpy\nndarray\nN}U\x04evilK\x01s\x86b.")
    assert vars(stand_ins._encode) == before
    assert not hasattr(stand_ins.Array, "evil")


def test_an_encoding_that_blows_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="another encoding"):
        read(tmp_path, b"\x80\x02}U\x04datac_codecs\nencode\nU\x04xxxxU\x04zlib\x86Rs.")


BOMBS = {
    "a memo index of 4 billion": b"\x80\x02}r\xf0\xff\xff\xff.",
    "a text of 2 GB": b"\x80\x02}U\x04dataT\xff\xff\xff\x7fxs.",
    "bytes of 8 EB": b"\x80\x04}U\x04data\x8e\xff\xff\xff\xff\xff\xff\xff\x7fxs.",
    "a frame of 8 EB": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
    "a bytearray of 1 TB": b"\x80\x05}U\x04data\x96\x00\x00\x00\x00\x00\x01\x00\x00xs.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_that_asks_for_all_memory_is_read_or_refused_in_little(tmp_path: Path, name: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limits[1]))
    try:
        if name in ("a memo index of 4 billion", "a frame of 8 EB"):
            assert read(tmp_path, BOMBS[name]) == {}
        else:
            with pytest.raises(DataError):
                read(tmp_path, BOMBS[name])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_file_beyond_the_bound_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "train"
    with path.open("wb") as file:
        file.truncate(unpickle.MAX_PICKLE_BYTES + 1)  # sparse: it takes no disk
    with pytest.raises(DataError, match="more than"):
        read_pickle(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x63.",
        b"\x80\x02].",
        b"\x80\x02K\x01.",
        b"\x80\x02}K\x01K\x02s.",
        b"PK\x03\x04",
        b"\xff" * 100,
    ],
)
def test_what_is_no_pickle_of_a_dictionary_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError, match="cannot read") as caught:
        read(tmp_path, data)
    assert caught.value.fix


def test_a_pickle_cut_anywhere_is_refused(tmp_path: Path) -> None:
    data = python2_pickle(contents(train=3)["train"])
    for length in range(0, len(data), max(1, len(data) // 200)):
        with pytest.raises(DataError):
            read(tmp_path, data[:length])


def test_a_damaged_pickle_raises_nothing_else(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)
    generator = np.random.default_rng(seed)
    content = contents(train=2)["train"]
    content["data"] = content["data"][:, :8]
    for protocol in (2, 5):
        data = pickle.dumps(content, protocol)
        for _ in range(200):
            damaged = bytearray(data)
            for position in generator.integers(0, len(data), 2):
                damaged[position] = generator.integers(0, 256)
            try:
                read(tmp_path, bytes(damaged))
            except DataError:
                continue


def test_a_file_that_may_not_be_read_is_refused_as_such(nobody: Path) -> None:
    with pytest.raises(PermissionRefusedError):
        read_pickle(nobody / "secret")


def test_arrays_below_the_top_are_not_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pickle.dump({"data": [np.zeros(2, np.uint8)]}, buffer)
    assert not isinstance(read(tmp_path, buffer.getvalue())["data"][0], np.ndarray)
