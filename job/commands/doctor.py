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
    json_option,
    recipe_options,
    setting_option,
    sources,
    store_cache_option,
)
from job.events import printable
from job.settings import DataSettings, DeviceSettings, Placement

if TYPE_CHECKING:
    from rich.table import Table

    from job.preflight.check import Check

PIPE_WIDTH = 120
COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}

EXAMPLES = """\b
Examples:
  micronet doctor --run s3://bucket/runs/first
  micronet doctor --json
"""


@click.command(epilog=EXAMPLES)
@setting_option(Placement, "run")
@data_option
@demo_option
@cache_option
@store_cache_option
@device_option
@json_option
@recipe_options
@click.pass_context
def doctor(
    context: click.Context,
    /,
    run: str | None,
    data: tuple[str, ...],
    demo: bool,
    cache: str,
    store_cache: str | None,
    device: str,
    as_json: bool,
    **values: Any,
) -> int:
    """Check all that a run needs, in seconds. Each failure has its cause, fix and exit code.

    The exit code is that of the first failure that another machine would not mend, else of the first.
    """
    from job.data.archive import place
    from job.preflight.doctor import examine, exit_code

    recipe = chosen_recipe(context, demo, values)
    placement = Placement(
        run,
        DataSettings(sources(data, demo), cache),
        DeviceSettings(chosen_device(device, gpu_required=not demo)),
    )
    checks = examine(recipe, placement, place(store_cache, run))
    code = exit_code(checks)
    if as_json:
        click.echo(json.dumps({"exit_code": code, "checks": [check.to_json() for check in checks]}, indent=2))
    else:
        _print(checks)
    return code


def _print(checks: list[Check]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(_table(checks))


def _table(checks: list[Check]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "", "found", box=None, padding=(0, 2, 0, 0))
    for check in checks:
        text = Text(printable(check.text))
        if check.fix:
            text.append(f"\n{printable(check.fix)}", style="bold")
        status = check.status + (f" ({check.exit_code})" if check.exit_code else "")
        table.add_row(check.name, Text(status, style=COLOURS[check.status]), text)
    return table
