"""The command line: parse, call, exit code. Each command has a module; heavy imports happen inside them."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from contextlib import suppress
from typing import NoReturn

import click

from job.commands import bench, data, doctor, evaluate, report, score, selftest, status, submit, train
from job.commands.options import option
from job.errors import JobError, MachineError, PreemptedError
from job.machine.preemption import Preemption

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@option(
    "--log-format",
    type=click.Choice(["human", "json"]),
    default="human",
    help="Events on stderr as text or as a JSON object a line.",
)
@click.version_option(package_name="micronet")
def cli(log_format: str) -> None:
    """Train, evaluate and score a small CIFAR-100 network as one batch job."""
    from job import events

    events.configure(log_format)


COMMANDS = (
    train.train,
    data.data,
    doctor.doctor,
    status.status,
    report.report,
    evaluate.evaluate,
    score.score,
    submit.submit,
    selftest.selftest,
    bench.bench,
)
for command in COMMANDS:
    cli.add_command(command)


def main() -> NoReturn:
    """Run the command line and exit with the code of the README's table."""
    code = _run()
    with suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    # No interpreter teardown: under torch it takes 0.9 s of a grace, and now and then it aborts in a thread
    # that still runs (SIGABRT), which a scheduler would take for a failure.
    os._exit(code)


def _run() -> int:
    preemption = Preemption(grace_seconds=30)
    try:
        with preemption.installed():
            return cli.main(standalone_mode=False, obj=preemption) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (JobError, PreemptedError) as error:
        return _explain(error)
    except OSError as error:
        if error.errno in FULL:
            cause = f"{error.filename or 'the disk'}: {error.strerror}"
            return _explain(MachineError(cause, "Free some space or use another disk"))
        traceback.print_exc()
    except Exception:
        traceback.print_exc()
    return 1


def _explain(error: JobError | PreemptedError) -> int:
    from job import events

    events.stopped(error.message, error.fix, error.exit_code)
    return error.exit_code


if __name__ == "__main__":
    main()
