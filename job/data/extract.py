"""Take the three data files out of a tar that may have been made to do harm."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

from job.data.cifar import FILES
from job.errors import DataError

MAX_MEMBERS = 1000
MAX_BYTES = 8 * 2**30
"""Bounds on what an archive may hold; CIFAR-100's has 5 members and 186 MB."""

MAX_READ_BYTES = 2**20
"""tarfile reads a long name or an extended header in one piece, of the size that the archive states."""

GZIP_MAGIC = b"\x1f\x8b"


def extract(archive: Path, target: Path) -> None:
    """Write `train`, `test` and `meta` of a tar (gzip or plain), whatever their folder in it, to `target`.

    Raises DataError, with something possibly written, when the archive is damaged, has no such files or
    two of one name, is beyond the bounds above, or holds a link, a device or a path that leads out of it.
    OSError is the disk's.
    """
    target.mkdir(parents=True)
    found: dict[str, str] = {}
    try:
        with archive.open("rb") as raw, _decompressed(raw) as stream:
            with tarfile.open(fileobj=cast(IO[bytes], _Bounded(stream)), mode="r:") as tar:
                for member in _safe_members(tar):
                    path = PurePosixPath(member.name)
                    if path.name not in FILES or not member.isreg():
                        continue
                    if path.name in found:
                        raise _refused(archive, f"it holds {path.name!r} twice")
                    found[path.name] = str(path.parent)
                    _write(tar, member, target / path.name)
            _drain(stream)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, UnicodeError, ValueError) as error:
        raise _refused(archive, f"cut short, damaged, or not a tar archive ({error})") from error
    except DataError as error:
        raise _refused(archive, error.message) from error
    missing = [name for name in FILES if name not in found]
    if missing or len(set(found.values())) > 1:
        raise _refused(archive, f"no {', '.join(missing or FILES)} in one folder")


def _safe_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    total = 0
    for count, member in enumerate(tar, start=1):
        if member.size < 0:
            raise DataError(f"{member.name!r:.100} in it has no size")
        total += member.size
        if count > MAX_MEMBERS:
            raise DataError(f"it holds more than {MAX_MEMBERS} files")
        if total > MAX_BYTES:
            raise DataError(f"unpacked it has more than {MAX_BYTES} bytes")
        if member.issparse() or not (member.isreg() or member.isdir()):
            raise DataError(f"{member.name!r:.100} in it is a link or a device, not a file")
        if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
            raise DataError(f"{member.name!r:.100} in it leads out of the archive")
        yield member


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = tar.extractfile(member)
    if source is None:
        raise DataError(f"{member.name!r:.100} in it cannot be read")
    with source, path.open("xb") as file:
        shutil.copyfileobj(source, file, MAX_READ_BYTES)
    if path.stat().st_size != member.size:
        raise DataError(f"{member.name!r:.100} in it is cut short")


def _decompressed(raw: IO[bytes]) -> IO[bytes]:
    magic = raw.read(len(GZIP_MAGIC))
    raw.seek(0)
    return cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if magic == GZIP_MAGIC else raw


def _drain(stream: IO[bytes]) -> None:
    """Read to the end, where gzip's checksum of the whole stands."""
    rest = 0
    while block := stream.read(MAX_READ_BYTES):
        rest += len(block)
        if rest > MAX_BYTES:
            raise DataError(f"unpacked it has more than {MAX_BYTES} bytes")


class _Bounded:
    """A stream that reads no more at once than MAX_READ_BYTES: see there."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek = stream.seek
        self.tell = stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ_BYTES:
            raise DataError("it has a header of more than a megabyte")
        return self._stream.read(size)


def _refused(archive: Path, reason: str) -> DataError:
    return DataError(
        f"cannot unpack {archive}: {reason}", "Use an archive in the format of cifar-100-python.tar.gz"
    )
