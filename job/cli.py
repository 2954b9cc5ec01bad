"""The process: its streams, its signals and its exit code. The command line itself is in `job.commands`."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from job.errors import NO_THREAD, JobError, MachineError, PreemptedError
from job.machine import process
from job.machine.preemption import Preemption

FREE_SOME = "Free some, or use another machine"


def main() -> NoReturn:
    """Run the command line and exit with the code of the README's table."""
    process.secure_streams()
    process.fit_threads()
    code = _run()
    # No interpreter teardown: under torch it takes 0.9 s of a grace, and now and then it aborts in a thread
    # that still runs (SIGABRT), which a scheduler would take for a failure.
    os._exit(code)


def _run() -> int:
    preemption = Preemption(grace_seconds=30)
    try:
        with preemption.installed():
            with preemption.deferred():  # an import that is torn cannot be repeated
                from job import commands
            code = commands.run(preemption)
            sys.stdout.flush()
            return code
    except process.OutputError as error:
        return 0 if error.unread else _explain(error)
    except (JobError, PreemptedError) as error:
        return _explain(error)
    except Exception as error:
        if shortage := _shortage(error):
            return _explain(shortage)
        import traceback

        traceback.print_exc()
    return 1


def _shortage(error: Exception) -> MachineError | None:
    """Return a MachineError if `error` means an exhausted resource, else None."""
    from job.machine.faults import is_host_memory

    if is_host_memory(error):
        reason = next(iter(str(error).splitlines()), "MemoryError")
        return MachineError(f"the machine has too little memory ({reason})", FREE_SOME)
    if isinstance(error, OSError):
        from job.store.files import SHORT

        if error.errno in SHORT:
            return MachineError(f"{error.filename or 'the machine'}: {error.strerror}", FREE_SOME)
    if isinstance(error, RuntimeError) and str(error) == NO_THREAD:
        return process.too_few_threads()
    return None


def _explain(error: JobError | PreemptedError) -> int:
    from job import events

    if not error.quiet:
        events.stopped(error.message, error.fix, error.exit_code)
    return error.exit_code


if __name__ == "__main__":
    main()
