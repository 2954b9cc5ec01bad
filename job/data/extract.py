"""Unpack the three data files of an archive that may be hostile into a folder, verified before each use."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

from job import events
from job.data.archive import Archive
from job.data.cifar import FILES, FOLDER
from job.errors import DataError
from job.store.files import exclusive, explain, scratch, sha256_of

MAX_MEMBERS = 100
MAX_BYTES = 8 * 2**30
"""Bounds on what an archive may hold; CIFAR-100's has 5 members and 186 MB."""

MAX_RATIO, FREE_BYTES = 100, 2**27
"""It may unpack to this many times its size, and this much: CIFAR-100's to 1.1 times. Gzip allows 1,032."""

MAX_HEADER_BYTES, MAX_HEADERS_BYTES = 2**12, 2**18
"""Of one header and of all. tarfile reads a long name or an extended header in one piece of the size that
the archive states, and in Python before 3.11.10 parses it in quadratic time (CVE-2024-6232)."""

CHECKSUMS = "SHA256SUMS"
CHUNK_BYTES = 2**20

GZIP_MAGIC = b"\x1f\x8b"


def unpack(archive: Archive, cache: Path) -> Path:
    """Return the folder `cache/<sha256>` with the archive's `cifar-100-python/{train,test,meta}`.

    The folder appears whole or not at all; its files are verified before every use and replaced when they
    have changed. Any number of processes may do this at the same time.

    Raises DataError for an archive that cannot be unpacked, MachineError when the disk is full.
    """
    target = cache / archive.sha256
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with exclusive(cache / f".{archive.sha256}.lock"):
            if _intact(target):
                return target
            with scratch(cache) as work:
                new = work / "new"
                extract(archive.path, new / FOLDER)
                (new / CHECKSUMS).write_text(
                    "".join(f"{sha256_of(new / FOLDER / name)}  {FOLDER}/{name}\n" for name in FILES)
                )
                if target.exists():
                    events.warn("data_replaced", folder=str(target), reason="its files have changed")
                    target.rename(work / "changed")
                new.rename(target)
    except OSError as error:
        raise explain(error, cache) from error
    return target


def unpacked(sha256: str, cache: Path) -> Path | None:
    """Return the folder in `cache` with the files of that archive; None if it is missing or damaged."""
    folder = cache / sha256
    return folder if _intact(folder) else None


def extract(archive: Path, target: Path) -> None:
    """Write `train`, `test` and `meta` of a tar (gzip or plain), whatever their folder in it, to `target`.

    Raises DataError, with something possibly written, when the archive is damaged, has no such files or
    two of one name, is beyond the bounds above, or holds a link, a device or a path that leads out of it.
    OSError is the disk's.
    """
    target.mkdir(parents=True)
    max_bytes = min(MAX_BYTES, MAX_RATIO * archive.stat().st_size + FREE_BYTES)
    found: dict[str, str] = {}
    try:
        with archive.open("rb") as raw, _decompressed(raw) as stream:
            with tarfile.open(fileobj=cast(IO[bytes], _Headers(stream)), mode="r:") as tar:
                for member in _safe_members(tar, max_bytes):
                    path = PurePosixPath(member.name)
                    if path.name not in FILES or not member.isreg():
                        continue
                    if path.name in found:
                        raise DataError(f"it holds {path.name!r} twice")
                    found[path.name] = str(path.parent)
                    _write(stream, member, target / path.name)
            _drain(stream, max_bytes)
    except DataError as error:
        raise _refused(archive, error.message) from error
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise _damaged(archive, error) from error
        raise
    except Exception as error:  # tarfile raises nearly anything for a damaged header
        raise _damaged(archive, error) from error
    missing = [name for name in FILES if name not in found]
    if missing or len(set(found.values())) > 1:
        raise _refused(archive, f"no {', '.join(missing or FILES)} in one folder")


def _safe_members(tar: tarfile.TarFile, max_bytes: int) -> Iterator[tarfile.TarInfo]:
    total = 0
    for count, member in enumerate(tar, start=1):
        if member.size < 0:
            raise DataError(f"{member.name!r:.100} in it has a negative size")
        total += member.size
        if count > MAX_MEMBERS:
            raise DataError(f"it holds more than {MAX_MEMBERS} files")
        if member.issparse() or not (member.isreg() or member.isdir()):
            raise DataError(f"{member.name!r:.100} in it is a link or a device, not a file")
        if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
            raise DataError(f"{member.name!r:.100} in it leads out of the archive")
        if total > max_bytes:
            raise DataError(f"unpacked it has more than {max_bytes} bytes")
        yield member


def _write(stream: IO[bytes], member: tarfile.TarInfo, path: Path) -> None:
    stream.seek(member.offset_data)
    left = member.size
    with path.open("xb") as file:
        while left and (block := stream.read(min(left, CHUNK_BYTES))):
            file.write(block)
            left -= len(block)
    if left:
        raise DataError(f"{member.name!r:.100} in it is cut short")


def _decompressed(raw: IO[bytes]) -> IO[bytes]:
    magic = raw.read(len(GZIP_MAGIC))
    raw.seek(0)
    return cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if magic == GZIP_MAGIC else raw


def _drain(stream: IO[bytes], max_bytes: int) -> None:
    """Read to the end, which holds gzip's checksum of the whole."""
    while stream.read(CHUNK_BYTES):
        if stream.tell() > max_bytes:
            raise DataError(f"unpacked it has more than {max_bytes} bytes")


class _Headers:
    """A stream that reads headers only, within MAX_HEADER_BYTES for each and MAX_HEADERS_BYTES for all."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._left = MAX_HEADERS_BYTES
        self.seek = stream.seek
        self.tell = stream.tell

    def read(self, size: int = -1) -> bytes:
        self._left -= size
        if not 0 <= size <= MAX_HEADER_BYTES or self._left < 0:
            raise DataError(f"its headers have more than {MAX_HEADERS_BYTES} bytes")
        return self._stream.read(size)


def _refused(archive: Path, reason: str) -> DataError:
    return DataError(
        f"cannot unpack {archive}: {reason}", "Use an archive in the format of cifar-100-python.tar.gz"
    )


def _damaged(archive: Path, error: Exception) -> DataError:
    return _refused(archive, f"cut short, damaged, or not a tar archive ({type(error).__name__})")


def _intact(folder: Path) -> bool:
    try:
        lines = (folder / CHECKSUMS).read_text().splitlines()
        return lines == [f"{sha256_of(folder / FOLDER / name)}  {FOLDER}/{name}" for name in FILES]
    except (FileNotFoundError, UnicodeDecodeError):
        return False
