"""`micronet bench`."""

from __future__ import annotations

import json
from dataclasses import replace

import click

from job.commands.options import (
    SECONDS,
    any_device_option,
    chosen_device,
    graph_option,
    json_option,
    option,
    setting_option,
)
from job.machine.preemption import Preemption
from job.recipe import Recipe
from job.settings import DataSettings

PARTS = ("loop", "augmentation", "host", "determinism", "checkpoints", "parallel")
ON_CPU, ON_GPU = 64, 256  # images a batch

EXAMPLES = """\b
Examples:
  micronet bench --json
  micronet bench --part loop --width 1 --batch-size 256
"""


@click.command(epilog=EXAMPLES)
@option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Measure this part only.")
@setting_option(Recipe, "depth")
@setting_option(Recipe, "width")
@setting_option(Recipe, "batch_size", default=None, help="Images in a step. Default: 64, on a GPU 256.")
@setting_option(Recipe, "precision")
@setting_option(Recipe, "compile", help="Compile the step of the job's loop and of the bare loop.")
@graph_option
@setting_option(DataSettings, "cache", help="Folder for what --compile makes. Default: ~/.cache/micronet.")
@option("--rounds", type=click.IntRange(min=1), default=6, help="Measurements of each subject, in turn.")
@option(
    "--seconds", type=SECONDS, default="5 s", metavar="TIME", help="About how long each measurement takes."
)
@option("--price", type=click.FloatRange(min=0), help="Price of an hour here, for the cost of 600 epochs.")
@any_device_option
@json_option
@click.pass_obj
def bench(
    preemption: Preemption,
    /,
    parts: tuple[str, ...],
    depth: int,
    width: int,
    batch_size: int | None,
    precision: str,
    compile: bool,  # noqa: A002 - the option's name
    graph: bool,
    cache: str,
    rounds: int,
    seconds: float,
    price: float | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure the speed of training on this machine. The images are noise.

    \b
    loop          images/s of the job's training loop, of the bare loop (the
                  step on one batch: the most any job can reach) and of stock
                  fastai; hours and cost of 600 epochs
    augmentation  images/s of the augmentation by itself, of fastai's and of
                  torchvision's, and of one resample
    host          ms of a step that the host spends besides its operators, in
                  the job's loop and in fastai's
    determinism   images/s with deterministic algorithms and without
    checkpoints   images/s with a checkpoint every 10 s and without; seconds a
                  checkpoint costs, and ms it blocks the training thread
    parallel      images/s with 1, 2 and 4 shards, and in several processes, one
                  a GPU or, on a processor, a core; ms and bytes of their exchange
                  in a step; a model of 2 and 4 GPUs by the link between them

    A figure is the median of the rounds with the lowest and the highest. A ratio is of figures of the same
    round; its mean has a 95 % confidence interval.
    """  # noqa: D301 - click's mark for lines that stay as they are
    from pathlib import Path

    with preemption.deferred():
        from job.checks.bench.parts import Bench, measure
        from job.checks.bench.results import lines
        from job.machine import compiler
        from job.machine import device as devices
        from job.train.step import check_graph

    chosen = devices.choose(chosen_device(device, gpu_required=False))
    recipe = replace(
        Recipe(),
        depth=depth,
        width=width,
        batch_size=batch_size or (ON_GPU if chosen.type == "cuda" else ON_CPU),
        precision=precision,
        compile=compile,
    )
    if graph:
        check_graph(recipe, chosen)
    if compile:
        compiler.prepare(Path(cache), chosen)
    results = measure(Bench(recipe, chosen, rounds, seconds, price, graph), parts or PARTS)
    click.echo(json.dumps(results, indent=2) if as_json else "\n".join(lines(results)))
