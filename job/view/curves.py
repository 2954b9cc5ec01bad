"""The curves of one run, or of several over one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from job.run.records import Epoch
from job.run.report import THRESHOLD
from job.text import percent, power_of_ten
from job.view.comparison import ENOUGH, are_seeds, distinct, labels
from job.view.plots import Plot, Series, line_chart
from job.view.stored_run import StoredRun

STYLES = 8
"""Colours that can be distinguished; a ninth run reuses the first one's."""


def charts(runs: Sequence[StoredRun]) -> list[Plot]:
    """Return accuracy, loss, throughput, learning rate and momentum over the epochs; none without epochs."""
    runs = [run for run in runs if run.evaluated]
    if not runs:
        return []
    single = len(runs) == 1
    seeds = distinct(runs) if are_seeds(runs) and len(distinct(runs)) >= ENOUGH else []
    of_seeds = [next(index for index, run in enumerate(runs) if run is seed) for seed in seeds]
    breaks = _breaks(runs[0].history) if single else []
    accuracies = _series(runs, "accuracy", "test")
    if single and runs[0].evaluated[0].holdout_accuracy is not None:
        accuracies += _series(runs, "holdout_accuracy", "hold-out", style=1)
    losses = _series(runs, "test_loss", "test")
    if single:
        losses += _series(runs, "train_loss", "training, with mixup", style=1)
    return [
        line_chart(
            "Accuracy",
            _story("accuracy", accuracies[: len(runs)], percent, max),
            accuracies,
            column="accuracy",
            label=lambda share: f"{100 * share:.0f} %",
            threshold=(THRESHOLD, "80 %") if all(run.on_cifar100 for run in runs) else None,
            breaks=breaks,
            interval=[accuracies[index] for index in of_seeds],
        ),
        line_chart(
            "Loss" if single else "Test loss",
            _story("test loss", losses[: len(runs)], "{:.3f}".format, min),
            losses,
            column="test_loss",
            breaks=breaks,
            interval=[losses[index] for index in of_seeds],
        ),
        _plain(runs, "images_per_second", "Throughput", breaks, "images/s", from_zero=True),
        _plain(runs, "lr", "Learning rate", breaks, label=power_of_ten, logarithmic=True),
        _plain(runs, "momentum", "Momentum", breaks),
    ]


def _plain(
    runs: Sequence[StoredRun], column: str, title: str, breaks: list[float], unit: str = "", **how: Any
) -> Plot:
    series = _series(runs, column, title.lower())
    story = _range(title, series, unit)
    return line_chart(title, story, series, column=column, unit=unit, breaks=breaks, **how)


def _series(runs: Sequence[StoredRun], column: str, name: str, style: int = 0) -> list[Series]:
    return [
        Series(
            name=name if len(runs) == 1 else label,
            x=[record.epoch for record in run.history if getattr(record, column) is not None],
            y=[value for record in run.history if (value := getattr(record, column)) is not None],
            style=style if len(runs) == 1 else index % STYLES,
        )
        for index, (run, label) in enumerate(zip(runs, labels(runs), strict=True))
    ]


def _breaks(history: list[Epoch]) -> list[float]:
    """Return the positions between two epochs where the next attempt resumed."""
    return [after.epoch - 0.5 for before, after in pairwise(history) if before.attempt != after.attempt]


def _story(
    what: str, series: Sequence[Series], label: Callable[[float], str], best: Callable[..., float]
) -> str:
    """Return what the curves show: beginning, end and best of one, or the ends of several."""
    if len(series) > 1:
        ends = [one.y[-1] for one in series]
        return (
            f"{what.capitalize()} of {len(series)} runs: {label(min(ends))} to {label(max(ends))} at the end."
        )
    one = series[0]
    top, last = best(one.y), f"{label(one.y[-1])} in epoch {one.x[-1]}"
    return (
        f"The {what} goes from {label(one.y[0])} in epoch {one.x[0]} to {last}; "
        f"best {label(top)} in epoch {one.x[list(one.y).index(top)]}."
    )


def _range(title: str, series: Sequence[Series], unit: str) -> str:
    values = [value for one in series for value in one.y]
    unit = f" {unit}" if unit else ""
    spread = f"from {min(values):,.4g} to {max(values):,.4g}{unit}"
    if len(series) > 1:
        return f"{title} of {len(series)} runs, {spread}."
    return f"{title} {spread}, {series[0].y[-1]:,.4g} at the end."
