"""`micronet data`."""

from __future__ import annotations

import click

from job.commands.options import cache_option, data_option, demo_data_option, option, sources

PREVIEW_SCALE = 3  # pixels of the picture a pixel of the data set takes


EXAMPLES = """\b
Examples:
  micronet data --cache /scratch/data
  micronet data --demo --preview sheet.png
"""


@click.command(epilog=EXAMPLES)
@data_option
@demo_data_option
@cache_option
@option(
    "--export",
    metavar="DIR",
    help="Also write the images to this folder, as PNG files in a folder for each class.",
)
@option(
    "--preview", metavar="FILE.png", help="Also draw training images to this file, as they are and augmented."
)
def data(data: tuple[str, ...], demo: bool, cache: str, export: str | None, preview: str | None) -> None:
    """Fetch, verify and unpack the data set."""
    from pathlib import Path

    from job.data.dataset import prepare

    prepared = prepare(sources(data, demo), Path(cache))
    click.echo(prepared.folder)
    if export:
        from job.data.pack import export as write_folders

        write_folders(prepared.dataset, Path(export))
        click.echo(export)
    if preview:
        from job.recipe import Recipe
        from job.store.files import write_whole
        from job.train.preview import sheet

        dataset = prepared.dataset
        picture = sheet(dataset.train, len(dataset.classes), Recipe(), scale=PREVIEW_SCALE)
        write_whole(Path(preview), picture)
        click.echo(preview)
