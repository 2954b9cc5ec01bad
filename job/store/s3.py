"""A prefix in a bucket of an S3-compatible service as a store."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

import boto3
import urllib3
from botocore.config import Config
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import ClientError

from job.errors import ConfigurationError, JobError
from job.store import probe
from job.store.base import (
    AbsentError,
    ConflictError,
    Entry,
    Item,
    Part,
    Service,
    TransientError,
    check_key,
    is_key,
)
from job.store.s3_errors import ERRORS, explain

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

CONNECT_SECONDS = 10  # also the most that 16 KiB of an upload may take
READ_SECONDS = 20  # boto3's own are 60 s each, three times
BODY_SECONDS = 30
SLOWEST_BYTES_PER_SECOND = 10_000
"""A body that drips never times out by itself: it may take 30 s and what its length takes at 10 kB/s."""

Checksums = Literal["when_supported", "when_required"]
CHECKSUM_MODES: tuple[Checksums, ...] = ("when_supported", "when_required")
Style = Literal["auto", "path", "virtual"]
STYLES: tuple[Style, ...] = ("path", "virtual")


class S3Store:
    """The store contract (see `base.Store`) over `s3://bucket/prefix`; a version is an ETag.

    Endpoint, region and credentials come from the standard AWS variables, files and roles, and are asked
    for again when they expire. Nothing is sent before the first call.
    """

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self._bucket = bucket
        self._folder = f"{prefix}/" if prefix else ""
        self._connecting = threading.Lock()
        self._checksums: Checksums | None = None
        self._clock_ahead: float | None = None

    @property
    def uri(self) -> str:
        """Return `s3://bucket/prefix`."""
        return f"s3://{self._bucket}/{self._folder}".rstrip("/")

    def service(self) -> Service:
        """See `base.Store`."""
        with self._errors():
            credentials = self._session.get_credentials()
        renewable = isinstance(credentials, RefreshableCredentials)
        return Service(
            endpoint=self._connect("auto").meta.endpoint_url,
            addressing=vars(self).get("_style"),  # where a cached property keeps what it has found
            checksums=self._checksums,
            clock_ahead_seconds=self._clock_ahead,
            credentials=credentials.method if credentials else None,
            expires=getattr(credentials, "_expiry_time", None),  # botocore has no public name for it
            temporary=renewable or bool(credentials and credentials.token),
        )

    def get(self, key: str) -> Item:
        """See `base.Store`."""
        name = self._name(key)
        with self._errors(key):
            response = self._reader.get_object(Bucket=self._bucket, Key=name)
            return Item(_body(response), response["ETag"])

    def get_range(self, key: str, offset: int, length: int) -> Part:
        """See `base.Store`."""
        name, span = self._name(key), f"bytes={offset}-{offset + length - 1}"
        with self._errors(key):
            try:
                response = self._reader.get_object(Bucket=self._bucket, Key=name, Range=span)
            except ClientError as error:
                if error.response["Error"].get("Code") != "InvalidRange":
                    raise
                head = self._reader.head_object(Bucket=self._bucket, Key=name)
                return Part(b"", head["ETag"], head["ContentLength"])
            if "ContentRange" not in response:
                raise ConfigurationError(f"{self.uri} does not serve parts of an object", "Use another store")
            size = int(response["ContentRange"].rpartition("/")[2])
            return Part(_body(response), response["ETag"], size)

    def put(self, key: str, data: bytes) -> None:
        """See `base.Store`."""
        self._put(key, data)

    def put_if_absent(self, key: str, data: bytes) -> str:
        """See `base.Store`."""
        return self._put(key, data, IfNoneMatch="*")

    def put_if_match(self, key: str, data: bytes, version: str) -> str:
        """See `base.Store`."""
        try:
            return self._put(key, data, IfMatch=version)
        except AbsentError as error:  # AWS says 404 here, others 412
            raise ConflictError(f"{self.uri}/{key} has been deleted by someone else") from error

    def delete(self, key: str) -> None:
        """See `base.Store`."""
        name = self._name(key)
        with self._errors(key):
            self._reader.delete_object(Bucket=self._bucket, Key=name)

    def list(self, folder: str = "") -> list[Entry]:
        """See `base.Store`."""
        prefix = f"{self._name(folder)}/" if folder else self._folder
        entries = []
        with self._errors(folder):
            pages = self._reader.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=prefix):
                for item in page.get("Contents", []):
                    key = item["Key"].removeprefix(self._folder)
                    if is_key(key):
                        entries.append(Entry(key, item["Size"]))
        return entries

    def _name(self, key: str) -> str:
        return self._folder + check_key(key)

    def _put(self, key: str, data: bytes, **condition: Any) -> str:
        name = self._name(key)
        with self._errors(key):
            return self._writer.put_object(Bucket=self._bucket, Key=name, Body=data, **condition)["ETag"]

    @cached_property
    def _style(self) -> Style:
        """Find out how buckets are addressed: on AWS that is known, elsewhere by path or by host name."""
        host = urlsplit(self._connect("auto").meta.endpoint_url).hostname or ""
        if host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
            return "auto"
        for style in STYLES:
            try:
                self._knock(style)
            except JobError as error:
                if style == "path" and isinstance(error, TransientError):
                    raise
            else:
                return style
        # Listing may be forbidden where reading is not; otherwise the next request says what is wrong.
        return "path"

    @cached_property
    def _reader(self) -> S3Client:
        return self._connect(self._style)

    @cached_property
    def _writer(self) -> S3Client:
        """Find out whether the store takes boto3's checksums: some refuse, some keep them as content."""
        refusals: list[JobError] = []
        probe.sweep(self)
        for checksums in CHECKSUM_MODES:
            client = self._connect(self._style, checksums)
            try:
                self._try_out(client)
            except TransientError:
                raise
            except JobError as error:
                refusals.append(error)
            else:
                self._checksums = checksums
                return client
        raise refusals[-1]

    def _connect(self, style: Style, checksums: Checksums = "when_supported") -> S3Client:
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"total_max_attempts": 1, "mode": "standard"},  # RetryingStore does that
            s3={"addressing_style": style},
            request_checksum_calculation=checksums,
            response_checksum_validation=checksums,
        )
        with self._connecting, self._errors():  # a session may be used by one thread at a time
            # AWS's own services set AWS_REGION, which boto3 does not read; without any, S3 redirects.
            region = self._session.region_name or os.environ.get("AWS_REGION") or "us-east-1"
            client = self._session.client("s3", region_name=region, config=config)
        client.meta.events.register("response-received.s3", self._read_clock)
        return client

    @cached_property
    def _session(self) -> boto3.session.Session:
        return boto3.session.Session()

    def _knock(self, style: Style) -> None:
        with self._errors():
            self._connect(style).list_objects_v2(Bucket=self._bucket, Prefix=self._folder, MaxKeys=1)

    def _read_clock(self, response_dict: dict[str, Any] | None, **_others: Any) -> None:
        stated = (response_dict or {}).get("headers", {}).get("date")
        with contextlib.suppress(ValueError, TypeError):  # no date, or none that can be read
            self._clock_ahead = time.time() - parsedate_to_datetime(stated).timestamp()

    def _try_out(self, client: S3Client) -> None:
        key, data = probe.throwaway_key(), b"micronet"
        with self._errors(key):
            client.put_object(Bucket=self._bucket, Key=self._name(key), Body=data)
        try:
            found = self.get(key).data
        except JobError:
            self.delete(key)
            raise
        self.delete(key)
        if found != data:
            raise ConfigurationError(
                f"{self.uri} gives back other bytes than were put into it", "Use another store"
            )

    @contextlib.contextmanager
    def _errors(self, key: str = "") -> Iterator[None]:
        try:
            yield
        except ERRORS as error:
            raise explain(error, f"{self.uri}/{key}".rstrip("/")) from error
        except ValueError as error:  # how boto3 says that an endpoint is none
            raise ConfigurationError(f"{self.uri}: {error}", "Check AWS_ENDPOINT_URL_S3") from error
        except RuntimeError as error:
            if "credentials are still expired" not in str(error):  # how botocore says just that
                raise
            raise TransientError(f"{self.uri}: {error}", "Renew the credentials at their source") from error


def _body(response: GetObjectOutputTypeDef) -> bytes:
    body = response["Body"]
    seconds = BODY_SECONDS + response.get("ContentLength", 0) / SLOWEST_BYTES_PER_SECOND
    with body as raw:
        timer = threading.Timer(seconds, cast(urllib3.HTTPResponse, raw).shutdown)
        timer.daemon = True
        timer.start()
        try:
            return body.read()
        finally:
            timer.cancel()
