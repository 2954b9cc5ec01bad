"""The records of a run, each with its type and bounds: what is written is what may be read, nothing else."""

from __future__ import annotations

import builtins
import hashlib
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from job.errors import ConfigurationError, DataError
from job.run import layout
from job.run.documents import Document, Record, mistyped
from job.store.base import Store

LARGEST = 10**12
"""Bound of every number here: no count of steps, bytes, seconds or attempts comes near."""

MAX_OBJECTS = 64
MAX_CHECKPOINT_BYTES = 2**32
"""4 GiB in all; a single put takes 5 GiB. The default network's checkpoint has 116 MB."""


def _time(text: str) -> str:
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is None:
            raise ValueError("it has no zone")
        time.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"no time ({error})") from error
    return text


Count = Annotated[int, Field(ge=0, le=LARGEST)]
Number = Annotated[int, Field(ge=1, le=LARGEST)]
Generation = Annotated[int, Field(ge=1, le=layout.MAX_COUNT)]
Quantity = Annotated[float, Field(ge=0, le=LARGEST)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(max_length=2**16)]
Time = Annotated[str, Field(max_length=40), AfterValidator(_time)]
Owner = Annotated[str, Field(pattern=f"^{layout.OWNER}$")]
Fingerprint = Annotated[str, Field(pattern="^[0-9a-f]{1,64}$")]
Sha256 = Annotated[str, Field(pattern=f"^{layout.SHA256}$")]
ManifestKey = Annotated[str, Field(pattern=f"^{layout.MANIFEST_KEY}$")]
ObjectName = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9._-]{0,63}$")]
Scalar = Annotated[int, Field(ge=0, lt=2**64)] | float | bool | Text | None
"""A value of a recipe's field or of a machine's description; a seed has up to 64 bits."""

Fields = Annotated[dict[Annotated[str, Field(max_length=64)], Scalar], Field(max_length=64)]


def require_storable(size: int) -> None:
    """Raise ConfigurationError for a training state of more bytes than a checkpoint may hold."""
    if size > MAX_CHECKPOINT_BYTES:
        raise ConfigurationError(
            f"the training state takes {size / 1e9:.1f} GB, and a checkpoint holds "
            f"{MAX_CHECKPOINT_BYTES / 1e9:.1f} GB",
            "Choose a smaller --width or --depth",
        )


class StoredObject(Record):
    """Where an object lies, its SHA-256 and its size in bytes."""

    key: Annotated[str, Field(pattern=f"^{layout.OBJECT_KEY}$")]
    sha256: Sha256
    bytes: Annotated[int, Field(ge=0, le=MAX_CHECKPOINT_BYTES)]

    @classmethod
    def of(cls, data: builtins.bytes, generation: int, owner: str) -> StoredObject:
        """Return where that attempt keeps `data`; ConfigurationError for more than a checkpoint may hold."""
        require_storable(len(data))
        sha256 = hashlib.sha256(data).hexdigest()
        return cls(key=layout.stored(generation, owner, sha256), sha256=sha256, bytes=len(data))


class Metrics(Record):
    """Counters stored with a manifest: the checkpoints committed so far, over all attempts."""

    checkpoints: Count = 0


class Place(NamedTuple):
    """Where a training is, as people count: its epoch, from 1, and how many steps of that are done."""

    epoch: int
    step: int

    @classmethod
    def of(cls, epoch: int, step: int, steps_per_epoch: int) -> Self:
        """Return the place of a training that continues with `epoch` and `step`, both from 0.

        Between two epochs that is the end of the first, so that no run is in epoch 7 of 6.
        """
        return cls(epoch, steps_per_epoch) if epoch and not step else cls(epoch + 1, step)

    def __str__(self) -> str:
        return f"epoch {self.epoch} step {self.step}"


class Manifest(Document):
    """One checkpoint of a run: the `number`th of the attempt `generation`.

    `epoch` and `step` are those that training continues with, `position` counts the steps done since the
    start of the run. `finished`: the run's outputs are the objects. `parent` is the key of the manifest
    before, `saved` the time in UTC; both are for people. `recipe` is the run's from here on; None in what
    older versions wrote, where recipe.json holds it.
    """

    SCHEMA: ClassVar[str] = "micronet.checkpoint/1"

    fingerprint: Fingerprint
    generation: Generation
    number: Generation
    owner: Owner
    epoch: Count
    step: Count
    position: Count
    finished: bool
    objects: Annotated[dict[ObjectName, StoredObject], Field(max_length=MAX_OBJECTS)]
    parent: ManifestKey | None = None
    metrics: Metrics
    saved: Time
    recipe: Fields | None = None

    @model_validator(mode="after")
    def _names_only_its_own(self) -> Self:
        # An attempt names only what it wrote itself, so nothing that another prunes can be missing here.
        for stored in self.objects.values():
            if stored.key != layout.stored(self.generation, self.owner, stored.sha256):
                raise ValueError(f"it names an object of another writer or hash, {stored.key}")
        if sum(stored.bytes for stored in self.objects.values()) > MAX_CHECKPOINT_BYTES:
            raise ValueError(f"its objects are larger than the {MAX_CHECKPOINT_BYTES} bytes allowed")
        return self

    @property
    def key(self) -> str:
        """Where the manifest itself lies."""
        return layout.manifest(self.generation, self.number)

    @property
    def place(self) -> Place:
        """Where the training was."""
        return Place.of(self.epoch, self.step, (self.position - self.step) // max(1, self.epoch))

    @property
    def order(self) -> tuple[int, int]:
        """What sorts the manifests of a run, older first."""
        return self.generation, self.number

    @classmethod
    def decode(cls, data: bytes, key: str) -> Self:
        """See `Document`; it must also be the manifest of `key`."""
        manifest = super().decode(data, key)
        if manifest.key != key:
            raise DataError(f"{key} holds the manifest of {manifest.key}")
        return manifest

    @classmethod
    def read(cls, store: Store, key: str) -> Self:
        """See `Document`; `key` must be a manifest's."""
        if layout.order_of(key) is None:
            raise DataError(f"{key} is not a manifest's name")
        return super().read(store, key)


class Head(Document):
    """The owner of a run and the key of its newest committed manifest, None before the first."""

    SCHEMA: ClassVar[str] = "micronet.head/1"

    generation: Generation
    owner: Owner
    manifest: ManifestKey | None = None
    position: Count


class Worker(Record):
    """Who makes an attempt: host and machine, by the names of `device.machine`, and the recipe given."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Scalar] = Field(init=False)

    host: Text | None = None
    started: Time | None = None
    device: Text | None = None
    processes: Number | None = None  # of a recipe that has several shards
    recipe: Fields | None = None


class End(Record):
    """How an attempt ended, when, and the position of the newest checkpoint that it left."""

    reason: Text
    ended: Time
    position: Count


class Claim(Document):
    """A claim: its owner, machine and recipe, the position it resumed from, and its end if recorded.

    `resumed` is None until HEAD has been moved to it.
    """

    SCHEMA: ClassVar[str] = "micronet.claim/1"

    generation: Generation
    owner: Owner
    attempt: Worker
    resumed: Count | None = None
    end: End | None = None

    @property
    def key(self) -> str:
        """Where the claim lies."""
        return layout.claim(self.generation)


class Beat(Document):
    """Where an attempt was; what is not known yet is None."""

    SCHEMA: ClassVar[str] = "micronet.heartbeat/1"

    phase: Annotated[
        str, Field(pattern="^[a-z]{1,20}$")
    ]  # finished, training, or the recipe's if it has several
    phase_epoch: Number | None = None  # of that phase, from 1
    phase_epochs: Number | None = None
    epoch: Number  # being trained, from 1
    epochs: Number
    step: Count  # done in that epoch
    steps_per_epoch: Number
    batch_size: Number
    accuracy: Share | None = None  # on the test set, after the last whole epoch
    images_per_second: Quantity | None = None  # in the last whole epoch
    unsaved_seconds: Quantity = 0.0  # since the newest durable checkpoint was taken
    time: Time


class Epoch(Record):
    """What happened in one epoch: a line of the history.

    Always: the mean loss of its steps, learning rate and momentum of the last step, the speed of its
    training part and the attempt that ended it. Where the epoch was evaluated: loss and accuracy on the test
    set and, with a hold-out, the accuracy on that. Where a phase but the last ended: its weights' SHA-256.
    """

    epoch: Number  # from 1
    train_loss: Quantity
    lr: Quantity
    momentum: Quantity
    images_per_second: Annotated[float, Field(gt=0, le=LARGEST)]
    attempt: Generation
    test_loss: Quantity | None = None
    accuracy: Share | None = None
    holdout_accuracy: Share | None = None
    weights: Sha256 | None = None

    def to_json(self) -> dict[str, float | str]:
        """Return the values that there are."""
        return self.model_dump(exclude_none=True)

    def figures(self) -> dict[str, float]:
        """Return the numbers that there are."""
        return self.model_dump(exclude_none=True, exclude={"weights"})


class Identity(Record):
    """recipe.json: the run's identity, and the fields of the recipe that it was created with."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Scalar] = Field(init=False)

    identity: Fingerprint | None = None

    @property
    def recipe(self) -> dict[str, Scalar]:
        """The fields of the recipe, as of `Recipe.to_json`."""
        return self.model_extra or {}


def now() -> str:
    """Return the time in UTC, as records have it."""
    return datetime.now(UTC).isoformat()


_EPOCHS = TypeAdapter(list[Epoch])


def epochs(content: Any, name: str) -> list[Epoch]:
    """Return the records of epochs 1, 2, 3 and so on; DataError naming `name` for anything else."""
    try:
        history = _EPOCHS.validate_python(content)
    except ValidationError as error:
        raise mistyped(name, error) from error
    if [record.epoch for record in history] != list(range(1, len(history) + 1)):
        raise DataError(f"{name}: its epochs are not 1, 2, 3 and so on")
    return history
