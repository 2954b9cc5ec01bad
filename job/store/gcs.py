"""A prefix in a bucket of Google Cloud Storage as a store."""

from __future__ import annotations

import io
import os
import re
from functools import cached_property
from pathlib import Path
from typing import IO

from google.api_core.exceptions import RequestRangeNotSatisfiable
from google.cloud.storage import Blob, Bucket
from typing_extensions import override

from job.store.base import AbsentError, ConflictError, Entry, Item, Part, Store, check_key, is_key, sweep
from job.store.files import open_regular
from job.store.gcs_client import Connection, ForeignAnswerError

CHUNK_BYTES = 2**25
"""More than 8 MiB is sent in requests of this size, each held in memory; conditional puts are of less."""

ABSENT = 0  # no object has this generation


class GoogleStore(Store):
    """The store contract (see `base.Store`) over `gs://bucket/prefix`; a version is a generation."""

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self._folder = f"{prefix}/" if prefix else ""
        self._connection = Connection(bucket, self._folder)

    @property
    @override
    def uri(self) -> str:
        """Return `gs://bucket/prefix`."""
        return self._connection.uri

    @property
    @override
    def conditions(self) -> tuple[str, str]:
        return ("ifGenerationMatch=0", "ifGenerationMatch")

    @override
    def get(self, key: str) -> Item:
        blob = self._blob(key)
        with self._connection.errors("get", key):
            data = blob.download_as_bytes(raw_download=True, **self._connection.limits())
            return Item(data, self._version(blob))

    @override
    def get_range(self, key: str, offset: int, length: int) -> Part:
        blob, end = self._blob(key), offset + length - 1
        with self._connection.errors("get", key):
            try:
                data = blob.download_as_bytes(
                    start=offset, end=end, raw_download=True, **self._connection.limits()
                )
            except RequestRangeNotSatisfiable:
                blob.reload(**self._connection.limits())
                return Part(b"", self._version(blob), blob.size)
            stated = self._connection.response.headers.get("Content-Range", "none")
            served = re.fullmatch(rf"bytes {offset}-{offset + len(data) - 1}/(\d+)", stated)
            if not served or len(data) > length:
                raise ForeignAnswerError(self._connection.response, f"Content-Range {stated!r}")
            return Part(data, self._version(blob), int(served[1]))

    @override
    def put(self, key: str, data: bytes | Path) -> None:
        if isinstance(data, bytes):
            self._put(key, data)
            return
        with open_regular(data) as file:
            self._put(key, file)

    @override
    def put_if_absent(self, key: str, data: bytes) -> str:
        return self._put(key, data, ABSENT)

    @override
    def put_if_match(self, key: str, data: bytes, version: str) -> str:
        check_key(key)
        if not version.isdecimal() or int(version) == ABSENT:
            raise ConflictError(f"{self.uri}/{key} never had the version {version}")
        return self._put(key, data, int(version))

    @override
    def delete(self, key: str) -> None:
        blob = self._blob(key)
        try:
            with self._connection.errors("delete", key):
                blob.delete(**self._connection.limits())
        except AbsentError:
            pass

    @override
    def list(self, folder: str = "") -> list[Entry]:
        prefix = f"{self._name(folder)}/" if folder else self._folder
        bucket = self._connection.bucket
        with self._connection.errors("list", folder):
            blobs = bucket.list_blobs(
                prefix=prefix, fields="items(name,size),nextPageToken", **self._connection.limits()
            )
            found = [(blob.name.removeprefix(self._folder), blob.size) for blob in blobs]
        return [Entry(key, size) for key, size in found if is_key(key)]

    def _name(self, key: str) -> str:
        return self._folder + check_key(key)

    def _blob(self, key: str) -> Blob:
        name = self._name(key)
        return self._connection.bucket.blob(name)

    def _put(self, key: str, data: bytes | IO[bytes], generation: int | None = None) -> str:
        name = self._name(key)
        blob = self._swept.blob(name, chunk_size=CHUNK_BYTES)
        file = io.BytesIO(data) if isinstance(data, bytes) else data
        size = len(data) if isinstance(data, bytes) else os.fstat(data.fileno()).st_size
        with self._connection.errors("put", key):
            blob.upload_from_file(
                file,
                size=size,
                content_type="application/octet-stream",
                if_generation_match=generation,
                checksum="crc32c",
                **self._connection.limits(),
            )
            return self._version(blob)

    @cached_property
    def _swept(self) -> Bucket:
        sweep(self)
        return self._connection.bucket

    def _version(self, blob: Blob) -> str:
        """Return the generation of what was read or written, which each answer of Google has."""
        if blob.generation is None:
            raise ForeignAnswerError(self._connection.response, "no generation")
        return str(blob.generation)
