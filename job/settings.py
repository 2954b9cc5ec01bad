"""Where and how a run happens (Placement), and what a setting is.

Each field of these and of the recipe states its default, its bounds and its help once; the command line's
options are made from them.
"""

from __future__ import annotations

import math
import os
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from job.errors import UsageError


@dataclass(frozen=True)
class Setting:
    """What a field takes: a number from `minimum` to `maximum`, one of `choices`, or, in "s", a time.

    A time without a `minimum` is more than 0.
    """

    help: str
    minimum: int | None = None
    maximum: Any = None  # a number of the field's type
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
        if self.minimum is None and self.unit == "s" and value <= 0:
            raise UsageError(f"--{name}: {value} is not more than 0 s")
        if self.maximum is not None and value > self.maximum:
            raise UsageError(f"--{name}: {value} is more than {self.maximum}")


SETTING, BEFORE = "setting", "before"
"""The keys of a field's metadata."""


def setting(default: Any, help: str, before: Any = None, **attributes: Any) -> Any:  # noqa: A002
    """Return a dataclass field with its `Setting`, which `setting_of` finds.

    `before` is for a field that the recipe did not always have: runs without it were trained with that value.
    A `default` that is a function is called for each object.
    """
    metadata = {SETTING: Setting(help, **attributes)} | ({} if before is None else {BEFORE: before})
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def setting_of(owner: Any, name: str) -> tuple[Setting, Any]:
    """Return the setting of a dataclass's field and the field's default, or the function that returns it."""
    found = next(field for field in fields(owner) if field.name == name)
    return found.metadata[
        SETTING
    ], found.default if found.default_factory is MISSING else found.default_factory


def settings_of(owner: Any) -> dict[str, Setting]:
    """Return the settings of a dataclass's fields by the fields' names."""
    return {field.name: field.metadata[SETTING] for field in fields(owner) if SETTING in field.metadata}


class Checked:
    """A dataclass whose fields hold what their settings take, else UsageError."""

    def __post_init__(self) -> None:
        """Raise UsageError, naming the option, for a value that a field does not take."""
        for name, setting in settings_of(self).items():
            setting.check(name.replace("_", "-"), getattr(self, name))


def default_cache() -> str:
    """Return the user's own cache folder for this program, the same wherever a command is called from."""
    home = Path(os.environ.get("HOME") or ".")
    return str(Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "micronet")


DEMO_CHECKPOINT_SECONDS = 5.0
"""Between the checkpoints of a demo, so that one which is killed on trial has something to resume from."""

ATTENDED_RETRY_SECONDS = 5.0  # of a call of the store by a command that somebody waits for

RETRY_SECONDS = 120.0
"""How long a call of a store is retried by default."""

DEMO_DATA = "demo:"
"""The source that stands for the generated data set."""


@dataclass(frozen=True)
class DataSettings(Checked):
    """Where the data comes from, and the folder that keeps it on this machine."""

    data: tuple[str, ...] = setting(
        (),
        "Archive in CIFAR-100's format: a path, https://, file://, s3:// or gs:// address, optionally with "
        "#sha256=HEX. Several are tried in turn. Default: CIFAR-100 from its home.",
        metavar="URI",
    )
    cache: str = setting(
        default_cache, "Folder for downloads and unpacked data. Default: ~/.cache/micronet.", metavar="DIR"
    )
    store_cache: str | None = setting(
        None,
        "Store that keeps the archive for other runs. Default: the folder data next to a run in a bucket; "
        "otherwise no copy. `none` turns it off.",
        metavar="URI",
    )


@dataclass(frozen=True)
class PretrainedSettings(Checked):
    """Finished runs, or their .safetensors files, that a recipe builds on; their SHA-256 is part of it."""

    start: str | None = setting(
        None, "Run whose weights are pruned and quantised, in place of dense --cycles.", metavar="URI"
    )
    teacher: str | None = setting(
        None,
        "Run whose answers pruning and quantising learn from. Default: the dense network.",
        metavar="URI",
    )


@dataclass(frozen=True)
class DeviceSettings(Checked):
    """Which device trains, and how it is given its work."""

    device: str = setting(
        "auto",
        "auto: the first GPU, with --demo the processor if there is none. cuda: the first GPU. cuda:1: the "
        "second that CUDA_VISIBLE_DEVICES leaves.",
        metavar="auto|cuda|cuda:N|cpu",
    )
    graph: bool = setting(
        False,
        "Launch forward and backward pass as one CUDA graph: same bits, less work for the host.",
    )
    processes: str = setting(
        "1",
        "Processes that share the --shards, one a GPU: a number, or auto for as many as there are GPUs.",
        metavar="N|auto",
    )
    step_timeout: float = setting(
        600.0,
        "Time without a step until the device counts as hung (74); 0: never.",
        minimum=0,
        unit="s",
    )


@dataclass(frozen=True)
class AttemptSettings(Checked):
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
        None,
        "Folder, s3://bucket/prefix or gs://bucket/prefix of the run. Default: runs/<fingerprint>.",
        metavar="URI",
    )
    data: DataSettings = DataSettings()
    device: DeviceSettings = DeviceSettings()
    attempt: AttemptSettings = AttemptSettings()
    pretrained: PretrainedSettings = PretrainedSettings()
