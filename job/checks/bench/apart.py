"""Worker processes that measure a subject on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection

from job import events
from job.checks.bench.timing import Subject

IMPORTED_BY_TORCH = "torch._inductor.config"
"""What torch imports, for seconds, for deterministic algorithms and at an optimizer's first step."""


class Apart:
    """A process that has none of this one's settings for speed and bits; it runs `serve(requests, ...)`.

    All are forks of one process that has only imported what they need.
    """

    def __init__(self, name: str, serve: Callable[..., None], *arguments: object) -> None:
        self.name = name
        context = get_context("forkserver")
        context.set_forkserver_preload([serve.__module__, IMPORTED_BY_TORCH])
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(events.log_format(), serve, there, *arguments))
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


def _serve(log_format: str, serve: Callable[..., None], *arguments: object) -> None:
    events.configure(log_format)
    serve(*arguments)


def answer(requests: Connection, subjects: Mapping[str, Subject]) -> None:
    """Measure a subject for each request, until the other end of the pipe is closed."""
    with suppress(EOFError):
        while True:
            requests.send(subjects[requests.recv()]())
