"""Tars made to do harm, damaged tars, and tars of something else."""

from __future__ import annotations

import bz2
import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from job.data import extract as module
from job.data.extract import extract
from job.errors import DataError
from tests.archives import write_archive, write_tar

FILES = {"train": b"train" * 1000, "test": b"test", "meta": b"meta"}


def extracted(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("folder", ["cifar-100-python", "my set", ".", "a/b/c", "train"])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_the_three_files_come_out_whatever_their_folder(tmp_path: Path, folder: str, mode: str) -> None:
    path = write_tar(tmp_path / "archive", {**FILES, "file.txt~": b"x"}, folder, mode)  # type: ignore[arg-type]
    extract(path, tmp_path / "out")
    assert extracted(tmp_path / "out") == FILES


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_is_read(tmp_path: Path, format_: int) -> None:
    path = tmp_path / "archive.tar"
    with tarfile.open(path, "w", format=format_) as tar:
        for name, data in FILES.items():
            member = tarfile.TarInfo(f"{'long' * 20}/{name}")
            member.size, member.mtime = len(data), 1.5 if format_ == tarfile.PAX_FORMAT else 1
            tar.addfile(member, io.BytesIO(data))
    extract(path, tmp_path / "out")
    assert extracted(tmp_path / "out") == FILES


def evil(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


MEMBERS = {
    "an absolute path": evil("/tmp/evil"),
    "a path up": evil("../evil"),
    "a path down and up": evil("cifar-100-python/../../evil"),
    "a folder up": evil("../evil", tarfile.DIRTYPE),
    "a symbolic link": evil("cifar-100-python/link", tarfile.SYMTYPE, "/etc/passwd"),
    "a symbolic link that stays": evil("cifar-100-python/link", tarfile.SYMTYPE, "train"),
    "a hard link": evil("cifar-100-python/link", tarfile.LNKTYPE, "/etc/passwd"),
    "a device": evil("cifar-100-python/null", tarfile.CHRTYPE),
    "a disk": evil("cifar-100-python/disk", tarfile.BLKTYPE),
    "a pipe": evil("cifar-100-python/pipe", tarfile.FIFOTYPE),
    "a second train": evil("other/train"),
    "a link in place of meta": evil("cifar-100-python/meta", tarfile.SYMTYPE, "/etc/passwd"),
}


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("first", [True, False])
def test_a_hostile_member_is_refused_wherever_it_is(tmp_path: Path, name: str, first: bool) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "archive.tar"
    with tarfile.open(path, "w") as tar:
        if first:
            tar.addfile(MEMBERS[name])
        for file, data in FILES.items():
            member = tarfile.TarInfo(f"cifar-100-python/{file}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        if not first:
            tar.addfile(MEMBERS[name])
    with pytest.raises(DataError, match="cannot unpack") as caught:
        extract(path, tmp_path / "in" / "out")
    assert caught.value.exit_code == 65
    assert not list(tmp_path.rglob("*evil*"))
    assert not Path("/tmp/evil").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def sparse(path: Path) -> None:
    """A file of 4 GB that takes one block: old GNU format, as `tar -S` writes it."""
    block = bytearray(header("cifar-100-python/train", 512, tarfile.GNUTYPE_SPARSE))
    block[386:410] = b"00000000000\0" + b"00000001000\0"
    block[483:495] = b"40000000000\0"
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(bytes(block) + bytes(512 * 3))


def gzip_of(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(gzip.compress(data))


def many_members(path: Path) -> None:
    write_tar(path, {**FILES, **{f"file{number}": b"" for number in range(module.MAX_MEMBERS)}})


BOMBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file said to be 9 GB": (gzip_of(header("x/train", 9 * 2**30) + bytes(1024)), "more than"),
    "a sparse file": (sparse, "link or a device"),
    "too many files": (many_members, "more than 100 files"),
    "a name of 1 GB": (gzip_of(header("x", 2**30, tarfile.GNUTYPE_LONGNAME) + bytes(1024)), "headers have"),
    "a header of 1 GB": (gzip_of(header("x", 2**30, tarfile.XHDTYPE) + bytes(1024)), "headers have"),
    "a global header of 1 GB": (gzip_of(header("x", 2**30, tarfile.XGLTYPE) + bytes(1024)), "headers have"),
    "a negative size": (gzip_of(header("x/train", -512) + bytes(1024)), "a negative size"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path, name: str) -> None:
    write, reason = BOMBS[name]
    write(tmp_path / "archive")
    with pytest.raises(DataError, match=reason):
        extract(tmp_path / "archive", tmp_path / "out")
    assert sum(map(len, extracted(tmp_path / "out").values())) < 2**20


def test_what_follows_the_tar_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 2**22)
    path = write_tar(tmp_path / "archive.tar", FILES, mode="w")
    path.write_bytes(gzip.compress(path.read_bytes() + bytes(2**23)))
    with pytest.raises(DataError, match="more than"):
        extract(path, tmp_path / "out")


def zip_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in FILES.items():
            archive.writestr(f"cifar-100-python/{name}", data)


OTHERS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>404 Not Found</html>" * 100),
    "zeros": lambda path: path.write_bytes(bytes(10240)),
    "a zip": zip_archive,
    "a bzip2 tar": lambda path: path.write_bytes(bz2.compress(write_tar(path, FILES, mode="w").read_bytes())),
    "a gzip of text": gzip_of(b"hello" * 1000),
    "an empty tar": lambda path: write_tar(path, {}),
    "CIFAR-10": lambda path: write_tar(
        path, {"data_batch_1": b"x", "test_batch": b"x", "batches.meta": b"x"}
    ),
    "no meta": lambda path: write_tar(path, {"train": b"x", "test": b"x"}),
    "a folder in place of meta": lambda path: write_tar(path, {"train": b"x", "test": b"x", "meta/x": b""}),
    "files in two folders": lambda path: write_tar(path, {"train": b"x", "a/test": b"x", "a/meta": b"x"}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_format_is_refused(tmp_path: Path, name: str) -> None:
    OTHERS[name](tmp_path / "archive")
    with pytest.raises(DataError, match="cannot unpack") as caught:
        extract(tmp_path / "archive", tmp_path / "out")
    assert "cifar-100-python.tar.gz" in caught.value.fix


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.9, 0.999, 0.99999])
def test_a_truncated_archive_is_refused(tmp_path: Path, share: float) -> None:
    data = write_archive(tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError):
        extract(tmp_path / "cut", tmp_path / "out")


def test_a_truncated_plain_tar_is_refused(tmp_path: Path) -> None:
    data = write_tar(tmp_path / "whole", FILES, mode="w").read_bytes()
    end = data.rindex(b"meta")  # inside the last file's content
    (tmp_path / "cut").write_bytes(data[: end + 2])
    with pytest.raises(DataError):
        extract(tmp_path / "cut", tmp_path / "out")


def test_an_altered_byte_is_found_by_the_checksum(tmp_path: Path) -> None:
    data = bytearray(write_archive(tmp_path / "whole").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "altered").write_bytes(data)
    with pytest.raises(DataError):
        extract(tmp_path / "altered", tmp_path / "out")
