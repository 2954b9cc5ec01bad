"""Worker processes that measure a subject on request."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from job import events

if TYPE_CHECKING:
    from job.checks.bench.timing import Subject

IMPORTED_BY_TORCH = "torch._inductor.config"
"""What torch imports, for seconds, for deterministic algorithms and at an optimizer's first step."""

SET_BY_THE_JOB = ("CUBLAS_WORKSPACE_CONFIG", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
"""Variables that the job sets for its speed and its bits; libraries read them when they are loaded."""


class Apart:
    """A process that has none of this one's settings for speed and bits; it runs `serve(requests, ...)`.

    All are forks of one process that has only imported what they need, with the variables of the user alone.
    """

    def __init__(self, name: str, serve: Callable[..., None], *arguments: object) -> None:
        self.name = name
        context = get_context("forkserver")
        context.set_forkserver_preload([serve.__module__, IMPORTED_BY_TORCH])
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(events.log_format(), serve, there, *arguments))
        with _users_variables():
            self._process.start()
        there.close()

    def ask(self, subject: str = "") -> None:
        """Request a measurement of one of its subjects, whose result `answer` waits for."""
        with suppress(BrokenPipeError):  # the answer will be missing
            self._here.send(subject)

    def answer(self) -> float:
        """Return what it has measured; RuntimeError where it has ended."""
        try:
            return float(self._here.recv())
        except (EOFError, ConnectionResetError):
            raise RuntimeError(f"the process of {self.name} has ended: its error is above") from None

    def close(self) -> None:
        """Let it end, and wait for that."""
        self._here.close()
        self._process.join()


@contextmanager
def _users_variables() -> Iterator[None]:
    """Take what the job has set of SET_BY_THE_JOB out of the environment (Linux)."""
    given = {
        entry.partition(b"=")[0].decode() for entry in Path("/proc/self/environ").read_bytes().split(b"\0")
    }
    kept = {name: os.environ.pop(name) for name in SET_BY_THE_JOB if name in os.environ and name not in given}
    try:
        yield
    finally:
        os.environ.update(kept)


def _serve(log_format: str, serve: Callable[..., None], *arguments: object) -> None:
    events.configure(log_format)
    serve(*arguments)


def answer(requests: Connection, subjects: Mapping[str, Subject]) -> None:
    """Measure a subject for each request, until the other end of the pipe is closed."""
    with suppress(EOFError):
        while True:
            requests.send(subjects[requests.recv()]())
