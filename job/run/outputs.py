"""The files of a run: its identity (`recipe.json`), history, weights and outputs; each is written whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence

from job import events
from job.errors import ConfigurationError, DataError
from job.network import weights
from job.recipe import Recipe
from job.run import claims, documents, layout
from job.run.records import Epoch, Identity, Manifest, Scalar
from job.run.report import BestEpoch, StoredFile
from job.settings import RETRY_SECONDS
from job.store import local_path, open_store
from job.store.base import AbsentError, ConflictError, Store

MAX_WEIGHTS_BYTES = 2**32

SHAPE = ("depth", "width")
"""Fields of the recipe that no run can change."""


class Run:
    """One run's folder or prefix, holding the outputs of one recipe; `identity` is its first fingerprint.

    Which recipe is the run's now is a field of its newest manifest, where an attempt that has lost the run
    cannot write. recipe.json is what the run was created with, then a copy for people.
    """

    def __init__(self, store: Store, recipe: Recipe, identity: str, created: dict[str, Scalar]) -> None:
        self.store, self.recipe, self.identity = store, recipe, identity
        self._created = created  # by recipe.json
        self._accept_drift = False

    @classmethod
    def open(cls, store: Store, recipe: Recipe, accept_drift: bool = False) -> Run:
        """Create the run of `recipe` in `store`, or open it; ConfigurationError if it is another recipe's.

        With `accept_drift` another recipe for the same network is accepted; the run keeps its identity.
        """
        with contextlib.suppress(ConflictError):
            store.put_if_absent(layout.RECIPE, _encode(recipe, recipe.fingerprint))
        name = f"{store.uri}/{layout.RECIPE}"
        content = documents.json_object(documents.fetch(store, layout.RECIPE).data, name)
        found = Identity.parse(content, name)
        run = cls(store, recipe, found.identity or recipe.fingerprint, found.recipe)
        run._accept_drift = accept_drift
        run.check(run._newest())
        return run

    def check(self, newest: Manifest | None) -> None:
        """Raise ConfigurationError when the run's recipe, by its newest manifest, is another one."""
        recipe = newest.recipe if newest and newest.recipe else self._created
        differences = self.recipe.differences(recipe)
        if differences and not (self._accept_drift and differences.keys().isdisjoint(SHAPE)):
            newer = differences.keys() - self.recipe.to_json().keys()
            changes = ", ".join(
                f"{name} {old!r}" + (", a field of a newer version" if name in newer else f" -> {new!r}")
                for name, (old, new) in differences.items()
            )
            raise ConfigurationError(
                f"{self.store.uri} belongs to another recipe: {changes}",
                "Resume with the version that wrote it, or a newer one"
                if newer
                else "Ask for the same recipe, or give this one its own folder with --run",
            )

    def recipe_copy(self) -> Copy | None:
        """Return the copy of the recipe that is to be written after a commit, None where it is right."""
        return Copy(self.store, layout.RECIPE) if self.recipe.differences(self._created) else None

    def encode_recipe(self) -> bytes:
        """Return the content of recipe.json."""
        return _encode(self.recipe, self.identity)

    def uri(self, name: str) -> str:
        """Return the address of one of the files."""
        return f"{self.store.uri}/{name}"

    def publish(self, outputs: dict[str, bytes]) -> None:
        """Copy a finished run's outputs, by name, to where people look for them; the report comes last."""
        events.phase("publish")
        for name in sorted(outputs, key=lambda name: name == layout.REPORT):
            self.store.put(name, outputs[name])

    def describe(self, name: str, data: bytes) -> StoredFile:
        """Return the report's entry of an output."""
        return StoredFile(uri=self.uri(name), sha256=hashlib.sha256(data).hexdigest())

    def _newest(self) -> Manifest | None:
        """Return HEAD's manifest; None also where it is damaged, since the claim then finds an older one."""
        try:
            return claims.latest(self.store)
        except DataError:
            return None


class Copy:
    """A file of a run that is being trained: a copy, for people, of what its checkpoints hold.

    It is replaced only as it was last seen: an attempt that was paused before a write and is fenced by the
    time it wakes up leaves the newer one's alone.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self.version = self._seen()
        self._written: bytes | None = None

    def write(self, data: bytes) -> None:
        """Write it, unless another attempt has; call it after a commit, which verifies the ownership."""
        if data == self._written:
            return
        try:
            if self.version is None:
                self.version = self.store.put_if_absent(self.name, data)
            else:
                self.version = self.store.put_if_match(self.name, data, self.version)
            self._written = data
        except ConflictError:
            self.version = self._seen()

    def _seen(self) -> str | None:
        try:
            return self.store.get_range(self.name, 0, 1).version
        except AbsentError:
            return None


class History:
    """One record an epoch, as the lines of `history.jsonl`."""

    def __init__(self, epochs: Sequence[Epoch] = ()) -> None:
        self.records = list(epochs)

    def add(self, figures: Mapping[str, float | str], attempt: int) -> Epoch:
        """Append the next epoch's record; raise ConfigurationError when its loss is not finite."""
        last = len(self.records)
        losses = {name: float(figures[name]) for name in ("train_loss", "test_loss") if name in figures}
        if not all(map(math.isfinite, losses.values())):
            raise ConfigurationError(
                f"the loss of epoch {last + 1} is not finite "
                f"({', '.join(f'{name} {loss}' for name, loss in losses.items())}); "
                + (f"epoch {last} was the last good one" if last else "no epoch was good"),
                "Lower the learning rate in --cycles, or use --precision fp32",
            )
        record = Epoch.parse({"epoch": last + 1, "attempt": attempt, **figures}, f"epoch {last + 1}")
        self.records.append(record)
        return record

    def evaluate_last(self, figures: Mapping[str, float]) -> None:
        """Add the figures of an evaluation to the last epoch's record; raises what `add` raises."""
        last = self.records.pop()
        self.add(last.to_json() | dict(figures), last.attempt)

    def best(self) -> BestEpoch:
        """Return the report's best epoch; the first of equals.

        It is selected on the hold-out where every evaluated epoch had one (a run may change it on its way).
        """
        evaluated = [(record.accuracy, record) for record in self.records if record.accuracy is not None]
        chosen = [(record.holdout_accuracy, record) for _, record in evaluated]
        on_holdout = [(share, record) for share, record in chosen if share is not None]
        with_holdout = len(on_holdout) == len(evaluated)
        _, best = max(on_holdout if with_holdout else evaluated, key=lambda pair: pair[0])
        assert best.accuracy is not None  # it was evaluated
        return BestEpoch(
            value=best.accuracy, epoch=best.epoch, selected_on="holdout" if with_holdout else "test"
        )

    def encode(self) -> bytes:
        """Return one JSON object a line."""
        return b"".join(json.dumps(record.to_json()).encode() + b"\n" for record in self.records)


def read_weights(uri: str, retry_seconds: float = RETRY_SECONDS) -> bytes:
    """Return the file of weights that `uri` names: a .safetensors file, or that of a finished run.

    Raises DataError where there is none or it has more than MAX_WEIGHTS_BYTES, and the store's errors.
    """
    fix = "Name a finished run or a .safetensors file"
    folder, name = weights.locate(uri, layout.WEIGHTS)
    try:
        data = documents.fetch(open_store(folder, retry_seconds), name, MAX_WEIGHTS_BYTES).data
    except AbsentError as error:
        path = local_path(folder)
        if path is not None and (path / name).is_dir():
            raise DataError(f"{uri} is a folder", fix) from error
        if path is not None and path.is_dir():
            raise DataError(f"{folder} has no {name}", fix) from error
        raise DataError(error.message, fix) from error
    if len(data) > MAX_WEIGHTS_BYTES:
        raise DataError(f"{uri} is larger than the {MAX_WEIGHTS_BYTES} bytes allowed", fix)
    return data


def _encode(recipe: Recipe, identity: str) -> bytes:
    return json.dumps({**recipe.to_json(), "identity": identity}, indent=2).encode()
