"""`micronet selftest`."""

from __future__ import annotations

import click

from job.commands.options import any_device_option, chosen_device, option, setting_option
from job.machine.preemption import Preemption
from job.recipe import Recipe

EXAMPLES = """\b
Examples:
  micronet selftest --run s3://bucket/runs
  micronet selftest --run /mnt/shared --kills 5 --seed 1
  micronet selftest --run s3://bucket/runs --processes 4
"""

MOST_PROCESSES = 16


@click.command(epilog=EXAMPLES)
@option(
    "--run",
    required=True,
    metavar="URI",
    help="Folder, s3://bucket/prefix or gs://bucket/prefix to test; a throw-away prefix below it is used.",
)
@option("--kills", type=click.IntRange(min=1), default=20, help="Number of SIGKILLs and of pauses (SIGSTOP).")
@option(
    "--seed", type=click.IntRange(min=0), help="Seed of the kills' and pauses' instants. Default: random."
)
@option(
    "--processes",
    type=click.IntRange(1, MOST_PROCESSES),
    default=1,
    help="Largest number of processes, one a GPU; each attempt uses 1, 2, 4 … up to it.",
)
@option("--keep", is_flag=True, help="Do not remove the throw-away prefix.")
@any_device_option
@setting_option(Recipe, "precision", default="fp32", help="Precision of the training step.")
@setting_option(Recipe, "width", default=1, help="Width of the network, times 16, 32 and 64 channels.")
@click.pass_obj
def selftest(
    preemption: Preemption,
    /,
    run: str,
    kills: int,
    seed: int | None,
    processes: int,
    keep: bool,
    device: str,
    precision: str,
    width: int,
) -> None:
    """Prove exact resume and fencing in your own store. Interrupted runs must end with identical bits.

    Small runs, which also prune and quantise, are trained undisturbed, killed, paused while another attempt
    owns the run, resumed from a damaged checkpoint, and without a reader of their log. With --processes the
    attempts share a step among 1, 2, 4 ... processes, and a kill or a pause hits one of them, the agent that
    started them, or all. A proof that fails ends with 1 and is named.
    """
    import secrets

    with preemption.deferred():
        from job.checks import selftest as checks
        from job.machine import device as devices

    seed = secrets.randbelow(2**32) if seed is None else seed
    chosen = devices.choose(chosen_device(device, gpu_required=False))
    name = str(chosen) if processes == 1 else chosen.type
    options = ("--device", name, "--precision", precision, "--width", str(width))
    proof = checks.selftest(run, kills, seed, options, keep, preemption, processes)
    for line in checks.lines(proof):
        click.echo(line)
