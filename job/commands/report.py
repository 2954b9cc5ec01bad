"""`micronet report`."""

from __future__ import annotations

from pathlib import Path

import click

from job.commands.options import option
from job.settings import ATTENDED_RETRY_SECONDS

EXAMPLES = """\b
Examples:
  micronet report runs/first --open
  micronet report s3://bucket/seed-0 s3://bucket/seed-1 --output seeds.html
  micronet report runs --tensorboard logs --csv history.csv
"""


@click.command(epilog=EXAMPLES)
@click.argument("uris", metavar="URI...", nargs=-1, required=True)
@option(
    "--output",
    metavar="FILE",
    help="File for the page. Default: report.html in the run, or in the folder of several.",
)
@option("--open", "show", is_flag=True, help="Open the page in a browser.")
@option(
    "--csv",
    metavar="FILE",
    help="Also write the epochs of every run to this file, as comma-separated values.",
)
@option(
    "--tensorboard",
    metavar="DIR",
    help="Also write TensorBoard's event files to this folder, a folder below it for each run.",
)
def report(
    uris: tuple[str, ...], output: str | None, show: bool, csv: str | None, tensorboard: str | None
) -> None:
    """Draw the page of a run, finished or not, or of several. A folder stands for the runs below it.

    The page is one HTML file that loads nothing. Runs that differ in nothing but the seed get a mean and its
    95 % interval.
    """
    from job.run import layout
    from job.store import local_path, open_store
    from job.store.files import write_whole
    from job.view import exports, page
    from job.view.stored_run import read, runs_at

    named = [open_store(uri, ATTENDED_RETRY_SECONDS) for uri in uris]
    stores = [open_store(run, ATTENDED_RETRY_SECONDS) for store in named for run in runs_at(store)]
    home = _home(uris, [store.uri for store in stores]) if output is None else None
    if show and home is not None and local_path(home) is None:
        raise click.UsageError("--open needs a file on this machine: name it with --output")
    runs = [read(store) for store in stores]
    files: dict[Path, bytes] = {}
    if csv:
        files[Path(csv)] = exports.csv(runs)
    if tensorboard:
        files |= {Path(tensorboard) / name: data for name, data in exports.tensorboard(runs).items()}
    if home is None:
        files = {Path(str(output)): page.encode(runs), **files}
    else:
        output = f"{home}/{layout.PAGE}"
        open_store(home).put(layout.PAGE, page.encode(runs))
        click.echo(output)
    for path, data in files.items():
        write_whole(path, data)
        click.echo(path)
    if show:
        click.launch(Path(str(output)).absolute().as_uri())


def _home(uris: tuple[str, ...], runs: list[str]) -> str:
    """Return the default folder of the page: the run's, the one that was named, or that of all runs."""
    from job.store import open_store

    if len(uris) == 1:
        return open_store(uris[0]).uri
    folders = {run.rpartition("/")[0] for run in runs}
    if len(folders) > 1 or folders <= {"", "s3:/"}:
        raise click.UsageError("The runs are in several folders: name a file for their page with --output")
    return folders.pop()
