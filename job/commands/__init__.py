"""The command line: parse, call, print. Each command has a module; heavy imports happen inside them."""

from __future__ import annotations

import os
import sys
from itertools import pairwise

import click

from job import VERSION, events
from job.commands import bench, data, doctor, evaluate, export, report, score, selftest, status, submit, train
from job.commands.options import option
from job.machine.preemption import Preemption

LOG_FORMAT = click.Choice(["human", "json"])
LOG_FORMAT_HELP = "Events on stderr: text, or a JSON object a line."


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@option(
    "--log-format",
    type=LOG_FORMAT,
    default="human",
    help=LOG_FORMAT_HELP,
)
@click.version_option(VERSION, package_name="micronet")
def cli(log_format: str) -> None:
    """Train, evaluate and score a small CIFAR-100 network as one batch job."""
    events.configure(log_format)


def _configure_behind(context: click.Context, option: click.Parameter, log_format: str | None) -> None:
    if log_format is not None:
        events.configure(log_format)


COMMANDS = (
    train.train,
    data.data,
    doctor.doctor,
    status.status,
    report.report,
    evaluate.evaluate,
    export.export,
    score.score,
    submit.submit,
    selftest.selftest,
    bench.bench,
)
for command in (*COMMANDS, *submit.submit.commands.values()):
    command.params.append(
        click.Option(
            ["--log-format"],
            type=LOG_FORMAT,
            expose_value=False,
            is_eager=True,
            callback=_configure_behind,
            help=LOG_FORMAT_HELP,
        )
    )
for command in COMMANDS:
    cli.add_command(command)


def run(preemption: Preemption) -> int:
    """Carry out the process's command line; return the exit code, or raise what the command raises."""
    try:
        return cli.main(standalone_mode=False, obj=preemption) or 0
    except click.ClickException as error:
        if _wants_json(sys.argv[1:]):
            events.configure("json")
            events.stopped(error.format_message(), "", error.exit_code)
        else:
            error.show()
        return error.exit_code


def _wants_json(words: list[str]) -> bool:
    """Return whether the command line asks for JSON, although an error in it may have hidden that."""
    return (
        events.log_format() == "json"
        or os.environ.get("MICRONET_LOG_FORMAT") == "json"
        or "--log-format=json" in words
        or ("--log-format", "json") in pairwise(words)
    )
