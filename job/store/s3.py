"""A prefix in a bucket of an S3-compatible service as a store."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import urllib3
from botocore.credentials import Credentials, RefreshableCredentials
from botocore.exceptions import ClientError
from typing_extensions import override

from job.errors import ConfigurationError, JobError
from job.store.answers import deadline
from job.store.base import (
    AbsentError,
    ConflictError,
    Entry,
    Item,
    Part,
    Store,
    check_key,
    is_key,
    sweep,
    throwaway_key,
)
from job.store.files import open_regular
from job.store.s3_client import Connection, ForeignAnswerError
from job.text import redact

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef


@dataclass(frozen=True)
class S3Service:
    """What a store's requests have shown of the S3 service so far; None is what is not known yet."""

    endpoint: str
    addressing: str | None  # path, virtual, or auto on AWS
    checksums: str | None  # boto3's request_checksum_calculation that the service takes
    clock_ahead_seconds: float | None  # of this machine's clock, by the last answer's Date (whole seconds)
    credentials: str | None  # botocore's name of their source, such as env or iam-role
    expires: datetime | None  # UTC; None also for credentials that do not state it
    temporary: bool  # they have a session token, so they expire


class S3Store(Store):
    """The store contract (see `base.Store`) over `s3://bucket/prefix`; a version is an ETag."""

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self._bucket = bucket
        self._folder = f"{prefix}/" if prefix else ""
        self._connection = Connection(bucket, self._folder)

    @property
    @override
    def uri(self) -> str:
        """Return `s3://bucket/prefix`."""
        return self._connection.uri

    def service(self) -> S3Service:
        """Return what is known of the service without sending it a request."""
        connection = self._connection
        credentials = connection.credentials()
        return S3Service(
            endpoint=redact(connection.endpoint),
            addressing=connection.addressing,
            checksums=connection.checksums,
            clock_ahead_seconds=connection.clock_ahead_seconds,
            credentials=credentials.method if credentials else None,
            expires=_expiry(credentials),
            temporary=isinstance(credentials, RefreshableCredentials)
            or bool(credentials and credentials.token),
        )

    @property
    @override
    def conditions(self) -> tuple[str, str]:
        return ("If-None-Match", "If-Match")

    @override
    def get(self, key: str) -> Item:
        name = self._name(key)
        with self._connection.errors(key):
            response = self._connection.reader.get_object(Bucket=self._bucket, Key=name)
            return Item(_body(response), _version(response))

    @override
    def get_range(self, key: str, offset: int, length: int) -> Part:
        name, span = self._name(key), f"bytes={offset}-{offset + length - 1}"
        with self._connection.errors(key):
            try:
                response = self._connection.reader.get_object(Bucket=self._bucket, Key=name, Range=span)
            except ClientError as error:
                if error.response["Error"].get("Code") != "InvalidRange":
                    raise
                head = self._connection.reader.head_object(Bucket=self._bucket, Key=name)
                return Part(b"", _version(head), head["ContentLength"])
            if "ContentRange" not in response:
                raise ConfigurationError(f"{self.uri} does not serve parts of an object", "Use another store")
            data, stated = _body(response), response["ContentRange"]
            served = re.fullmatch(rf"bytes {offset}-{offset + len(data) - 1}/(\d+)", stated)
            if not served or len(data) > length:
                raise ForeignAnswerError(status=206, kind=f"Content-Range {stated!r} for {span}")
            return Part(data, _version(response), int(served[1]))

    @override
    def put(self, key: str, data: bytes | Path) -> None:
        if isinstance(data, bytes):
            self._put(key, data)
            return
        with open_regular(data) as file:
            self._put(key, file)

    @override
    def put_if_absent(self, key: str, data: bytes) -> str:
        return self._put(key, data, IfNoneMatch="*")

    @override
    def put_if_match(self, key: str, data: bytes, version: str) -> str:
        try:
            return self._put(key, data, IfMatch=version)
        except AbsentError as error:  # AWS answers 404 here, others 412
            raise ConflictError(f"{self.uri}/{key} has been deleted by someone else") from error

    @override
    def delete(self, key: str) -> None:
        name = self._name(key)
        with self._connection.errors(key):
            self._connection.reader.delete_object(Bucket=self._bucket, Key=name)

    @override
    def list(self, folder: str = "") -> list[Entry]:
        prefix = f"{self._name(folder)}/" if folder else self._folder
        entries = []
        with self._connection.errors(folder):
            pages = self._connection.reader.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=prefix):
                if "IsTruncated" not in page:  # every listing has it, an empty answer does not
                    raise ForeignAnswerError(status=200, kind="no listing")
                for item in page.get("Contents", []):
                    key = item["Key"].removeprefix(self._folder)
                    if is_key(key):
                        entries.append(Entry(key, item["Size"]))
        return entries

    def _name(self, key: str) -> str:
        return self._folder + check_key(key)

    def _put(self, key: str, data: bytes | IO[bytes], **condition: Any) -> str:
        name = self._name(key)
        with self._connection.errors(key):
            return _version(self._writer.put_object(Bucket=self._bucket, Key=name, Body=data, **condition))

    @cached_property
    def _writer(self) -> S3Client:
        sweep(self)
        return self._connection.writer(self._try_out)

    def _try_out(self, client: S3Client) -> None:
        key, data = throwaway_key(), b"micronet"
        with self._connection.errors(key):
            client.put_object(Bucket=self._bucket, Key=self._name(key), Body=data)
        try:
            found = self.get(key).data
        except JobError:
            self.delete(key)
            raise
        self.delete(key)
        if found != data:
            raise ConfigurationError(f"{self.uri} returns other bytes than were written", "Use another store")


def _version(response: Mapping[str, Any]) -> str:
    """Return an answer's ETag, which each answer of S3 about an object has; else raise ForeignAnswerError."""
    if "ETag" not in response:
        raise ForeignAnswerError(status=response["ResponseMetadata"]["HTTPStatusCode"], kind="no ETag")
    return str(response["ETag"])


def _body(response: GetObjectOutputTypeDef) -> bytes:
    body = response["Body"]
    with body as raw:
        timer = deadline(cast(urllib3.HTTPResponse, raw), response.get("ContentLength", 0))
        try:
            return body.read()
        finally:
            timer.cancel()


def _expiry(credentials: Credentials | None) -> datetime | None:
    """Return when credentials from the environment expire; others are renewed or do not state it."""
    stated = os.environ.get("AWS_CREDENTIAL_EXPIRATION")
    if credentials is None or credentials.method != "env" or not stated:
        return None
    with contextlib.suppress(ValueError):
        expires = datetime.fromisoformat(stated)
        return expires if expires.tzinfo else expires.replace(tzinfo=UTC)
    return None
