"""States that no store would take, kept on the machine's own disk for an attempt that starts there again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from job import events
from job.errors import DataError
from job.run import layout
from job.run.state import TrainingState
from job.store.base import AbsentError
from job.store.local import LocalStore

DIGEST_BYTES = hashlib.sha256().digest_size


class Unsaved:
    """The states of one run and recipe in `folder`, which other runs may share.

    A file is named by the recipe's fingerprint and by the generation and owner of the attempt that kept it.
    `is_attempt` returns whether the run has an attempt of that generation and owner: what another run kept
    is neither read nor deleted.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        generation: int,
        owner: str,
        is_attempt: Callable[[int, str], bool],
    ) -> None:
        self._folder, self._store = folder, LocalStore(folder)
        self._fingerprint, self._is_attempt = fingerprint, is_attempt
        self._own = layout.unsaved(fingerprint, generation, owner)
        self._found: list[str] = []

    @property
    def path(self) -> str:
        """Where this attempt keeps its state, for people."""
        return f"{self._store.uri}/{self._own}"

    def keep(self, state: TrainingState) -> None:
        """Write the state; MachineError when the disk is full."""
        data = state.encode()
        self._store.put(self._own, hashlib.sha256(data).digest() + data)

    def find(self, most: int) -> tuple[str, TrainingState] | None:
        """Return the file and the furthest state, of at most `most` bytes; None where none is whole."""
        if (self._folder / layout.unsaved_before(self._fingerprint)).exists():
            name = f"{self._store.uri}/{layout.unsaved_before(self._fingerprint)}"
            events.warn("unsaved_state_ignored", file=name, reason="its name does not say of which run it is")
        names = [path.name for path in self._folder.glob(layout.unsaved(self._fingerprint, "*", "*"))]
        kept = {name: layout.keeper_of(name) for name in names}
        self._found = [name for name, keeper in kept.items() if keeper and self._is_attempt(*keeper)]
        states = [(name, state) for name in self._found if (state := self._read(name, most))]
        if not states:
            return None
        name, state = max(states, key=lambda pair: (pair[1].epoch, pair[1].step))
        return f"{self._store.uri}/{name}", state

    def drop(self) -> None:
        """Remove what this attempt kept and what it has found."""
        for name in (self._own, *self._found):
            self._store.delete(name)
        self._found = []

    def _read(self, name: str, most: int) -> TrainingState | None:
        try:
            content = self._store.get(name).data
            digest, data = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
            return TrainingState.decode(data, most) if hashlib.sha256(data).digest() == digest else None
        except (AbsentError, DataError):
            return None
