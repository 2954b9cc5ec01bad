"""`micronet status`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from job.commands.options import json_option, option
from job.settings import ATTENDED_RETRY_SECONDS

if TYPE_CHECKING:
    from job.store import Store


EXAMPLES = """\b
Examples:
  micronet status runs/first
  micronet status s3://bucket/run --watch
"""


@click.command(epilog=EXAMPLES)
@click.argument("uri")
@option("--watch", is_flag=True, help="Show it every 5 s until the run is finished.")
@json_option
def status(uri: str, watch: bool, as_json: bool) -> None:
    """Show how far the run at URI is, from its files alone."""
    from job.store import open_store
    from job.view import status as view

    store = open_store(uri, ATTENDED_RETRY_SECONDS)  # short, so that --watch shows an outage while it lasts
    if watch:
        _watch(store, as_json)
    else:
        seen = view.read(store)
        click.echo(json.dumps(seen.to_json()) if as_json else view.lines(seen))


def _watch(store: Store, as_json: bool) -> None:
    from job import events
    from job.view.status import watch

    if sys.stdout.isatty() and not as_json:
        from rich.live import Live
        from rich.text import Text

        with Live(auto_refresh=False) as live:
            for observation in watch(store):
                live.update(Text(observation.text()), refresh=True)
        return
    for observation in watch(store):
        if observation.outage:
            events.warn("store_unreachable", reason=observation.outage)
        elif observation.seen:
            click.echo(json.dumps(observation.seen.to_json()) if as_json else observation.text() + "\n")
