"""Files that a command was asked for by name."""

from __future__ import annotations

from pathlib import Path

import click


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all and print its path; raises JobError where that cannot be."""
    from job.store.files import explain, scratch

    try:
        with scratch(path.parent) as work:
            (work / "file").write_bytes(data)
            (work / "file").replace(path)
    except OSError as error:
        raise explain(error, path) from error
    click.echo(path)
