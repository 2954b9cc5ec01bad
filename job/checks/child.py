"""A `micronet train` as a process of its own, whose events are read and which takes signals."""

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
from contextlib import contextmanager
from typing import Any

from job.errors import JobError
from job.machine.preemption import Preemption

PATIENCE_SECONDS = 600.0  # that a process may say nothing; a start takes 12 s, an outage is told as it lasts
PR_SET_PDEATHSIG = 1  # prctl(2)

Event = dict[str, Any]


class Child:
    """The process. It has the environment of this one but for MICRONET_*, and dies with it, even by SIGKILL.

    `events` are those read so far, `words` what else was on stderr, such as a traceback.
    """

    def __init__(self, options: Sequence[str]) -> None:
        prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

        def die_with_parent() -> None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        self._process = subprocess.Popen(  # noqa: S603 - the words are this program's own
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
        """Read on to the next event that is `wanted`; None when the process ends before.

        Raises JobError after PATIENCE_SECONDS without a word.
        """
        while (line := self._line()) is not None:
            try:
                event: Event = json.loads(line)
            except ValueError:
                self.words.append(line)
                continue
            self.events.append(event)
            if wanted(event):
                return event
        return None

    def signal(self, number: int) -> None:
        """Send a signal; to one that has ended, nothing."""
        self._process.send_signal(number)

    def end(self) -> int:
        """Read to the end; return the exit code, minus the signal's number for one that was killed."""
        self.until(lambda event: False)
        return self._process.wait()

    def last_words(self) -> str:
        """Return why it stopped, as it said itself."""
        causes = [event["cause"] for event in self.events if event["event"] == "stopped"]
        return "; ".join([*causes, *self.words[-1:]]) or "it said nothing"

    def close(self) -> None:
        """End it, if need be by force."""
        self._process.kill()
        self._process.communicate()

    def _line(self) -> str | None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"\n" not in self._unread:
            if not select.select([self._pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise JobError(f"an attempt has said nothing for {PATIENCE_SECONDS:g} s")
            block = os.read(self._pipe, 2**16)
            if not block:
                return None
            self._unread += block
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="replace")


@contextmanager
def started(options: Sequence[str], preemption: Preemption) -> Iterator[Child]:
    """Start one; it does not outlive the block, whatever ends that."""
    child = None
    try:
        with preemption.deferred():
            child = Child(options)
        yield child
    finally:
        if child:
            child.close()


def named(name: str) -> Callable[[Event], bool]:
    """Return the condition that an event has this name."""
    return lambda event: event["event"] == name
