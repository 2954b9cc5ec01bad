"""`train --processes N`, and torchrun itself: the exit code, and that no process is left when one ends.

An agent that is killed or stopped in mid-training is forked, and so are its processes; the other tests, and
the soak, start interpreters as a user does.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

import job.checks.child
from job.checks.child import Child, named, workers
from job.machine.preemption import Preemption
from job.store import open_store
from tests import forked
from tests.archives import write_archive
from tests.servers import free_ports

SUCCESS, MACHINE, PREEMPTED, CONFIGURATION = 0, 74, 75, 78  # the README's table
END_SECONDS = 20.0


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    archive = write_archive(folder / "tiny.tar.gz", train=100, test=40, classes=5)
    where = ["--data", str(archive), "--cache", str(folder / "cache"), "--device", "cpu"]
    recipe = ["--depth", "10", "--width", "1", "--batch-size", "8", "--cycles", "8@5e-3"]
    return [*where, *recipe, "--precision", "fp32", "--shards", "2", "--checkpoint-every", "0.1s"]


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def end(child: Child, disturb: Callable[[list[int], int], None]) -> int:
    """Disturb a job of two processes in mid-training; return its code, when all has ended in time."""
    assert child.until(named("checkpoint")), child.last_words()
    agent, *started = child.processes().values()
    assert len(started) == 2
    began = time.monotonic()
    disturb(started, agent)
    code = child.end()
    while not all(map(gone, started)):
        assert time.monotonic() - began < END_SECONDS, "a process is left behind"
        time.sleep(0.05)
    assert time.monotonic() - began < END_SECONDS
    return code


def hang_up(*processes: int) -> None:
    """Send what closing their terminal sends."""
    for process in processes:
        os.kill(process, signal.SIGHUP)


ENDS = {
    "process 1 is killed": lambda started, agent: os.kill(started[1], signal.SIGKILL),
    "the agent is stopped": lambda started, agent: os.kill(agent, signal.SIGTERM),
    "the agent is killed": lambda started, agent: os.kill(agent, signal.SIGKILL),
    "the terminal is closed": lambda started, agent: hang_up(*started, agent),
    "process 0 is killed": lambda started, agent: os.kill(started[0], signal.SIGKILL),
}
EXPECTED = {
    "process 1 is killed": (MACHINE, "process 1 was ended by SIGKILL"),
    "the agent is stopped": (PREEMPTED, "durable is epoch"),
    "the agent is killed": (-signal.SIGKILL, "durable is epoch"),
    "process 0 is killed": (MACHINE, "process 0 was ended by SIGKILL"),
    "the terminal is closed": (PREEMPTED, "durable is epoch"),
}


def bits_after(
    ends: Sequence[str],
    options: list[str],
    run: Path,
    start: Callable[[list[str]], AbstractContextManager[Child]],
) -> None:
    """Make an attempt of two processes for each end and finish with one; compare with an undisturbed run."""
    recipe = ["--run", str(run), *options]
    for name in ends:
        with start([*recipe, "--processes", "2", "--grace", "10s"]) as child:
            code = end(child, ENDS[name])
        words = child.last_words()
        assert code == EXPECTED[name][0], (name, words)
        assert EXPECTED[name][1] in words, (name, words)
        assert "lost" not in words
    finish(recipe)
    finish(["--run", str(run.with_name("whole")), *options])
    assert weights(run) == weights(run.with_name("whole"))
    attempts = json.loads((run / "report.json").read_text())["lineage"]["attempts"]
    assert [each["processes"] for each in attempts] == [*[2] * len(ends), 1]


def finish(options: list[str]) -> None:
    with forked.started(options) as child:
        assert child.end() == SUCCESS, child.last_words()


def weights(run: Path) -> bytes:
    return open_store(str(run)).get("weights.safetensors").data


def test_a_run_ends_with_the_same_bits_after_each_end_of_its_agent(
    options: list[str], tmp_path: Path
) -> None:
    bits_after(list(ENDS)[:4], options, tmp_path / "run", forked.started)


@pytest.mark.soak
def test_it_does_so_with_interpreters_that_start_themselves(options: list[str], tmp_path: Path) -> None:
    start = partial(job.checks.child.started, preemption=Preemption(10))
    bits_after(list(ENDS), options, tmp_path / "run", start)


def test_process_0_saves_when_the_agent_is_killed_while_it_evaluates(
    options: list[str], tmp_path: Path
) -> None:
    """The others wait for process 0, though the store that shows that it is alive is gone with the agent."""
    words = ["--run", str(tmp_path), *options, "--processes", "2", "--grace", "10s"]
    with forked.started(words) as child:
        assert child.until(named("evaluate")), child.last_words()
        agent, first, other = child.processes().values()
        os.kill(first, signal.SIGSTOP)
        try:
            os.kill(agent, signal.SIGKILL)
            time.sleep(1)
            assert not gone(other)
        finally:
            os.kill(first, signal.SIGCONT)
        child.end()
    assert "durable is epoch" in child.last_words()


def test_no_process_is_left_when_the_agent_is_killed_while_they_start(
    options: list[str], tmp_path: Path
) -> None:
    child = Child(["--run", str(tmp_path), *options, "--processes", "2"])
    try:
        deadline = time.monotonic() + 120
        while len(started := list(workers(child._process.pid).values())) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(child._process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 60  # their imports
        while not all(map(gone, started)):
            assert time.monotonic() < deadline, "a process is left behind"
            time.sleep(0.05)
        assert "the agent has ended" in (child.end(), child.last_words())[1]
    finally:
        child.close()
    assert not list(tmp_path.iterdir())


def agents(commands: Sequence[list[str]], **variables: str) -> list[int]:
    """Start commands, as on several machines, and return their exit codes."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "ERROR", **variables}
    started = [subprocess.Popen(command, env=environment) for command in commands]
    try:
        return [agent.wait(180) for agent in started]
    finally:
        for agent in started:
            agent.kill()


def test_two_agents_are_two_machines(options: list[str], tmp_path: Path) -> None:
    recipe = [*options, "--cycles", "2@5e-3"]
    command = [sys.executable, "-m", "job", "train", "--run", str(tmp_path / "run"), *recipe]
    place = {
        "PET_NNODES": "2",
        "PET_RDZV_ENDPOINT": f"127.0.0.1:{free_ports(1)[0]}",
        "PET_LOCAL_ADDR": "127.0.0.1",
    }
    commands = [[*command, "--cache", str(tmp_path / f"cache{machine}")] for machine in range(2)]
    assert agents(commands, **place) == [SUCCESS, SUCCESS]
    finish(["--run", str(tmp_path / "whole"), *recipe])
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.soak
def test_so_are_two_torchruns(options: list[str], tmp_path: Path) -> None:
    recipe = [*options, "--cycles", "2@5e-3"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += [
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{free_ports(1)[0]}",
        "--local-addr=127.0.0.1",
    ]
    commands = [[*torchrun, "-m", "job", "train", *recipe]] * 2
    assert agents(commands, MICRONET_RUN=str(tmp_path / "run")) == [SUCCESS, SUCCESS]
    finish(["--run", str(tmp_path / "whole"), *recipe])
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"PET_NNODES": "two"}, "PET_NNODES=two is not a number of machines"),
        ({"PET_NNODES": "2"}, "PET_NNODES=2 and no PET_RDZV_ENDPOINT"),
        (
            {"PET_NNODES": "4", "PET_RDZV_ENDPOINT": "127.0.0.1:1"},
            "4 processes cannot share the 2 of --shards",
        ),
    ],
)
def test_machines_that_cannot_meet_are_refused_at_once(
    options: list[str], tmp_path: Path, variables: dict[str, str], words: str
) -> None:
    ended = forked.micronet("train", "--run", str(tmp_path), *options, **variables)
    assert ended.returncode == CONFIGURATION
    assert words in ended.stderr


def test_what_cannot_be_shared_is_refused_at_once(options: list[str], tmp_path: Path) -> None:
    child = Child(["--run", str(tmp_path), *options, "--shards", "8", "--processes", "3"])
    assert child.end() == CONFIGURATION
    assert child.last_words() == "3 processes cannot share the 8 of --shards equally"
    assert not list(tmp_path.iterdir())
