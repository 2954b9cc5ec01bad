"""Whole runs on the simulated GPU: the bits after a kill, and what the training waits for."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.simulated_gpu import Fault
from tests.simulated_gpu.attempts import Device
from tests.simulated_gpu.bench import COPIES, EACH_STEP, EPOCHS, IN_STEP, STEPS, Bench, at, outcome


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("gpu"))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_killed_run_ends_with_the_same_bits(bench: Bench, precision: str) -> None:
    """The device hangs in the second epoch's last step, where the kill comes."""
    whole, killed = (bench.folder / f"{name}-{precision}" for name in ("whole", "killed"))
    bench.finish(whole, "--precision", precision)
    hang = Device(Fault("hang", within=IN_STEP, operator=at(epoch=2, step=STEPS)))
    with bench.attempt(killed, "--precision", precision, *EACH_STEP, device=hang) as attempt:
        durable = attempt.until(
            lambda event: event["event"] == "checkpoint" and event["epoch"] == 2 and event["step"] > 0
        )
        attempt.signal(signal.SIGKILL)
        assert attempt.end() == -signal.SIGKILL
    (resumed,) = [
        event for event in bench.finish(killed, "--precision", precision).events if event["event"] == "resume"
    ]
    assert resumed["epoch"] == 2
    assert resumed["step"] >= durable["step"]
    assert outcome(killed) == outcome(whole)
    assert f"({outcome(killed)['accuracy']['correct']} of 20 test images)" in bench.evaluate(killed)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_training_reads_the_device_once_an_epoch(bench: Bench, precision: str, tmp_path: Path) -> None:
    """With a checkpoint after each step and a display on a terminal, from the start to the report."""
    log = tmp_path / "log"
    run = bench.folder / f"counted-{precision}"
    options = ("--precision", precision, *EACH_STEP)
    with bench.attempt(run, *options, device=Device(log=log), terminal=True) as attempt:
        assert attempt.end() == 0, attempt.last_words()
    assert "total" in attempt.last_words()  # the display was there

    waits = Counter[tuple[str, str]]()
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        waits[entry["kind"], entry["within"].split(".<")[0]] += 1
    reads = {where: count for (kind, where), count in waits.items() if kind == "read"}
    reads.pop("Trainer.state", None)  # fp16's scale and its age are copied into each checkpoint
    assert reads == {"Trainer.train_epoch": EPOCHS}
    copies = {where for kind, where in waits if kind == "copy"}
    assert copies == COPIES
    assert {kind for kind, _ in waits} == {"read", "copy"}
