"""`micronet` in real processes, each a fork of one that has imported everything: a start costs 0.1 s, not 7.

A server, itself a process of its own, gets an attempt's words, environment and streams, and forks. What needs
an interpreter that starts, such as closed streams or a signal during the imports, is tested elsewhere.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

from job.checks.child import AGENT, Child
from job.machine.launch import PR_SET_PDEATHSIG

ROOT = Path(__file__).parent.parent
PR_SET_NAME = 15  # of Linux's prctl(2)
RUNNING = 2**15  # no exit code

PATIENT_DOCTOR = "import job.preflight.doctor; job.preflight.doctor.NETWORK_SECONDS = 60.0"
"""Code to run before `doctor` on a busy machine: what it has imported takes none of its checks' time here."""


def module_code(name: str, words: Sequence[str]) -> str:
    """Return code that does what `python -m NAME WORDS` does; as `before` it takes the place of micronet."""
    return (
        f"import os, runpy, sys; sys.argv = {[name, *words]!r};"
        f"runpy.run_module({name!r}, run_name='__main__', alter_sys=True); sys.stdout.flush(); os._exit(0)"
    )


class Process:
    """A forked `micronet WORDS`, with the interface of `subprocess.Popen` that `Child` uses.

    `before` is Python code that it runs first. It does not outlive the test's process.
    """

    def __init__(self, words: Sequence[str], environment: dict[str, str], streams: list[int], before: str):
        self.stderr: IO[bytes] | None = None
        self._code = RUNNING
        self._pipe, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(_server(), [b"!"], [theirs.fileno(), *streams])
        request = pickle.dumps((list(words), environment, str(Path.cwd()), before))
        self._pipe.sendall(len(request).to_bytes(8, "big") + request)
        self.pid = self._number()

    def poll(self) -> int | None:
        return self.wait(0)

    def wait(self, timeout: float | None = None) -> int | None:
        if self._code == RUNNING and select.select([self._pipe], [], [], timeout)[0]:
            self._code = self._number()
        if self._code == RUNNING and timeout:
            raise subprocess.TimeoutExpired("micronet", timeout)
        return None if self._code == RUNNING else self._code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _number(self) -> int:
        data = self._pipe.recv(8, socket.MSG_WAITALL)
        assert len(data) == 8, "the server has ended"
        return int.from_bytes(data, "big", signed=True)


class Worker(subprocess.Popen[bytes]):
    """A process that torchrun's agent starts: a fork of the agent, named `process RANK`."""

    def _execute_child(
        self,
        args: Sequence[str],
        executable: None,
        preexec_fn: None,
        close_fds: bool,
        pass_fds: tuple[()],
        cwd: None,
        env: dict[str, str],
        *others: Any,
    ) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()  # as the agent asks for
            # The agent's connections are closed; their numbers stay taken, for objects here still have them.
            for number in {int(entry.name) for entry in Path("/proc/self/fd").iterdir()} - {0, 1, 2}:
                os.dup2(0, number)
            ctypes.CDLL(None).prctl(PR_SET_NAME, f"process {env['RANK']}".encode())
            _become(list(args[3:]), env, str(Path.cwd()), "")
        self._child_created = True


class ForkedChild(Child):
    """`micronet --log-format json train OPTIONS`, as `job.checks.child.Child` starts it."""

    def __init__(self, options: Sequence[str], before: str = "") -> None:
        words = ["--log-format", "json", "train", *options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MICRONET_")}
        reader, writer = os.pipe()
        with Path(os.devnull).open("rb+") as nothing:
            streams = [nothing.fileno(), nothing.fileno(), writer]
            process = Process(words, environment, streams, before)
        os.close(writer)
        process.stderr = os.fdopen(reader, "rb")
        self._process: Any = process
        self._pipe, self._unread = reader, b""
        self.events, self.words = [], []

    def processes(self) -> dict[str, int]:
        agent, found = self._process.pid, {}
        with suppress(OSError):  # it has ended
            for number in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
                found[Path(f"/proc/{number}/comm").read_text().strip()] = int(number)
        named = {name: found[name] for name in sorted(found) if name.startswith("process ")}
        return {AGENT: agent, **named}


@contextmanager
def started(options: Sequence[str], before: str = "") -> Iterator[ForkedChild]:
    """Start a child that is killed at the end of the block."""
    child = ForkedChild(options, before)
    try:
        yield child
    finally:
        child.close()


def micronet(*words: str | Path, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Return what a command line printed and its exit code; `before` is as in `Process`."""
    with (
        Path(os.devnull).open("rb") as nothing,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        streams = [nothing.fileno(), stdout.fileno(), stderr.fileno()]
        code = Process([str(word) for word in words], {**os.environ, **environment}, streams, before).wait()
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return subprocess.CompletedProcess(words, code or 0, *texts)


@functools.cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair()
    with theirs:
        number = theirs.fileno()
        process = subprocess.Popen(
            [sys.executable, "-c", f"from tests.forked import serve; serve({number})"],
            cwd=ROOT,
            pass_fds=[number],
        )
    atexit.register(process.kill)
    return ours


def serve(number: int) -> None:
    """Fork for each message on the socket of that number, until its other end is closed."""
    from job.machine import process

    process.fit_threads()  # as the program does, before torch

    import torch._dynamo  # by torch's optimisers
    import torch._inductor.config  # noqa: F401 - by `use_deterministic_algorithms`
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
    from torch.distributed.launcher import api  # noqa: F401 - with an agent

    import job.cli
    import job.commands
    import job.train.evaluate
    import job.train.job  # noqa: F401
    from job.store.s3_client import Connection
    from job.view import page

    templates = page._templates()
    for name in templates.list_templates(extensions=["html"]):
        templates.get_template(name)  # compiles it

    _ = Connection("any-bucket", "").endpoint  # reads botocore's descriptions
    subprocess_handler.Popen = Worker  # type: ignore[attr-defined, assignment]
    gc.collect()
    gc.freeze()  # a full collection in a fork would write to every object, and so copy its page
    requests = socket.socket(fileno=number)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1, 4)
        if not message:
            return
        if os.fork() == 0:
            requests.close()
            _attend(socket.socket(fileno=descriptors[0]), descriptors[1:])
        for descriptor in descriptors:
            os.close(descriptor)


def _attend(pipe: socket.socket, streams: list[int]) -> NoReturn:
    """Fork the process, and pass on its number and its exit code; it ends when the test's process does."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length = int.from_bytes(pipe.recv(8, socket.MSG_WAITALL), "big")
    request = pickle.loads(pipe.recv(length, socket.MSG_WAITALL))
    child = os.fork()
    if child == 0:
        pipe.close()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        for stream in set(streams):
            os.close(stream)
        _become(*request)
    for stream in set(streams):
        os.close(stream)
    pipe.sendall(child.to_bytes(8, "big"))
    ended = os.pidfd_open(child)
    if pipe.fileno() in select.select([ended, pipe.fileno()], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    pipe.sendall(code.to_bytes(8, "big", signed=True))
    os._exit(0)


def _become(words: list[str], environment: dict[str, str], folder: str, before: str) -> NoReturn:
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["micronet", *words]
    exec(before)
    from job.cli import main

    main()
