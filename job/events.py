"""One event a line to stderr, for people or as JSON; stdout is for results."""

from __future__ import annotations

import os
import sys
from typing import Any

import structlog

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
                colors=on_terminal() and "NO_COLOR" not in os.environ,
                pad_event_to=0,
                pad_level=False,
                sort_keys=False,
            ),
        ]
    # stderr is looked up at each event, since a display puts itself in its place.
    structlog.configure(processors=processors, logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


def _short_numbers(
    logger: Any, method: str, fields: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in fields.items()}


def on_terminal() -> bool:
    """Say whether events are read by a person at a terminal, so that a display may be drawn beside them."""
    return _format == "human" and sys.stderr.isatty()


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
