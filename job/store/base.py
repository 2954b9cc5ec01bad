"""The contract of a store, and the check that one honours conditional writes."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from job.errors import FENCED, ConfigurationError, DataError, JobError, MachineError, PermissionRefusedError

MAX_KEY_BYTES = 512
"""S3 and Google allow 1,024 bytes for the key and the store's own prefix together."""

_SEGMENT = re.compile(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,199}")

PROBES = "probes"
STALE_SECONDS = 3600
"""A probe takes seconds, and S3 refuses clocks that are 15 minutes off: an hour is stale by any clock."""

DANGER = "two attempts could overwrite each other"

_THROWAWAY = re.compile(rf"{PROBES}/(\d{{1,12}})-[0-9a-f]{{32}}")


class AbsentError(DataError):
    """The key does not exist. Never raised for a refusal, a missing bucket or a missing answer."""


class RefusedError(PermissionRefusedError):
    """The store refuses the caller, or the caller's access to this key."""


class TransientError(MachineError):
    """There was no usable answer. The request may succeed later, and may have been carried out already."""


class DoubtfulError(TransientError):
    """An answer that may change soon: `verdict` is the error to raise when it lasts for `seconds`."""

    def __init__(self, verdict: JobError, seconds: float) -> None:
        super().__init__(verdict.message, verdict.fix)
        self.verdict, self.seconds = verdict, seconds


class ConflictError(JobError):
    """The condition of a conditional put does not hold, since someone else has written the key."""

    exit_code = FENCED.code


@dataclass(frozen=True)
class Item:
    """The content of a key, and the version for `put_if_match`."""

    data: bytes
    version: str


@dataclass(frozen=True)
class Part:
    """Some bytes of a key, the version they are from, and the size of the whole content in bytes."""

    data: bytes
    version: str
    size: int


@dataclass(frozen=True)
class Entry:
    """A key in a listing and its size in bytes."""

    key: str
    size: int


class Store(Protocol):
    """Keys and their bytes. Safe to use from several threads, and from several processes at once.

    Keys are relative, with `/` between their segments (see `check_key`); where there is a key `a` there must
    not be an `a/b`. Every method may raise RefusedError, TransientError, ConfigurationError (the bucket, the
    region or the endpoint is wrong) and MachineError (the disk is full). No error but AbsentError ever means
    "not there".

    A put is atomic: whatever happens to the writer, a reader gets the old content, the new one, or
    AbsentError, never a part. When a put returns, its content survives the loss of the machine (a bucket) or
    of its power (a folder). What was put is what the next get and list see, from anywhere.

    What is read is not verified: keep a SHA-256 of what must be right.
    """

    @property
    def uri(self) -> str:
        """The address, for people and for `open_store`; contains no secrets."""

    @property
    def conditions(self) -> tuple[str, str]:
        """The service's names for the conditions of `put_if_absent` and `put_if_match`, for messages."""

    def get(self, key: str) -> Item:
        """Return the whole content; AbsentError when the key is absent."""

    def get_range(self, key: str, offset: int, length: int) -> Part:
        """Return at most `length` bytes from `offset`; fewer only at the end, none after it."""

    def put(self, key: str, data: bytes | Path) -> None:
        """Write the key, replacing its content; a path is a file that is streamed."""

    def put_if_absent(self, key: str, data: bytes) -> str:
        """Write the key if it is absent, else ConflictError; return its version.

        Of any number at once, one succeeds. `data` must name its writer: after a lost response, only the
        content shows whose write it was.
        """

    def put_if_match(self, key: str, data: bytes, version: str) -> str:
        """Write the key if it still has `version`, else (also when absent) ConflictError; return its new one.

        Of any number at once, one succeeds. The version is that of the content: equal bytes may have equal
        versions.
        """

    def delete(self, key: str) -> None:
        """Remove the key; it may be absent."""

    def list(self, folder: str = "") -> list[Entry]:
        """Return every key below `folder` (all keys for "") in no particular order."""


def check_key(key: str) -> str:
    """Return `key`, or raise DataError if a store cannot hold it or it could lead out of the store's folder.

    Allowed are segments of 1 to 200 characters, joined by single slashes: no leading dot (so no `..` and
    none of a folder store's own files), no backslash, no control characters, 512 bytes in all.
    """
    if len(key.encode("utf-8", "replace")) > MAX_KEY_BYTES or not all(
        _SEGMENT.fullmatch(segment) for segment in key.split("/")
    ):
        raise DataError(f"{key[:100]!r} cannot be the name of an object in a store")
    return key


def is_key(key: str) -> bool:
    """Return whether `check_key` accepts `key`."""
    try:
        check_key(key)
    except DataError:
        return False
    return True


def throwaway_key() -> str:
    """Return a unique key whose name has the time it was made."""
    return f"{PROBES}/{int(time.time())}-{uuid4().hex}"


def sweep(store: Store) -> None:
    """Delete the throw-away keys that processes left over an hour ago because they were killed."""
    with contextlib.suppress(RefusedError):  # listing may be forbidden where writing is allowed
        for entry in store.list(PROBES):
            name = _THROWAWAY.fullmatch(entry.key)
            if name and time.time() - int(name[1]) > STALE_SECONDS:
                store.delete(entry.key)


def probe(store: Store) -> None:
    """Check with a throw-away key that `store` honours conditional writes.

    Raises ConfigurationError where it does not, and the store's errors.
    """
    key = throwaway_key()
    reason = _fault(store, key)
    store.delete(key)  # not in a `finally`, which a signal would have to wait for: `sweep` deletes it later
    if reason:
        raise ConfigurationError(
            f"{store.uri} {reason}",
            "Use a store that honours conditional writes, such as AWS S3, Google Cloud Storage (gs://) or "
            "SeaweedFS, or a folder",
        )


def _fault(store: Store, key: str) -> str | None:
    """Return what is wrong with conditional writes, by four writes to a new key; None where they work."""
    if_absent, if_match = store.conditions
    one, two, three = (f"{key} {number}".encode() for number in (1, 2, 3))
    try:
        first = store.put_if_absent(key, one)
    except ConflictError:
        return f"refuses a conditional write ({if_absent}) although the key is new"
    if not _conflicts(lambda: store.put_if_absent(key, two)):
        return f"ignores {if_absent}: {DANGER}"
    if _conflicts(lambda: store.put_if_match(key, two, first)):
        return f"refuses a conditional write ({if_match}) although the version is right"
    if not _conflicts(lambda: store.put_if_match(key, three, first)):
        return f"ignores {if_match}: {DANGER}"
    return None


def _conflicts(put: Callable[[], str]) -> bool:
    try:
        put()
    except ConflictError:
        return True
    return False
