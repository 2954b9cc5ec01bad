"""Stores: a local folder or a prefix in an S3 bucket, behind one interface (`base.Store`)."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from job.errors import DataError, UsageError
from job.settings import RETRY_SECONDS
from job.store.base import Store, check_key
from job.store.retry import RetryingStore
from job.text import redact

if TYPE_CHECKING:
    from job.store.s3 import S3Service

__all__ = ["Store", "local_path", "open_store", "service"]

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def open_store(uri: str, retry_seconds: float = RETRY_SECONDS) -> Store:
    """Return the store at a path, `file://` or `s3://bucket/prefix`, without a request.

    Each call of the store is retried for about `retry_seconds` before it raises TransientError. Raises
    UsageError for any other URI.
    """
    path = local_path(uri)
    if path is not None:
        from job.store.local import LocalStore

        _check_utf8(str(path.absolute()))
        return RetryingStore(LocalStore(path), retry_seconds)
    _check_utf8(uri)
    scheme, _, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    if scheme.lower() != "s3" or not _BUCKET.fullmatch(bucket):
        raise UsageError(
            f"{redact(uri)!r} is not a store", "Give a folder, file:///folder or s3://bucket/prefix"
        )
    try:
        prefix = check_key(prefix) if prefix else ""
    except DataError as error:
        raise UsageError(error.message, "Give s3://bucket/prefix with a plain prefix") from error
    from job.store.s3 import S3Store  # boto3 takes 0.3 s to import

    return RetryingStore(S3Store(bucket, prefix), retry_seconds)


def _check_utf8(uri: str) -> None:
    """Raise UsageError for a path that is not UTF-8: reports, pages and buckets cannot name it."""
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{uri!r} is not UTF-8", "Name a folder whose whole path is UTF-8") from error


def service(store: Store) -> S3Service | None:
    """Return what a store's requests have shown of its S3 service so far; None for a folder."""
    if local_path(store.uri) is not None:
        return None
    from job.store.s3 import S3Store

    inner = store.inner if isinstance(store, RetryingStore) else store
    return inner.service() if isinstance(inner, S3Store) else None


def local_path(uri: str) -> Path | None:
    """Return the path that a bare path or a `file://` URI names; None for any other scheme.

    Raises UsageError for "" and for a `file://` URI that names another machine or no absolute path.
    """
    if not uri:
        raise UsageError("the path is empty", "Give a path or a URI")
    if "://" not in uri:
        if re.match("(s3|gs|https?):/", uri):
            raise UsageError(
                f"{redact(uri)!r} lacks a slash, as pathlib writes it", "Write two: s3://bucket/prefix"
            )
        return Path(uri)
    scheme, _, rest = uri.partition("://")
    if scheme.lower() != "file":
        return None
    host, slash, name = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise UsageError(
            f"{redact(uri)!r} does not name a file of this machine", "Write file:///absolute/path"
        )
    return Path(slash + urllib.parse.unquote(name))
