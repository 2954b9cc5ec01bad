"""`micronet` as a real process on the simulated device: forked from one that has imported everything."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import multiprocessing
import os
import pty
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.simulated_gpu.board import BOARD, Fault

PATIENCE_SECONDS = 120.0
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


SOUND = Device()


@dataclass
class Attempt:
    """The process; it writes to a file, of which `events` and `words` are what has been read."""

    process: Any
    output: Path
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
        raise AssertionError(f"it never came: {self._where()}")

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.process.pid, number)

    def end(self) -> int:
        """Wait for the end; return the exit code, minus the signal's number for one that was killed."""
        self.process.join(PATIENCE_SECONDS)
        assert self.process.exitcode is not None, f"it does not end: {self._where()}"
        self._new_events()
        return int(self.process.exitcode)

    def last_words(self) -> str:
        """Return what it said of its end."""
        self._new_events()
        said = (
            " ".join((event["cause"], event["fix"])) for event in self.events if event["event"] == "stopped"
        )
        return "\n".join([*said, *self.words])

    def _where(self) -> str:
        """Return the last events and where each thread is."""
        self.signal(signal.SIGUSR1)
        time.sleep(1)
        said = self.last_words()
        return f"{self.events[-3:]}\n{said}"

    def _new_events(self) -> list[Event]:
        with self.output.open("rb") as file:
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
def started(
    folder: Path, options: Sequence[str], device: Device, terminal: bool = False
) -> Iterator[Attempt]:
    """Start `micronet OPTIONS` with what it writes in `folder`; it does not outlive the block.

    With `terminal` stderr is one, for people and with a display; the file gets that too.
    """
    output = folder / f"output-{time.monotonic_ns()}"
    output.touch()
    process = _context.Process(target=_micronet, args=(list(options), device, output, terminal), daemon=True)
    process.start()
    try:
        yield Attempt(process, output)
    finally:
        process.kill()
        process.join()


def on_device(function: Callable[..., Result], *arguments: object, device: Device = SOUND) -> Result:
    """Return what `function`, of a module's top level, returns in a process that has the device."""
    with ProcessPoolExecutor(1, _context, initializer=device.set_up) as pool:
        return pool.submit(function, *arguments).result(PATIENCE_SECONDS)


def _micronet(options: list[str], device: Device, output: Path, terminal: bool) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with output.open("ab") as file, open(os.devnull, "rb+") as nothing:
        os.dup2(_terminal(output) if terminal else file.fileno(), 2)
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    faulthandler.register(signal.SIGUSR1, file=2)
    sys.argv = ["micronet", "--log-format", "human" if terminal else "json", *options]
    device.set_up()
    from job.cli import main

    main()


def _terminal(copy: Path) -> int:
    """Return a terminal to write to; a thread copies what comes out of it."""
    outside, inside = pty.openpty()

    def drain() -> None:
        with copy.open("ab", buffering=0) as file:
            while True:
                file.write(os.read(outside, 2**16))

    threading.Thread(target=drain, daemon=True).start()
    return inside
