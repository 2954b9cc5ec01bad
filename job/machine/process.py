"""Standard streams that may be closed, full or unread, and limits on threads."""

from __future__ import annotations

import errno
import io
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from job.errors import NO_THREAD_FIX, MachineError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


FITTED = "MICRONET_FITTED_THREADS"
"""The number of threads that `fit_threads` chose; processes that this one starts inherit it."""

SPINS = 20_000
"""Turns that libgomp's threads wait before they sleep: about a millisecond."""


class OutputError(MachineError):
    """Standard output cannot be written; `unread` is set where its reader has closed it."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"standard output: {cause.strerror}", "Send it to a file that can be written")
        self.unread = cause.errno == errno.EPIPE


class _Log(io.FileIO):
    """Standard error: what cannot be written is lost, since a training must not fail because of its log."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            written: int | None = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written


class _Output(io.FileIO):
    """Standard output: raises OutputError once and drops everything afterwards."""

    failed = False

    def write(self, data: ReadableBuffer, /) -> int:
        if self.failed:
            return memoryview(data).nbytes
        try:
            written: int | None = super().write(data)
            if written is None:  # it is not blocking, and full
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        except OSError as error:
            self.failed = True
            raise OutputError(error) from error
        return written


def secure_streams() -> None:
    """Make writing to standard error never fail, and to standard output fail only with OutputError.

    Call it before any file is opened: a closed descriptor becomes /dev/null, since the next file would get
    its number and the log with it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - they stay open to the end
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Log(2, "w", closefd=False), sys.stderr, line_buffering=True)


def _text(raw: io.FileIO, like: TextIO | None, line_buffering: bool = False) -> TextIO:
    """Return a text stream over `raw`; characters that its encoding lacks are written as escapes."""
    stream = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=like.encoding if like else "utf-8",
        errors="backslashreplace",
        line_buffering=line_buffering or raw.isatty(),
    )
    return cast(TextIO, stream)


def fit_threads() -> None:
    """Choose how OpenMP's threads wait and how many there are, unless the environment does; before torch.

    They spin for SPINS turns and then sleep. A small network's kernels follow one another
    sooner: with threads that sleep at once the demo took 1.6 times as long. OpenMP's default is 15 times
    SPINS, and on a busy machine the thread they wait for needs the core that they spin on: three times as
    long. Their number is limited to a container's share of the processors, which OpenMP does not read.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    quota = cpu_quota()
    if quota is not None and quota < len(os.sched_getaffinity(0)) and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = os.environ[FITTED] = str(max(1, int(quota)))


def threads_are_stated() -> bool:
    """Return whether the user has set OMP_NUM_THREADS, which `fit_threads` sets too."""
    threads = os.environ.get("OMP_NUM_THREADS")
    return threads is not None and threads != os.environ.get(FITTED)


def cpu_quota(mount: str = "/sys/fs/cgroup") -> float | None:
    """Return how many processors this container may use, such as 1.5; None where there is no limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # cgroup 2, cgroup 1
        try:
            words = " ".join(Path(mount, name).read_text("ascii") for name in names).split()
            quota, period = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):  # "max" is not a number
            continue
        return quota / period if quota > 0 and period > 0 else None
    return None


def too_few_threads() -> MachineError:
    """Return the error for a limit of processes that leaves no more threads."""
    return MachineError("no more threads can be started", NO_THREAD_FIX)


def require_threads() -> None:
    """Raise MachineError where the threads that a training needs cannot be started; takes a millisecond.

    Call it before torch and numpy are imported: when a thread cannot be started, libgomp ends the process
    with 1 and OpenBLAS with a SIGINT to itself.
    """
    stated = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    cores = int(stated) if stated.isdigit() else len(os.sched_getaffinity(0))
    wanted = 3 * (cores - 1) + 4  # libgomp's twice, OpenBLAS's; the saver and similar threads
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
