"""How a training goes on, while it does: an event an epoch and, on a terminal, a display that is redrawn.

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

from job import events
from job.words import duration, percent

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

REFRESHES_PER_SECOND = 4
TREND = 24  # epochs in a spark line
STEADY_STEPS = 5  # after the first, which may take a hundred times as long, before a speed is shown
SPARKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Plan:
    """What there is to do. `schedule` of (epoch, step), both from 0, is pure: the learning rate, momentum."""

    cycles: Sequence[int]  # epochs of each
    steps_per_epoch: int
    batch_size: int
    schedule: Callable[[int, int], tuple[float, float]]

    @property
    def epochs(self) -> int:
        """Epochs of all cycles together."""
        return sum(self.cycles)

    @property
    def steps(self) -> int:
        """Steps of all epochs together."""
        return self.epochs * self.steps_per_epoch

    def cycle_of(self, epoch: int) -> tuple[int, int]:
        """Return the cycle and the epoch in it, both from 0, of an epoch from 0."""
        begins = [0, *accumulate(self.cycles)]
        cycle = next(cycle for cycle in range(len(self.cycles)) if epoch < begins[cycle + 1])
        return cycle, epoch - begins[cycle]


class Progress:
    """A context manager around a training that counts its steps with `advance`.

    `checkpoint_age` returns the seconds since the newest durable checkpoint was taken, None before the first.
    """

    def __init__(self, plan: Plan, checkpoint_age: Callable[[], float | None]) -> None:
        self.plan, self.checkpoint_age = plan, checkpoint_age
        self.done = self.began_with = 0  # steps
        self.first_step: float | None = None  # when it was done here
        self.records: list[dict[str, float]] = []
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
        self.done = self.began_with = epoch * self.plan.steps_per_epoch + step
        self.records = list(records)

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

        plan = self.plan
        done = min(self.done, plan.steps - 1)  # the last epoch is shown until the end
        epoch, step = divmod(done, plan.steps_per_epoch)
        cycle, epoch_in_cycle = plan.cycle_of(epoch)
        rows = [
            (f"epoch {epoch + 1}", step + (done < self.done), plan.steps_per_epoch, "step"),
            ("total", self.done, plan.steps, "step"),
        ]
        if len(plan.cycles) > 1:
            rows.insert(
                0, (f"cycle {cycle + 1} of {len(plan.cycles)}", epoch_in_cycle, plan.cycles[cycle], "epoch")
            )
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
        figures.append(f"lr {self.plan.schedule(epoch, step)[0]:.2e}")
        here = self.done - self.began_with - 1
        if self.first_step is not None and here >= STEADY_STEPS:
            elapsed = time.monotonic() - self.first_step
            mean = here * self.plan.batch_size / elapsed
            figures.append(f"{self.records[-1]['images_per_second'] if self.records else mean:,.0f} images/s")
            figures.append(f"{duration(elapsed / here * (self.plan.steps - self.done))} left")
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
