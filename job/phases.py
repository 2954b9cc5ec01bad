"""The parts of a training on one axis of epochs: one-cycle periods, and the phases that they make up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from job.errors import UsageError

DENSE, PRUNE, QUANTISE, STATISTICS = "dense", "prune", "quantise", "statistics"
"""The phases of a recipe, in their order; those without epochs are left out."""


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


def parse_cycles(text: str, option: str = "cycles") -> tuple[Cycle, ...]:
    """Read `EPOCHS@LR,...`; raise UsageError naming the part that does not parse. "none" has no periods."""
    if text.strip() == "none":
        return ()
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
                f"--{option}: {part.strip()!r} is not EPOCHS@LEARNING_RATE",
                f"Write for example --{option} 200@5e-3,200@5e-4",
            )
        cycles.append(cycle)
    return tuple(cycles)


def format_cycles(cycles: tuple[Cycle, ...]) -> str:
    """Return the text that `parse_cycles` reads."""
    return ",".join(map(str, cycles)) or "none"


class Phase(NamedTuple):
    """A part of a recipe: its first epoch, from 0, and its periods, whose rate is 0 where nothing trains."""

    name: str
    first: int
    cycles: tuple[Cycle, ...]

    @property
    def epochs(self) -> int:
        """Epochs of its periods together."""
        return sum(cycle.epochs for cycle in self.cycles)

    @property
    def end(self) -> int:
        """The epoch, from 0, that comes after its last one."""
        return self.first + self.epochs


def in_order(parts: dict[str, tuple[Cycle, ...]]) -> tuple[Phase, ...]:
    """Return the phases of `parts` that have epochs, one after another."""
    phases: list[Phase] = []
    for name, cycles in parts.items():
        if cycles:
            phases.append(Phase(name, phases[-1].end if phases else 0, cycles))
    return tuple(phases)
