"""A verified archive kept in a store under its SHA-256, so that only one run asks the data's home.

A help and never a condition: what is wrong with it becomes an event, and the archive comes from its home.
"""

from __future__ import annotations

import threading
from pathlib import Path

from job import events
from job.data.download import download
from job.errors import DataError, JobError
from job.store import local_path, open_store
from job.store.base import AbsentError

FOLDER = "data"
OFF = "none"

UPLOAD_SECONDS = 120.0
"""What training waits at most: CIFAR-100's 169 MB at 1.4 MB/s. A slower upload goes on beside it."""

RETRY_SECONDS = 10.0


def place(chosen: str | None, run: str | None) -> str | None:
    """Return the store that `--store-cache` means for a run; None for no store.

    Not chosen, it is `data` beside a run in a bucket; a run in a folder has none, since `--cache` is on the
    same machine. Raises UsageError for what is no store.
    """
    if chosen == OFF:
        return None
    if chosen is not None:
        return open_store(chosen).uri
    if run is None or local_path(run) is not None:
        return None
    bucket, _, prefix = run.partition("://")[2].strip("/").partition("/")
    return "s3://" + "/".join(part for part in (bucket, prefix.rpartition("/")[0], FOLDER) if part)


def copy_of(sha256: str, store: str) -> str:
    """Return where `store` keeps, or would keep, the archive of that SHA-256."""
    return f"{store}/{sha256}"


def download_once(store: str, uri: str, name: str, sha256: str, size: int | None, cache: Path) -> Path:
    """Return the file of that SHA-256 from `cache`, else from `store`, else from `uri`, which fills both.

    For the rest see `download`. A copy that is damaged is replaced; one that is refused or out of reach is
    told of and left alone.
    """
    copy = copy_of(sha256, store)
    try:
        return download(copy, copy, sha256, size, cache)[0]
    except AbsentError:
        wanted = True
    except DataError as error:
        wanted = True
        events.warn("data_cache_damaged", copy=copy, reason=error.message)
    except JobError as error:
        wanted = False
        events.warn("data_cache_failed", copy=copy, reason=str(error))
    path, _ = download(uri, name, sha256, size, cache)
    if wanted:
        _upload(path, store, sha256)
    return path


def _upload(path: Path, store: str, sha256: str) -> None:
    """Put the file into `store` in at most UPLOAD_SECONDS, or let the rest of it happen in the background.

    A plain put: whoever else writes this key writes the same bytes.
    """
    copy = copy_of(sha256, store)

    def put() -> None:
        try:
            open_store(store, RETRY_SECONDS).put(sha256, path)
            events.emit("data_cached", copy=copy, bytes=path.stat().st_size)
        except (JobError, OSError) as error:
            events.warn("data_cache_failed", copy=copy, reason=str(error))

    thread = threading.Thread(target=put, name="data-cache", daemon=True)
    thread.start()
    thread.join(UPLOAD_SECONDS)
    if thread.is_alive():
        events.warn("data_cache_slow", copy=copy, waited_seconds=UPLOAD_SECONDS)
