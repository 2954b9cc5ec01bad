"""Stopping from outside: SIGTERM, SIGINT and a notice become one PreemptedError, where it does no harm."""

from __future__ import annotations

import _thread
import math
import os
import select
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from job.errors import PreemptedError

REPEAT_SECONDS = 0.5  # below: one request that came twice, as `timeout` and a shell's trap deliver it


class Preemption:
    """What the outside has asked for, and by when the process must be gone. For the main thread.

    A signal raises PreemptedError at once, between two bytecodes; inside `deferred` it waits for the
    outermost exit. It is raised by itself only once: a save in an `except PreemptedError:` block is
    never torn, whatever arrives and whatever it defers. `check` raises each time, so that a raise which
    third-party code swallowed (`except:`, a `__del__`) is made good. PreemptedError is no Exception, as
    KeyboardInterrupt is none: botocore turns any Exception into a connection error, which is retried.

    A second signal ends the process at once with 75, and so does the end of the grace. A thread does that: a
    main thread inside native code, such as a call of a hung driver, runs no handler. Forked children get the
    handlers from before.

    `grace_seconds` is the time from the signal to SIGKILL and may be set until the signal comes.
    """

    def __init__(self, grace_seconds: float) -> None:
        self.grace_seconds = grace_seconds
        self.requested = False
        self._reason = ""
        self._raised = False
        self._depth = 0
        self._signalled: float | None = None
        self._gone = math.inf

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT over; after the block they are only noted, since the exit code is decided.

        To be entered inside the `try` that maps errors to exit codes. SIGINT stays ignored where it was
        (`command &` in a script).
        """
        handlers = {signal.SIGTERM: self._on_signal}
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            handlers[signal.SIGINT] = self._on_signal
        previous = {number: signal.getsignal(number) or signal.SIG_DFL for number in handlers}

        def restore() -> None:
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(-1)

        os.register_at_fork(after_in_child=restore)
        # Written to by the interpreter's C code, the moment that a signal comes.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        _thread.start_new_thread(self._guard, (reader, handlers.keys()))
        for number, handler in handlers.items():
            signal.signal(number, handler)
        try:
            yield
        finally:
            self._depth += 1

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let no signal interrupt the block: a training step, a commit, an import.

        Leaving the outermost block raises PreemptedError if a signal came, unless it was raised before or
        the block ends with an error of its own.
        """
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._depth == 0 and self.requested:
            self._raise_once()

    def check(self, save_seconds: float = 0.0) -> None:
        """Raise PreemptedError if a stop was requested, or if a notice leaves no more than `save_seconds`."""
        if not self.requested and self.remaining() <= save_seconds:
            self._request("the machine is about to be taken away")
        if self.requested:
            self._raised = True
            raise self._error()

    def expect(self, gone: float) -> None:
        """Take note that the machine is gone at `gone` (time.monotonic()); a sooner time stays."""
        self._gone = min(self._gone, gone)

    @property
    def deadline(self) -> float | None:
        """When saving must be over (time.monotonic()); None while nothing is known to end the process.

        A tenth of the grace, at most a second, is kept back to say what did not fit and to exit.
        """
        return None if math.isinf(self._gone) else self._gone - self._reserve

    def remaining(self) -> float:
        """Return the seconds until `deadline`, at least 0; infinity where there is none."""
        return max(0.0, self._gone - self._reserve - time.monotonic())

    @property
    def _reserve(self) -> float:
        return min(1.0, self.grace_seconds / 10)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # No event here: the interrupted code may hold the lock of the log.
        if self._signalled is None:
            self._signalled = time.monotonic()
            self._gone = self._end_of_grace(self._signalled)
            self._request(f"stopped by {signal.Signals(number).name}")
        if self._depth == 0:
            self._raise_once()

    def _end_of_grace(self, signalled: float) -> float:
        # A notice whose time is over was wrong about it; the signal knows better.
        return min(self._gone if self._gone > signalled else math.inf, signalled + self.grace_seconds)

    def _guard(self, pipe: int, numbers: Collection[int]) -> NoReturn:
        """Read signals' numbers from `pipe`; end the process after the second one or the grace."""
        signalled: float | None = None
        while True:
            left = None
            if signalled is not None:
                left = max(0.0, self._end_of_grace(signalled) - self._reserve / 2 - time.monotonic())
            ready = select.select([pipe], [], [], left)[0]
            if not ready:
                _leave(f"the grace of {self.grace_seconds:g} s is over: stopped with what is durable")
            come, now = [number for number in os.read(pipe, 1) if number in numbers], time.monotonic()
            if come and signalled is not None and now - (self._signalled or signalled) > REPEAT_SECONDS:
                _leave(f"{signal.Signals(come[0]).name} again: stopped at once")
            if come and signalled is None:
                signalled = now

    def _request(self, reason: str) -> None:
        if not self.requested:
            self._reason = reason
            self.requested = True

    def _raise_once(self) -> None:
        if not self._raised:
            self._raised = True
            raise self._error()

    def _error(self) -> PreemptedError:
        return PreemptedError(self._reason, "Run the same command again")


def _leave(cause: str) -> NoReturn:
    with suppress(OSError):
        os.write(2, f"micronet: {cause} (exit code {PreemptedError.exit_code})\n".encode())
    os._exit(PreemptedError.exit_code)
