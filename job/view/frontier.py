"""Accuracy against score: runs, their phases and the entries of 2019, as points for a template to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from job.run.report import THRESHOLD
from job.text import percent
from job.view.comparison import labels
from job.view.curves import STYLES
from job.view.plots import DECIMALS, Axis, Shape, Tick, linear_ticks
from job.view.standing import ENTRIES, SMALLEST
from job.view.stored_run import StoredRun

ROOM = 1.25  # between the outermost scores and the plot's edges, as a factor
NAMED = 3  # runs, at most, that the caption describes one by one
MOST_TICKS = 7  # of scores, that stand side by side on a phone's 300 pixels


class Network(NamedTuple):
    """A network at one moment: after a phase of its training, or finished."""

    phase: str
    accuracy: float
    score: float  # a run's under the `official` rules, an entry's as it was listed


KNOWN = tuple(
    (entry, Network("", entry.accuracy, entry.score))
    for entry in ENTRIES
    if entry.qualified and entry.accuracy is not None
)
"""The entries of 2019 whose accuracy is known."""


@dataclass(frozen=True)
class Dot:
    """A circle at per cent of the plot, from the left and from the top; `final` is what a run ended with."""

    x: float
    y: float
    hint: str
    label: str = ""
    style: int = 0
    final: bool = False


class Row(NamedTuple):
    """A line of the table; `entry` is an entry's number, 0 for a run."""

    name: str
    phase: str
    accuracy: float
    score: float
    entry: int = 0
    note: str = ""


@dataclass(frozen=True)
class Frontier:
    """The chart; the paths of `runs` lead through their phases, `entries` are numbered as the table's are."""

    x_ticks: list[Tick]
    y_ticks: list[Tick]
    threshold: Tick | None
    runs: list[Shape]  # a path is empty where a run has a single point
    dots: list[Dot]
    entries: list[Dot]
    rows: list[Row]
    alt: str


def networks(run: StoredRun) -> list[Network]:
    """Return a finished run's network after each of its phases, the finished one last."""
    assert run.report
    phases = run.report.phases
    before = [Network(phase.name, phase.accuracy, phase.score.official) for phase in phases[:-1]]
    last = phases[-1].name if phases else ""
    return [*before, Network(last, run.report.accuracy.final, run.report.score.official.score)]


def frontier(runs: Sequence[StoredRun]) -> Frontier | None:
    """Return the chart of the finished ones among `runs`; None where a single point would be all of it.

    The entries of 2019 and their 80 % are drawn where all of them are on CIFAR-100.
    """
    finished = [(label, run) for label, run in zip(labels(runs), runs, strict=True) if run.report]
    found = [(label, networks(run)) for label, run in finished]
    entries = KNOWN if all(run.on_cifar100 for _, run in finished) else ()
    if not found or sum(len(points) for _, points in found) + len(entries) < 2:
        return None
    points = [point for _, path in found for point in path] + [point for _, point in entries]
    scores = [max(point.score, SMALLEST) for point in points]
    x = Axis(min(scores) / ROOM, max(scores) * ROOM, logarithmic=True)
    heights = [point.accuracy for point in points] + ([THRESHOLD] if entries else [])
    y_ticks = linear_ticks(min(heights), max(heights))
    y = Axis(min(*heights, y_ticks[0]), max(*heights, y_ticks[-1]))

    def across(point: Network) -> float:
        return 100 * x(max(point.score, SMALLEST))

    def down(accuracy: float) -> float:
        return 100 * (1 - y(accuracy))

    def dot(name: str, point: Network, **how: Any) -> Dot:
        return Dot(across(point), down(point.accuracy), _hint(name, point), **how)

    def way(path: Sequence[Network]) -> str:
        places = [
            f"{10 * across(point):.{DECIMALS}f} {10 * down(point.accuracy):.{DECIMALS}f}" for point in path
        ]
        return "M" + "L".join(places) if len(path) > 1 else ""

    styled = [(index % STYLES, label, path) for index, (label, path) in enumerate(found)]
    return Frontier(
        x_ticks=[Tick(100 * x(tick), f"{tick:g}") for tick in _score_ticks(x)],
        y_ticks=[Tick(down(tick), f"{100 * tick:g} %") for tick in y_ticks],
        threshold=Tick(down(THRESHOLD), "80 %") if entries else None,
        runs=[Shape(label, way(path), style) for style, label, path in styled],
        dots=[
            dot(label, point, style=style, final=point is path[-1])
            for style, label, path in styled
            for point in path
        ],
        entries=[
            dot(entry.name, point, label=str(number))
            for number, (entry, point) in enumerate(entries, start=1)
        ],
        rows=[Row(label, *point) for label, path in found for point in path]
        + [
            Row(entry.name, *point, entry=number, note=entry.note)
            for number, (entry, point) in enumerate(entries, start=1)
        ],
        alt=_alt(found, len(entries)),
    )


def _score_ticks(axis: Axis) -> list[float]:
    """Return round scores inside a logarithmic axis: 1, 2 and 5 of each power of ten, where there is room."""
    decades = range(-7, 7)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in decades for factor in factors]
        inside = [tick for tick in ticks if 0 <= axis(tick) <= 1]
        if len(inside) <= MOST_TICKS:
            break
    return inside


def _hint(name: str, point: Network) -> str:
    after = f" after {point.phase}" if point.phase else ""
    return f"{name}{after}: {percent(point.accuracy)}, score {point.score:.4f}"


def _alt(found: Sequence[tuple[str, Sequence[Network]]], entries: int) -> str:
    """Return what the chart shows, in words: each of a few runs, the range of many."""
    if len(found) <= NAMED:
        ways = [
            f"{label} ends with {percent(path[-1].accuracy)} at {path[-1].score:.4f}"
            + (f", from {percent(path[0].accuracy)} at {path[0].score:.4f}" if len(path) > 1 else "")
            for label, path in found
        ]
    else:
        last = [path[-1] for _, path in found]
        shares, scores = [point.accuracy for point in last], [point.score for point in last]
        ways = [
            f"{len(found)} runs end with {percent(min(shares))} to {percent(max(shares))}"
            f" at {min(scores):.4f} to {max(scores):.4f}"
        ]
    others = f" {entries} entries of 2019 are numbered as in the table." if entries else ""
    axes = "Accuracy against the score on a logarithmic axis, further left is better"
    return f"{axes}: {'; '.join(ways)}.{others}"
