"""`micronet status`."""

from __future__ import annotations

import json

import click

from job.commands.options import json_option, option


@click.command()
@click.argument("uri")
@option("--watch", is_flag=True, help="Go on showing it every five seconds until the run is finished.")
@json_option
def status(uri: str, watch: bool, as_json: bool) -> None:
    """Show where the run at URI stands, from its objects alone."""
    import time

    from job import events
    from job.store import open_store
    from job.store.base import TransientError
    from job.view import status as view

    store, seen = open_store(uri), None
    while seen is None or (watch and seen.phase != "finished"):
        if seen is not None:
            time.sleep(5)
        try:
            seen = view.read(store)
            click.echo(json.dumps(seen.to_json()) if as_json else view.lines(seen) + "\n" * watch)
        except TransientError as error:
            if not watch:
                raise
            events.warn("store_unreachable", reason=error.message)
