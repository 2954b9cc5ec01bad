"""Keep the newest checkpoints of a run and delete the rest. For the owner of HEAD only."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from job.errors import DataError
from job.run import layout
from job.run.documents import NewerSchemaError
from job.run.records import Manifest
from job.store.base import Store

KEPT = 3


@dataclass(frozen=True)
class Pruner:
    """Deletes for one attempt, which may touch nothing of a later generation than its own.

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
