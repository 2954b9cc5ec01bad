"""A check of the machine, the store or the data, and what it has found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from job.errors import JobError


@dataclass(frozen=True)
class Finding:
    """What a check has found: `text` is the state or the cause of the failure, `fix` what to do about it."""

    name: str
    status: Literal["ok", "warning", "failed"]
    text: str
    fix: str = ""
    exit_code: int = 0

    def to_json(self) -> dict[str, str | int]:
        """Return the fields."""
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """A named check; `run` returns its finding or raises the JobError that a run would end with."""

    name: str
    run: Callable[[], Finding]
    late: str = "Check the network, or try later"  # the fix where there is no answer in time

    def finding(self) -> Finding:
        """Run the check and return its finding; a JobError becomes the finding of a failure."""
        try:
            return self.run()
        except JobError as error:
            return failure(self.name, error)


def ok(name: str, text: str) -> Finding:
    """Return the finding that nothing is wrong."""
    return Finding(name, "ok", text)


def warning(name: str, text: str, fix: str) -> Finding:
    """Return the finding that a run could fail later, though nothing stops it now."""
    return Finding(name, "warning", text, fix)


def failure(name: str, error: JobError) -> Finding:
    """Return the finding that a run would end with `error`."""
    return Finding(name, "failed", error.message, error.fix, error.exit_code)
