"""Processes under a real limit, or on a kernel that has no locks for them."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38  # prctl(2)


def limited(command: list[str], processes: int) -> subprocess.CompletedProcess[str]:
    """Run a command as a user who may have that many threads, itself included."""
    prlimit = ["prlimit", f"--nproc={processes}"]
    if os.geteuid() == 0:  # no limit holds root: be another user who may read what root may
        rights = "-all,+dac_override"
        bounds = [f"--inh-caps={rights}", f"--ambient-caps={rights}", f"--bounding-set={rights}"]
        prlimit = ["setpriv", f"--reuid={50_000 + os.getpid() % 10_000}", "--clear-groups", *bounds, *prlimit]
    return subprocess.run([*prlimit, *command], capture_output=True, text=True, check=False)


def without_locks(code: str, number: int, *arguments: str) -> str:
    """Return what Python code prints in a process to which the kernel answers flock(2) with that error."""
    lines = f"from tests.limits import refuse_flock; refuse_flock({number})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", lines, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def refuse_flock(number: int) -> None:
    """Have the kernel answer each flock(2) of this process with an error, by a seccomp filter."""
    flock = {"x86_64": 73, "aarch64": 32}[os.uname().machine]
    load, equals, answer, allow = (0x20, 0, 0, 0), (0x15, 0, 1, flock), 0x00050000 | number, 0x7FFF0000
    lines = [load, equals, (0x06, 0, 0, answer), (0x06, 0, 0, allow)]  # each a `struct sock_filter`
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(struct.pack("HL", len(lines), ctypes.addressof(filters)))
    libc = ctypes.CDLL(None, use_errno=True)
    for option, first, second in ((PR_SET_NO_NEW_PRIVS, 1, None), (PR_SET_SECCOMP, 2, program)):
        if libc.prctl(option, first, second, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
