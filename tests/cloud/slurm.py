"""A Slurm cluster of two nodes: real munged, slurmctld and slurmds on loopback, their files in one folder."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.servers import free_ports

PROGRAMS = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
"""Each with its package in Debian."""

START_SECONDS, JOB_SECONDS = 30, 400

NODES = ("one", "two")

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
"""What stands for a node's GPUs: Slurm counts and numbers them, and nothing here opens one."""

UNFINISHED = {"PENDING", "RUNNING", "SIGNALING", "COMPLETING"}

SETTINGS = """\
ClusterName=micronet
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/builtin
SchedulerParameters=sched_min_interval=0,sched_interval=1
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES
"""


class Cluster:
    """The daemons. Their logs are NAME.log in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> str:
        """Start the daemons; return why the node takes no job, with the logs' ends, or nothing."""
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        key = self.folder / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        controller, *ports = free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={_host()} NodeAddr=127.0.0.1 Port={port} CPUs=2 "
            f"Gres=gpu:{len(DEVICES)}"
            for node, port in zip(NODES, ports, strict=True)
        )
        (self.folder / "slurm.conf").write_text(
            SETTINGS.format(host=_host(), folder=self.folder, controller=controller, nodes=nodes)
        )
        (self.folder / "gres.conf").write_text(
            f"NodeName={','.join(NODES)} Name=gpu File={','.join(DEVICES)}\n"
        )
        munge = [f"--{name}={self.folder}/munge.{name}" for name in ("socket", "pid-file", "seed-file")]
        self._start("munged", "--foreground", "--force", f"--key-file={key}", *munge)
        deadline = time.monotonic() + START_SECONDS
        while not (self.folder / "munge.socket").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        self._start("slurmctld", "-D", "-i")
        for node in NODES:
            self._start("slurmd", "-D", "-N", node)
        while time.monotonic() < deadline:
            states = self.call("sinfo", "--noheader", "--Node", "--format=%t", check=False).split()
            if states == ["idle"] * len(NODES):
                return ""
            time.sleep(0.2)
        return "\n".join(line for name in PROGRAMS for line in self._log(name)[-3:])

    def submit(self, script: Path, *words: str, options: Sequence[str] = (), **environment: str) -> str:
        """Queue the script with the arguments `words`; return the job's id."""
        small = ("--gres=none", "--cpus-per-task=1", "--mem=0", f"--chdir={self.folder}")
        command = ["sbatch", "--parsable", "--output=%j.out", *small, *options, str(script), *words]
        return self.call(*command, check=True, **environment).strip()

    def requeue(self, job: str) -> None:
        """Take a running job's machine away, as an administrator or a preempting partition does."""
        self.call("scontrol", "requeue", job)

    def limit(self, job: str, minutes: int) -> None:
        """Change the time limit of a job."""
        self.call("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")

    def field(self, job: str, name: str) -> str:
        """Return a field of `scontrol show job`, such as JobState."""
        said = self.call("scontrol", "--oneliner", "show", "job", job)
        found = re.search(rf"(?<!\S){name}=(\S*)", said)
        assert found, said
        return found[1]

    def restarts(self, job: str) -> int:
        """Return how often the job was requeued."""
        return int(self.field(job, "Restarts"))

    def end(self, *jobs: str) -> list[str]:
        """Wait for the jobs' ends; return their states."""
        deadline = time.monotonic() + JOB_SECONDS
        while True:
            states = [self.field(job, "JobState") for job in jobs]
            if not UNFINISHED & set(states):
                return states
            assert time.monotonic() < deadline, states
            time.sleep(0.1)

    def output(self, job: str) -> str:
        """Return what a job has printed, over all its attempts."""
        path = self.folder / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def call(self, *command: str, check: bool = True, **environment: str) -> str:
        """Run a command of Slurm; return its standard output."""
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            env={**os.environ, "SLURM_CONF": f"{self.folder}/slurm.conf", **environment},
        )
        assert not (check and done.returncode), done.stderr
        return done.stdout

    def stop(self) -> None:
        """End the jobs and the daemons."""
        self.call("scancel", "--full", "--signal=KILL", "--user=root", check=False)
        self.call("scancel", "--user=root", check=False)
        deadline = time.monotonic() + 5
        while self.call("squeue", "--noheader", check=False) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait()

    def _start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            environment = {**os.environ, "SLURM_CONF": f"{self.folder}/slurm.conf"}
            process = subprocess.Popen([name, *words], stdout=log, stderr=log, env=environment)
        self._processes.append(process)

    def _log(self, name: str) -> list[str]:
        path = self.folder / f"{name}.log"
        return path.read_text().splitlines() if path.exists() else []


def missing() -> str:
    """Return what this machine lacks for a cluster; nothing where it is all there."""
    if os.geteuid() != 0:
        return "this user is not root"
    if absent := [package for name, package in PROGRAMS.items() if not shutil.which(name)]:
        return f"not installed (apt-get install --no-install-recommends {' '.join(absent)})"
    return ""


def _host() -> str:
    return socket.gethostname().partition(".")[0]
