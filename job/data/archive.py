"""From a list of sources to a folder of verified files: fetch, check, unpack."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from job import events
from job.data.cifar import CIFAR100_SHA256, FILES, FOLDER
from job.data.download import download
from job.data.extract import extract
from job.data.remote import HTTP
from job.data.store_cache import download_once
from job.errors import (
    ConfigurationError,
    DataError,
    JobError,
    MachineError,
    PermissionRefusedError,
    UsageError,
)
from job.store import local_path
from job.store.files import exclusive, explain, scratch, sha256_of
from job.text import redact

SCHEMES = ("file", "http", "https", "s3")
CHECKSUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Source:
    """Where an archive can be had, and what it must then be (`size` in bytes, `sha256` in hex)."""

    uri: str
    sha256: str | None = None
    size: int | None = None

    def __str__(self) -> str:
        """Return the URI without what could be a secret."""
        return redact(self.uri)


CIFAR100 = (
    Source(
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        sha256=CIFAR100_SHA256,
        size=169_001_437,
    ),
)


@dataclass(frozen=True)
class Archive:
    """A verified archive on this machine; `uri` says where it came from and holds no secrets."""

    path: Path
    sha256: str
    uri: str


def parse_source(text: str) -> Source:
    """Read a path, `file://`, `http(s)://` or `s3://bucket/key`, with `#sha256=HEX` or without.

    Raises UsageError for another scheme, an address that is not one, and a hash that is not one.
    """
    uri, mark, sha256 = text.rpartition("#sha256=")
    if not mark:
        uri, sha256 = text, ""
    name = redact(uri)
    if mark and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UsageError(f"{name!r:.200} has no SHA-256", "Write 64 hex digits after #sha256=")
    scheme, separator, rest = uri.partition("://")
    if not uri or (separator and scheme.lower() not in SCHEMES):
        raise UsageError(
            f"{name!r:.200} is not a source of data", f"Give a path or one of {', '.join(SCHEMES)}://"
        )
    if separator:
        uri = f"{scheme.lower()}://{rest}"
    if uri.startswith(HTTP) and not _is_valid(uri):
        raise UsageError(
            f"{name!r:.200} is not a valid address",
            "In a password write # as %23, / as %2F, ? as %3F, [ as %5B",
        )
    return Source(uri, sha256.lower() or None)


def _is_valid(uri: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(uri)
        return bool(parts.hostname) and parts.port != 0  # a port that is not a number raises
    except ValueError:
        return False


def fetch(sources: Sequence[Source], cache: Path, store_cache: str | None = None) -> Archive:
    """Return the archive from the first source that gives a right one.

    A local file is used where it is. A download is kept in `cache`, goes on where an earlier one was cut,
    and is verified before every use; a source without a stated hash is asked whether its file has changed.
    What would come over HTTP and has a stated hash is taken from the store `store_cache` when it is there,
    else put there; the archive's `uri` is its source's all the same.

    Raises, when no source will do, one error that says why each did not: MachineError if a later try may
    succeed, else PermissionRefusedError, DataError or ConfigurationError.
    """
    failures: list[JobError] = []
    for source in sources:
        try:
            return _fetch(source, cache, store_cache)
        except JobError as error:
            failures.append(error)
            if len(sources) > 1:
                events.warn("source_failed", source=str(source), reason=str(error))
    if len(failures) == 1:
        raise failures[0]
    raise all_failed(failures)


def unpack(archive: Archive, cache: Path) -> Path:
    """Return the folder `cache/<sha256>` with the archive's `cifar-100-python/{train,test,meta}`.

    The folder appears at once or not at all; what is in it is verified before every use and replaced when
    it has changed. Any number of processes may do this at the same time.

    Raises DataError for an archive that cannot be used, MachineError when the disk is full.
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
    """Return the folder in `cache` with the intact files of that archive, None where there is none."""
    folder = cache / sha256
    return folder if _intact(folder) else None


def _fetch(source: Source, cache: Path, store_cache: str | None) -> Archive:
    path = local_path(source.uri)
    if path is None:
        uri, name, sha256, size = source.uri, str(source), source.sha256, source.size
        try:
            if store_cache and sha256 and uri.startswith(HTTP):
                path = download_once(store_cache, uri, name, sha256, size, cache)
            else:
                path, sha256 = download(uri, name, sha256, size, cache)
        except JobError as error:
            error.message = f"{source}: {error.message}"
            raise
        return Archive(path, sha256, str(source))
    try:
        if not path.is_file():
            raise DataError(
                f"there is no file {path}", "Name an archive in the format of cifar-100-python.tar.gz"
            )
        sha256 = sha256_of(path)
    except OSError as error:
        raise explain(error, path) from error
    if source.sha256 not in (None, sha256):
        raise DataError(
            f"{path} has the SHA-256 {sha256}, not {source.sha256}", "Get the file again, or correct the hash"
        )
    return Archive(path, sha256, str(source))


def all_failed(failures: Sequence[JobError]) -> JobError:
    """Return one error for all sources: of the kind that leaves most hope, with each reason."""
    reasons = "; ".join(str(error) for error in failures)
    for kind in (MachineError, PermissionRefusedError, DataError, ConfigurationError):
        if any(isinstance(error, kind) for error in failures):
            return kind(f"no source gave the data: {reasons}", "Name another with --data")
    return UsageError("no source of data is named", "Name one with --data")


def _intact(folder: Path) -> bool:
    try:
        lines = (folder / CHECKSUMS).read_text().splitlines()
        return lines == [f"{sha256_of(folder / FOLDER / name)}  {FOLDER}/{name}" for name in FILES]
    except (FileNotFoundError, UnicodeDecodeError):
        return False
