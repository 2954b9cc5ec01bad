"""Figures as geometry: what a template needs to draw them as SVG that is read on any width.

An axis runs from 0 to 100 per cent of the plot's box, curves lie in a box of 1000 by 1000 that is stretched
over it, and text is placed but never stretched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from job.text import duration
from job.view.comparison import Estimate, estimate
from job.view.stored_run import AttemptSummary, downtimes

TICKS = 5  # at most, on an axis
NARROW = 4  # on the x axis, whose labels stand side by side on a phone's 300 pixels
MEAN = 9
"""The style of a mean and its interval."""

EVERY_EPOCH = 8  # epochs, of a digit each, that are all labelled
DECIMALS = 1  # of a curve's coordinates, in thousandths of the box

SMALLEST = 1e-12
"""What is smaller is drawn as 0: dividing the smallest floats gives 0, which has no logarithm."""

UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
NUMBERED = 12  # breaks whose numbers still stand apart on a phone


@dataclass(frozen=True)
class Series:
    """Values `y` at the epochs `x`; `style` chooses colour and dashes."""

    name: str
    x: Sequence[int]
    y: Sequence[float]
    style: int = 0


@dataclass(frozen=True)
class Tick:
    """A label at `at` per cent of an axis, from the left or from the top."""

    at: float
    label: str


@dataclass(frozen=True)
class Shape:
    """A path of SVG in the box of 1000 by 1000."""

    name: str
    path: str
    style: int


@dataclass(frozen=True)
class Plot:
    """A line chart over epochs. `band` is an interval's area, `breaks` are where the next attempt resumed."""

    title: str
    alt: str
    unit: str
    column: str  # of the table of epochs, by which the page's script finds values
    x: tuple[int, int]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    curves: list[Shape]
    band: Shape | None = None
    threshold: Tick | None = None
    breaks: list[float] = field(default_factory=list)


class Axis:
    """Maps values from `low` to `high` to 0 to 1, linearly or by their logarithm."""

    def __init__(self, low: float, high: float, logarithmic: bool = False) -> None:
        self.logarithmic = logarithmic
        self.low, self.high = self._bend(low), self._bend(high)

    def __call__(self, value: float) -> float:
        """Return the place of `value`."""
        return (self._bend(value) - self.low) / (self.high - self.low)

    def _bend(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def line_chart(
    title: str,
    alt: str,
    series: Sequence[Series],
    *,
    column: str,
    unit: str = "",
    logarithmic: bool = False,
    from_zero: bool = False,
    label: Callable[[float], str] = "{:g}".format,
    threshold: tuple[float, str] | None = None,
    breaks: Iterable[float] = (),
    interval: Sequence[Series] = (),
) -> Plot:
    """Return the chart of `series`, none of them empty.

    `threshold` is (value, label) of a level to reach, `breaks` are epochs. `from_zero` keeps a small change
    from being drawn as a large one. The mean of the series of `interval` is drawn with its 95 % interval.
    """
    values = [value for one in series for value in one.y] + ([threshold[0]] if threshold else [])
    values += [0.0] if from_zero else []
    if logarithmic:
        smallest = min((value for value in values if value >= SMALLEST), default=1e-3)
        values = [max(value, smallest) for value in values]
    ticks = log_ticks(min(values), max(values)) if logarithmic else linear_ticks(min(values), max(values))
    y = Axis(min(*values, ticks[0]), max(*values, ticks[-1]), logarithmic)
    first, last = min(one.x[0] for one in series), max(one.x[-1] for one in series)
    x = Axis(first, max(last, first + 1))

    def trace(epochs: Sequence[int], heights: Sequence[float]) -> list[str]:
        floor = 10**y.low if logarithmic else -math.inf
        return [
            f"{1000 * x(epoch):.{DECIMALS}f} {1000 * (1 - y(max(height, floor))):.{DECIMALS}f}"
            for epoch, height in zip(epochs, heights, strict=True)
        ]

    curves = [Shape(one.name, "M" + "L".join(trace(one.x, one.y)), one.style) for one in series]
    band = None
    if interval:
        means = [(epoch, mean) for epoch, mean in _means(interval) if mean.half_width is not None]
        common = [epoch for epoch, _ in means]
        upper = trace(common, [mean.mean + (mean.half_width or 0) for _, mean in means])
        lower = trace(common, [mean.mean - (mean.half_width or 0) for _, mean in means])
        curves.append(Shape("mean", "M" + "L".join(trace(common, [mean.mean for _, mean in means])), MEAN))
        band = Shape("95 % interval", "M" + "L".join(upper + lower[::-1]) + "Z", MEAN)
    return Plot(
        title=title,
        alt=alt,
        unit=unit,
        column=column,
        x=(first, last),
        x_ticks=[Tick(100 * x(tick), f"{tick:g}") for tick in epoch_ticks(first, last)],
        y_ticks=[Tick(100 * (1 - y(tick)), label(tick)) for tick in ticks],
        curves=curves,
        band=band,
        threshold=Tick(100 * (1 - y(threshold[0])), threshold[1]) if threshold else None,
        breaks=[100 * x(epoch) for epoch in breaks if first <= epoch <= last],
    )


def _means(series: Sequence[Series]) -> list[tuple[int, Estimate]]:
    """Return (epoch, mean) of the epochs that all of `series` have."""
    heights = [dict(zip(one.x, one.y, strict=True)) for one in series]
    common = sorted(set.intersection(*map(set, heights)))
    return [(epoch, estimate([height[epoch] for height in heights])) for epoch in common]


def linear_ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Return at most `count` + 1 round values, evenly spaced, the outermost around `low` and `high`."""
    if high - low < SMALLEST:
        half = (abs(low) if abs(low) >= SMALLEST else 1) / 2
        low, high = low - half, high + half
    rough = (high - low) / (count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten around `low` and `high`, few enough for one axis."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    step = math.ceil((last - first) / (TICKS - 1))
    return [10.0**power for power in range(first, last + step, step)]


def epoch_ticks(first: int, last: int) -> list[float]:
    """Return round epochs from `first` to `last`, both ends among them; every one where they are few."""
    if last - first <= EVERY_EPOCH:
        return list(map(float, range(first, last + 1)))
    inner = [tick for tick in linear_ticks(first, last, NARROW) if tick == int(tick)]
    margin = (last - first) / 10
    ticks = [first, *(tick for tick in inner if first + margin < tick < last - margin), last]
    return list(dict.fromkeys(ticks))


@dataclass(frozen=True)
class Span:
    """An attempt from `start` to `start + width` per cent; its last `lost` per cent were trained again."""

    generation: int
    start: float
    width: float
    lost: float
    hint: str


@dataclass(frozen=True)
class Timeline:
    """The attempts of a run over time.

    `breaks` are the ends of attempts that another followed, numbered from 1 where there are few.
    """

    spans: list[Span]
    breaks: list[Tick]
    ticks: list[Tick]
    alt: str


def timeline(attempts: list[AttemptSummary]) -> Timeline | None:
    """Return the timeline of the attempts whose times are known; None where there is none."""
    known = [attempt for attempt in attempts if attempt.started and attempt.ended]
    times = [time for attempt in known for time in (attempt.started, attempt.ended) if time]
    if not times:
        return None
    origin, seconds = min(times), max((max(times) - min(times)).total_seconds(), 1.0)
    spans = []
    for attempt in known:
        assert attempt.started
        assert attempt.ended
        length = max(0.0, (attempt.ended - attempt.started).total_seconds())
        spans.append(
            Span(
                generation=attempt.generation,
                start=100 * (attempt.started - origin).total_seconds() / seconds,
                width=100 * length / seconds,
                lost=100 * min(attempt.lost_seconds or 0.0, length) / seconds,
                hint=f"Attempt {attempt.generation}: {duration(length)}, {attempt.outcome}",
            )
        )
    ends = [span.start + span.width for span in spans[:-1]]
    numbers = [str(number) if len(ends) <= NUMBERED else "" for number in range(1, len(ends) + 1)]
    unit, name = next(unit for unit in UNITS if seconds >= 2 * unit[0] or unit[0] == 1)
    marks = [tick for tick in linear_ticks(0, seconds / unit, 4) if 0 <= tick <= seconds / unit]
    return Timeline(
        spans=spans,
        breaks=[Tick(end, number) for end, number in zip(ends, numbers, strict=True)],
        ticks=[Tick(100 * tick * unit / seconds, f"{tick:g} {name}") for tick in marks],
        alt=_alt(known, seconds),
    )


def _alt(attempts: list[AttemptSummary], seconds: float) -> str:
    if len(attempts) == 1:
        return f"One attempt of {duration(seconds)}, which {attempts[0].outcome}."
    away = sum(filter(None, downtimes(attempts)))
    lost = sum(filter(None, (attempt.lost_seconds for attempt in attempts)))
    breaks = len(attempts) - 1
    return (
        f"{len(attempts)} attempts over {duration(seconds)} with {breaks} break{'s' * (breaks > 1)} between "
        f"them: {duration(away)} without a machine, {duration(lost)} of training repeated."
    )
