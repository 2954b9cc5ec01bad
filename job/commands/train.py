"""`micronet train`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from job import events, settings
from job.cloud.submission import array_member
from job.commands.options import (
    cache_option,
    chosen_device,
    chosen_recipe,
    data_option,
    demo_option,
    device_option,
    graph_option,
    is_default,
    is_demo,
    processes_option,
    recipe_option,
    recipe_options,
    setting_option,
    sources,
    start_option,
    store_cache_option,
    teacher_option,
)
from job.machine import launch
from job.machine.preemption import Preemption
from job.machine.process import OutputError, require_threads
from job.run import layout
from job.settings import AttemptSettings, DataSettings, DeviceSettings, Placement, PretrainedSettings

if TYPE_CHECKING:
    from job.run.report import Report

EXAMPLES = """\b
Examples:
  micronet train --demo
  micronet train --run s3://bucket/runs/first
  micronet train --run runs/short --cycles 30@5e-3 --seed 1
  micronet train --run runs/small --recipe compact --from runs/first
"""


@click.command(epilog=EXAMPLES)
@setting_option(Placement, "run")
@data_option
@demo_option
@recipe_option
@start_option
@teacher_option
@cache_option
@store_cache_option
@device_option
@processes_option
@setting_option(AttemptSettings, "checkpoint_every", help="Time between checkpoints; 5 s with --demo.")
@setting_option(AttemptSettings, "storage_budget")
@setting_option(AttemptSettings, "grace")
@setting_option(DeviceSettings, "step_timeout")
@graph_option
@setting_option(AttemptSettings, "exact")
@setting_option(AttemptSettings, "accept_drift")
@recipe_options
@click.pass_context
def train(
    context: click.Context,
    /,
    run: str | None,
    data: tuple[str, ...],
    demo: bool,
    named: str | None,
    start: str | None,
    teacher: str | None,
    cache: str,
    store_cache: str | None,
    device: str,
    processes: str,
    checkpoint_every: float,
    storage_budget: float,
    grace: float,
    step_timeout: float,
    graph: bool,
    exact: bool,
    accept_drift: bool,
    **values: Any,
) -> int:
    """Fetch the data, train, evaluate and write the score report. A run that was interrupted is resumed."""
    demo = is_demo(demo, named, data)
    recipe = chosen_recipe(context, demo, named, values, start)
    seed, run = array_member(os.environ, recipe.seed, run)
    recipe = replace(recipe, seed=seed)
    if demo and is_default(context, "checkpoint_every"):
        checkpoint_every = settings.DEMO_CHECKPOINT_SECONDS
    placement = Placement(
        run,
        DataSettings(sources(data, demo), cache, store_cache),
        DeviceSettings(chosen_device(device, gpu_required=not demo), graph, processes, step_timeout),
        AttemptSettings(checkpoint_every, storage_budget, grace, exact, accept_drift),
        PretrainedSettings(start, teacher),
    )
    preemption: Preemption = context.obj
    preemption.grace_seconds = grace
    require_threads()
    if launch.under_torchrun():
        launch.end_with_agent()
    else:
        count = launch.resolve(processes, recipe.shards, device)
        if count > 1 or launch.machines() > 1:
            return launch.run(count, ["-m", "job.cli", *sys.argv[1:]], grace, preemption)
    with preemption.deferred():  # torn imports leave modules that cannot be used
        from job.machine import faults
        from job.train.job import memory_fix
        from job.train.job import train as run_job

    with faults.explained(memory_fix(recipe)):
        report = run_job(recipe, placement, preemption)
    if report is None:
        return 0
    try:
        _print(report)
    except OutputError as error:  # the report is durable: nothing that happens to its summary counts
        events.warn("summary_not_printed", reason=error.message)
    return 0


def _print(report: Report) -> None:
    accuracy, (name, rules) = report.accuracy, report.headline
    note = "as listed" if name == "leaderboard" else f"the {name} rules"
    click.echo(f"accuracy  {accuracy.final:.4f}  ({accuracy.correct} of {accuracy.total} test images)")
    click.echo(f"score     {rules.score:.5f}  (MicroNet Challenge, {note})")
    uri = events.printable(report.run.uri)
    click.echo(f"report    {uri}/{layout.REPORT}")
    click.echo(f"page      {uri}/{layout.PAGE}")
    sys.stdout.flush()
