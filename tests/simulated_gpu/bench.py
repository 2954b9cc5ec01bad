"""Runs of one tiny recipe on the simulated device."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.archives import write_archive
from tests.simulated_gpu.attempts import SOUND, Attempt, Device, started

STEPS, BATCH_SIZE, EPOCHS = 4, 4, 3
EACH_STEP = ("--checkpoint-every", "0.001s")
IN_STEP, OPERATORS = "cross_entropy", 6  # of each step
COMPACT = ("--cycles", "1@5e-3", "--prune-cycles", "1@1e-3", "--quantise-cycles", "1@1e-3")
PHASES = 4  # of COMPACT: an epoch each

COPIES = {"check_work", "copy_off", "Trainer.state", "predict", "save", "_on_cpu"}
"""The functions that copy from the device: at the start, for checkpoints and evaluations, none in a step."""


def at(epoch: int, step: int) -> int:
    """Return which operator of IN_STEP is the first in a step, epoch and step from 1."""
    return OPERATORS * (STEPS * (epoch - 1) + step - 1) + 1


class Bench:
    """Starts attempts at runs of one tiny recipe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = write_archive(folder / "tiny.tar.gz", train=STEPS * BATCH_SIZE, test=20, classes=5)
        self.data = ["--data", str(self.archive), "--cache", str(folder / "cache")]

    def attempt(
        self,
        run: Path | str,
        *options: str,
        device: Device = SOUND,
        terminal: bool = False,
    ) -> AbstractContextManager[Attempt]:
        """Start a `train`."""
        network = ["--depth", "10", "--width", "1"]
        recipe = [*network, "--batch-size", str(BATCH_SIZE), "--cycles", f"{EPOCHS}@5e-3"]
        words = ["train", "--run", str(run), *self.data, *recipe, *options]
        return started(self.folder, words, device, terminal)

    def finish(self, run: Path | str, *options: str, device: Device = SOUND) -> Attempt:
        """Make an attempt that comes to the end."""
        with self.attempt(run, *options, device=device) as attempt:
            assert attempt.end() == 0, attempt.last_words()
        return attempt

    def evaluate(self, run: Path) -> str:
        """Return what `evaluate` prints of a run's weights."""
        with started(self.folder, ["evaluate", str(run), *self.data], SOUND) as attempt:
            assert attempt.end() == 0, attempt.last_words()
        return attempt.last_words()


def durable(attempt: Attempt) -> tuple[int, int]:
    """Return the epoch (from 1) and step that the attempt's newest checkpoint resumes at."""
    saved = [event for event in attempt.events if event["event"] == "checkpoint"]
    return saved[-1]["epoch"], saved[-1]["step"]


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
