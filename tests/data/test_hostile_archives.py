"""Archives made to hang, to take all memory or to write to the terminal: read or refused within bounds."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.archives import contents, python2_pickle
from tests.data.quarantine import Answer, Quarantine, quarantine

EXAMPLES = [40, pytest.param(5_000, marks=pytest.mark.soak)]


@pytest.fixture(scope="module")
def cell() -> Iterator[Quarantine]:
    with quarantine() as made:
        yield made


def archive_of(train: bytes, meta: bytes | None = None, level: int = 9) -> bytes:
    buffer = io.BytesIO()
    files = {"train": train, "test": pickle.dumps(contents(test=20)["test"], 2)}
    files["meta"] = pickle.dumps(contents()["meta"], 2) if meta is None else meta
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), level)


def assert_fit_to_print(answer: Answer) -> None:
    assert answer.message.isprintable(), answer.message
    assert len(answer.message) < 600


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def array(shape: bytes, raw: bytes, dtype: bytes = b"u1") -> bytes:
    """Opcodes that build an array, as protocol 2 does; `shape` and `raw` are opcodes too."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape
        + b"cnumpy\ndtype\n" + text(dtype) + b"K\x00K\x01\x87R(K\x03" + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + raw + b"tb"
    )  # fmt: skip


TREE = b"K\x01K\x01\x86" + b"q\x00h\x00\x86" * 60
"""A tuple of two that are one tuple of two that are ...: 2^60 leaves."""

NUMBER = b"\x8a\xff" + b"\x7f" * 255  # of 2,040 bits
RAW = text(b"x" * 4000)
NO_LABELS = array(b"\x8a\x05\x00\x00\x00\x00\x7fK\x00\x86", b"U\x00", b"i8")

PICKLES = {
    "a key of 2^60 leaves": b"\x80\x02}" + TREE + b"K\x01s.",
    "a shape of 2^60 leaves": b"\x80\x02}" + text(b"data") + array(TREE + b"\x85", b"U\x04abcd") + b"s.",
    "labels of 2^60 leaves": b"\x80\x02}" + text(b"fine_labels") + TREE + b"s.",
    "a list of 2^60 leaves": b"\x80\x02}" + text(b"x") + b"]" + b"q\x00h\x00\x86" * 60 + b"s.",
    "huge numbers for a shape": b"\x80\x02}" + text(b"data")
    + array(NUMBER + b"q\x02" + b"(" + b"h\x02" * 30_000 + b"t", b"U\x04abcd") + b"s.",
    "a number of 4 MB": b"\x80\x02}" + text(b"x") + b"\x8b\x00\x00\x40\x00" + b"\x7f" * 2**22 + b"s.",
    "a number of a million digits": b"\x80\x02}" + text(b"x") + b"L" + b"9" * 10**6 + b"L\ns.",
    "120 million empty lists": b"\x80\x02}" + b"]" * 120_000_000,
    "120 million marks": b"\x80\x02}" + b"(" * 120_000_000,
    "two million levels of lists": b"\x80\x02}" + text(b"x") + b"]" * 2_000_000 + b"a" * 1_999_999 + b"s.",
    "two million levels of tuples": b"\x80\x02}" + text(b"x") + b")" + b"\x85" * 2_000_000 + b"s.",
    "a hundred levels": b"\x80\x02}" + text(b"x") + b")" + b"\x85" * 100 + b"s.",
    "one text for a million arrays": b"\x80\x02}" + text(b"x") + b"](" + RAW + b"q\x01"
    + array(b"M\xa0\x0f\x85", b"h\x01") * 20_000 + b"es.",
    "one text encoded a million times": b"\x80\x02}" + text(b"x") + b"](" + text(b"x" * 100_000) + b"q\x01"
    + b"c_codecs\nencode\nq\x02" + b"h\x02h\x01U\x06latin1\x86R" * 100_000 + b"es.",
    "500 billion rows of no numbers": b"\x80\x02}" + text(b"data") + NO_LABELS + b"s.",
    "a name that writes to the terminal": b"\x80\x02c\x1b]0;evil\x07\nos\n.",
    "a name of 4 MB": b"\x80\x02c" + b"x" * 2**22 + b"\nos\n.",
    "a type that writes to the terminal": b"\x80\x02}" + array(b"K\x01\x85", b"U\x01a", b"\x1b[2J") + b"s.",
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_explodes_is_refused_within_bounds(cell: Quarantine, name: str) -> None:
    answer = cell.read(archive_of(PICKLES[name], level=1))
    assert answer.end == "refused", answer
    assert_fit_to_print(answer)


def test_500_billion_rows_of_no_numbers_are_no_superclasses(cell: Quarantine) -> None:
    train = pickle.dumps(contents(train=20)["train"], 2)[:-2] + text(b"coarse_labels") + NO_LABELS + b"u."
    assert pickle.loads(train)["coarse_labels"].shape == (127 * 2**32, 0)
    assert cell.read(archive_of(train)) == Answer("read", "")


def member(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    made = tarfile.TarInfo(name)
    made.type, made.size = kind, size
    return made.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return member("x", len(records), kind) + padded(records)


SPARSE = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
TARS = {
    "a map of 60 million holes": gzip.compress(
        pax(SPARSE) + member("x/train", 2**27) + padded(b"60000000\n" + b"0\n" * 60_000_000), 1
    ),
    "a header of a million digits": gzip.compress(pax(b"1" * 10**6)),
    "digits, again and again": gzip.compress((pax(b"1" * 4000) + member("x", 0)) * 99),
    "headers of headers": gzip.compress(pax(b"12 path=x/y\n") * 5000),
    "long names of long names": gzip.compress(member("x", 0, tarfile.GNUTYPE_LONGNAME) * 5000),
    "a size of many digits": gzip.compress(pax(b"1013 size=" + b"9" * 1002 + b"\n") + member("x/train", 1)),
    "a size below nothing": gzip.compress(pax(b"13 size=-512\n") + member("x/train", 1)),
    "a name that writes to the terminal": gzip.compress(member("\x1b]0;evil\x07/../train", 0)),
}  # fmt: skip


def zeros() -> bytes:
    """8 GB that take 8 MB."""
    return gzip.compress(member("x/train", 2**33 - 2**28)) + gzip.compress(bytes(2**28)) * 31


@pytest.mark.parametrize("name", ["8 GB of zeros", *TARS])
def test_a_tar_that_explodes_is_refused_within_bounds(cell: Quarantine, name: str) -> None:
    answer = cell.read(TARS[name] if name in TARS else zeros())
    assert answer.end == "refused", answer
    assert_fit_to_print(answer)


values = st.one_of(
    st.sampled_from([b"N", b"\x88", b"K\x01", b"]", b"}", b")", b"U\x04data", text(b"fine_labels"), NUMBER]),
    st.binary(max_size=20).map(text),
    st.integers(-(2**70), 2**70).map(lambda number: b"L%dL\n" % number),
    st.sampled_from([b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n"]),
    st.just(array(b"K\x04\x85", b"U\x04abcd")),
)
indices = st.integers(0, 3).map(lambda index: bytes([index]))
opcodes = st.one_of(
    values,
    st.sampled_from([bytes([code]) for code in b"(t\x85\x86\x87laedsuRb\x94"]),
    indices.map(lambda index: b"q" + index),
    indices.map(lambda index: b"h" + index),
)
loops = st.tuples(st.lists(opcodes, max_size=12).map(b"".join), st.integers(1, 3000))
programs = st.lists(loops, max_size=6).map(
    lambda parts: b"\x80\x02}" + b"".join(part * count for part, count in parts) + b"."
)


def run(examples: int, example: st.SearchStrategy[bytes], cell: Quarantine) -> None:
    """Read this number of archives, each of them drawn from `example`."""
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),  # a process for each takes its time
    )
    @hypothesis.given(example)
    def check(archive: bytes) -> None:
        answer = cell.read(archive)
        assert answer.end in ("read", "refused"), answer
        assert_fit_to_print(answer)

    check()


@pytest.mark.parametrize("examples", EXAMPLES)
def test_any_program_of_opcodes_is_read_or_refused_within_bounds(cell: Quarantine, examples: int) -> None:
    run(examples, programs.map(lambda program: archive_of(program, level=1)), cell)


def mutated(data: bytes) -> st.SearchStrategy[bytes]:
    """Bytes changed, cut out and repeated, a few times."""
    position = st.integers(0, len(data) - 1)
    change = st.tuples(position, st.integers(0, 40), st.binary(max_size=4), st.integers(1, 300))

    def apply(changes: list[tuple[int, int, bytes, int]]) -> bytes:
        made = data
        for start, length, new, count in changes:
            made = made[:start] + (new + made[start : start + length // 2]) * count + made[start + length :]
        return made

    return st.lists(change, min_size=1, max_size=5).map(apply)


def small_split() -> dict[str, Any]:
    content = contents(train=2)["train"]
    return content | {"data": content["data"][:, :8]}


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize(
    "write", [partial(pickle.dumps, protocol=0), partial(pickle.dumps, protocol=5), python2_pickle]
)
def test_any_mutated_pickle_is_read_or_refused_within_bounds(
    cell: Quarantine, write: Callable[[dict[str, Any]], bytes], examples: int
) -> None:
    run(examples, mutated(write(small_split())).map(lambda train: archive_of(train, level=1)), cell)


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("kind", ["tar", "compressed tar", "compressed file"])
def test_any_mutated_archive_is_read_or_refused_within_bounds(
    cell: Quarantine, kind: str, examples: int
) -> None:
    train = python2_pickle(small_split())
    packed = archive_of(train)
    if kind == "compressed file":
        run(examples, mutated(packed), cell)
    else:
        tar = mutated(gzip.decompress(packed))
        run(examples, tar if kind == "tar" else tar.map(lambda data: gzip.compress(data, 1)), cell)
