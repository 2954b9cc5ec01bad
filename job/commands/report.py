"""`micronet report`."""

from __future__ import annotations

from pathlib import Path

import click

from job.commands import files
from job.commands.options import option

EXAMPLES = """\b
Examples:
  micronet report runs/first --open
  micronet report s3://bucket/seed-0 s3://bucket/seed-1 --output seeds.html
  micronet report runs/first --tensorboard logs --csv history.csv
"""


@click.command(epilog=EXAMPLES)
@click.argument("uris", metavar="URI...", nargs=-1, required=True)
@option("--output", default="report.html", metavar="FILE", help="Where the page goes.")
@option("--open", "show", is_flag=True, help="Open it in a browser.")
@option("--csv", metavar="FILE", help="Also write every run's epochs there, as comma-separated values.")
@option(
    "--tensorboard", metavar="DIR", help="Also write TensorBoard's event files there, a folder for each run."
)
def report(uris: tuple[str, ...], output: str, show: bool, csv: str | None, tensorboard: str | None) -> None:
    """Draw the page of a run, finished or not, or of several side by side.

    The page is one HTML file that loads nothing. Runs that differ in nothing but the seed get a mean and its
    95 % interval.
    """
    from job.store import open_store
    from job.view import exports, page
    from job.view.evidence import read

    runs = [read(open_store(uri)) for uri in uris]
    files.write(Path(output), page.encode(runs))
    if csv:
        files.write(Path(csv), exports.csv(runs))
    if tensorboard:
        for name, events in exports.tensorboard(runs).items():
            files.write(Path(tensorboard) / name, events)
    if show:
        click.launch(Path(output).absolute().as_uri())
