"""Fetch the archive from the first source that has it, through a copy in a store where there is one.

That copy, kept under its SHA-256, is a help and never a condition: a failure with it is logged as an event,
and the archive comes from its source.
"""

from __future__ import annotations

import re
import threading
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from job import events
from job.data.cifar import CIFAR100_SHA256
from job.data.download import download
from job.data.remote import HTTP
from job.errors import (
    ConfigurationError,
    DataError,
    JobError,
    MachineError,
    PermissionRefusedError,
    UsageError,
)
from job.store import local_path, open_store
from job.store.base import AbsentError
from job.store.files import explain, sha256_of
from job.text import redact

SCHEMES = ("file", "http", "https", "s3", "gs")
BUCKETS = ("s3", "gs")
STORE_FOLDER = "data"
NO_STORE = "none"

UPLOAD_SECONDS = 120.0
"""The longest wait for an upload, of CIFAR-100 at 1.4 MB/s; a slower one continues in the background."""

STORE_RETRY_SECONDS = 10.0


@dataclass(frozen=True)
class Source:
    """The address of an archive, with the SHA-256 (hex) and size (bytes) that it must have."""

    uri: str
    sha256: str | None = None
    size: int | None = None

    def __str__(self) -> str:
        """Return the URI without what could be a secret."""
        return redact(self.uri)


CIFAR100_SOURCES = (
    Source(
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        sha256=CIFAR100_SHA256,
        size=169_001_437,
    ),
)


@dataclass(frozen=True)
class Archive:
    """A verified archive on this machine; `uri` is its source, without secrets."""

    path: Path
    sha256: str
    uri: str


def parse_source(text: str) -> Source:
    """Read a path, `file://`, `http(s)://`, or `s3://bucket/key` or `gs://`, with `#sha256=HEX` or without.

    Raises UsageError for another scheme, an address that is not one or names no file, and a hash that is not
    one.
    """
    uri, mark, sha256 = text.rpartition("#sha256=")
    if not mark:
        uri, sha256 = text, ""
    name = redact(uri)
    if mark and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UsageError(f"{name!r} has a #sha256= that is not a SHA-256", "Write 64 hex digits after it")
    scheme, separator, rest = uri.partition("://")
    scheme = scheme.lower()
    if not uri or (separator and scheme not in SCHEMES):
        *others, last = (f"{known}://" for known in SCHEMES)
        raise UsageError(
            f"{name!r:.200} is not a source of data", f"Give a path, or {', '.join(others)} or {last}"
        )
    if separator:
        uri = f"{scheme}://{rest}"
        if scheme in BUCKETS and not rest.partition("/")[2].rpartition("/")[2]:
            raise UsageError(
                f"{name!r:.200} names a bucket and no file", f"Write the archive's key: {scheme}://BUCKET/KEY"
            )
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
    """Return the archive from the first source that has a valid one.

    A local file is used where it is. A download is kept in `cache`, resumes where an earlier one was cut,
    and is verified before every use; a source without a stated hash is asked whether its file has changed.
    An archive over HTTP with a stated hash is read from the store `store_cache` when it is there, else
    stored there; the archive's `uri` is its source's in both cases.

    Raises, when every source fails, one error with the reason of each: MachineError if a retry may
    succeed, else PermissionRefusedError, DataError, ConfigurationError or UsageError.
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
    """Return one error with the reason of each source, retryable if any of them is."""
    reasons = "; ".join(str(error) for error in failures)
    for kind in (MachineError, PermissionRefusedError, DataError, ConfigurationError, UsageError):
        if any(isinstance(error, kind) for error in failures):
            return kind(f"no source gave the data: {reasons}", "Name another with --data")
    return UsageError("no source of data is named", "Name one with --data")


def place(chosen: str | None, run: str | None) -> str | None:
    """Return the store that `--store-cache` means for a run; None for no store.

    The default is `data` next to a run in a bucket; a run in a folder has none, since `--cache` is on the
    same machine. Raises UsageError for an invalid address.
    """
    if chosen == NO_STORE:
        return None
    if chosen is not None:
        return open_store(chosen).uri
    if run is None or local_path(run) is not None:
        return None
    scheme, _, rest = run.partition("://")
    bucket, _, prefix = rest.strip("/").partition("/")
    return f"{scheme.lower()}://" + "/".join(
        part for part in (bucket, prefix.rpartition("/")[0], STORE_FOLDER) if part
    )


def copy_of(sha256: str, store: str) -> str:
    """Return the address in `store` of the archive of that SHA-256, which may be missing."""
    return f"{store}/{sha256}"


def download_once(store: str, uri: str, name: str, sha256: str, size: int | None, cache: Path) -> Path:
    """Return the file of that SHA-256 from `cache`, else from `store`, else from `uri`, which fills both.

    A damaged copy in the store is replaced; one that is refused or unreachable is logged and left alone.
    Raises as `download` does.
    """
    copy = copy_of(sha256, store)
    try:
        return download(copy, copy, sha256, size, cache)[0]
    except AbsentError:
        wanted = True
    except DataError as error:
        wanted = True
        events.warn("data_cache_damaged", copy=copy, reason=error.message)
    except JobError as error:
        wanted = False
        events.warn("data_cache_failed", copy=copy, reason=str(error))
    path, _ = download(uri, name, sha256, size, cache)
    if wanted:
        _upload(path, store, sha256)
    return path


def _upload(path: Path, store: str, sha256: str) -> None:
    """Put the file into `store`, waiting at most UPLOAD_SECONDS; the rest happens in the background.

    A plain put: whoever else writes this key writes the same bytes.
    """
    copy = copy_of(sha256, store)

    def put() -> None:
        try:
            open_store(store, STORE_RETRY_SECONDS).put(sha256, path)
            events.emit("data_cached", copy=copy, bytes=path.stat().st_size)
        except (JobError, OSError) as error:
            events.warn("data_cache_failed", copy=copy, reason=str(error))

    thread = threading.Thread(target=put, name="data-cache", daemon=True)
    thread.start()
    thread.join(UPLOAD_SECONDS)
    if thread.is_alive():
        events.warn("data_cache_slow", copy=copy, waited_seconds=UPLOAD_SECONDS)
