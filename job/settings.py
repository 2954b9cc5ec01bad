"""What a run is (Recipe: everything that changes its bits) and where and how it happens (Placement).

Each field states its default, its bounds and its help once; the command line's options are made from them.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from job.errors import UsageError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
"""Arithmetic of the training step; `auto` is resolved once, when the run is created."""


@dataclass(frozen=True)
class Setting:
    """What a field takes: a number from `minimum` to `maximum`, one of `choices`, or, in "s", a time."""

    help: str
    minimum: int | None = None
    maximum: int | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""
    metavar: str | None = None

    def check(self, name: str, value: Any) -> None:
        """Raise UsageError, naming the option, for a value that the field does not take."""
        if self.choices and value not in self.choices:
            raise UsageError(f"--{name}: {value!r} is not one of {', '.join(self.choices)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"--{name}: {value!r} is not a finite number")
        if self.minimum is not None and value < self.minimum:
            raise UsageError(f"--{name}: {value} is less than {self.minimum}")
        if self.maximum is not None and value > self.maximum:
            raise UsageError(f"--{name}: {value} is more than {self.maximum}")


BEFORE = "before"


def setting(default: Any, help: str, before: Any = None, **attributes: Any) -> Any:  # noqa: A002
    """Return a dataclass field with its `Setting`, which `setting_of` finds.

    `before` is for a field that the recipe did not always have: runs without it were trained with that value.
    """
    metadata = {"setting": Setting(help, **attributes)}
    return field(default=default, metadata=metadata if before is None else {**metadata, BEFORE: before})


def setting_of(owner: Any, name: str) -> tuple[Setting, Any]:
    """Return the setting of a dataclass's field and the field's default."""
    found = next(field for field in fields(owner) if field.name == name)
    return found.metadata["setting"], found.default


@dataclass(frozen=True)
class Cycle:
    """One one-cycle period: `epochs` epochs that peak at the learning rate `lr_max`."""

    epochs: int
    lr_max: float

    def __str__(self) -> str:
        """Return the form the command line takes, `200@0.005`, exactly.

        The short form wherever it is exact, since fingerprints of existing runs were made of it.
        """
        short = f"{self.lr_max:g}"
        return f"{self.epochs}@{short if float(short) == self.lr_max else repr(self.lr_max)}"


def parse_cycles(text: str) -> tuple[Cycle, ...]:
    """Read `EPOCHS@LR,...`; raise UsageError naming the part that does not parse."""
    cycles = []
    for part in text.split(","):
        epochs, at, lr_max = part.strip().partition("@")
        try:
            cycle = Cycle(int(epochs), float(lr_max))
        except ValueError:
            at = ""
            cycle = Cycle(0, 0.0)
        if not at or cycle.epochs < 1 or not 0 < cycle.lr_max < float("inf"):
            raise UsageError(
                f"--cycles: {part.strip()!r} is not EPOCHS@LEARNING_RATE",
                "Write for example --cycles 200@5e-3,200@5e-4",
            )
        cycles.append(cycle)
    return tuple(cycles)


@dataclass(frozen=True)
class Recipe:
    """Everything that changes the bits of the result. Defaults: the 2019 entry (see README).

    `data_sha256` is the archive's; it and `precision` are filled in when the run is created. A field that is
    added has a `before`, so that the runs that are there keep their recipe and their fingerprint.
    """

    depth: int = setting(22, "Convolutions on the longest path, 6n + 4.", minimum=10)
    width: int = setting(
        6, "Width of the network: its groups have 16, 32 and 64 times as many channels.", minimum=1
    )
    cycles: tuple[Cycle, ...] = setting(
        (Cycle(200, 5e-3), Cycle(200, 5e-4), Cycle(200, 5e-4)),
        "One-cycle periods with their peak learning rates.",
        metavar="EPOCHS@LR,...",
    )
    batch_size: int = setting(
        256, "Images in a step; the last partial batch of an epoch is dropped.", minimum=1
    )
    weight_decay: float = setting(0.1, "Decoupled weight decay, on every parameter.", minimum=0)
    mixup_alpha: float = setting(
        0.4, "Parameter of mixup's Beta distribution; 0 turns mixup off.", minimum=0, maximum=1000
    )
    crop_padding: int = setting(
        4,
        "Pixels a training image is shifted by at most, with reflection; 0 is the 2019 notebook.",
        minimum=0,
        maximum=15,
    )
    holdout: int = setting(0, "Training images kept aside to choose the best epoch on.", minimum=0)
    seed: int = setting(22, "Seed of everything random.", minimum=0, maximum=2**64 - 1)
    precision: str = setting("auto", "Arithmetic of the training step.", choices=PRECISIONS)
    compile: bool = setting(
        False, "Compile the training step (needs a C++ compiler; the first step then takes a minute)."
    )
    evaluate_every: int = setting(
        5,
        "Epochs between evaluations; each of the last tenth of the epochs, and of the last ten, has one.",
        minimum=1,
        metavar="EPOCHS",
    )
    deterministic: bool = setting(True, "Use only algorithms that give the same bits each time.")
    data_sha256: str = ""

    def __post_init__(self) -> None:
        """Raise UsageError for a value that a field does not take."""
        for each in fields(self):
            if "setting" in each.metadata:
                each.metadata["setting"].check(each.name.replace("_", "-"), getattr(self, each.name))
        if self.depth % 6 != 4:
            raise UsageError(
                f"--depth: {self.depth} is not 6n + 4", "Give 10, 16, 22, 28 or another such depth"
            )

    @property
    def epochs(self) -> int:
        """Epochs of all cycles together."""
        return sum(cycle.epochs for cycle in self.cycles)

    def evaluates(self, epoch: int) -> bool:
        """Return whether the network is evaluated on the test set after `epoch`, from 1."""
        return epoch % self.evaluate_every == 0 or epoch > self.epochs - max(10, self.epochs // 10)

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of the SHA-256 over the fields; an added one counts where it is not as before."""
        before = self.before()
        counted = {
            name: value
            for name, value in self.to_json().items()
            if name not in before or value != before[name]
        }
        return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def before(cls) -> dict[str, Any]:
        """Return {field: value} of what an older program did by the fields that its recipes lack."""
        return {field.name: field.metadata[BEFORE] for field in fields(cls) if BEFORE in field.metadata}

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "cycles": ",".join(str(cycle) for cycle in self.cycles)}

    def differences(self, other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Return {field: (the other's value, this one's)} where `other`, from `to_json`, differs.

        A field that an older program's recipe lacks has its value of then.
        """
        mine, other = self.to_json(), self.before() | other
        return {
            field.name: (other.get(field.name), mine[field.name])
            for field in fields(self)
            if other.get(field.name) != mine[field.name]
        }


DEMO = Recipe(width=1, cycles=(Cycle(6, 2e-2),), batch_size=64)
"""The recipe of `--demo`: minutes on two processor cores (figures in the README)."""

DEMO_CHECKPOINT_SECONDS = 5.0
"""Between the checkpoints of a demo, so that one which is killed on trial has something to resume from."""

ATTENDED_RETRY_SECONDS = 5.0  # of a call of the store by a command that somebody waits for

RETRY_SECONDS = 120.0
"""How long a call of a store is retried by default."""

DEMO_DATA = "demo:"
"""The source that stands for the generated data set."""


@dataclass(frozen=True)
class DataSettings:
    """Where the data comes from, and the folder that keeps it on this machine."""

    data: tuple[str, ...] = setting(
        (),
        "Archive in CIFAR-100's format: a path, https://, file:// or s3:// address, optionally with "
        "#sha256=HEX. Several are tried in turn. Default: CIFAR-100 from its home.",
        metavar="URI",
    )
    cache: str = setting("data", "Folder for downloads and unpacked data.", metavar="DIR")
    store_cache: str | None = setting(
        None,
        "Store that keeps the archive for other runs. Default: data next to a run in a bucket; or none.",
        metavar="URI",
    )


@dataclass(frozen=True)
class DeviceSettings:
    """Which device trains, and how it is given its work."""

    device: str = setting(
        "auto",
        "auto and cuda are the first GPU; cuda:1 is the second that CUDA_VISIBLE_DEVICES leaves.",
        metavar="auto|cuda|cuda:N|cpu",
    )
    graph: bool = setting(
        False,
        "Launch forward and backward pass as one CUDA graph: same bits, less work for the host.",
    )
    step_timeout: float = setting(
        600.0,
        "Time without a step until the device counts as hung (74); 0: never.",
        minimum=0,
        unit="s",
    )


@dataclass(frozen=True)
class AttemptSettings:
    """When an attempt saves, how long it waits for its store, and what it resumes."""

    checkpoint_every: float = setting(60.0, "Time between checkpoints.", unit="s")
    storage_budget: float = setting(
        1800.0, "Time that training continues while nothing can be saved; then it stops with 74.", unit="s"
    )
    grace: float = setting(30.0, "Time from SIGTERM until the machine is gone.", unit="s")
    exact: bool = setting(
        False, "Refuse a machine (74) or software (78) that is not like the one of the attempt before."
    )
    accept_drift: bool = setting(
        False, "Resume with another recipe than the run's; the report's lineage shows it."
    )

    @property
    def retry_seconds(self) -> float:
        """Seconds that one call of the run's store is retried."""
        return min(RETRY_SECONDS, self.storage_budget)


@dataclass(frozen=True)
class Placement:
    """Where and how a run happens; nothing here changes the result on one kind of device."""

    run: str | None = setting(
        None, "Folder or s3://bucket/prefix of the run. Default: runs/<fingerprint>.", metavar="URI"
    )
    data: DataSettings = DataSettings()
    device: DeviceSettings = DeviceSettings()
    attempt: AttemptSettings = AttemptSettings()
