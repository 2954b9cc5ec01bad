"""A training's progress: an event for its start, one an epoch and, on a terminal, a display that is redrawn.

The display takes what it shows from plain numbers, four times a second and in its own thread: a step costs
an addition, and no tensor is ever read for it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import TracebackType
from typing import TYPE_CHECKING

from job import STARTED, events
from job.phases import Phase
from job.text import duration, percent

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

REFRESHES_PER_SECOND = 4
TREND = 24  # epochs in a spark line
STEADY_STEPS = 5  # after the first, which may take a hundred times as long, before a speed is shown
SPARKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Workload:
    """What there is to do. `schedule` of (epoch, step), both from 0, is pure: the learning rate, momentum."""

    phases: Sequence[Phase]
    steps_per_epoch: int
    batch_size: int
    schedule: Callable[[int, int], tuple[float, float]]

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return self.phases[-1].end

    @property
    def steps(self) -> int:
        """Steps of all epochs together."""
        return self.epochs * self.steps_per_epoch

    def part_of(self, epoch: int) -> tuple[str, int, int] | None:
        """Return (label, epochs done, epochs) of the current phase or cycle; None if there is only one.

        `epoch` is from 0. Of several phases it is the phase, of one phase with several cycles the cycle.
        """
        phase = next(phase for phase in self.phases if epoch < phase.end)
        epoch -= phase.first
        if len(self.phases) > 1:
            return f"{phase.name} {epoch + 1} of {phase.epochs}", epoch, phase.epochs
        begins = [0, *accumulate(cycle.epochs for cycle in phase.cycles)]
        cycle = next(cycle for cycle in range(len(phase.cycles)) if epoch < begins[cycle + 1])
        name = f"cycle {cycle + 1} of {len(phase.cycles)}"
        return (name, epoch - begins[cycle], phase.cycles[cycle].epochs) if len(phase.cycles) > 1 else None


class Startup:
    """A stopwatch that started with the program; the first step ends it with an event."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last = STARTED

    def lap(self, part: str) -> None:
        """Record that `part` of the start is over."""
        now = time.monotonic()
        self._seconds[part] = round(now - self._last, 2)
        self._last = now

    def first_step(self, synchronise: Callable[[], None]) -> None:
        """Log all parts when the first step has ended, once; to be called after each step.

        `synchronise` waits for the device, whose steps are only launched when a call returns.
        """
        if "step" not in self._seconds:
            synchronise()
            self.lap("step")
            events.emit("first_step", after_seconds=round(self._last - STARTED, 2), **self._seconds)


class Progress:
    """A context manager around a training that counts its steps with `advance`.

    `checkpoint_age` returns the seconds since the newest durable checkpoint was taken, None before the first.
    """

    def __init__(self, workload: Workload, checkpoint_age: Callable[[], float | None]) -> None:
        self.workload, self.checkpoint_age = workload, checkpoint_age
        self.done = self.began_with = 0  # steps
        self.first_step: float | None = None  # when it was done here
        self.records: list[dict[str, float]] = []
        self.foreign = 0
        self.live: Live | None = None

    def __enter__(self) -> Progress:
        if events.on_terminal():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(
                get_renderable=lambda: self,
                console=Console(file=sys.stderr),
                refresh_per_second=REFRESHES_PER_SECOND,
                transient=True,
                redirect_stdout=False,  # results go there
            )
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def begin_at(self, epoch: int, step: int, records: Iterable[dict[str, float]] = ()) -> None:
        """Count what earlier attempts did; epoch and step from 0, and the records of the whole epochs."""
        self.done = self.began_with = epoch * self.workload.steps_per_epoch + step
        self.records = list(records)
        self.foreign = len(self.records) + (step > 0)  # epochs whose speed is another attempt's, in part

    def advance(self) -> None:
        """Count a step."""
        self.done += 1
        if self.first_step is None:
            self.first_step = time.monotonic()

    def epoch(self, record: dict[str, float]) -> None:
        """Report the record of an epoch, as in `history.jsonl`."""
        events.emit("epoch", **record)
        self.records.append(record)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw bars, and below them as many figures a line as the terminal is wide."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        workload = self.workload
        done = min(self.done, workload.steps - 1)  # the last epoch is shown until the end
        epoch, step = divmod(done, workload.steps_per_epoch)
        part = workload.part_of(epoch)
        rows = [
            (
                f"epoch {epoch + 1} of {workload.epochs}",
                step + (done < self.done),
                workload.steps_per_epoch,
                "step",
            ),
            ("total", self.done, workload.steps, "step"),
        ]
        if part:
            rows.insert(0, (*part, "epoch"))
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(no_wrap=True)
        table.add_column(ratio=1)
        table.add_column(no_wrap=True, justify="right")
        for label, completed, total, unit in rows:
            counted = f"{unit} {completed:,}/{total:,} {completed / total:5.0%}"
            table.add_row(label, ProgressBar(total=total, completed=completed), counted)
        yield table
        yield from _fill_lines(self._figures(epoch, step), options.max_width)

    def _figures(self, epoch: int, step: int) -> list[str]:
        """Return loss, accuracy, learning rate, speed, time left and the newest checkpoint's age."""
        figures = []
        losses = [record["train_loss"] for record in self.records]
        accuracies = [record["accuracy"] for record in self.records if "accuracy" in record]
        if losses:
            figures.append(f"loss {losses[-1]:.3f} {spark_line(losses)}")
        if accuracies:
            figures.append(f"accuracy {percent(accuracies[-1])} {spark_line(accuracies)}")
            figures.append(f"best {percent(max(accuracies))}")
        figures.append(f"lr {self.workload.schedule(epoch, step)[0]:.2e}")
        here = self.done - self.began_with - 1
        if self.first_step is not None and here >= STEADY_STEPS:
            elapsed = time.monotonic() - self.first_step
            mean = here * self.workload.batch_size / elapsed
            own = self.records[self.foreign :]
            figures.append(f"{own[-1]['images_per_second'] if own else mean:,.0f} images/s")
            figures.append(f"{duration(elapsed / here * (self.workload.steps - self.done))} left")
        age = self.checkpoint_age()
        figures.append("no new checkpoint yet" if age is None else f"checkpoint {duration(age)} old")
        return figures


def spark_line(values: Sequence[float]) -> str:
    """Draw the last values, the lowest of them as the lowest block."""
    values = values[-TREND:]
    low, high = min(values), max(values)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((value - low) * scale)] for value in values)


def _fill_lines(parts: Iterable[str], width: int) -> list[str]:
    """Join `parts` to lines of at most `width` characters where they fit; none is broken."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f"   {part}"
        else:
            lines.append(part)
    return lines
