"""Processes under a real limit."""

from __future__ import annotations

import os
import subprocess


def limited(command: list[str], processes: int) -> subprocess.CompletedProcess[str]:
    """Run a command as a user who may have that many threads, itself included."""
    prlimit = ["prlimit", f"--nproc={processes}"]
    if os.geteuid() == 0:  # no limit holds root: be another user who may read what root may
        rights = "-all,+dac_override"
        bounds = [f"--inh-caps={rights}", f"--ambient-caps={rights}", f"--bounding-set={rights}"]
        prlimit = ["setpriv", f"--reuid={50_000 + os.getpid() % 10_000}", "--clear-groups", *bounds, *prlimit]
    return subprocess.run([*prlimit, *command], capture_output=True, text=True, check=False)
