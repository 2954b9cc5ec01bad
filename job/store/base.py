"""The contract of a store: where runs, checkpoints and cached archives live."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from job.errors import DataError, JobError, MachineError, PermissionRefusedError

MAX_KEY_BYTES = 512
"""S3 allows 1,024 bytes for the key and the store's own prefix together."""

_SEGMENT = re.compile(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,199}")


class AbsentError(DataError):
    """There is no such key. A refusal, a missing bucket or a missing answer never raises it."""


class RefusedError(PermissionRefusedError):
    """The store refuses the caller, or refuses the caller this key."""


class TransientError(MachineError):
    """No usable answer came. The same request may succeed later, and may have been carried out already."""


class DoubtfulError(TransientError):
    """An answer that may be a passing one: `verdict` is what to raise when it is the same for `seconds`."""

    def __init__(self, verdict: JobError, seconds: float) -> None:
        super().__init__(verdict.message, verdict.fix)
        self.verdict, self.seconds = verdict, seconds


class ConflictError(JobError):
    """The condition of a conditional put does not hold, since someone else has written the key."""

    exit_code = 76


@dataclass(frozen=True)
class Item:
    """The whole content of a key and the version that `put_if_match` takes."""

    data: bytes
    version: str


@dataclass(frozen=True)
class Part:
    """Some bytes of a key, the version they are from, and the size of the whole in bytes."""

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
    AbsentError, never a part. When a put returns, its content survives the loss of the machine (S3) or
    of its power (a folder). What was put is what the next get and list see, from anywhere.

    What is read is not verified: keep a SHA-256 of what must be right.
    """

    @property
    def uri(self) -> str:
        """Where this is, for people and for `open_store`; holds no secrets."""

    def get(self, key: str) -> Item:
        """Return the whole content; AbsentError when the key is absent."""

    def get_range(self, key: str, offset: int, length: int) -> Part:
        """Return at most `length` bytes from `offset`; fewer only at the end, none past it."""

    def put(self, key: str, data: bytes | Path) -> None:
        """Write the key whatever was there; a path is the file to read, so that a large one is not held."""

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
        """Remove the key; it need not be there."""

    def list(self, folder: str = "") -> list[Entry]:
        """Return every key below `folder` (all keys for "") in no particular order."""


def check_key(key: str) -> str:
    """Return `key`, or raise DataError if a store cannot hold it or could be made to leave its folder by it.

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
