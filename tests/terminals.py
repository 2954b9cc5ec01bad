"""A real pseudo-terminal around a command, and what its screen shows."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import termios
import time
from collections.abc import Callable

import pyte

ROWS = 40


class Terminal:
    """A command on a terminal of `columns`; `screen` is kept up by `read`."""

    def __init__(self, command: list[str], columns: int, **environment: str) -> None:
        self.screen = pyte.Screen(columns, ROWS)
        self._stream = pyte.ByteStream(self.screen)
        self.frames: list[str] = []
        size = struct.pack("HHHH", ROWS, columns, 0, 0)
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, size)
            clean = {
                name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "CI")
            }
            os.execve(command[0], command, {**clean, "TERM": "xterm-256color", **environment})
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, size)

    @property
    def text(self) -> str:
        """What the screen shows, without empty lines."""
        return "\n".join(line.rstrip() for line in self.screen.display if line.strip())

    def read(self, until: Callable[[str], bool] = lambda text: False, seconds: float = 60) -> int | None:
        """Follow the output until the screen satisfies `until`, or to the end; return the exit code then."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not select.select([self.file], [], [], 0.2)[0]:
                continue
            try:
                data = os.read(self.file, 65536)
            except OSError:  # how Linux says that the other end is closed
                data = b""
            if not data:
                return self._wait()
            self._stream.feed(data)
            self.frames.append(self.text)
            if until(self.text):
                return None
        raise AssertionError(f"nothing of that in {seconds} s; the screen shows:\n{self.text}")

    def _wait(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self.file)
        return os.waitstatus_to_exitcode(status)
