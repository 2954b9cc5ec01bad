"""What the process was given: standard streams, which may be closed, full or unread, and room for threads."""

from __future__ import annotations

import errno
import io
import os
import sys
import threading
from typing import TYPE_CHECKING, TextIO, cast

from job.errors import MachineError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


NO_THREAD = "can't start new thread"
"""All that Python says about it, in a RuntimeError."""


class OutputError(MachineError):
    """Standard output does not take what is printed; `unread` is set where its reader is gone."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"standard output: {cause.strerror}", "Send it to a file that can be written")
        self.unread = cause.errno == errno.EPIPE


class _Log(io.FileIO):
    """Standard error: what it does not take is lost, since a training must not end for the want of a log."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            written: int | None = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written


class _Output(io.FileIO):
    """Standard output: raises OutputError once, then drops everything."""

    failed = False

    def write(self, data: ReadableBuffer, /) -> int:
        if self.failed:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self.failed = True
            raise OutputError(error) from error


def secure_streams() -> None:
    """Let standard error never fail, and standard output fail with nothing but OutputError.

    To be called before any file is opened. A descriptor that is closed becomes /dev/null: else the next file
    gets its number, and with it the log.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - they stay open to the end
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Log(2, "w", closefd=False), sys.stderr, line_buffering=True)


def _text(raw: io.FileIO, like: TextIO | None, line_buffering: bool = False) -> TextIO:
    """Return a text stream over `raw`; what its encoding cannot hold is written as an escape."""
    stream = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=like.encoding if like else "utf-8",
        errors="backslashreplace",
        line_buffering=line_buffering or raw.isatty(),
    )
    return cast(TextIO, stream)


def too_few_threads() -> MachineError:
    """Return the error for a machine that lets this process start no more threads."""
    return MachineError(
        "no more threads can be started",
        "Raise the limit of processes (--pids-limit, ulimit -u)",
    )


def require_threads() -> None:
    """Raise MachineError where as many threads as a training needs cannot be started; takes a millisecond.

    To be called before torch and numpy are imported: without a thread, libgomp ends the process with 1 and
    OpenBLAS with a SIGINT to itself.
    """
    stated = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    cores = int(stated) if stated.isdigit() else len(os.sched_getaffinity(0))
    wanted = 3 * (cores - 1) + 4  # libgomp's twice, OpenBLAS's; the saver and its like
    end, started = threading.Event(), list[threading.Thread]()
    try:
        for _ in range(wanted):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        raise too_few_threads() from error
    finally:
        end.set()
        for thread in started:
            thread.join()
