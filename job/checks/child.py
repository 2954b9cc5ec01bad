"""A `micronet train` in a child process, or an agent with several: reads its events and sends it signals."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from job.errors import JobError
from job.machine.launch import PR_SET_PDEATHSIG
from job.machine.preemption import Preemption

PATIENCE_SECONDS = 600.0  # without an event; a start takes 12 s, and each retry in an outage is an event
AGENT = "agent"

Event = dict[str, Any]


class Child:
    """The process. It inherits the environment except MICRONET_*, and is killed when its parent ends.

    With --processes it is torchrun's agent. `events` are those read so far, `words` the other lines of
    stderr, such as a traceback.
    """

    def __init__(self, options: Sequence[str]) -> None:
        prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

        def die_with_parent() -> None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        self._process = subprocess.Popen(  # noqa: S603 - the command is this program's own
            [sys.executable, "-m", "job.cli", "--log-format", "json", "train", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if not name.startswith("MICRONET_")},
            preexec_fn=die_with_parent,  # one system call, and no lock
        )
        assert self._process.stderr
        self._pipe = self._process.stderr.fileno()
        self._unread = b""
        self.events: list[Event] = []
        self.words: list[str] = []

    def until(self, wanted: Callable[[Event], bool]) -> Event | None:
        """Read events up to the next that is `wanted` and return it; None when the process ends first.

        Raises JobError when there is no line for PATIENCE_SECONDS.
        """
        while (line := self._line()) is not None:
            event = self._note(line)
            if event and wanted(event):
                return event
        return None

    def running(self) -> bool:
        """Read the events that are there, without waiting; return whether the process still runs."""
        while self._has_line():
            line = self._line()
            if line is None:
                break
            self._note(line)
        return self._process.poll() is None

    def stop_reading(self) -> None:
        """Close the pipe of events, as a log collector that dies does; nothing can be read afterwards."""
        assert self._process.stderr
        self._process.stderr.close()

    def wait(self) -> int:
        """Wait for the end without reading events; return the exit code."""
        return self._process.wait(PATIENCE_SECONDS)

    def processes(self) -> dict[str, int]:
        """Return the process ids of the attempt: the agent's, and those of `process 0` and so on."""
        return {AGENT: self._process.pid, **workers(self._process.pid)}

    def signal(self, number: int, only: str = "") -> None:
        """Send a signal to all processes or to one of `processes`, unless they have ended."""
        for name, process in self.processes().items():
            if only in ("", name):
                with suppress(ProcessLookupError):
                    self._process.send_signal(number) if name == AGENT else os.kill(process, number)

    def end(self) -> int:
        """Read all events; return the exit code, negative with the signal's number if a signal ended it.

        Events end when all processes have ended.
        """
        self.until(lambda event: False)
        return self._process.wait()

    def last_words(self) -> str:
        """Return the cause that it logged for its end, and the last line of stderr that is no event."""
        causes = [event["cause"] for event in self.events if event["event"] == "stopped"]
        return "; ".join([*causes, *self.words[-1:]]) or "it logged nothing"

    def close(self) -> None:
        """Kill what still runs, and wait for its end."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        if self._process.stderr and not self._process.stderr.closed:
            self.end()
        self.stop_reading()

    def _note(self, line: str) -> Event | None:
        try:
            event: Event = json.loads(line)
        except ValueError:
            self.words.append(line)
            return None
        self.events.append(event)
        return event

    def _has_line(self) -> bool:
        return b"\n" in self._unread or bool(select.select([self._pipe], [], [], 0)[0])

    def _line(self) -> str | None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"\n" not in self._unread:
            if not select.select([self._pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise JobError(f"an attempt has logged nothing for {PATIENCE_SECONDS:g} s")
            block = os.read(self._pipe, 2**16)
            if not block:
                return None
            self._unread += block
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="replace")


def workers(agent: int) -> dict[str, int]:
    """Return the ids of the processes that an agent has started, as `process 0` and so on (Linux)."""
    found = {}
    for child in _read(f"/proc/{agent}/task/{agent}/children").split():
        for variable in _read(f"/proc/{int(child)}/environ").split(b"\0"):
            name, _, value = variable.partition(b"=")
            if name == b"RANK":
                found[int(value)] = int(child)
    return {f"process {rank}": found[rank] for rank in sorted(found)}


def _read(path: str) -> bytes:
    """Return what is in a file of /proc, nothing where its process has ended."""
    with suppress(OSError):
        return Path(path).read_bytes()
    return b""


@contextmanager
def started(options: Sequence[str], preemption: Preemption) -> Iterator[Child]:
    """Start a child that is killed at the end of the block."""
    child = None
    try:
        with preemption.deferred():
            child = Child(options)
        yield child
    finally:
        if child:
            child.close()


def named(name: str) -> Callable[[Event], bool]:
    """Return the predicate that holds for events of this name."""
    return lambda event: event["event"] == name
