"""The checkpoints of a run: one attempt owns it and commits them in order; the next resumes from the newest.

The largest generation owns the run: there is no lease and no clock. A checkpoint is written objects first,
then manifest, then HEAD, so whatever HEAD names is whole. The keys are those of `layout`.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from job import events
from job.errors import ConfigurationError, DataError, FencedError, JobError, PreemptedError
from job.run import claims, documents, manifests, records
from job.run.lineage import REFUSED, Turn, lineage, reason_of
from job.run.manifests import KEPT, Checkpoint, Pruner, named
from job.run.records import Claim, End, Head, Manifest, Metrics, StoredObject, Worker
from job.store.base import ConflictError, Store

MAX_REASON = 1000  # characters of an attempt's end
END_SECONDS = 5.0  # that recording the reason of a failure may take


class Checkpoints:
    """Commits the checkpoints of the attempt that owns a run. For one thread at a time."""

    def __init__(
        self, store: Store, fingerprint: str, claim: Claim, check: Callable[[Manifest], None]
    ) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._claim = claim
        self._check = check
        self._head_version: str | None = None
        self._number = 0  # of the last manifest tried
        self._written: set[str] = set()  # objects that are surely in the store
        self._kept: list[Manifest] = []  # newest first; the first is HEAD's
        self._bad: frozenset[str] = frozenset()
        self._needs_sweep = True  # there may be more in the store than this attempt knows of

    @property
    def generation(self) -> int:
        """The attempt's number, larger than every earlier one's."""
        return self._claim.generation

    @property
    def owner(self) -> str:
        """A random token of the attempt."""
        return self._claim.owner

    @property
    def worker(self) -> Worker:
        """What the attempt's claim says of it."""
        return self._claim.attempt

    @property
    def ended(self) -> bool:
        """Return whether the attempt's end has been recorded."""
        return self._claim.end is not None

    @classmethod
    def claim(
        cls,
        store: Store,
        fingerprint: str,
        worker: Worker,
        check: Callable[[Manifest], None] = lambda manifest: None,
    ) -> tuple[Checkpoints, Checkpoint | None]:
        """Take the run over from its owner; return it and the newest checkpoint, None if there is none.

        An attempt that still runs is stopped by its next commit. `check` may refuse the newest checkpoint.
        Raises DataError when there are checkpoints and none verifies (HEAD stays as it is),
        ConfigurationError when the run is of another fingerprint, FencedError when a newer attempt has it,
        and what `check` raises; whatever it raises is recorded as the attempt's end.
        """
        claim = claims.take_next(store, secrets.token_hex(8), worker)
        self = cls(store, fingerprint, claim, check)
        try:
            checkpoint = self._take_over()
            self._claim = claim.model_copy(update={"resumed": self._position})
            claims.save(store, self._claim)
        except (Exception, PreemptedError) as error:
            refused = isinstance(error, (DataError, ConfigurationError, FencedError))
            self.end_within(END_SECONDS, REFUSED if refused else reason_of(error))
            raise
        return self, checkpoint

    def commit(
        self,
        objects: dict[str, bytes],
        *,
        epoch: int,
        step: int,
        position: int,
        checkpoints: int = 0,
        finished: bool = False,
    ) -> Manifest:
        """Write a checkpoint; when this returns, the next attempt resumes from it or a later one.

        `checkpoints` is how many the run then has had. Raises FencedError when a newer attempt has the run
        (nothing is deleted then), and the store's errors, after which another commit may be tried.
        """
        fields = {
            "fingerprint": self._fingerprint,
            "epoch": epoch,
            "step": step,
            "position": position,
            "finished": finished,
            "metrics": Metrics(checkpoints=checkpoints),
            "parent": self._kept[0].key if self._kept else None,
            "recipe": self._claim.attempt.recipe,
            **self._signature(objects),
        }
        manifest = Manifest.parse(fields, "the checkpoint")
        try:
            self._write(manifest, objects)
            self._move(manifest)
        except BaseException:
            self._needs_sweep = True
            raise
        self._kept.insert(0, manifest)
        self._needs_sweep |= finished  # a last sweep for what a fenced attempt wrote since the first
        self._prune()
        return manifest

    def end(self, reason: str) -> None:
        """Record why this attempt ends, such as "finished" or "preempted"."""
        end = End(reason=events.printable(reason)[:MAX_REASON], ended=records.now(), position=self._position)
        self._claim = self._claim.model_copy(update={"end": end})
        claims.save(self._store, self._claim)

    def end_within(self, seconds: float, reason: str) -> None:
        """Record why this attempt fails, unless the store fails too or takes longer than `seconds`."""

        def end() -> None:
            with suppress(JobError):  # the attempt's own error is the one to raise
                self.end(reason)

        ending = threading.Thread(target=end, name="end", daemon=True)
        with suppress(RuntimeError):  # no thread is left
            ending.start()
            ending.join(seconds)

    def attempts(self) -> list[Turn]:
        """Return all attempts so far."""
        return lineage(self._store)

    @property
    def _position(self) -> int:
        return self._kept[0].position if self._kept else 0

    def _take_over(self) -> Checkpoint | None:
        while True:
            try:
                return self._resume()
            except ConflictError:
                # A live attempt moves HEAD faster than a checkpoint loads: stop it, then load in peace.
                self._stop_others()

    def _resume(self) -> Checkpoint | None:
        found = manifests.newest(self._store, self._fingerprint)
        if found.seen.head:
            self._raise_if_fenced(found.seen.head.generation)
        self._head_version, self._bad = found.seen.version, found.skipped
        checkpoint = found.checkpoint
        if checkpoint:
            self._check(checkpoint.manifest)
        if checkpoint and not (found.seen.head and found.seen.head.manifest == checkpoint.manifest.key):
            # The attempt before may be deleting what HEAD does not name: make it this one's own.
            checkpoint = self._copy(checkpoint)
        self._swap(checkpoint.manifest if checkpoint else None)
        self._kept = [checkpoint.manifest] if checkpoint else []
        return checkpoint

    def _stop_others(self) -> None:
        seen = claims.read_head(self._store)
        if seen.head:
            self._raise_if_fenced(seen.head.generation)
            ours = seen.head.model_copy(update={"generation": self.generation, "owner": self.owner})
            with suppress(ConflictError):
                claims.swap_head(self._store, ours, seen.version)

    def _copy(self, checkpoint: Checkpoint) -> Checkpoint:
        old, objects = checkpoint.manifest, checkpoint.objects
        manifest = old.model_copy(update={"parent": old.key, **self._signature(objects)})
        self._write(manifest, objects)
        return Checkpoint(manifest, objects)

    def _signature(self, objects: dict[str, bytes]) -> dict[str, Any]:
        """Return the fields that make a manifest this attempt's next."""
        self._number += 1
        return {
            "generation": self.generation,
            "owner": self.owner,
            "number": self._number,
            "objects": {
                name: StoredObject.of(data, self.generation, self.owner) for name, data in objects.items()
            },
            "saved": records.now(),
        }

    def _write(self, manifest: Manifest, objects: dict[str, bytes]) -> None:
        encoded = manifest.encode()
        for name, stored in manifest.objects.items():
            if stored.key not in self._written:
                self._store.put(stored.key, objects[name])
                self._written.add(stored.key)
        events.phase("commit", **manifest.place._asdict())
        try:
            self._store.put_if_absent(manifest.key, encoded)
        except ConflictError:
            # The same content is this attempt's own: the answer was lost.
            if documents.fetch(self._store, manifest.key).data != encoded:
                raise

    def _swap(self, manifest: Manifest | None) -> None:
        self._head_version = claims.swap_head(self._store, self._head(manifest), self._head_version)

    def _head(self, manifest: Manifest | None) -> Head:
        key, position = (manifest.key, manifest.position) if manifest else (None, 0)
        return Head(generation=self.generation, owner=self.owner, manifest=key, position=position)

    def _move(self, manifest: Manifest) -> None:
        """Move HEAD to `manifest` unless a newer attempt has the run."""
        while True:
            try:
                self._swap(manifest)
                return
            except ConflictError:
                seen = claims.read_head(self._store)
            if seen.head:
                self._raise_if_fenced(seen.head.generation)
            else:  # somebody has deleted or damaged it, and so who else has claimed the run decides
                self._raise_if_fenced(max(claims.generations(self._store), default=0))
            self._head_version = seen.version
            if seen.head == self._head(manifest):  # it had moved: the answer was lost
                return

    def _raise_if_fenced(self, generation: int) -> None:
        if generation > self.generation:
            host = claims.host(self._store, generation)
            raise FencedError(
                f"another attempt (generation {generation} on {host}) has taken {self._store.uri} over",
                "Let that one finish, or stop it and start this one again",
            )

    def _prune(self) -> None:
        """Delete what is no longer needed; a failure is logged and repaired after the next commit."""
        pruner = Pruner(self._store, self.generation)
        self._kept, dropped = self._kept[:KEPT], self._kept[KEPT:]
        self._written &= named(self._kept)
        sweep, self._needs_sweep = self._needs_sweep, True
        try:
            if sweep:
                self._kept = pruner.sweep(self._kept, self._bad)
            else:
                pruner.drop(dropped, self._kept)
            self._needs_sweep = False
        except JobError as error:
            events.warn("prune_failed", store=self._store.uri, reason=str(error))
