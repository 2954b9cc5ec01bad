"""`micronet bench`."""

from __future__ import annotations

import json
from dataclasses import replace

import click

from job.commands.options import (
    SECONDS,
    cache_option_for,
    chosen_device,
    device_option,
    graph_option,
    json_option,
    option,
    setting_option,
)
from job.machine.preemption import Preemption
from job.settings import Recipe

PARTS = ("loop", "augmentation", "host", "determinism", "checkpoints")
ON_CPU, ON_GPU = 64, 256  # images a batch

EXAMPLES = """\b
Examples:
  micronet bench --json
  micronet bench --part loop --width 1 --batch-size 256
"""


@click.command(epilog=EXAMPLES)
@option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Measure this only.")
@setting_option(Recipe, "depth")
@setting_option(Recipe, "width")
@setting_option(Recipe, "batch_size", default=None, help="Images in a step. Default: 64, on a GPU 256.")
@setting_option(Recipe, "precision")
@setting_option(Recipe, "compile", help="Compile the job's step and the bare one.")
@graph_option
@cache_option_for("what --compile makes")
@option("--rounds", type=click.IntRange(min=1), default=6, help="Measurements of each subject, in turn.")
@option("--seconds", type=SECONDS, default="5 s", metavar="TIME", help="About how long each of them takes.")
@option("--price", type=click.FloatRange(min=0), help="Of an hour of this machine.")
@device_option
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
    """Measure the job's speed here against the bare loop and stock fastai, on images of noise."""
    from pathlib import Path

    with preemption.deferred():
        from job.checks.bench import parts as measure
        from job.checks.bench import show
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
    results = measure.run(measure.Bench(recipe, chosen, rounds, seconds, price, graph), parts or PARTS)
    click.echo(json.dumps(results, indent=2) if as_json else "\n".join(show.lines(results)))
