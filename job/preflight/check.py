"""What one look at the machine, the store or the data has found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from job.errors import JobError


@dataclass(frozen=True)
class Check:
    """A finding. `text` says what is there or what is wrong, `fix` what to do about it.

    A look returns it or raises the JobError that a run would end with; `failure` makes one of that.
    """

    name: str
    status: Literal["ok", "warning", "failed"]
    text: str
    fix: str = ""
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


@dataclass(frozen=True)
class Look:
    """Something to look at. Calling it may raise JobError."""

    name: str
    at: Callable[[], Check]
    late: str = "Check the network, or try later"  # the fix where no answer comes

    def safely(self) -> Check:
        """Return what it finds, also where that is a JobError."""
        try:
            return self.at()
        except JobError as error:
            return failure(self.name, error)


def ok(name: str, text: str) -> Check:
    """Return the finding that all is well."""
    return Check(name, "ok", text)


def warning(name: str, text: str, fix: str) -> Check:
    """Return the finding that a run could go wrong, though nothing stops it yet."""
    return Check(name, "warning", text, fix)


def failure(name: str, error: JobError) -> Check:
    """Return the finding that a run would end with `error`."""
    return Check(name, "failed", error.message, error.fix, error.exit_code)
