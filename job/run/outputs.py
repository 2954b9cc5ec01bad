"""The files of a run: who it is (`recipe.json`), how it went, and what it produced. Each is written whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Any

from job import events
from job.errors import ConfigurationError, DataError
from job.settings import Recipe
from job.store.base import AbsentError, ConflictError, Store

RECIPE, HISTORY, WEIGHTS, PREDICTIONS, SAMPLES, REPORT = (
    "recipe.json",
    "history.jsonl",
    "weights.safetensors",
    "predictions.npz",
    "samples.png",
    "report.json",
)


SHAPE = ("depth", "width")
"""Fields of the recipe that no run can change."""


class Run:
    """One run's folder or prefix, holding the outputs of one recipe; `identity` is its first fingerprint."""

    def __init__(self, store: Store, recipe: Recipe, identity: str) -> None:
        self.store, self.recipe, self.identity = store, recipe, identity
        self._drifted = False

    @classmethod
    def open(cls, store: Store, recipe: Recipe, accept_drift: bool = False) -> Run:
        """Claim `store` for `recipe`; raise ConfigurationError if it belongs to another one.

        With `accept_drift` another recipe for the same network goes on with it (see `adopt`).
        """
        run = cls(store, recipe, recipe.fingerprint)
        with contextlib.suppress(ConflictError):
            run.store.put_if_absent(RECIPE, run._recipe())
        found = run._read_json(RECIPE) or {}
        run.identity = str(found.get("identity", recipe.fingerprint))
        differences = recipe.differences(found)
        if differences and not (accept_drift and differences.keys().isdisjoint(SHAPE)):
            changes = ", ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in differences.items())
            raise ConfigurationError(
                f"{run.store.uri} belongs to another recipe: {changes}",
                "Ask for the same recipe, or give this one its own folder with --run",
            )
        run._drifted = bool(differences)
        return run

    def adopt(self) -> None:
        """Make the recipe the run's own if it was another; the run keeps its identity."""
        if self._drifted:
            self.store.put(RECIPE, self._recipe())
            self._drifted = False

    def _recipe(self) -> bytes:
        return json.dumps({**self.recipe.to_json(), "identity": self.identity}, indent=2).encode()

    def uri(self, name: str) -> str:
        """Return the address of one of the files."""
        return f"{self.store.uri}/{name}"

    def report(self) -> dict[str, Any] | None:
        """Return the report of a finished run, None for one that is not finished."""
        return self._read_json(REPORT)

    def publish(self, outputs: dict[str, bytes]) -> None:
        """Copy a finished run's outputs, by name, to where people look for them; the report comes last."""
        events.phase("publish")
        for name in sorted(outputs, key=lambda name: name == REPORT):
            self.store.put(name, outputs[name])

    def describe(self, name: str, data: bytes) -> dict[str, str]:
        """Return the report's {uri, sha256} of an output."""
        return {"uri": self.uri(name), "sha256": hashlib.sha256(data).hexdigest()}

    def _read_json(self, name: str) -> dict[str, Any] | None:
        try:
            data = self.store.get(name).data
        except AbsentError:
            return None
        try:
            content = json.loads(data)
            if not isinstance(content, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise DataError(
                f"{self.uri(name)} is not what this program wrote ({error})",
                "Name another folder with --run, or look at what has changed the file",
            ) from error
        return content


class HistoryCopy:
    """The `history.jsonl` of a run that is being trained: a copy, for people, of what its checkpoints hold.

    It is replaced only as it was last seen: an attempt that was paused before a write and is fenced by the
    time it wakes up leaves the newer one's alone.
    """

    def __init__(self, store: Store) -> None:
        self.store, self.version = store, self._seen(store)

    def write(self, data: bytes) -> None:
        """Write it, unless somebody else has; to be called after a commit, which says whose the run is."""
        try:
            if self.version is None:
                self.version = self.store.put_if_absent(HISTORY, data)
            else:
                self.version = self.store.put_if_match(HISTORY, data, self.version)
        except ConflictError:
            self.version = self._seen(self.store)

    @staticmethod
    def _seen(store: Store) -> str | None:
        try:
            return store.get(HISTORY).version
        except AbsentError:
            return None
