"""HEAD: the one mutable key of a run, which says who owns it and which checkpoint is its newest."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from job.errors import DataError
from job.run import documents, manifest
from job.store.base import AbsentError, Store

KEY = "HEAD.json"
SCHEMA = "micronet.head/1"


@dataclass(frozen=True)
class Head:
    """The owner of a run and the key of its newest committed manifest, None before the first."""

    generation: int
    owner: str
    manifest: str | None
    position: int


@dataclass(frozen=True)
class Seen:
    """What was found: `head` None says that it is missing or unreadable, `version` None that it is missing.

    `problem` is the reason why it is unreadable.
    """

    head: Head | None
    version: str | None
    problem: str | None = None


def read(store: Store) -> Seen:
    """Return HEAD as it is now, in whatever state; NewerSchemaError when a later program owns the run."""
    try:
        part = documents.read(store, KEY)
    except AbsentError:
        return Seen(None, None)
    try:
        return Seen(_decode(part.data), part.version)
    except DataError as error:
        return Seen(None, part.version, error.message)


def swap(store: Store, head: Head, version: str | None) -> str:
    """Move HEAD from `version` (None: from not being there) and return the new one, else ConflictError."""
    data = documents.encode(SCHEMA, asdict(head))
    if version is None:
        return store.put_if_absent(KEY, data)
    return store.put_if_match(KEY, data, version)


def _decode(data: bytes) -> Head:
    content = documents.decode(data, SCHEMA, KEY)
    named = content.get("manifest")
    if named is not None and (not isinstance(named, str) or manifest.order_of(named) is None):
        raise DataError(f"{KEY} names no manifest")
    return Head(
        generation=documents.number(content, "generation", 1, manifest.MAX_COUNT),
        owner=documents.text(content, "owner", manifest.OWNER),
        manifest=named,
        position=documents.number(content, "position"),
    )
