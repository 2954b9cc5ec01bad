"""`micronet data`."""

from __future__ import annotations

import click

from job.commands.options import cache_option, data_option, demo_option, option, sources


@click.command()
@data_option
@demo_option
@cache_option
@option("--export", metavar="DIR", help="Also write the images there as PNG class folders.")
def data(data: tuple[str, ...], demo: bool, cache: str, export: str | None) -> None:
    """Fetch, verify and unpack the data set."""
    from pathlib import Path

    from job.data.dataset import prepare

    prepared = prepare(sources(data, demo), Path(cache))
    click.echo(prepared.folder)
    if export:
        from job.data.export import export as write_folders

        write_folders(prepared.dataset, Path(export))
        click.echo(export)
