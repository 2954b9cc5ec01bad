"""One event a line to stderr, for people or as JSON, and the progress bar; stdout is for results."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    import rich.progress

_format = "human"


def configure(log_format: str = "human") -> None:
    """Choose how events look: `human` (time, name, key=value) or `json` (one object a line, UTC times)."""
    global _format
    _format = log_format
    processors: list[Any] = [structlog.processors.add_log_level]
    if log_format == "json":
        processors += [
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.JSONRenderer(),
        ]
    else:
        processors += [
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            _short_numbers,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), pad_event_to=0, pad_level=False, sort_keys=False
            ),
        ]
    # stderr is looked up at each event, since a progress bar puts itself in its place.
    structlog.configure(processors=processors, logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


def _short_numbers(
    logger: Any, method: str, fields: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in fields.items()}


def emit(event: str, /, **fields: Any) -> None:
    """Report that `event` happened. `fields` are plain values with the unit in the name."""
    structlog.get_logger().info(event, **fields)


def phase(event: str, /, **fields: Any) -> None:
    """Report that a part of the work begins: for programs that watch, so only as JSON."""
    if _format == "json":
        structlog.get_logger().debug(event, **fields)


def warn(event: str, /, **fields: Any) -> None:
    """Report something the user should look at although the job goes on."""
    structlog.get_logger().warning(event, **fields)


def stopped(cause: str, fix: str, exit_code: int) -> None:
    """Report, in one line, why the job stops and what to do about it."""
    if _format == "json":
        structlog.get_logger().error("stopped", cause=cause, fix=fix, exit_code=exit_code)
    else:
        print(f"micronet: {cause}. {fix}".rstrip(), f"(exit code {exit_code})", file=sys.stderr)


class Progress:
    """An event for each epoch and, on a terminal, a bar that moves with each step.

    A context manager. The bar shows the last epoch's loss and accuracy, images a second and the time left.
    """

    def __init__(self, epochs: int, steps_per_epoch: int) -> None:
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.done, self.first_epoch = 0, 1
        self.bar: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=Console(file=sys.stderr),
                transient=True,
            )
            total = self.epochs * self.steps_per_epoch
            self.task = self.bar.add_task(
                "", total=total, completed=self.done, epoch=self.first_epoch, epochs=self.epochs, figures=""
            )
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def begin_at(self, epoch: int, step: int) -> None:
        """Count what earlier attempts did; epoch and step from 0."""
        self.done, self.first_epoch = epoch * self.steps_per_epoch + step, epoch + 1

    def advance(self) -> None:
        """Count a step."""
        if self.bar is not None:
            self.bar.advance(self.task)

    def epoch(self, record: dict[str, Any]) -> None:
        """Report the record of an epoch, as in `history.jsonl`."""
        emit("epoch", **record)
        if self.bar is not None:
            figures = "loss {train_loss:.3f}  accuracy {accuracy:.2%}  {images_per_second:,.0f} images/s"
            epoch = min(record["epoch"] + 1, self.epochs)
            self.bar.update(self.task, epoch=epoch, figures=figures.format(**record))
