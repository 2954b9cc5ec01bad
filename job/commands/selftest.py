"""`micronet selftest`."""

from __future__ import annotations

import click

from job.commands.options import device_option, option
from job.machine.preemption import Preemption

EXAMPLES = """\b
Examples:
  micronet selftest --run s3://bucket/runs
  micronet selftest --run /mnt/shared --kills 5 --seed 1
"""


@click.command(epilog=EXAMPLES)
@option(
    "--run",
    required=True,
    metavar="URI",
    help="Where runs live; all is done in a throw-away prefix below it.",
)
@option("--kills", type=click.IntRange(min=1), default=20, help="Attempts that are killed.")
@option("--seed", type=click.IntRange(min=0), help="Of the instants of the kills. Default: a new one.")
@option("--keep", is_flag=True, help="Leave the throw-away prefix for a look.")
@device_option
@click.pass_obj
def selftest(
    preemption: Preemption, /, run: str, kills: int, seed: int | None, keep: bool, device: str
) -> None:
    """Prove in your own store that kills, a pause and a damaged checkpoint change no bit of a run."""
    import secrets

    with preemption.deferred():
        from job.checks import selftest as checks
        from job.machine import device as devices

    seed = secrets.randbelow(2**32) if seed is None else seed
    chosen = devices.choose("any" if device == "auto" else device)
    proof = checks.selftest(run, kills, seed, chosen.type, keep, preemption)
    for line in checks.lines(proof):
        click.echo(line)
