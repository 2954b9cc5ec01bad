"""nodes.sh: the exit code of a training on several machines, and a real torchrun on two of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from job.errors import TABLE, Action
from tests.servers import free_ports

SCRIPT = Path(__file__).parent.parent / "nodes.sh"
WAIT_SECONDS = 120

TORCHRUN = """\
while [ "$1" != sh ]; do shift; done
number=0
for code in $CODES; do
  RANK=$number CODE=$code "$@" &
  number=$((number + 1))
done
wait
exit "$AGENT"
"""
"""Stands for torchrun: starts a process for each of $CODES, and ends with $AGENT."""


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def ended(folder: Path, codes: str, agent: int) -> int:
    """Return what nodes.sh ends with where the processes end with `codes` and torchrun with `agent`."""
    program(folder, "torchrun", TORCHRUN)
    program(folder, "micronet", 'exit "$CODE"')
    variables = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "CODES": codes, "AGENT": str(agent)}
    variables |= {"TMPDIR": str(folder)}
    done = subprocess.run([SCRIPT, "train"], env=variables, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert not list(folder.glob("tmp.*"))
    return done.returncode


@pytest.mark.parametrize(
    ("codes", "agent", "code"),
    [
        ("0 0", 0, 0),
        ("75 75", 1, 75),
        ("74 75", 1, 75),
        ("74 0", 1, 74),
        ("137 74", 1, 74),
        ("137 0", 1, 137),
        ("75 1", 1, 1),
        ("74 2", 1, 2),
        ("65 75", 1, 65),
        ("78 65", 1, 78),
        ("1 77", 1, 77),
        ("77 76", 1, 76),
        ("74 139", 1, 139),
        ("143 0", 1, 75),
        ("", 1, 74),  # the machines did not meet
        ("", 0, 74),
        ("0 0", 1, 74),
        ("", 2, 2),
    ],
)
def test_the_process_that_decides(tmp_path: Path, codes: str, agent: int, code: int) -> None:
    assert ended(tmp_path, codes, agent) == code


def test_every_code_of_the_table_gets_through(tmp_path: Path) -> None:
    for row in TABLE:
        assert ended(tmp_path, f"0 {row.code}", int(row.action is not Action.DONE)) == row.code


def test_without_a_torchrun_nothing_is_retried(tmp_path: Path) -> None:
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run([SCRIPT], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert "torchrun" in done.stderr


MICRONET = """\
trap 'echo "heard $RANK"; exit 75' TERM
echo "$@: $RANK of $WORLD_SIZE, $LOCAL_RANK here"
sleep 200 & wait
"""


class Machine:
    """One of two machines, both on loopback: nodes.sh, the real torchrun, and a recorder as micronet."""

    def __init__(self, folder: Path, number: int, port: int) -> None:
        self.output = folder / f"machine-{number}"
        variables = {
            **os.environ,
            "PATH": os.pathsep.join((str(folder), str(Path(sys.executable).parent), os.environ["PATH"])),
            "PET_NNODES": "2",
            "PET_NPROC_PER_NODE": "2",
            "PET_RDZV_ENDPOINT": f"localhost:{port}",
            "PET_RDZV_ID": "tests",
            "PET_RDZV_CONF": "read_timeout=900,join_timeout=900",  # as in infra/kubernetes/nodes.yaml
        }
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [SCRIPT, "train", "--shards", "4"], env=variables, stdout=output, stderr=output
            )

    def end(self) -> int:
        return self.process.wait(WAIT_SECONDS)


@pytest.fixture
def recorders(tmp_path: Path) -> Path:
    program(tmp_path, "micronet", MICRONET)
    return tmp_path


def test_two_machines_meet_and_end_with_75_after_sigterm(recorders: Path) -> None:
    (port,) = free_ports(1)
    machines = [Machine(recorders, number, port) for number in range(2)]
    deadline = time.monotonic() + WAIT_SECONDS
    while sum(machine.output.read_text().count("train --shards 4: ") for machine in machines) < 4:
        assert time.monotonic() < deadline, [machine.output.read_text() for machine in machines]
        time.sleep(0.1)
    for machine in machines:
        machine.process.send_signal(signal.SIGTERM)
    assert [machine.end() for machine in machines] == [75, 75]
    said = "".join(machine.output.read_text() for machine in machines)
    assert {f"train --shards 4: {rank} of 4, {rank % 2} here" for rank in range(4)} <= set(said.splitlines())
    assert said.count("heard") == 4
