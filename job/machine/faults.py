"""A device that fails or hangs: which exit code PyTorch's errors get, and the end of a process that waits."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from job import events
from job.errors import ConfigurationError, JobError, MachineError

BUGS = {
    700: "an illegal memory access",
    710: "a device-side assertion that failed",
    716: "a misaligned address",
    717: "an address of the wrong space",
}
"""CUDA's errors (driver_types.h) that the program causes: another machine would raise them too."""

LIBRARY_FAULT = re.compile(r"CU[A-Z]+_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)")
"""How cuBLAS and cuDNN report a fault of the device, in a plain RuntimeError."""

HOST_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""How PyTorch reports too little memory of the host, in a plain RuntimeError (c10/core/alloc_cpu.cpp)."""

TICK_SECONDS = 1.0


class DeviceLostError(MachineError):
    """The device is at fault (ECC, Xid, off the bus): nothing can be read from it any more."""


@contextmanager
def explained(memory_fix: str) -> Iterator[None]:
    """Raise the JobError for what the block raises about the device.

    DeviceLostError (74), ConfigurationError (78) with `memory_fix` for too little memory, the processor's
    too, JobError (1) for a bug; an error that is not about the device stays as it is.
    """
    import torch  # not at the top: the watchdog needs none

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigurationError(
            f"the device has too little memory: {_first_line(error)}", memory_fix
        ) from error
    except torch.AcceleratorError as error:
        code = getattr(error, "error_code", None)
        if code in BUGS:
            raise JobError(
                f"the device reports {BUGS[code]} (CUDA error {code}): a bug, or memory that is damaged",
                "Report it, with what CUDA_LAUNCH_BLOCKING=1 prints",
            ) from error
        raise _lost(error) from error
    except RuntimeError as error:
        if LIBRARY_FAULT.search(str(error)):
            raise _lost(error) from error
        if not is_host_memory(error):
            raise
        raise ConfigurationError(
            f"the processor has too little memory: {_first_line(error)}", memory_fix
        ) from error
    except MemoryError as error:
        raise ConfigurationError(
            f"the processor has too little memory ({_first_line(error) or 'MemoryError'})", memory_fix
        ) from error


def is_host_memory(error: Exception) -> bool:
    """Return whether `error` says that the processor's memory does not suffice."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and HOST_MEMORY in str(error))


def _lost(error: RuntimeError) -> DeviceLostError:
    return DeviceLostError(
        f"the device is at fault: {_first_line(error)}", "Run the same command on another machine"
    )


def _first_line(error: Exception) -> str:
    """Return the line that names the error; fastai puts one of its own above it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = (line for line in lines if any(name in line for name in ("CUDA", "CUDNN", HOST_MEMORY)))
    return next(named, lines[0] if lines else "")


class Watchdog:
    """A context manager that ends the process with 74 after `limit_seconds` without a step.

    Only time inside `watching` counts, and `progress` counts as a step. A limit of 0 turns it off. Before the
    end `settle` is called with the cause, in the watchdog's thread: the main thread waits for the device and
    runs no signal handler. With `compiling` the time until the first step does not count.
    """

    def __init__(self, limit_seconds: float, settle: Callable[[str], None], compiling: bool = False) -> None:
        self.limit_seconds, self.settle = limit_seconds, settle
        self._compiling, self._watching = compiling, False
        self._moves = 0
        self._stop = threading.Event()

    def __enter__(self) -> Watchdog:
        if self.limit_seconds:
            threading.Thread(target=self._run, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()

    def progress(self) -> None:
        """Note that a batch was evaluated."""
        self._moves += 1

    def step(self) -> None:
        """Note that a training step has ended."""
        self._compiling = False
        self._moves += 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count the time in the block."""
        self._moves += 1
        self._watching = True
        try:
            yield
        finally:
            self._watching = False

    def _run(self) -> None:
        # Counted in ticks: a process that was paused (SIGSTOP) has not been idle for that time.
        tick = min(TICK_SECONDS, self.limit_seconds / 10)
        seen, idle = self._moves, 0.0
        while not self._stop.wait(tick):
            waits = self._watching and not self._compiling and self._moves == seen
            idle, seen = idle + tick if waits else 0.0, self._moves
            if idle >= self.limit_seconds:
                self._give_up()

    def _give_up(self) -> None:
        cause = f"no step has ended for {self.limit_seconds:g} s: the device does not answer"
        try:
            events.warn("stuck", cause=cause)
            self.settle(cause)
        except Exception as error:  # such as no thread left: the process must end nevertheless
            events.warn("settle_failed", error=type(error).__name__)
        finally:
            try:
                events.stopped(
                    cause,
                    "Run the same command on another machine, or with a longer --step-timeout if steps take "
                    "so long",
                    MachineError.exit_code,
                )
            finally:
                os._exit(MachineError.exit_code)
