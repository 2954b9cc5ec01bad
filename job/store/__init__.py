"""Stores: a local folder or a prefix in a bucket of S3 or Google, behind one interface (`base.Store`)."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from job.errors import ConfigurationError, DataError, UsageError
from job.settings import RETRY_SECONDS
from job.store.base import Store, check_key
from job.store.retry import RetryingStore
from job.text import redact

if TYPE_CHECKING:
    from job.store.s3 import S3Service

__all__ = ["Store", "local_path", "open_store", "service"]

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def open_store(uri: str, retry_seconds: float = RETRY_SECONDS) -> Store:
    """Return the store at a path, `file://`, `s3://bucket/prefix` or `gs://bucket/prefix`.

    No request is sent. Each call of the store is retried for about `retry_seconds` before it raises
    TransientError. Raises UsageError for any other URI, ConfigurationError where the client is missing.
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
    if scheme.lower() not in BUCKETS or not _BUCKET.fullmatch(bucket):
        raise UsageError(
            f"{redact(uri)!r} is not a store",
            "Give a folder, file:///folder, s3://bucket/prefix or gs://bucket/prefix",
        )
    try:
        prefix = check_key(prefix) if prefix else ""
    except DataError as error:
        raise UsageError(error.message, f"Give {scheme}://bucket/prefix with a plain prefix") from error
    return RetryingStore(BUCKETS[scheme.lower()](bucket, prefix), retry_seconds)


def _s3(bucket: str, prefix: str) -> Store:
    from job.store.s3 import S3Store  # boto3 takes 0.3 s to import

    return S3Store(bucket, prefix)


def _google(bucket: str, prefix: str) -> Store:
    try:
        from job.store.gcs import GoogleStore
    except ImportError as error:
        raise ConfigurationError(
            f"the client of Google's storage is not installed ({error})",
            "Run ./setup.sh install google, or pip install google-cloud-storage",
        ) from error
    return GoogleStore(bucket, prefix)


BUCKETS = {"s3": _s3, "gs": _google}
"""What makes the store in a bucket, by the scheme of its address."""


def _check_utf8(uri: str) -> None:
    """Raise UsageError for a path that is not UTF-8: reports, pages and buckets cannot name it."""
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{uri!r} is not UTF-8", "Name a folder whose whole path is UTF-8") from error


def service(store: Store) -> S3Service | None:
    """Return what a store's requests have shown of its S3 service so far; None for any other store."""
    if not store.uri.startswith("s3://"):
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
