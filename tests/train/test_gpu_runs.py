"""Whole runs on the simulated GPU: the bits after a kill, and what the training waits for."""

from __future__ import annotations

import hashlib
import json
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from job.train.assess import assess
from tests.archives import write_archive
from tests.simulated_gpu import Fault
from tests.simulated_gpu.attempts import Attempt, Device, on_device, started

STEPS, EPOCHS = 4, 3  # 64 images in batches of 16
EACH_STEP = ("--checkpoint-every", "0.001s")
IN_STEP, OPERATORS = "LossSum.after_loss", 2  # of each step


def at(epoch: int, step: int) -> int:
    """Return which operator of IN_STEP is the first in a step, epoch and step from 1."""
    return OPERATORS * (STEPS * (epoch - 1) + step - 1) + 1


class Bench:
    """Starts attempts at runs of one tiny recipe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = write_archive(folder / "tiny.tar.gz", train=16 * STEPS, test=20, classes=5)

    def attempt(
        self,
        run: Path | str,
        *options: str,
        device: Device = Device(),  # noqa: B008
    ) -> AbstractContextManager[Attempt]:
        where = ["--run", str(run), "--data", str(self.archive), "--cache", str(self.folder / "cache")]
        recipe = ["--depth", "10", "--width", "1", "--batch-size", "16", "--cycles", f"{EPOCHS}@5e-3"]
        return started(self.folder, ["train", *where, *recipe, *options], device)

    def finish(self, run: Path | str, *options: str, device: Device = Device()) -> Attempt:  # noqa: B008
        """Make an attempt that comes to the end."""
        with self.attempt(run, *options, device=device) as attempt:
            assert attempt.end() == 0, attempt.last_words()
        return attempt


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("gpu"))


def outcome(run: Path) -> dict[str, Any]:
    """Return what must be the same for every run of the recipe."""
    report = json.loads((run / "report.json").read_bytes())
    records = [json.loads(line) for line in (run / "history.jsonl").read_bytes().splitlines()]
    names = ("epoch", "train_loss", "test_loss", "accuracy", "lr", "momentum")
    return {
        "weights": hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest(),
        "predictions": hashlib.sha256((run / "predictions.npz").read_bytes()).hexdigest(),
        "history": [[record[name] for name in names] for record in records],
        **{name: report[name] for name in ("model", "accuracy", "score", "data")},
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_killed_run_ends_with_the_same_bits(bench: Bench, precision: str) -> None:
    """The device hangs in the second epoch, where the kill comes; before that every step was offered."""
    whole, killed = (bench.folder / f"{name}-{precision}" for name in ("whole", "killed"))
    bench.finish(whole, "--precision", precision)
    hang = Device(Fault("hang", within=IN_STEP, operator=at(epoch=2, step=4)))
    with bench.attempt(killed, "--precision", precision, *EACH_STEP, device=hang) as attempt:
        durable = attempt.until(
            lambda event: event["event"] == "checkpoint" and event["epoch"] == 2 and event["step"] > 0
        )
        attempt.signal(signal.SIGKILL)
        assert attempt.end() == -signal.SIGKILL
    (resumed,) = [
        event for event in bench.finish(killed, "--precision", precision).events if event["event"] == "resume"
    ]
    assert (resumed["epoch"], resumed["step"]) >= (durable["epoch"], durable["step"])
    assert resumed["epoch"] == 2
    assert outcome(killed) == outcome(whole)
    measured = on_device(assess, str(killed), (str(bench.archive),), str(bench.folder / "cache"), "auto")
    assert measured["correct"] == outcome(killed)["accuracy"]["correct"]
