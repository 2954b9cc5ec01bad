"""The recipe of a run: everything that changes the bits of its result, and the recipes that have a name."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from job.errors import UsageError
from job.phases import DENSE, PRUNE, QUANTISE, STATISTICS, Cycle, Phase, format_cycles, in_order
from job.settings import BEFORE, Checked, setting

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
"""Arithmetic of the training step; `auto` is resolved once, when the run is created."""

MAX_SPARSITY = 0.99


@dataclass(frozen=True)
class Recipe(Checked):
    """Everything that changes the bits of the result. Defaults: the 2019 entry (see README).

    `data_sha256` is the archive's; it, `precision` and with a `target_score` the `sparsity` are filled in
    when the run is created. `from_sha256` is of the weights that it starts with, and `teacher_sha256` of
    those of a teacher that is not the run's own. A field that is added has a `before`, so that the runs that
    are there keep their recipe and their fingerprint.
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
    prune_cycles: tuple[Cycle, ...] = setting(
        (),
        "One-cycle periods of pruning, after --cycles.",
        before="none",
        metavar="EPOCHS@LR,...",
    )
    sparsity: float = setting(
        0.75,
        "Share of zeros that pruning ends with in each convolution but the first.",
        before=0.75,
        minimum=0,
        maximum=MAX_SPARSITY,
    )
    target_score: float = setting(
        0.0, "Official score that --sparsity is chosen for; 0: use --sparsity.", before=0.0, minimum=0
    )
    quantise_cycles: tuple[Cycle, ...] = setting(
        (),
        "One-cycle periods of quantisation, after --prune-cycles.",
        before="none",
        metavar="EPOCHS@LR,...",
    )
    weight_bits: int = setting(
        4,
        "Bits of a convolution's quantised weights; 8 in the first and last layer.",
        before=4,
        minimum=1,
        maximum=8,
    )
    activation_bits: int = setting(
        4,
        "Bits of what a quantised convolution reads; 8 in the first and last layer.",
        before=4,
        minimum=1,
        maximum=8,
    )
    distillation: float = setting(
        0.5,
        "Share of the teacher's answers in what pruning and quantising train for; 0: no teacher.",
        before=0.5,
        minimum=0,
        maximum=1,
    )
    statistics_epochs: int = setting(
        1,
        "Epochs after pruning or quantising that only average the batch norms' statistics, without mixup.",
        before=1,
        minimum=0,
    )
    batch_size: int = setting(
        256, "Images in a step; the last partial batch of an epoch is dropped.", minimum=1
    )
    shards: int = setting(
        1,
        "Parts of a step's images, each computed as by itself, so that as many processes can share the work "
        "with the same bits. A power of two.",
        before=1,
        minimum=1,
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
    from_sha256: str = field(default="", metadata={BEFORE: ""})
    teacher_sha256: str = field(default="", metadata={BEFORE: ""})

    def __post_init__(self) -> None:
        """Raise UsageError for a value that a field does not take."""
        super().__post_init__()
        if self.depth % 6 != 4:
            raise UsageError(
                f"--depth: {self.depth} is not 6n + 4", "Give 10, 16, 22, 28 or another such depth"
            )
        if self.shards & (self.shards - 1):
            raise UsageError(f"--shards: {self.shards} is no power of two", "Give 1, 2, 4, 8 or 16")
        if self.batch_size % self.shards:
            raise UsageError(
                f"--batch-size: {self.batch_size} is no multiple of the {self.shards} of --shards",
                "Change one of them",
            )
        if not self.phases:
            raise UsageError("--cycles: there is no epoch to train", "Write for example --cycles 200@5e-3")
        if self.target_score and not self.prune_cycles:
            raise UsageError(
                "--target-score is reached by pruning, and this recipe does not prune",
                "Give --prune-cycles, or --recipe compact",
            )

    @functools.cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The parts of the training, in their order."""
        compressing = self.prune_cycles or self.quantise_cycles
        statistics = (Cycle(self.statistics_epochs, 0.0),) if compressing and self.statistics_epochs else ()
        parts = {
            DENSE: self.cycles,
            PRUNE: self.prune_cycles,
            QUANTISE: self.quantise_cycles,
            STATISTICS: statistics,
        }
        return in_order(parts)

    @property
    def compresses(self) -> bool:
        """Return whether it prunes or quantises."""
        return bool(self.prune_cycles or self.quantise_cycles)

    def phase_at(self, epoch: int) -> Phase:
        """Return the phase of an epoch, from 0; past the end the last one."""
        return next((phase for phase in self.phases if epoch < phase.end), self.phases[-1])

    @property
    def all_cycles(self) -> tuple[Cycle, ...]:
        """The periods of all phases."""
        return tuple(cycle for phase in self.phases for cycle in phase.cycles)

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return self.phases[-1].end

    def evaluates(self, epoch: int) -> bool:
        """Return whether the network is evaluated on the test set after `epoch`, from 1."""
        regular = epoch % self.evaluate_every == 0 or epoch > self.epochs - max(10, self.epochs // 10)
        return regular or any(epoch == phase.end for phase in self.phases)

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
        cycles = ("cycles", "prune_cycles", "quantise_cycles")
        return {**asdict(self), **{name: format_cycles(getattr(self, name)) for name in cycles}}

    def differences(self, other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Return {field: (the other's value, this one's)} where `other`, from `to_json`, differs.

        A field that an older program's recipe lacks has its value of then; one that only a newer program's
        has differs, and is None here.
        """
        mine, other = self.to_json(), self.before() | other
        return {
            name: (other.get(name), mine.get(name))
            for name in mine | other
            if name not in mine or other.get(name) != mine[name]
        }


DEMO = Recipe(width=1, cycles=(Cycle(6, 2e-2),), batch_size=64)
"""The recipe of `--demo`: minutes on two processor cores (figures in the README)."""

RECIPES = {
    "entry": Recipe(),
    "compact": Recipe(prune_cycles=(Cycle(200, 1e-3),), quantise_cycles=(Cycle(150, 5e-4),)),
    "demo": DEMO,
    "demo-compact": replace(DEMO, prune_cycles=(Cycle(2, 5e-3),), quantise_cycles=(Cycle(2, 2e-3),)),
}
"""The recipes that have a name."""
