"""Stopping from outside: SIGTERM, SIGINT, SIGHUP and a notice become one PreemptedError at a safe place."""

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

REPEAT_SECONDS = 0.5  # a signal sooner is the same request, delivered twice by `timeout` or a shell's trap

WAKE, WAKE_SECONDS = signal.SIGURG, 0.2
"""The signal, ignored by default, and the interval with which a main thread that missed a signal is woken."""


class Preemption:
    """Whether the process was asked to stop, and by when it must have ended. For the main thread.

    A signal raises PreemptedError at once, between two bytecodes; inside `deferred`, at the exit of the
    outermost block. A signal raises it only once: a save in an `except PreemptedError:` block is never
    interrupted, whatever signals arrive and whatever it defers. `check` raises each time, in case third-party
    code swallowed the first (`except:`, a `__del__`). PreemptedError derives from BaseException, like
    KeyboardInterrupt: botocore turns any Exception into a connection error, which is retried.

    A second signal ends the process at once with 75, and so does the end of the grace. A thread does that: a
    main thread in native code, such as a call of a hung driver, runs no handler. It also wakes a main thread
    that a signal did not: one that came just before a system call waits for that to end, and so does one
    that the kernel gave to another thread. Forked children get the previous handlers.

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
        """Handle SIGTERM, SIGINT and SIGHUP; after the block they are only noted: the exit code is decided.

        Enter it inside the `try` that maps errors to exit codes. SIGINT and SIGHUP stay ignored where they
        were (`command &` in a script, `nohup command`).
        """
        handlers = {signal.SIGTERM: self._on_signal}
        for number in (signal.SIGINT, signal.SIGHUP):  # the second comes when the terminal is closed
            if signal.getsignal(number) != signal.SIG_IGN:
                handlers[number] = self._on_signal
        previous = {number: signal.getsignal(number) or signal.SIG_DFL for number in (*handlers, WAKE)}

        def restore() -> None:
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(-1)

        os.register_at_fork(after_in_child=restore)
        # The interpreter's C code writes to it at once when a signal comes.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(WAKE, lambda number, frame: None)
        _thread.start_new_thread(self._guard, (reader, handlers.keys(), _thread.get_ident()))
        for number, handler in handlers.items():
            signal.signal(number, handler)
        try:
            yield
        finally:
            self._depth += 1

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Keep signals from interrupting the block, such as a training step, a commit or an import.

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
        """Raise PreemptedError if a stop was requested, or if a notice leaves at most `save_seconds`."""
        if not self.requested and self.remaining() <= save_seconds:
            self.request("the machine is about to be taken away")
        if self.requested:
            self._raised = True
            raise self._error()

    def expect(self, gone: float) -> None:
        """Note that the machine will be gone at `gone` (time.monotonic()); the earliest time counts."""
        self._gone = min(self._gone, gone)

    @property
    def gone(self) -> float:
        """When the machine will be gone (time.monotonic()); infinity while nothing says so."""
        return self._gone

    @property
    def deadline(self) -> float | None:
        """When saving must be over (time.monotonic()); None while no stop is expected.

        A tenth of the grace, at most a second, is reserved for logging what was not saved and for the exit.
        """
        return None if math.isinf(self._gone) else self._gone - self._reserve

    def remaining(self) -> float:
        """Return the seconds until `deadline`, at least 0; infinity where there is none."""
        return max(0.0, self._gone - self._reserve - time.monotonic())

    @property
    def _reserve(self) -> float:
        return min(1.0, self.grace_seconds / 10)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # No event here: the interrupted code may hold the log's lock.
        if self._signalled is None:
            self._signalled = time.monotonic()
            self._gone = self._end_of_grace(self._signalled)
            self.request(f"stopped by {signal.Signals(number).name}")
        if self._depth == 0:
            self._raise_once()

    def _end_of_grace(self, signalled: float) -> float:
        # A notice whose time is over was wrong: the signal's grace counts.
        return min(self._gone if self._gone > signalled else math.inf, signalled + self.grace_seconds)

    def _guard(self, pipe: int, numbers: Collection[int], main: int) -> NoReturn:
        """Read signals' numbers from `pipe`; end the process after the second one or the grace.

        The thread `main` is woken until it has run the first one's handler.
        """
        signalled: float | None = None
        signals = select.poll()  # select() refuses descriptors from 1024 on
        signals.register(pipe, select.POLLIN)
        while True:
            left = math.inf
            if signalled is not None:
                left = max(0.0, self._end_of_grace(signalled) - self._reserve / 2 - time.monotonic())
            unheard = signalled is not None and self._signalled is None
            wait = min(left, WAKE_SECONDS) if unheard else left
            if not signals.poll(None if math.isinf(wait) else 1000 * wait):
                if wait == left:
                    _leave(f"the grace of {self.grace_seconds:g} s is over: stopped with what is durable")
                signal.pthread_kill(main, WAKE)
                continue
            come, now = [number for number in os.read(pipe, 1) if number in numbers], time.monotonic()
            if come and signalled is not None and now - (self._signalled or signalled) > REPEAT_SECONDS:
                _leave(f"{signal.Signals(come[0]).name} again: stopped at once")
            if come and signalled is None:
                signalled = now

    def request(self, reason: str) -> None:
        """Note that the process is asked to stop; the next `check` raises it."""
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
