"""infra/slurm/micronet.sbatch, queued in a real Slurm: what it requeues, and that a run keeps its bits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from job.checks.laboratory import Result, differences, write_data
from job.run.claims import latest
from job.store import open_store
from tests.cloud.documents import INFRA, ROOT
from tests.cloud.slurm import Cluster, missing
from tests.cloud.test_retry_rules import DESIGNED
from tests.forked import started
from tests.metadata import nowhere

SCRIPT = INFRA / "slurm/micronet.sbatch"
TRAINING = ("--device=cpu", "--depth=10", "--width=1", "--batch-size=8", "--checkpoint-every=0.2s")
WAIT_SECONDS = 120


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster; where there can be none the tests are skipped, or fail where one is required."""
    fail_or_skip = (
        pytest.fail if "slurm" in os.environ.get("MICRONET_REQUIRE", "").split(",") else pytest.skip
    )
    if reason := missing():
        fail_or_skip(f"no job runs in Slurm: {reason}")
    with tempfile.TemporaryDirectory(prefix="micronet-slurm-", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        try:
            if reason := cluster.start():
                fail_or_skip(f"no job runs in Slurm, which does not start here:\n{reason}")
            yield cluster
        finally:
            cluster.stop()


def launcher(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Run:
    """A small training in the queue, and how far it is; `options` are those of sbatch."""

    def __init__(self, cluster: Cluster, epochs: int, *options: str, shards: int = 1) -> None:
        self.cluster = cluster
        self.store = open_store(str(cluster.folder / f"disturbed-{epochs}"))
        archive = cluster.folder / "data.tar.gz"
        write_data(archive)
        self.words = (f"--data={archive}", f"--cycles={epochs}@5e-3", f"--shards={shards}", *TRAINING)
        # No name server knows the nodes' names.
        here = "export PET_RDZV_ENDPOINT=127.0.0.1:${PET_RDZV_ENDPOINT##*:} PET_LOCAL_ADDR=127.0.0.1"
        here += " GLOO_SOCKET_IFNAME=lo"
        micronet = f'cd {ROOT}\n{here}\nexec "{sys.executable}" -m job.cli "$@"'
        variables = {"LAUNCH": launcher(cluster.folder / "micronet", micronet), **nowhere()}
        self.job = cluster.submit(
            SCRIPT, f"--run={self.store.uri}", *self.words, options=options, **variables
        )

    def wait_for_progress(self) -> None:
        wait_until(lambda: latest(self.store) is not None)

    def differences(self) -> list[str]:
        """Train the same undisturbed, wait for both ends and compare them."""
        undisturbed = self.cluster.folder / f"undisturbed-{self.job}"
        with started([f"--run={undisturbed}", f"--cache={self.cluster.folder}/cache", *self.words]) as child:
            assert child.end() == 0, child.last_words()
        assert self.cluster.end(self.job) == ["COMPLETED"], self.cluster.output(self.job)
        return differences(Result.read(open_store(str(undisturbed))), Result.read(self.store))

    def reasons(self) -> list[str]:
        return [attempt.reason for attempt in Result.read(self.store).report.lineage.attempts]


def test_signalled_before_its_time_limit_a_run_is_requeued_and_keeps_its_bits(cluster: Cluster) -> None:
    run = Run(cluster, 15)
    run.wait_for_progress()
    # What --signal=B:TERM@60 sends: to the script alone.
    cluster.call("scancel", "--batch", "--signal=TERM", run.job)
    assert run.differences() == []
    assert cluster.restarts(run.job) == 1
    assert run.reasons() == ["preempted", "finished"]


@pytest.mark.soak
def test_taken_away_and_at_its_time_limit_a_run_is_requeued_and_keeps_its_bits(cluster: Cluster) -> None:
    run = Run(cluster, 600)
    run.wait_for_progress()
    cluster.requeue(run.job)
    wait_until(lambda: "attempt=2" in cluster.output(run.job))
    # A minute is the shortest limit, and Slurm compares twice a minute: the attempt gets 30 s more at most.
    cluster.limit(run.job, minutes=1)
    wait_until(lambda: cluster.restarts(run.job) == 2)
    cluster.limit(run.job, minutes=60)
    assert run.differences() == []
    assert cluster.restarts(run.job) == 2
    assert run.reasons() == ["preempted", "preempted", "finished"]


def test_only_what_deserves_it_is_requeued(cluster: Cluster) -> None:
    # `train` is the first of the words, and the exit code the second.
    first = launcher(cluster.folder / "first", '[ -n "$SLURM_RESTART_COUNT" ] || exit "$2"')
    jobs = {code: cluster.submit(SCRIPT, str(code), LAUNCH=first) for code in DESIGNED}
    states = dict(zip(DESIGNED, cluster.end(*jobs.values()), strict=True))
    for code, action in DESIGNED.items():
        state = "FAILED" if action == "fail" else "COMPLETED"
        assert (states[code], cluster.restarts(jobs[code])) == (state, int(action == "retry")), code


def test_a_cancelled_job_stays_cancelled(cluster: Cluster) -> None:
    patient = launcher(cluster.folder / "patient", "trap 'exit 75' TERM\necho ready\nsleep 60 & wait")
    job = cluster.submit(SCRIPT, LAUNCH=patient)
    wait_until(lambda: cluster.field(job, "JobState") == "RUNNING" and "ready" in cluster.output(job))
    cluster.call("scancel", job)
    assert cluster.end(job) == ["CANCELLED"]
    assert cluster.restarts(job) == 0


def test_the_tasks_of_an_array_know_its_size_and_their_places(cluster: Cluster) -> None:
    task = launcher(
        cluster.folder / "task",
        'echo "$MICRONET_ARRAY $SLURM_RESTART_COUNT $@" >"$PWD/task-$SLURM_ARRAY_TASK_ID"\n'
        '[ "$SLURM_RESTART_COUNT" ] || [ "$SLURM_ARRAY_TASK_ID" != 3 ] || exit 75',
    )
    array = cluster.submit(SCRIPT, "--run", "runs/seeds", options=["--array=1,3"], LAUNCH=task)
    assert cluster.end(f"{array}_1", f"{array}_3") == ["COMPLETED", "COMPLETED"]
    assert (cluster.folder / "task-1").read_text() == "4  train --run runs/seeds\n"
    assert (cluster.folder / "task-3").read_text() == "4 1 train --run runs/seeds\n"


RECORD = 'echo "$SLURMD_NODENAME: $PET_NNODES ${PET_RDZV_ENDPOINT%:*} $@"'


def test_the_gpus_of_a_node_get_a_process_each(cluster: Cluster) -> None:
    recorder = launcher(cluster.folder / "recorder", 'echo "$CUDA_VISIBLE_DEVICES: $@"')
    words = ("--run", "runs/large", "--shards", "8")
    jobs = [
        cluster.submit(SCRIPT, *words, options=[f"--gres=gpu:{gpus}"], LAUNCH=recorder) for gpus in (1, 4)
    ]
    assert cluster.end(*jobs) == ["COMPLETED", "COMPLETED"]
    assert cluster.output(jobs[0]).endswith(": train --run runs/large --shards 8\n")
    assert cluster.output(jobs[1]) == "0,1,2,3: train --processes 4 --run runs/large --shards 8\n"


def test_the_tasks_of_an_array_share_a_node_s_gpus(cluster: Cluster) -> None:
    recorder = launcher(cluster.folder / "packed", 'echo "$SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"\nsleep 2')
    options = ["--array=0-1", "--gres=gpu:1", "--nodelist=one"]
    array = cluster.submit(SCRIPT, options=[*options, "--output=packed-%a.out"], LAUNCH=recorder)
    assert cluster.end(f"{array}_0", f"{array}_1") == ["COMPLETED", "COMPLETED"]
    found = {cluster.output(f"packed-{index}").strip() for index in range(2)}
    assert found == {"one 0", "one 1"}


def test_several_nodes_have_an_agent_each_and_the_same_meeting_place(cluster: Cluster) -> None:
    recorder = launcher(cluster.folder / "agent", RECORD)
    options = ["--nodes=2", "--gres=gpu:2"]
    job = cluster.submit(SCRIPT, "--run", "runs/large", options=options, LAUNCH=recorder)
    assert cluster.end(job) == ["COMPLETED"]
    said = sorted(cluster.output(job).splitlines())
    assert said == [f"{node}: 2 one train --processes 2 --run runs/large" for node in ("one", "two")]


def test_a_node_that_was_preempted_requeues_the_job_and_one_that_is_refused_ends_it(cluster: Cluster) -> None:
    script = '[ "$SLURM_RESTART_COUNT" ] || [ "$SLURMD_NODENAME" = one ] || exit'
    ends = {code: launcher(cluster.folder / f"ends-{code}", f"{script} {code}") for code in (75, 78)}
    jobs = [cluster.submit(SCRIPT, options=["--nodes=2"], LAUNCH=end) for end in ends.values()]
    assert cluster.end(*jobs) == ["COMPLETED", "FAILED"]
    assert [cluster.restarts(job) for job in jobs] == [1, 0]


def test_every_node_hears_of_the_time_limit(cluster: Cluster) -> None:
    first = '[ -z "$SLURM_RESTART_COUNT" ] || exit 0\ntrap \'echo "heard $SLURMD_NODENAME"; exit 75\' TERM\n'
    patient = launcher(cluster.folder / "agents", first + 'echo "ready $SLURMD_NODENAME"\nsleep 60 & wait')
    job = cluster.submit(SCRIPT, options=["--nodes=2"], LAUNCH=patient)
    wait_until(lambda: cluster.output(job).count("ready") == 2)
    cluster.call("scancel", "--batch", "--signal=TERM", job)
    assert cluster.end(job) == ["COMPLETED"]
    assert sorted(re.findall(r"heard \w+", cluster.output(job))) == ["heard one", "heard two"]
    assert cluster.restarts(job) == 1


@pytest.mark.soak
def test_preempted_on_two_nodes_a_run_is_requeued_and_keeps_its_bits(cluster: Cluster) -> None:
    run = Run(cluster, 100, "--nodes=2", shards=2)
    run.wait_for_progress()
    cluster.call("scancel", "--batch", "--signal=TERM", run.job)
    assert run.differences() == []
    assert cluster.restarts(run.job) == 1
    assert run.reasons() == ["preempted", "finished"]


@pytest.mark.parametrize(
    ("code", "restarts", "state", "requeued"),
    [
        (74, 9, "RUNNING", True),
        (74, 10, "RUNNING", False),
        (75, 99, "SIGNALING", True),
        (75, 0, "CANCELLED", False),
    ],
)
def test_a_running_job_is_requeued_ten_times_after_a_fault_and_always_after_a_preemption(
    tmp_path: Path, code: int, restarts: int, state: str, requeued: bool
) -> None:
    said = f"JobId=7 JobState={state} Reason=None"
    launcher(tmp_path / "scontrol", f'echo "$@" >>"$0.calls"; echo "{said}"')
    variables = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    variables |= {"LAUNCH": launcher(tmp_path / "launch", f"exit {code}")}
    path = os.pathsep.join((str(tmp_path), os.environ["PATH"]))
    done = subprocess.run([SCRIPT], env={**os.environ, "PATH": path, **variables}, check=False)
    assert done.returncode == code
    calls = tmp_path / "scontrol.calls"
    assert (calls.exists() and calls.read_text().endswith("requeue 7\n")) == requeued
