"""Requests to a cloud's metadata service, whose answers are not trusted."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException
from typing import Any, NamedTuple
from urllib.parse import urlsplit

ANSWER_SECONDS = 2.0
MAX_BODY_BYTES = 65536
FARTHEST_SECONDS = 3600  # the longest notice is Azure's Terminate, 15 minutes


class UnreadableError(Exception):
    """The service's answer cannot be used; the message says why."""


class UnreachableError(UnreadableError):
    """Nothing accepts connections at the address."""


class UnusableError(UnreadableError):
    """The user has to change something; the message says what."""


class Answer(NamedTuple):
    """A response: its status, headers and body."""

    status: int
    headers: Message
    body: bytes


def ask(
    endpoint: str,
    path: str,
    headers: Mapping[str, str],
    *,
    method: str = "GET",
    timeout: float = ANSWER_SECONDS,
) -> Answer:
    """Send one request and return the answer, of at most 64 KiB; raise UnreadableError.

    With http.client, which uses no proxy and follows no redirect: metadata must never come through either.
    """
    try:
        address = urlsplit(endpoint)
        if address.scheme != "http" or not address.hostname:
            raise UnusableError(f"{endpoint!r} is not of the form http://HOST:PORT")
        connection = HTTPConnection(address.hostname, address.port, timeout=timeout)
    except ValueError as error:
        raise UnusableError(f"{endpoint!r}: {error}") from error
    try:
        _connect(connection, endpoint)
        connection.request(method, address.path.rstrip("/") + path, headers=dict(headers))
        response = connection.getresponse()
        body = response.read(MAX_BODY_BYTES + 1)
    except (OSError, HTTPException, ValueError) as error:
        raise UnreadableError(f"{endpoint}{path}: {type(error).__name__}: {error}") from error
    finally:
        connection.close()
    if len(body) > MAX_BODY_BYTES:
        raise UnreadableError(f"{endpoint}{path}: more than {MAX_BODY_BYTES} bytes")
    return Answer(response.status, response.headers, body)


def _connect(connection: HTTPConnection, endpoint: str) -> None:
    try:
        connection.connect()
    except OSError as error:
        raise UnreachableError(f"{endpoint}: {error}") from error


def expect_200(answer: Answer) -> Answer:
    """Return the answer, or raise UnreadableError for any other status."""
    if answer.status != 200:
        raise UnreadableError(f"status {answer.status}")
    return answer


def text(answer: Answer) -> str:
    """Return the body, or raise UnreadableError."""
    try:
        return answer.body.decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise UnreadableError(str(error)) from error


def json_object(answer: Answer) -> dict[str, Any]:
    """Return the JSON object in the body, or raise UnreadableError."""
    try:
        content = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UnreadableError(f"not a JSON object: {answer.body[:200]!r}")
    return content


def to_monotonic(moment: datetime, answer: Answer) -> float:
    """Return `moment` (UTC if it has no zone) as time.monotonic(); UnreadableError if it is over an hour off.

    The current time is the answer's `Date`, because this machine's clock may be wrong.
    """
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    try:
        now = parsedate_to_datetime(answer.headers["Date"])
        seconds = (moment - now).total_seconds()
    except (ValueError, TypeError, OverflowError):
        seconds = (moment - datetime.now(UTC)).total_seconds()
    if abs(seconds) > FARTHEST_SECONDS:
        raise UnreadableError(f"{moment.isoformat()} is {seconds:.0f} s from now")
    return time.monotonic() + seconds
