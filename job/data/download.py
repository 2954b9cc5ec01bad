"""Download a file into the cache; retry, and resume where the download was cut."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type

from job import events
from job.data.remote import Remote, open_remote
from job.errors import DataError, MachineError
from job.store.base import TransientError
from job.store.files import exclusive, explain, sha256_of

TRIES_WITHOUT_PROGRESS = 4
FIRST_PAUSE_SECONDS = 0.5
"""A download fails after this many tries without a new byte; each pause is twice the one before."""

PROGRESS_SECONDS = 5
MAX_ARCHIVE_BYTES = 8 * 2**30

T = TypeVar("T")


@dataclass
class _Record:
    """The state of a download, stored next to it for the next process; `sha256` is "" until it is whole."""

    version: str | None = None
    size: int | None = None
    sha256: str = ""


def download(uri: str, name: str, sha256: str | None, size: int | None, cache: Path) -> tuple[Path, str]:
    """Return the file at `uri`, kept in `cache`, and its SHA-256, which is `sha256` where that is given.

    `name` is the URI without secrets. A cut download resumes by range request, in this call and the next,
    unless the file has changed. Only one process at a time downloads one URI; others wait for it.

    Raises DataError for a file that is missing or of another hash or size; PermissionRefusedError;
    MachineError for a full disk and TransientError (also a MachineError) for an unreachable source.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        stem = hashlib.sha256(uri.encode()).hexdigest()[:16]
        with exclusive(cache / f".{stem}.lock"):
            return _Download(uri, name, size, cache, stem).run(sha256)
    except OSError as error:
        raise explain(error, cache) from error


def kept(sha256: str, cache: Path) -> Path:
    """Return the path in `cache` of the download of that SHA-256, which may be missing."""
    return cache / f"{sha256}.archive"


class _Download:
    """One URI's partial file in the cache and the record of it; the caller holds the lock on both."""

    def __init__(self, uri: str, name: str, size: int | None, cache: Path, stem: str) -> None:
        self.uri, self.name, self.stated_size, self.cache = uri, name, size, cache
        self.partial = cache / f"{stem}.partial"
        self.note = cache / f"{stem}.json"
        self.record = self._read_record()

    def run(self, sha256: str | None) -> tuple[Path, str]:
        if sha256 and self._is_kept(sha256):
            return kept(sha256, self.cache), sha256
        if not sha256 and self.record.sha256 and self._retry(self._is_unchanged):
            return kept(self.record.sha256, self.cache), self.record.sha256
        self._retry(self._fill)
        found = sha256_of(self.partial)
        if sha256 not in (None, found):
            self._refuse(f"its SHA-256 is {found}, not {sha256}")
        if self.stated_size not in (None, self._have()):
            self._refuse(f"it has {self._have()} bytes, not {self.stated_size}")
        self.partial.replace(kept(found, self.cache))
        self.record.sha256 = found
        self._write_record()
        return kept(found, self.cache), found

    def _retry(self, action: Callable[[], T]) -> T:
        """Retry `action` after a TransientError until TRIES_WITHOUT_PROGRESS in a row bring no new byte."""
        failures, most_bytes = 0, self._have()

        def count(state: RetryCallState) -> None:
            nonlocal failures, most_bytes
            failures = 0 if self._have() > most_bytes else failures + 1
            most_bytes = max(most_bytes, self._have())

        def report(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            pause = state.upcoming_sleep
            events.warn("download_interrupted", source=self.name, reason=str(error), pause_seconds=pause)

        return Retrying(
            retry=retry_if_exception_type(TransientError),
            after=count,  # comes before `stop` and `wait`
            stop=lambda state: failures == TRIES_WITHOUT_PROGRESS,
            wait=lambda state: FIRST_PAUSE_SECONDS * 2**failures,
            before_sleep=report,
            sleep=time.sleep,
            reraise=True,
        )(action)

    def _is_kept(self, sha256: str) -> bool:
        path = kept(sha256, self.cache)
        if not path.exists():
            return False
        if sha256_of(path) == sha256:
            return True
        events.warn("cached_archive_damaged", path=str(path))
        path.unlink()
        return False

    def _is_unchanged(self) -> bool:
        """Return whether the source still has the version of the cached copy, which has no stated hash."""
        with open_remote(self.uri) as remote:
            if remote.version is None or remote.version != self.record.version:
                return False
        return self._is_kept(self.record.sha256)

    def _fill(self) -> None:
        """Append to the partial file until it is whole."""
        if self.partial.exists() and self._have() == self.record.size:
            return
        with open_remote(self.uri, self._have(), self.record.version) as remote:
            self._check_offer(remote)
            if remote.offset == 0:
                self.partial.write_bytes(b"")
            self.record = _Record(remote.version, remote.size)
            self._write_record()
            self._append(remote)
        if remote.size is not None and self._have() < remote.size:
            raise TransientError(f"cut after {self._have()} of {remote.size} bytes", "Try later")

    def _check_offer(self, remote: Remote) -> None:
        """Refuse a file of the wrong size, or too large for the disk, before any of it is written."""
        if remote.size is None:
            return
        if self.stated_size not in (None, remote.size):
            self._refuse(f"it has {remote.size} bytes, not {self.stated_size}")
        if remote.size > MAX_ARCHIVE_BYTES:
            self._refuse(f"its {remote.size} bytes are more than the {MAX_ARCHIVE_BYTES} allowed")
        needed, free = remote.size - remote.offset, shutil.disk_usage(self.cache).free
        if needed > free:
            raise MachineError(
                f"{self.cache} has {free} bytes free and the download needs {needed}",
                "Free some, or choose a folder on another disk with --cache",
            )

    def _append(self, remote: Remote) -> None:
        done, start, reported = remote.offset, time.monotonic(), time.monotonic()
        with self.partial.open("ab") as file:
            for chunk in remote.chunks:
                file.write(chunk)
                done += len(chunk)
                if done > MAX_ARCHIVE_BYTES:
                    self._refuse(f"it has more than the {MAX_ARCHIVE_BYTES} bytes allowed")
                if time.monotonic() - reported >= PROGRESS_SECONDS:
                    reported = time.monotonic()
                    rate = (done - remote.offset) / (reported - start)
                    events.emit(
                        "download",
                        source=self.name,
                        done_bytes=done,
                        total_bytes=remote.size,
                        bytes_per_second=round(rate),
                        seconds_left=round((remote.size - done) / rate) if remote.size else None,
                    )

    def _have(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _refuse(self, reason: str) -> NoReturn:
        self.partial.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        raise DataError(reason, "Name another source, or correct its stated hash or size")

    def _read_record(self) -> _Record:
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            return _Record(**json.loads(self.note.read_text()))
        return _Record()

    def _write_record(self) -> None:
        new = self.note.with_suffix(".new")
        new.write_text(json.dumps(asdict(self.record)))
        new.replace(self.note)
