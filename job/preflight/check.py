"""A check of the machine, the store or the data, and what it has found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from job.errors import BUG, JobError

NETWORK = "Check the network, or try later"
"""The fix where a store or a source of data does not answer in time."""

OTHER_MACHINE = "The GPU does not answer: use another machine"
"""The fix where a check of the device does not answer in time."""

REPORT = "Report it as a bug, unless the text names a fault of the machine"


@dataclass(frozen=True)
class Finding:
    """The result of a check: `text` is the state or the cause of the failure, `fix` what to do about it."""

    name: str
    status: Literal["ok", "warning", "failed"]
    text: str
    fix: str = ""
    exit_code: int = 0

    def to_json(self) -> dict[str, str | int]:
        """Return the finding as `doctor --json` prints it."""
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """A named check; `run` returns its finding or raises the JobError that a run would end with."""

    name: str
    run: Callable[[], Finding]
    late: str  # the fix where there is no answer in time

    def finding(self) -> Finding:
        """Run the check and return its finding; an exception becomes the finding of a failure."""
        try:
            return self.run()
        except Exception as error:  # one that escaped would end the thread of the checks that follow
            return failure(self.name, error)


def ok(name: str, text: str) -> Finding:
    """Return the finding that nothing is wrong."""
    return Finding(name, "ok", text)


def warning(name: str, text: str, fix: str) -> Finding:
    """Return the finding that a run could fail later, though nothing stops it now."""
    return Finding(name, "warning", text, fix)


def failure(name: str, error: Exception) -> Finding:
    """Return the finding that a run would end with `error`, which is a bug (1) unless it is a JobError."""
    if isinstance(error, JobError):
        return Finding(name, "failed", error.message, error.fix, error.exit_code)
    return Finding(name, "failed", f"{type(error).__name__}: {error}", REPORT, BUG.code)
