"""A run's attempts along the clock on the wall, with the breaks between them."""

from __future__ import annotations

from dataclasses import dataclass

from job.text import duration
from job.view.attempts import Attempt, downtimes
from job.view.plots import Tick, linear_ticks

UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
NUMBERED = 12  # breaks whose numbers still stand apart on a phone


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
    """`breaks` are the ends of attempts that another followed, numbered from 1 where there are few."""

    spans: list[Span]
    breaks: list[Tick]
    ticks: list[Tick]
    alt: str


def timeline(attempts: list[Attempt]) -> Timeline | None:
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


def _alt(attempts: list[Attempt], seconds: float) -> str:
    if len(attempts) == 1:
        return f"One attempt of {duration(seconds)}, which {attempts[0].outcome}."
    away = sum(filter(None, downtimes(attempts)))
    lost = sum(filter(None, (attempt.lost_seconds for attempt in attempts)))
    breaks = len(attempts) - 1
    return (
        f"{len(attempts)} attempts over {duration(seconds)} with {breaks} break{'s' * (breaks > 1)} between "
        f"them: {duration(away)} without a machine, {duration(lost)} of training done twice."
    )
