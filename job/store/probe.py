"""Check with throw-away keys that a store honours conditional writes."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from uuid import uuid4

from job.errors import ConfigurationError
from job.store.base import ConflictError, RefusedError, Store

FOLDER = "probes"
STALE_SECONDS = 3600
"""A probe takes seconds, and S3 refuses a clock that is 15 minutes off: an hour is old by every clock."""

DANGER = "two attempts could overwrite each other"

_THROWAWAY = re.compile(rf"{FOLDER}/(\d{{1,12}})-[0-9a-f]{{32}}")


def throwaway_key() -> str:
    """Return a key that nobody else uses and that holds the time it was made."""
    return f"{FOLDER}/{int(time.time())}-{uuid4().hex}"


def sweep(store: Store) -> None:
    """Delete the throw-away keys of processes that were killed over an hour ago."""
    with contextlib.suppress(RefusedError):  # listing may be forbidden where writing is allowed
        for entry in store.list(FOLDER):
            name = _THROWAWAY.fullmatch(entry.key)
            if name and time.time() - int(name[1]) > STALE_SECONDS:
                store.delete(entry.key)


def probe(store: Store) -> None:
    """Check on a throw-away key that `store` honours the conditions of conditional writes.

    Raises ConfigurationError where it does not, and the store's errors.
    """
    key = throwaway_key()
    reason = _fault(store, key)
    store.delete(key)  # not in a `finally`, which a signal would have to wait for: `sweep` deletes it later
    if reason:
        raise ConfigurationError(
            f"{store.uri} {reason}",
            "Use a store that honours conditional writes, such as AWS S3 or SeaweedFS, or a folder",
        )


def _fault(store: Store, key: str) -> str | None:
    """Return what is wrong with conditional writes, by four writes to a new key; None where they work."""
    one, two, three = (f"{key} {number}".encode() for number in (1, 2, 3))
    try:
        first = store.put_if_absent(key, one)
    except ConflictError:
        return "refuses a conditional write (If-None-Match) although the key is new"
    if not _conflicts(lambda: store.put_if_absent(key, two)):
        return f"ignores If-None-Match: {DANGER}"
    if _conflicts(lambda: store.put_if_match(key, two, first)):
        return "refuses a conditional write (If-Match) although the version is right"
    if not _conflicts(lambda: store.put_if_match(key, three, first)):
        return f"ignores If-Match: {DANGER}"
    return None


def _conflicts(put: Callable[[], str]) -> bool:
    try:
        put()
    except ConflictError:
        return True
    return False
