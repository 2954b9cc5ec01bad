"""The data: here already, or to be had."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from job.data.archive import CIFAR100, Source, all_failed, copy_of, parse_source
from job.data.download import kept
from job.data.remote import HTTP, size_of
from job.errors import DataError, JobError
from job.preflight.check import Check, ok, warning
from job.settings import DEMO_DATA
from job.store import local_path


def check_data(sources: Sequence[str], cache: Path, store: str | None) -> Check:
    """Say where the archive would come from; raise what `archive.fetch` would when no source answers.

    Nothing is read of it. `store` is the store's cache. A source that fails before another is a warning.
    """
    if tuple(sources) == (DEMO_DATA,):
        return ok("data", "generated here")
    failures: list[JobError] = []
    for source in [parse_source(text) for text in sources] or CIFAR100:
        try:
            found = _find(source, cache, store)
        except JobError as error:
            error.message = f"{source}: {error.message}"
            failures.append(error)
            continue
        if failures:
            reasons = "; ".join(error.message for error in failures)
            return warning("data", f"{found}; before it {reasons}", "Check the sources in --data")
        return ok("data", found)
    raise failures[0] if len(failures) == 1 else all_failed(failures)


def _find(source: Source, cache: Path, store: str | None) -> str:
    path = local_path(source.uri)
    if path is not None:
        if not path.is_file():
            raise DataError("there is no such file", "Name another with --data")
        return f"{path}, a file here"
    if source.sha256 and kept(source.sha256, cache).exists():
        return f"{source} is in {cache}"
    if store and source.sha256 and source.uri.startswith(HTTP):
        copy = copy_of(source.sha256, store)
        try:
            size_of(copy)
        except JobError:
            pass  # its home is asked then, as in a run
        else:
            return f"{source} is in {copy}"
    size = size_of(source.uri)
    return f"{source} answers" + (f", {size:,} bytes" if size is not None else "")
