"""A score among those of the leaderboard: its place, a line to draw, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from job.view.leaderboard import ENTRIES, QUALIFIED, place
from job.view.plots import Axis, Tick

SMALLEST = 1e-6  # score that is drawn


class Row(NamedTuple):
    """A line of the table; `marked` is a run's of this page."""

    name: str
    score: float
    qualified: bool
    marked: bool


@dataclass(frozen=True)
class Standings:
    """`entries` and `runs` lie at per cent of the line; `places` are those of the runs."""

    entries: list[Tick]
    runs: list[Tick]
    ticks: list[Tick]
    places: list[int]
    rows: list[Row]
    alt: str


def standings(runs: Sequence[tuple[str, float, bool]]) -> Standings | None:
    """Place (name, score under the `leaderboard` rules, reached 80 %) of each run; None without one."""
    if not runs:
        return None
    rows = [Row(name, score, passed, marked=True) for name, score, passed in runs]
    rows += [Row(*entry, marked=False) for entry in ENTRIES]
    values = [max(row.score, SMALLEST) for row in rows]
    axis = Axis(min(values) / 1.3, max(values) * 1.3, logarithmic=True)
    decades = [10.0**power for power in range(-6, 7) if axis.low <= power <= axis.high]
    places = [place(score) for _, score, _ in runs]
    listed = ", ".join(
        f"{name} with {score:.4f} at {rank} of {len(QUALIFIED)}"
        for (name, score, _), rank in zip(runs, places, strict=True)
    )
    return Standings(
        entries=[Tick(100 * axis(entry.score), entry.name) for entry in ENTRIES],
        runs=[Tick(100 * axis(max(score, SMALLEST)), name) for name, score, _ in runs],
        ticks=[Tick(100 * axis(tick), f"{tick:g}") for tick in decades],
        places=places,
        rows=sorted(rows, key=lambda row: (round(row.score, 4), row.marked)),
        alt=f"Scores on a logarithmic line, lower is better: the leaderboard from {ENTRIES[0].score} "
        f"to {ENTRIES[-1].score}, and {listed}.",
    )
