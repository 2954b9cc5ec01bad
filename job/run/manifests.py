"""A run's checkpoints from the newest on: the first that verifies, and those that are no longer needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from job import events
from job.errors import ConfigurationError, DataError
from job.run import claims, layout
from job.run.documents import NewerSchemaError
from job.run.records import Manifest, StoredObject
from job.store.base import AbsentError, ConflictError, Store

KEPT = 3
"""Checkpoints of a run that stay in its store."""

T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """A manifest and its objects' content, by name, verified against it."""

    manifest: Manifest
    objects: dict[str, bytes]


@dataclass(frozen=True)
class Found:
    """HEAD as it was seen, the newest checkpoint that verifies (None: a fresh run), and those skipped."""

    seen: claims.Seen
    checkpoint: Checkpoint | None
    skipped: frozenset[str]


def newest(store: Store, fingerprint: str) -> Found:
    """Return the checkpoint that HEAD names, or the newest other one that verifies.

    Raises DataError when there are checkpoints and none verifies, ConfigurationError when the run is of
    another fingerprint or was written by a later program, ConflictError when a live attempt moves HEAD
    meanwhile and so may have pruned what was being read.
    """
    # Listed first: whatever is in the list was written after a HEAD that is then seen below.
    listed = [entry.key for entry in store.list(layout.MANIFESTS)]
    seen = claims.read_head(store)
    candidates = _candidates(seen, listed)
    if seen.problem or (candidates and not seen.head):
        _log_skipped(layout.HEAD, seen.problem or f"there is no {layout.HEAD}")
    skipped: set[str] = set()
    for key in candidates:
        try:
            return Found(seen, load(store, key, fingerprint), frozenset(skipped))
        except DataError as error:
            if claims.read_head(store).version != seen.version:
                raise ConflictError(f"{layout.HEAD} has moved") from error
            _log_skipped(key, error.message)
            skipped.add(key)
    if candidates or seen.problem:
        raise DataError(
            f"{store.uri} holds a run, but none of its {len(candidates)} checkpoints verifies",
            "Nothing was changed. Put the objects back from a copy, or start anew with another --run",
        )
    return Found(seen, None, frozenset())


def load(store: Store, key: str, fingerprint: str) -> Checkpoint:
    """Return the checkpoint of the manifest at `key`, every object checked against its size and SHA-256.

    Raises DataError when something is missing or differs, ConfigurationError for another fingerprint.
    """
    manifest = _retry_once_if_damaged(lambda: Manifest.read(store, key))
    if manifest.fingerprint != fingerprint:
        raise ConfigurationError(
            f"{store.uri} holds a run of recipe {manifest.fingerprint}, not of {fingerprint}",
            "Give the options it was started with, or another --run",
        )
    objects = {}
    for name, stored in manifest.objects.items():
        objects[name] = _retry_once_if_damaged(partial(_load, store, stored))
    return Checkpoint(manifest, objects)


def _load(store: Store, stored: StoredObject) -> bytes:
    data = store.get_range(stored.key, 0, stored.bytes + 1).data  # one more shows what has grown
    if len(data) != stored.bytes or hashlib.sha256(data).hexdigest() != stored.sha256:
        raise DataError(f"{stored.key} does not have the size and SHA-256 that its manifest states")
    return data


def _retry_once_if_damaged(verify: Callable[[], T]) -> T:
    """Try again where bits may have flipped on the way and not in the store."""
    try:
        return verify()
    except AbsentError:
        raise
    except DataError:
        return verify()


def _candidates(seen: claims.Seen, listed: list[str]) -> list[str]:
    """HEAD's manifest, then the others from the newest to the oldest; what is not a manifest comes last."""
    named = seen.head.manifest if seen.head else None
    others = sorted((key for key in listed if key != named), key=lambda key: layout.order_of(key) or (0, 0))
    return [*([named] if named else []), *reversed(others)]


def _log_skipped(key: str, reason: str) -> None:
    events.warn("checkpoint_skipped", manifest=key, reason=reason)


@dataclass(frozen=True)
class Pruner:
    """Deletes what is no longer needed, for the owner of HEAD, which may touch no later generation's.

    Why no object that HEAD needs can go, even when the owner was paused in here and is fenced by now: a
    newer attempt moves HEAD either to what HEAD named before, which is kept here, or to what it wrote
    itself, which is of a later generation.
    """

    store: Store
    generation: int

    def drop(self, dropped: list[Manifest], kept: list[Manifest]) -> None:
        """Delete the manifests `dropped` and their objects, but none that one of `kept` names too."""
        for manifest in dropped:
            self.store.delete(manifest.key)
        for key in named(dropped) - named(kept):
            self.store.delete(key)

    def sweep(self, kept: list[Manifest], bad: Collection[str]) -> list[Manifest]:
        """Delete all but `kept` and, if those are few, the newest others; return what is kept, newest first.

        `bad` are manifests known not to verify. What a later generation wrote is left alone.
        """
        sizes = {entry.key: entry.size for entry in self.store.list(layout.OBJECTS)}
        orders = {entry.key: layout.order_of(entry.key) for entry in self.store.list(layout.MANIFESTS)}
        ours = [(order, key) for key, order in orders.items() if order and order[0] <= self.generation]
        known = {manifest.key for manifest in kept}
        for _, key in sorted(ours, reverse=True):
            if key in known:
                continue
            other = self._whole(key, sizes) if len(kept) < KEPT and key not in bad else None
            if other:
                kept = [*kept, other]
            else:
                self.store.delete(key)
        needed = named(kept)
        for key in sizes:
            writer = layout.writer_of(key)
            if writer and writer[0] <= self.generation and key not in needed:
                self.store.delete(key)
        return sorted(kept, key=lambda manifest: manifest.order, reverse=True)

    def _whole(self, key: str, sizes: dict[str, int]) -> Manifest | None:
        """Return the manifest if it is readable and its objects are there."""
        try:
            manifest = Manifest.read(self.store, key)
        except (DataError, NewerSchemaError):
            return None
        there = all(sizes.get(stored.key) == stored.bytes for stored in manifest.objects.values())
        return manifest if there else None


def named(manifests: list[Manifest]) -> set[str]:
    """Return the keys of all their objects."""
    return {stored.key for manifest in manifests for stored in manifest.objects.values()}
