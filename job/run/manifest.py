"""A checkpoint's manifest: what it holds, under which keys, with which hashes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from job.errors import DataError
from job.run import documents
from job.store.base import Store

SCHEMA = "micronet.checkpoint/1"
MANIFESTS = "manifests"
OBJECTS = "objects"

MAX_OBJECTS = 64
MAX_CHECKPOINT_BYTES = 2**32
"""4 GiB in all; a single put takes 5 GiB. The default network's checkpoint has 116 MB."""

MAX_COUNT = 999_999_999
_COUNT = "[1-9][0-9]{0,8}"
OWNER = "[0-9a-f]{16}"
_SHA256 = "[0-9a-f]{64}"
_NAME = "[a-z0-9][a-z0-9._-]{0,63}"
_FINGERPRINT = "[0-9a-f]{1,64}"
_MANIFEST_KEY = re.compile(rf"{MANIFESTS}/({_COUNT})-({_COUNT})\.json")
_OBJECT_KEY = re.compile(rf"{OBJECTS}/({_COUNT})-({OWNER})/{_SHA256}")


@dataclass(frozen=True)
class StoredObject:
    """Where an object lies, its SHA-256 and its size in bytes."""

    key: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """One checkpoint of a run: the `number`th of the attempt `generation`.

    `epoch` and `step` are those that training goes on with, `position` counts the steps done since the start
    of the run. `finished`: the run's outputs are among the objects. `parent` is the key of the manifest
    before, `saved` the time in UTC; both are for people.
    """

    fingerprint: str
    generation: int
    number: int
    owner: str
    epoch: int
    step: int
    position: int
    finished: bool
    objects: dict[str, StoredObject]
    parent: str | None
    metrics: dict[str, Any]
    saved: str

    @property
    def key(self) -> str:
        """Where the manifest itself lies."""
        return f"{MANIFESTS}/{self.generation}-{self.number}.json"

    @property
    def order(self) -> tuple[int, int]:
        """What sorts the manifests of a run, older first."""
        return self.generation, self.number

    def encode(self) -> bytes:
        """Return the content of `key`; DataError for what `decode` would refuse."""
        data = documents.encode(SCHEMA, asdict(self))
        decode(self.key, data)
        return data


@dataclass(frozen=True)
class Checkpoint:
    """A manifest and its objects' content, by name, verified against it."""

    manifest: Manifest
    objects: dict[str, bytes]


def describe(data: bytes, generation: int, owner: str) -> StoredObject:
    """Return where that attempt keeps `data`."""
    sha256 = hashlib.sha256(data).hexdigest()
    return StoredObject(f"{OBJECTS}/{generation}-{owner}/{sha256}", sha256, len(data))


def order_of(key: str) -> tuple[int, int] | None:
    """Return (generation, number) of a manifest's key as integers, None for any other key."""
    match = _MANIFEST_KEY.fullmatch(key)
    return (int(match[1]), int(match[2])) if match else None


def writer_of(key: str) -> tuple[int, str] | None:
    """Return (generation, owner) of an object's key, None for any other key."""
    match = _OBJECT_KEY.fullmatch(key)
    return (int(match[1]), match[2]) if match else None


def read(store: Store, key: str) -> Manifest:
    """Return the manifest at `key`; DataError when it is absent, damaged or asks for what it may not."""
    if order_of(key) is None:
        raise DataError(f"{key} is no manifest's name")
    return decode(key, documents.read(store, key).data)


def decode(key: str, data: bytes) -> Manifest:
    """Return the manifest in `data`; DataError unless every field is of its type, bounds and form."""
    content = documents.decode(data, SCHEMA, key)
    manifest = Manifest(
        fingerprint=documents.text(content, "fingerprint", _FINGERPRINT),
        generation=documents.number(content, "generation", 1, MAX_COUNT),
        number=documents.number(content, "number", 1, MAX_COUNT),
        owner=documents.text(content, "owner", OWNER),
        epoch=documents.number(content, "epoch"),
        step=documents.number(content, "step"),
        position=documents.number(content, "position"),
        finished=documents.flag(content, "finished"),
        objects=_objects(documents.mapping(content, "objects")),
        parent=None
        if content.get("parent") is None
        else documents.text(content, "parent", _MANIFEST_KEY.pattern),
        metrics=documents.mapping(content, "metrics"),
        saved=_time(documents.text(content, "saved", "[0-9T:.+Z-]{19,40}")),
    )
    if manifest.key != key:
        raise DataError(f"{key} holds the manifest of {manifest.key}")
    # An attempt names only what it wrote itself, so nothing that another prunes can be missing here.
    for stored in manifest.objects.values():
        if writer_of(stored.key) != (manifest.generation, manifest.owner):
            raise DataError(f"{key} names an object of another writer, {stored.key[:100]}")
    return manifest


def _objects(content: dict[str, Any]) -> dict[str, StoredObject]:
    if len(content) > MAX_OBJECTS:
        raise DataError(f"it names {len(content)} objects, more than {MAX_OBJECTS}")
    objects = {}
    for name in content:
        if not re.fullmatch(_NAME, name):
            raise DataError(f"{name[:100]!r} is no object's name")
        fields = documents.mapping(content, name)
        sha256 = documents.text(fields, "sha256", _SHA256)
        key = documents.text(fields, "key", _OBJECT_KEY.pattern)
        if not key.endswith(sha256):
            raise DataError(f"its object {name} lies at {key}, which is not its SHA-256")
        size = documents.number(fields, "bytes", 0, MAX_CHECKPOINT_BYTES)
        objects[name] = StoredObject(key, sha256, size)
    if sum(stored.bytes for stored in objects.values()) > MAX_CHECKPOINT_BYTES:
        raise DataError(f"its objects are larger than the {MAX_CHECKPOINT_BYTES} bytes allowed")
    return objects


def _time(saved: str) -> str:
    try:
        aware = datetime.fromisoformat(saved).tzinfo is not None
    except ValueError:
        aware = False
    if not aware:
        raise DataError(f"its saved is {saved!r}, no time with a zone")
    return saved
