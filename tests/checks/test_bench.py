"""`micronet bench`: what it counts is right, and each part gives the figures it promises."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.step import READ, Trace, loop
from job.checks.bench.apart import SET_BY_THE_JOB
from job.checks.bench.links import ATTAINED, COLLECTIVE_SECONDS, LINKS, modelled, sent_bytes
from job.checks.bench.loops import batches, excess, full
from job.checks.bench.parallel import SHARED
from job.checks.bench.results import lines
from job.checks.bench.stock import event_learner
from job.checks.bench.timing import Stopwatch, difference, interleave, ratio, spread
from job.machine.processes import ALONE
from job.network.wide_resnet import wide_resnet
from job.phases import Cycle
from job.recipe import Recipe
from job.train.exchange import ShardedStep
from job.train.trainer import Trainer
from tests.forked import micronet

CPU = torch.device("cpu")
CLASSES = 100


def test_three_subjects_have_all_their_orders_in_six_rounds() -> None:
    called = []

    def subject(name: str) -> float:
        called.append(name)
        return 1.0

    interleave({name: lambda name=name: subject(name) for name in "abc"}, 6)  # type: ignore[misc]
    assert "".join(called) == "abc" + "abc" + "acb" + "cab" + "cba" + "bca" + "bac"


def test_a_ratio_is_paired_by_round() -> None:
    measured = {"one": [2.0, 9.0, 4.0], "other": [1.0, 3.0, 4.0]}
    found = ratio(measured, "one", "other")
    assert (found["median"], found["low"], found["high"], found["n"]) == (2.0, 1.0, 3.0, 3)
    assert found["mean"] == pytest.approx(2.0)
    assert found["half_width"] == pytest.approx(4.302653 * 1 / math.sqrt(3), rel=1e-6)  # t with 2 degrees
    assert spread([3.0, 1.0]) == {"median": 2.0, "low": 1.0, "high": 3.0, "n": 2}


WITNESS = """
import os, sys
from contextlib import closing
from pathlib import Path
from job.checks.bench import apart

def serve(requests):
    names = ("GOMP_SPINCOUNT", "OMP_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG")
    Path("seen").write_text(" ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ))
    requests.recv()
    requests.send(1.0)

def main():
    apart.IMPORTED_BY_TORCH = "json"
    os.environ.update(GOMP_SPINCOUNT="20000", CUBLAS_WORKSPACE_CONFIG=":4096:8")
    before = dict(os.environ)
    with closing(apart.Apart("witness", serve)) as process:
        process.ask()
        process.answer()
    assert dict(os.environ) == before
"""


def test_a_process_apart_has_the_user_s_variables_and_none_of_the_job_s(tmp_path: Path) -> None:
    (tmp_path / "witness.py").write_text(WITNESS)
    given = {name: value for name, value in os.environ.items() if name not in SET_BY_THE_JOB}
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    command = [sys.executable, "-c", "import witness; witness.main()"]
    given |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=tmp_path, env=given)
    assert (tmp_path / "seen").read_text() == "OMP_NUM_THREADS=1"


def test_operations_and_bytes_of_a_linear_layer() -> None:
    layer, images = nn.Linear(5, 7, bias=False), torch.ones(3, 5)
    with torch.no_grad(), Trace() as trace:
        layer(images)
    traffic = [(each.operations, each.bytes) for each in trace.steps[-1] if each.bytes]
    assert traffic == [(2 * 3 * 5 * 7, 4 * (3 * 5 + 5 * 7 + 3 * 7))]


class CudaEvent:
    """A GPU's clock: an event has the time at which the device comes to it, and no host waits for it."""

    now, synchronised = 0.0, False  # of the device, in milliseconds

    def __init__(self, device: torch.device, enable_timing: bool) -> None:
        assert enable_timing
        assert device.type == "cuda"

    def record(self) -> None:
        CudaEvent.now += 30.0
        self.time = CudaEvent.now

    def elapsed_time(self, later: CudaEvent) -> float:
        assert CudaEvent.synchronised
        return later.time - self.time


def test_laps_on_a_gpu_are_the_devices_and_are_read_when_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Event", CudaEvent)
    monkeypatch.setattr(
        torch.accelerator, "synchronize", lambda device: setattr(CudaEvent, "synchronised", True)
    )
    watch = Stopwatch(torch.device("cuda"))
    for _ in range(3):
        watch.mark()
    assert not CudaEvent.synchronised
    assert watch.laps() == [0.03, 0.03]


def test_a_difference_is_of_seconds_and_paired_by_round() -> None:
    found = difference({"one": [2.0, 4.0, 1.0], "other": [4.0, 8.0, 2.0]}, "one", "other")
    assert (found["median"], found["low"], found["high"]) == (0.25, 0.125, 0.5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_fastais_own_loop_trains_to_the_jobs_bits(precision: str) -> None:
    """So that the two are compared doing the same, and the job's step is fastai's without the events."""
    recipe = Recipe(depth=10, width=1, batch_size=8, precision=precision, cycles=(Cycle(2, 5e-3),))
    networks = []
    for own in (False, True):
        torch.manual_seed(22)
        network, loader = wide_resnet(10, 1, CLASSES), batches(recipe, CPU, 4)
        if own:
            Trainer(network, loader, recipe, lambda: None).train_epoch()
        else:
            event_learner(network, loader, recipe, lambda: None).fit(1)
        networks.append(network.state_dict())
    fastai, job = networks
    assert all(torch.equal(tensor, job[name]) for name, tensor in fastai.items())


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """The result of the smallest bench, by the command line."""
    parts = ("loop", "augmentation", "host", "determinism", "parallel")
    options = ["--depth", "10", "--width", "1", "--batch-size", "8", "--rounds", "1", "--seconds", "0.1"]
    done = micronet("bench", "--json", "--price", "2", *options, *(f"--part={part}" for part in parts))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_comparison_has_its_rounds_and_its_ratio(results: dict[str, Any]) -> None:
    for part, names in {
        "loop": ("job", "bare", "stock"),
        "augmentation": ("job", "fastai", "torchvision", "grid_sample"),
        "determinism": ("on", "off"),
    }.items():
        rates = results[part]["images_per_second"]
        assert tuple(rates) == names
        for rate in rates.values():
            assert 0 < rate["low"] <= rate["median"] <= rate["high"]
            assert rate["n"] == 1
    hours = results["loop"]["hours_of_600_epochs"]
    rate = results["loop"]["images_per_second"]["job"]["median"]
    assert hours == pytest.approx(600 * 50_000 / rate / 3600)
    assert results["loop"]["cost_of_600_epochs"] == pytest.approx(2 * hours)

    assert results["host"]["overhead_seconds"].keys() == {"job", "fastai"}
    assert all(each["n"] == 1 for each in results["host"]["overhead_seconds"].values())


def test_a_process_sends_its_part_of_each_bucket(results: dict[str, Any]) -> None:
    parallel, network = results["parallel"], wide_resnet(10, 1, CLASSES)
    step = ShardedStep(network, list(network.parameters()), ALONE, SHARED, overlap=False)
    padded = [4 * (bucket.size + -bucket.size % SHARED) for bucket in (*step.buckets, step.rest)]
    assert parallel["gradient_bytes"] == sum(parameter.nbytes for parameter in network.parameters())
    assert (
        parallel["sent_bytes"].keys()
        == parallel["processes_to_one"].keys()
        == parallel["exchange_share"].keys()
    )
    for count, sent in parallel["sent_bytes"].items():
        assert sent == sum(sent_bytes(size, int(count)) for size in padded)
        assert sent < 2 * parallel["gradient_bytes"]
    assert parallel["shards_to_one"].keys() == {"2", "4"}
    assert {(row["processes"], row["link"]) for row in parallel["model"]} == {
        (count, link) for count in (2, 4) for link in LINKS
    }


def test_the_model_hides_what_the_backward_pass_of_a_shard_leaves_time_for() -> None:
    sizes, rate = [8_000_000, 8_000_000, 4_000_000, 100_000], ATTAINED * 15.75e9
    taken = [size / rate + 2 * COLLECTIVE_SECONDS for size in sizes]  # two processes: each byte is sent once
    slow = {row["link"]: row for row in modelled(0.048, 256, 4, sizes, 2)}["PCIe 3.0 x16"]
    assert slow["exchange_seconds"] == pytest.approx(sum(taken))
    assert slow["exposed_seconds"] == pytest.approx(taken[2] + taken[3])
    assert slow["images_per_second"] == pytest.approx(256 / (0.024 + taken[2] + taken[3]))
    quick = {row["link"]: row for row in modelled(0.0048, 256, 4, sizes, 2)}["PCIe 3.0 x16"]
    backward = 0.0048 / 4 * 2 / 3
    assert quick["exposed_seconds"] == pytest.approx(sum(taken) - backward)
    assert sent_bytes(4000, 4) == 2 * 3 * 1000


def test_a_step_of_the_job_dispatches_a_third_of_stocks_and_reads_nothing() -> None:
    recipe = Recipe(depth=10, width=1, batch_size=8, precision="fp32")
    operators, reads = {}, {}
    for name in ("job", "bare", "stock"):
        with loop(name, recipe, CPU) as epoch, Trace() as trace:
            epoch(trace.mark)
        called = [operator.name for operator in trace.steps[-2]]
        operators[name], reads[name] = len(called), called.count(READ)
    assert reads["job"] == reads["bare"] == 0
    assert reads["stock"] > 0
    assert operators["bare"] < operators["job"] <= operators["stock"] / 3


def test_what_a_checkpoint_takes_is_seen_in_the_steps_meanwhile(tmp_path: Path) -> None:
    assert excess([1.0, 1.5, 1.25, 0.75, 1.0], [False, True, True, False, False]) == 0.5 + 0.25
    recipe = Recipe(depth=10, width=1, batch_size=16, precision="fp32")
    with full(recipe, CPU, steps=60, every_seconds=0.2, store=str(tmp_path)) as saving:
        saving()
    assert len(saving._during) == len(saving.step_seconds) == 60
    assert sum(saving._during) >= len(saving.blocked_seconds) > 0


def test_the_text_names_every_part_and_what_each_figure_means(results: dict[str, Any]) -> None:
    saving = {"median": 0.5, "low": 0.25, "high": 0.75, "n": 3, "mean": 0.5, "half_width": None}
    rates = dict.fromkeys(("saving", "plain"), saving)
    names = ("saving_to_plain", "lost_seconds", "blocked_seconds", "copy_seconds")
    checkpoints = {"steps": 4, "images_per_second": rates, **dict.fromkeys(names, saving)}
    text = "\n".join(lines({**results, "checkpoints": checkpoints}))  # type: ignore[typeddict-item]
    for part in ("loop", "augmentation", "determinism", "host", "checkpoints", "parallel"):
        assert f"\n{part} " in text
    assert "600 epochs" in text
    assert "500 (250 to 750, n = 3) ms" in text
    for row in text.splitlines()[3:]:
        assert re.search(r"\(.*\).*  [a-z0-9]+|600 epochs|processes send|modelled|GPUs.*  [a-z]+", row), row
