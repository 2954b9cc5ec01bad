"""Read a file over HTTP or from a store, from any offset, without mixing two versions of it."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import responses as REASONS

import requests
import urllib3.exceptions

from job.errors import DataError, PermissionRefusedError
from job.store import open_store
from job.store.base import TransientError
from job.text import innermost

HTTP = ("http://", "https://")
CONNECT_SECONDS = 10
READ_SECONDS = 30
CHUNK_BYTES = 2**18
RETRY_SECONDS = 2.0
"""For a store's single bad answers; the caller retries the rest and resumes."""

PART_BYTES = 2**23
SLOWEST_BYTES_PER_SECOND = 1000
WINDOW_SECONDS = 60
"""CIFAR-100's server sends some 10,000 bytes a second; a tenth of that for a minute counts as stuck."""


@dataclass(frozen=True)
class Remote:
    """A file being read: `chunks` start at `offset`, and `size` is that of the whole, in bytes.

    `version` identifies the file's version in a later request for the rest; None where the server sends no
    reliable one.
    """

    offset: int
    size: int | None
    version: str | None
    chunks: Iterator[bytes]


@contextlib.contextmanager
def open_remote(uri: str, offset: int = 0, version: str | None = None) -> Iterator[Remote]:
    """Start reading `uri` at `offset` if it still has `version`, at 0 if it has not.

    Raises, also while `chunks` are taken, TransientError for whatever may work later; DataError when there
    is no such file; PermissionRefusedError.
    """
    if uri.startswith(HTTP):
        with _open_http(uri, offset, version) as remote:
            yield remote
    else:
        yield _open_stored(uri, offset, version)


def size_of(uri: str) -> int | None:
    """Return the size of the file at `uri` in bytes, None where the server does not state it.

    Asks for the file itself and leaves it unread, since an address may be signed for that alone. Raises as
    `open_remote` does.
    """
    if uri.startswith(HTTP):
        with _open_http(uri, 0, None) as remote:
            return remote.size
    folder, _, key = uri.rpartition("/")
    return open_store(folder, RETRY_SECONDS).get_range(key, 0, 1).size


@contextlib.contextmanager
def _open_http(uri: str, offset: int, version: str | None) -> Iterator[Remote]:
    headers = {"Accept-Encoding": "identity"}
    if offset and version:
        headers |= {"Range": f"bytes={offset}-", "If-Range": version}
    try:
        response = requests.get(uri, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS))
    except ValueError as error:  # of requests, for this address or one that it redirects to
        raise DataError("it is, or redirects to, an address of another kind", "Correct it") from error
    except requests.RequestException as error:
        raise TransientError(f"no answer ({innermost(error)})", "Check the network, or try later") from error
    with response:
        if (
            response.status_code == 416 and offset
        ):  # the offset is beyond the file's end: it is another version
            with _open_http(uri, 0, None) as remote:
                yield remote
            return
        _check_status(response)
        start, size = _extent(response, offset)
        yield Remote(start, size, _validator(response), _http_chunks(response))


def _check_status(response: requests.Response) -> None:
    status = f"HTTP {response.status_code} {REASONS.get(response.status_code, '')}".rstrip()
    if response.status_code in (200, 206):
        return
    if response.status_code in (401, 403, 407):
        raise PermissionRefusedError(f"access refused ({status})", "Check the address and its credentials")
    if response.status_code in (404, 410):
        raise DataError(f"no such file there ({status})", "Check the address")
    if response.status_code in (408, 425, 429) or response.status_code >= 500:
        raise TransientError(f"the server failed ({status})", "Try later")
    raise DataError(f"the server refuses it ({status})", "Check the address")


def _extent(response: requests.Response, offset: int) -> tuple[int, int | None]:
    """Return where the body starts, and the size of the whole."""
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not match or int(match[1]) != offset:
        raise DataError("the server answers with another range than was asked for", "Name another source")
    return offset, None if match[2] == "*" else int(match[2])


def _validator(response: requests.Response) -> str | None:
    """Return a value that If-Range accepts, or None.

    That is a strong entity tag or a date; a weak tag does not promise the same bytes.
    """
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _http_chunks(response: requests.Response) -> Iterator[bytes]:
    start, received = time.monotonic(), 0
    try:
        while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
            yield chunk
            received += len(chunk)
            elapsed = time.monotonic() - start
            if elapsed > WINDOW_SECONDS:
                if received < elapsed * SLOWEST_BYTES_PER_SECOND:
                    raise TransientError(f"only {received} bytes in {elapsed:.0f} s", "Try later")
                start, received = time.monotonic(), 0
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise TransientError(f"the connection broke ({innermost(error)})", "Try later") from error


def _open_stored(uri: str, offset: int, version: str | None) -> Remote:
    folder, _, key = uri.rpartition("/")
    store = open_store(folder, RETRY_SECONDS)
    first = store.get_range(key, offset, PART_BYTES)
    if offset and (first.version != version or not first.data):
        offset, first = 0, store.get_range(key, 0, PART_BYTES)

    def chunks() -> Iterator[bytes]:
        part, position = first, offset
        while part.data:
            yield part.data
            position += len(part.data)
            if position >= part.size:
                return
            part = store.get_range(key, position, PART_BYTES)
            if part.version != first.version:
                raise TransientError("it was replaced while it was read", "Try again")

    return Remote(offset, first.size, first.version, chunks())
