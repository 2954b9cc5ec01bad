"""The errors of the job, each with the exit code that a batch scheduler acts on."""

from __future__ import annotations

from job.address import redact_text


class ExplainedError(BaseException):
    """Something the user can understand and act on; shown as one line, without a traceback.

    `fix` says what to do. `exit_code` is the process's status (see the README's table). Addresses in both
    lose what may be a secret: libraries put whole addresses into their messages.
    """

    exit_code = 1

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

    exit_code = 2


class DataError(JobError):
    """Bad input data: what was given does not verify, or nothing in it can be read."""

    exit_code = 65


class MachineError(JobError):
    """The machine or its reach is at fault (disk, GPU, network, storage): retry on another."""

    exit_code = 74


class PreemptedError(ExplainedError):
    """Stopped from outside before the end.

    No Exception, for the reason that KeyboardInterrupt is none: a library's `except Exception` (botocore
    has one around each request) would take the stop for a failure of its own.
    """

    exit_code = 75


class FencedError(JobError):
    """A newer attempt owns the run: this one may neither write nor delete any more."""

    exit_code = 76


class PermissionRefusedError(JobError):
    """The store or the file system refuses access. Never taken for "absent"."""

    exit_code = 77


class ConfigurationError(JobError):
    """What was asked for cannot be done with this recipe, run or machine."""

    exit_code = 78
