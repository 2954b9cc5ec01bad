"""Where a selftest kills: planned from a seed, and read afterwards from the events of the killed attempt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from job.checks.child import Event

PHASES = {
    "download": ("data", 0.1),
    "training": ("checkpoint", 0.3),
    "saving": ("saving", 0.01),
    "commit": ("commit", 0.02),
    "evaluation": ("evaluate", 0.02),
    "scoring": ("score", 0.1),
    "publishing": ("publish", 0.01),
}
"""For each phase, the event that a kill waits for, and the longest delay of the kill after it in seconds."""

LATE = ("scoring", "publishing")  # once, at the end of a run

_ENTERED = {
    "data": "download",
    "resume": "training",
    "train": "training",
    "evaluate": "evaluation",
    "epoch": "training",
    "score": "scoring",
    "publish": "publishing",
}


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: `delay_seconds` after the first event that opens `phase` in `epoch` (from 1) or later."""

    phase: str
    epoch: int
    delay_seconds: float

    def is_due(self, event: Event) -> bool:
        """Return whether this is the event to kill at."""
        return bool(event["event"] == PHASES[self.phase][0] and event.get("epoch", math.inf) >= self.epoch)


def plan(count: int, epochs: int, seed: int) -> list[Kill]:
    """Return `count` kills, assigned to the phases in turn and spread over the epochs of the run."""
    generator = np.random.default_rng(seed)
    phases = generator.permutation(list(PHASES)).tolist()
    dealt = [phases[index % len(phases)] for index in range(count)]
    early = generator.permutation([phase for phase in dealt if phase not in LATE]).tolist()
    late = sorted((phase for phase in dealt if phase in LATE), key=LATE.index)
    places = [(phase, 1 + index * (epochs - 1) // len(early)) for index, phase in enumerate(early)]
    places += [(phase, epochs) for phase in late]
    return [Kill(phase, epoch, PHASES[phase][1] * generator.random()) for phase, epoch in places]


@dataclass(frozen=True)
class Place:
    """The phase in which a process ended, and the last epoch and step that it named."""

    phase: str = "start"
    epoch: int | None = None
    step: int | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def place(events: Sequence[Event]) -> Place:
    """Return where a process was after its last event.

    It saves and commits in a thread of its own: those phases win over training, but not over evaluation, the
    shortest one.
    """
    phase, saving = "start", ""
    epoch = step = None
    for event in events:
        name = event["event"]
        phase = _ENTERED.get(name, phase)
        if name in ("saving", "commit"):
            saving = name
        elif name in ("checkpoint", "resume", "publish"):
            saving = ""
        epoch, step = event.get("epoch", epoch), event.get("step", step)
    return Place(phase if phase == "evaluation" else saving or phase, epoch, step)
