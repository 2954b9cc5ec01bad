"""The exit codes, each with what a scheduler does about it, and the errors of the job, each with its code.

This is the one table for the code, the clouds' documents and infra/.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from job.text import redact_text


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
"""Not retried: AWS Batch has no condition left for it, and a reclaimed machine is reported separately."""

BY_SIGNAL = (KILLED, TERMINATED)
"""Exit codes of a container that a signal ended."""

BEFORE_OTHERS = (FENCED, REFUSED, CONFIGURATION, DATA, USAGE, BUG, PREEMPTED, MACHINE)
"""Of the codes of processes that end together, the first in this order is the job's."""

RETRYABLE = tuple(row.code for row in TABLE + BY_SIGNAL if row.action is Action.RETRY)
"""Codes that deserve another attempt; all others fail at once."""


NO_THREAD = "can't start new thread"
"""The message of Python's RuntimeError for a limit of processes; it has no type of its own."""

NO_THREAD_FIX = "Raise the limit of processes (--pids-limit, ulimit -u)"


class ExplainedError(BaseException):
    """Something the user can understand and act on; shown as one line, without a traceback.

    `fix` says what to do. `exit_code` is the process's status. Addresses in both texts lose what may be a
    secret: libraries put whole addresses into their messages. A `quiet` error is not shown.
    """

    exit_code = BUG.code
    quiet = False

    def __init__(self, message: str, fix: str = "") -> None:
        self.message = redact_text(message)
        self.fix = redact_text(fix)
        super().__init__(self.message)

    def __str__(self) -> str:
        """Return the cause and, where there is one, the fix."""
        return f"{self.message}. {self.fix}" if self.fix else self.message


class JobError(ExplainedError, Exception):
    """Something went wrong."""


class UsageError(JobError):
    """The command line does not say what is wanted."""

    exit_code = USAGE.code


class DataError(JobError):
    """Bad input data: what was given does not verify, or nothing in it can be read."""

    exit_code = DATA.code


class MachineError(JobError):
    """The machine or its reach is at fault (disk, GPU, network, storage): retry on another."""

    exit_code = MACHINE.code


class PreemptedError(ExplainedError):
    """Stopped from outside before the end.

    No Exception, for the reason that KeyboardInterrupt is none: a library's `except Exception` (botocore
    has one around each request) would take the stop for a failure of its own.
    """

    exit_code = PREEMPTED.code


class FencedError(JobError):
    """A newer attempt owns the run: this one may neither write nor delete any more."""

    exit_code = FENCED.code


class PermissionRefusedError(JobError):
    """The store or the file system refuses access. Never taken for "absent"."""

    exit_code = REFUSED.code


class ConfigurationError(JobError):
    """What was asked for cannot be done with this recipe, run or machine."""

    exit_code = CONFIGURATION.code
