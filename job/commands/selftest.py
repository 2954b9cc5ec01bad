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
    help="Where runs live; everything happens in a throw-away prefix below it.",
)
@option("--kills", type=click.IntRange(min=1), default=20, help="Number of kills, and of pauses.")
@option("--seed", type=click.IntRange(min=0), help="Of the instants of kills and pauses. Default: a new one.")
@option("--keep", is_flag=True, help="Keep the throw-away prefix.")
@device_option
@click.pass_obj
def selftest(
    preemption: Preemption, /, run: str, kills: int, seed: int | None, keep: bool, device: str
) -> None:
    """Prove in your own store that kills, pauses, damage and a lost log change no bit of a run."""
    import secrets

    with preemption.deferred():
        from job.checks import selftest as checks
        from job.machine import device as devices

    seed = secrets.randbelow(2**32) if seed is None else seed
    chosen = devices.choose("any" if device == "auto" else device)
    proof = checks.selftest(run, kills, seed, str(chosen), keep, preemption)
    for line in checks.lines(proof):
        click.echo(line)
