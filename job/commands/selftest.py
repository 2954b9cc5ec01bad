"""`micronet selftest`."""

from __future__ import annotations

import click

from job.commands.options import chosen_device, device_option, option, setting_option
from job.machine.preemption import Preemption
from job.settings import Recipe

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
@setting_option(Recipe, "precision", default="fp32", help="Arithmetic of the runs' training step.")
@setting_option(Recipe, "width", default=1, help="Width of the runs' network.")
@click.pass_obj
def selftest(
    preemption: Preemption,
    /,
    run: str,
    kills: int,
    seed: int | None,
    keep: bool,
    device: str,
    precision: str,
    width: int,
) -> None:
    """Prove in your own store that kills, pauses, damage and a lost log change no bit of a run."""
    import secrets

    with preemption.deferred():
        from job.checks import selftest as checks
        from job.machine import device as devices

    seed = secrets.randbelow(2**32) if seed is None else seed
    chosen = devices.choose(chosen_device(device, gpu_required=False))
    options = ("--device", str(chosen), "--precision", precision, "--width", str(width))
    proof = checks.selftest(run, kills, seed, options, keep, preemption)
    for line in checks.lines(proof):
        click.echo(line)
