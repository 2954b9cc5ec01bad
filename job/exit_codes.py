"""The exit codes, each with what a scheduler does about it: the one table for code, documents and infra/."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    """What a scheduler does with a job that ended so."""

    DONE = "done"
    RETRY = "retry"
    FAIL = "fail"


@dataclass(frozen=True)
class ExitCode:
    """One row of the table."""

    code: int
    name: str
    meaning: str
    action: Action


SUCCESS = ExitCode(0, "success", "the report is durable", Action.DONE)
BUG = ExitCode(1, "bug", "a bug", Action.FAIL)
USAGE = ExitCode(2, "usage", "wrong usage", Action.FAIL)
DATA = ExitCode(65, "data", "bad input data", Action.FAIL)
MACHINE = ExitCode(74, "machine", "the machine or its reach is at fault", Action.RETRY)
PREEMPTED = ExitCode(75, "preempted", "preempted; what is durable is named", Action.RETRY)
FENCED = ExitCode(76, "fenced", "a newer attempt owns the run", Action.FAIL)
REFUSED = ExitCode(77, "refused", "permission refused", Action.FAIL)
CONFIGURATION = ExitCode(78, "configuration", "what was asked for cannot be done so", Action.FAIL)

TABLE = (SUCCESS, BUG, USAGE, DATA, MACHINE, PREEMPTED, FENCED, REFUSED, CONFIGURATION)
"""All that the job itself exits with."""

KILLED = ExitCode(137, "killed", "SIGKILL: the grace was over, or memory ran out", Action.RETRY)
TERMINATED = ExitCode(143, "terminated", "SIGTERM, answered by something other than the job", Action.FAIL)
"""Fails because AWS Batch has no condition left for it. A cloud that takes the machine away says so apart."""

BY_SIGNAL = (KILLED, TERMINATED)
"""What a container's exit code is when a signal ended it."""

RETRYABLE = tuple(row.code for row in TABLE + BY_SIGNAL if row.action is Action.RETRY)
"""Codes that deserve another attempt; all others fail at once."""
