"""`micronet train`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any

import click

from job import events, settings
from job.cloud import array
from job.commands.options import (
    SECONDS,
    SECONDS_OR_NEVER,
    cache_option,
    chosen_recipe,
    data_option,
    demo_option,
    device_option,
    graph_option,
    is_default,
    option,
    recipe_options,
    sources,
    store_cache_option,
)
from job.machine.preemption import Preemption
from job.machine.process import OutputError, require_threads

EXAMPLES = """\b
Examples:
  micronet train --demo
  micronet train --run s3://bucket/runs/first
  micronet train --run runs/short --cycles 30@5e-3 --seed 1
"""


@click.command(epilog=EXAMPLES)
@option("--run", metavar="URI", help="Folder of the run's outputs. Default: runs/<fingerprint>.")
@data_option
@demo_option
@cache_option
@store_cache_option
@device_option
@option(
    "--checkpoint-every",
    type=SECONDS,
    default=settings.Placement.checkpoint_every,
    metavar="TIME",
    help="Time between checkpoints, such as 60s or 5m; 5 s with --demo.",
)
@option(
    "--storage-budget",
    type=SECONDS,
    default=settings.Placement.storage_budget,
    metavar="TIME",
    help="How long training goes on while nothing can be saved.",
)
@option(
    "--grace", type=SECONDS, default=30.0, metavar="TIME", help="Time from SIGTERM until the machine is gone."
)
@graph_option
@option(
    "--step-timeout",
    type=SECONDS_OR_NEVER,
    default=settings.Placement.step_timeout,
    metavar="TIME",
    help="How long a step may take until the device counts as hung (74); 0 is for ever.",
)
@option(
    "--exact",
    is_flag=True,
    help="Refuse a machine (74) or a software (78) that is not like the attempt before's.",
)
@option(
    "--accept-drift", is_flag=True, help="Go on with other recipe options than the run's; the report tells."
)
@recipe_options
@click.pass_context
def train(
    context: click.Context,
    /,
    run: str | None,
    data: tuple[str, ...],
    demo: bool,
    cache: str,
    store_cache: str | None,
    device: str,
    checkpoint_every: float,
    storage_budget: float,
    grace: float,
    step_timeout: float,
    graph: bool,
    exact: bool,
    accept_drift: bool,
    **values: Any,
) -> None:
    """Fetch the data, train, evaluate and write the score report; go on where an earlier attempt stopped."""
    recipe = chosen_recipe(context, settings.DEMO if demo else settings.Recipe(), values)
    seed, run = array.member(os.environ, recipe.seed, run)
    recipe = replace(recipe, seed=seed)
    if demo and is_default(context, "checkpoint_every"):
        checkpoint_every = settings.DEMO_CHECKPOINT_SECONDS
    placement = settings.Placement(
        run,
        sources(data, demo),
        cache,
        checkpoint_every,
        storage_budget,
        exact,
        accept_drift,
        store_cache=store_cache,
        step_timeout=step_timeout,
        graph=graph,
        device="any" if demo and device == "auto" else device,
    )
    preemption: Preemption = context.obj
    preemption.grace_seconds = grace
    require_threads()
    with preemption.deferred():  # torn imports leave modules that cannot be used
        from job.machine import faults
        from job.train.job import memory_fix
        from job.train.job import train as run_job

    with faults.explained(memory_fix(recipe)):
        report = run_job(recipe, placement, preemption)
    try:
        _print(report)
    except OutputError as error:  # the report is durable: nothing that happens to its summary counts
        events.warn("summary_not_printed", reason=error.message)


def _print(report: dict[str, Any]) -> None:
    accuracy, score = report["accuracy"], report["score"]["leaderboard"]["score"]
    click.echo(
        f"accuracy  {accuracy['final']:.4f}  ({accuracy['correct']} of {accuracy['total']} test images)"
    )
    click.echo(f"score     {score:.5f}  (MicroNet Challenge, as listed)")
    click.echo(f"report    {report['run']['uri']}/report.json")
    click.echo(f"page      {report['run']['uri']}/report.html")
    sys.stdout.flush()
