"""`micronet doctor`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from job.commands.options import (
    cache_option,
    chosen_device,
    chosen_recipe,
    data_option,
    demo_option,
    device_option,
    is_demo,
    json_option,
    processes_option,
    recipe_option,
    recipe_options,
    setting_option,
    sources,
    start_option,
    store_cache_option,
    teacher_option,
)
from job.events import printable
from job.settings import DataSettings, DeviceSettings, Placement, PretrainedSettings

if TYPE_CHECKING:
    from rich.table import Table

    from job.preflight.check import Finding

PIPE_WIDTH = 120
COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}

EXAMPLES = """\b
Examples:
  micronet doctor --run s3://bucket/runs/first
  micronet doctor --recipe compact --from runs/first
  micronet doctor --json
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
@json_option
@recipe_options
@click.pass_context
def doctor(
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
    as_json: bool,
    **values: Any,
) -> int:
    """Check all that a run needs, in seconds.

    That is GPU, driver, store, credentials, clock, disks, data and the weights of --from and --teacher. Each
    failure has its cause, its fix and the exit code that `train` would end with. The command's exit code is
    that of the first failure that another machine would have too, else of the first.
    """
    from job.data.archive import place
    from job.machine.launch import AUTO, resolve
    from job.preflight.doctor import examine, exit_code

    demo = is_demo(demo, named, data)
    recipe = chosen_recipe(context, demo, named, values, start)
    placement = Placement(
        run,
        DataSettings(sources(data, demo), cache),
        DeviceSettings(chosen_device(device, gpu_required=not demo)),
        pretrained=PretrainedSettings(start, teacher),
    )
    count = int(processes) if processes != AUTO else resolve(processes, recipe.shards, device)
    findings = examine(recipe, placement, place(store_cache, run), count)
    code = exit_code(findings)
    if as_json:
        click.echo(
            json.dumps({"exit_code": code, "checks": [found.to_json() for found in findings]}, indent=2)
        )
    else:
        _print(findings)
    return code


def _print(findings: list[Finding]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(_table(findings))


def _table(findings: list[Finding]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "", "found", box=None, padding=(0, 2, 0, 0))
    for found in findings:
        text = Text(printable(found.text))
        if found.fix:
            text.append(f"\n{printable(found.fix)}", style="bold")
        status = found.status + (f" ({found.exit_code})" if found.exit_code else "")
        table.add_row(found.name, Text(status, style=COLOURS[found.status]), text)
    return table
