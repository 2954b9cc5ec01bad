"""`micronet` as a real process on the simulated device: forked from one that has imported everything."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.simulated_gpu.board import BOARD, Fault

PATIENCE_SECONDS = 60.0
PR_SET_PDEATHSIG = 1  # prctl(2)

Event = dict[str, Any]
Result = TypeVar("Result")

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.simulated_gpu.warm"])


@dataclass(frozen=True)
class Device:
    """What is asked of the device in one process."""

    fault: Fault | None = None
    memory: int | None = None  # bytes
    log: Path | None = None  # gets a JSON line for each read of the device and each copy to the host

    def set_up(self) -> None:
        """Ask it of the device of this process."""
        BOARD.fault, BOARD.memory, BOARD.log = self.fault, self.memory, self.log


@dataclass
class Attempt:
    """The process; its stderr is a file, `events` and `words` are what is in it so far."""

    process: Any
    stderr: Path
    events: list[Event] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    _read: int = 0

    def until(self, wanted: Callable[[Event], bool]) -> Event:
        """Wait for an event that is `wanted`."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            alive = self.process.is_alive()
            for event in self._new_events():
                if wanted(event):
                    return event
            assert alive, f"it ended before: {self.last_words()}"
            time.sleep(0.01)
        raise AssertionError(f"it never came; the last were {self.events[-3:]}")

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.process.pid, number)

    def end(self) -> int:
        """Wait for the end; return the exit code, minus the signal's number for one that was killed."""
        self.process.join(PATIENCE_SECONDS)
        assert self.process.exitcode is not None, f"it runs on; the last were {self.events[-3:]}"
        self._new_events()
        return int(self.process.exitcode)

    def last_words(self) -> str:
        """Return what it said of its end."""
        self._new_events()
        said = (
            " ".join((event["cause"], event["fix"])) for event in self.events if event["event"] == "stopped"
        )
        return "\n".join([*said, *self.words])

    def _new_events(self) -> list[Event]:
        with self.stderr.open("rb") as file:
            file.seek(self._read)
            new = file.read().rpartition(b"\n")[0]
        self._read += len(new) + 1 if new else 0
        found = []
        for line in new.decode(errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                self.words.append(line)
        self.events += found
        return found


@contextmanager
def started(folder: Path, options: Sequence[str], device: Device) -> Iterator[Attempt]:
    """Start `micronet OPTIONS` with its stderr in `folder`; it does not outlive the block."""
    stderr = folder / f"stderr-{time.monotonic_ns()}"
    stderr.touch()
    process = _context.Process(target=_micronet, args=(list(options), device, stderr), daemon=True)
    process.start()
    try:
        yield Attempt(process, stderr)
    finally:
        process.kill()
        process.join()


def on_device(function: Callable[..., Result], *arguments: object, device: Device = Device()) -> Result:
    """Return what `function`, of a module's top level, returns in a process that has the device."""
    with ProcessPoolExecutor(1, _context, initializer=device.set_up) as pool:
        return pool.submit(function, *arguments).result(PATIENCE_SECONDS)


def _micronet(options: list[str], device: Device, stderr: Path) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with stderr.open("ab") as file, open(os.devnull, "rb+") as nothing:
        os.dup2(file.fileno(), 2)
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    sys.argv = ["micronet", "--log-format", "json", *options]
    device.set_up()
    from job.cli import main

    main()
