"""A state that no store would take, kept on the machine's own disk for an attempt that starts there again."""

from __future__ import annotations

import hashlib
from pathlib import Path

from job.errors import DataError
from job.run import layout
from job.run.state import TrainingState
from job.store.base import AbsentError
from job.store.local import LocalStore

DIGEST_BYTES = hashlib.sha256().digest_size


class Unsaved:
    """The place in `folder` for a run's state. The run's recipe makes it right for whatever attempt reads it.

    Nothing random is stored, so a state of the same recipe is the run's own, whoever trained it.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._store, self._key = LocalStore(folder), layout.unsaved(fingerprint)

    @property
    def path(self) -> str:
        """Where it is, for people."""
        return f"{self._store.uri}/{self._key}"

    def keep(self, state: TrainingState) -> None:
        """Write the state; MachineError when the disk is full."""
        data = state.encode()
        self._store.put(self._key, hashlib.sha256(data).digest() + data)

    def find(self, most: int) -> TrainingState | None:
        """Return the state of at most `most` bytes, None where there is none or it is damaged."""
        try:
            content = self._store.get(self._key).data
            digest, data = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
            return TrainingState.decode(data, most) if hashlib.sha256(data).digest() == digest else None
        except (AbsentError, DataError):
            return None

    def drop(self) -> None:
        """Remove it."""
        self._store.delete(self._key)
