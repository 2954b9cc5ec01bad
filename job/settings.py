"""What a run is (Recipe: everything that changes its bits) and where it happens (Placement)."""

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
class Cycle:
    """One one-cycle period: `epochs` epochs that peak at the learning rate `lr_max`."""

    epochs: int
    lr_max: float

    def __str__(self) -> str:
        """Return the form the command line takes, `200@0.005`."""
        return f"{self.epochs}@{self.lr_max:g}"


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


BEFORE = "before"


def later(default: Any, before: Any) -> Any:
    """Return a field that the recipe did not always have: a run without it was trained as with `before`."""
    return field(default=default, metadata={BEFORE: before})


@dataclass(frozen=True)
class Recipe:
    """Everything that changes the bits of the result. Defaults: the 2019 entry (see README).

    `data_sha256` is the archive's; it and `precision` are filled in when the run is created. A field that is
    added is a `later` one, so that the runs that are there keep their recipe and their fingerprint.
    """

    depth: int = 22  # 6n + 4 convolutions on the longest path
    width: int = 6  # times 16, 32, 64 channels
    cycles: tuple[Cycle, ...] = (Cycle(200, 5e-3), Cycle(200, 5e-4), Cycle(200, 5e-4))
    batch_size: int = 256  # images a step; the last partial batch of an epoch is dropped
    weight_decay: float = 0.1  # decoupled, on every parameter
    mixup_alpha: float = 0.4  # of the Beta distribution; 0 turns mixup off
    crop_padding: int = 4  # pixels of shift with reflection; 0 is the 2019 notebook
    holdout: int = 0  # training images kept aside to choose the best epoch on
    seed: int = 22
    precision: str = "auto"
    compile: bool = False  # the training step by torch.compile
    evaluate_every: int = 5  # epochs; each of the last tenth, and of the last ten, is evaluated
    deterministic: bool = True  # only algorithms that give the same bits each time
    data_sha256: str = ""

    def __post_init__(self) -> None:
        """Refuse what makes no network; the other bounds are the command line's."""
        if self.depth < 10 or self.depth % 6 != 4:
            raise UsageError(
                f"--depth: {self.depth} is not 6n + 4", "Give 10, 16, 22, 28 or another such depth"
            )
        if not (math.isfinite(self.weight_decay) and math.isfinite(self.mixup_alpha)):
            raise UsageError("--weight-decay and --mixup-alpha take finite numbers")

    @property
    def epochs(self) -> int:
        """Epochs of all cycles together."""
        return sum(cycle.epochs for cycle in self.cycles)

    def evaluates(self, epoch: int) -> bool:
        """Say whether the test set is looked at after `epoch`, from 1."""
        return epoch % self.evaluate_every == 0 or epoch > self.epochs - max(10, self.epochs // 10)

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of the SHA-256 over the fields; a later one counts where it is not as before."""
        before = self.before()
        told = {
            name: value
            for name, value in self.to_json().items()
            if name not in before or value != before[name]
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

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

RETRY_SECONDS = 120.0
"""How long a call of a store is repeated, unless told otherwise."""

DEMO_DATA = "demo:"
"""The source that stands for the generated data set."""


@dataclass(frozen=True)
class Placement:
    """Where a run happens; nothing here changes the result on one kind of device."""

    run: str | None  # folder or URI the outputs go to; None: runs/<fingerprint>
    data: tuple[str, ...]  # sources of the archive, tried in turn; empty: the data set's home
    cache: str  # folder the archive is unpacked in
    checkpoint_every: float = 60.0  # seconds
    storage_budget: float = 1800.0  # seconds without a successful save before the job gives the machine back
    exact: bool = False  # refuse a machine that is not like the one before
    accept_drift: bool = False  # go on with another recipe than the run's, and record it
    store_cache: str | None = None  # of the archive; None: beside a run in a bucket; "none": none
    step_timeout: float = 600.0  # seconds without a step until the device counts as hung; 0: never
    graph: bool = False  # forward and backward as one CUDA graph
    device: str = "auto"  # auto or cuda (the first GPU), cuda:N, cpu, or any (a GPU where there is one)

    @property
    def retry_seconds(self) -> float:
        """How long one call of the run's store is repeated."""
        return min(RETRY_SECONDS, self.storage_budget)
