"""One event a line to stderr, for people or as JSON; stdout is for results."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import structlog

_format = "human"
_process = 0  # of those that train together
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


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
            _for_people,
            structlog.dev.ConsoleRenderer(
                colors=on_terminal() and "NO_COLOR" not in os.environ,
                pad_event_to=0,
                pad_level=False,
                sort_keys=False,
            ),
        ]
    # Looked up at each event, since a display replaces sys.stderr while it is drawn.
    structlog.configure(processors=processors, logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


def log_format() -> str:
    """Return how events look: `human` or `json`."""
    return _format


def name_process(rank: int) -> None:
    """Mark what is logged from now on as that process's; the progress is process 0's to log."""
    global _process
    _process = rank


def process() -> int:
    """Return the number of this process among those that train together, from 0."""
    return _process


def _for_people(logger: Any, method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for name, value in fields.items():
        if isinstance(value, float):
            fields[name] = f"{value:.5g}"
        elif isinstance(value, str):
            fields[name] = printable(value)
    return fields


def printable(text: str) -> str:
    """Return `text` on one line and safe for a terminal: control characters are written as escapes.

    Text that comes from a server, a bucket or an archive could otherwise move the cursor or set the title.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def on_terminal() -> bool:
    """Return whether a person reads the events at a terminal, where a display may be drawn next to them."""
    return _format == "human" and sys.stderr.isatty()


def emit(event: str, /, **fields: Any) -> None:
    """Report that `event` happened. `fields` are plain values with the unit in the name."""
    if not _process:
        structlog.get_logger().info(event, **fields)


def phase(event: str, /, **fields: Any) -> None:
    """Report that a part of the work begins: for programs that watch, so only as JSON."""
    if _format == "json" and not _process:
        structlog.get_logger().debug(event, **fields)


def warn(event: str, /, **fields: Any) -> None:
    """Report something the user should check although the job continues."""
    structlog.get_logger().warning(event, **_of_process(), **fields)


def stopped(cause: str, fix: str, exit_code: int) -> None:
    """Report, in one line, why the job stops and what to do about it."""
    if _format == "json":
        structlog.get_logger().error("stopped", **_of_process(), cause=cause, fix=fix, exit_code=exit_code)
    else:
        name = f"micronet, process {_process}" if _process else "micronet"
        line = printable(f"{name}: {cause}. {fix}".rstrip())
        print(line, f"(exit code {exit_code})", file=sys.stderr)


def _of_process() -> dict[str, int]:
    return {"process": _process} if _process else {}
