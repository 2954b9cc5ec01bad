"""Runs of the job as a user makes them, as processes: one that is stopped and resumed, or a few seeds.

    python -m bench.runs stopped OPTIONS...         SIGTERM at the first checkpoint, same command, evaluate
    python -m bench.runs seeds 22,23,24 OPTIONS...  one after another

OPTIONS are those of `micronet train` without --run and --seed. Prints JSON.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from job.checks.child import Child, named, started
from job.errors import PREEMPTED
from job.machine.preemption import Preemption

EVALUATE = ("--data", "--cache", "--device")  # of train's options also evaluate's


def finish(child: Child) -> None:
    """Wait for a run's end; leave with its words where it failed."""
    if child.end():
        raise SystemExit(child.last_words())


def report(run: str) -> dict[str, Any]:
    """Return a run's report."""
    content: dict[str, Any] = json.loads(Path(run, "report.json").read_text(encoding="utf-8"))
    return content


def stopped(run: str, options: Sequence[str]) -> dict[str, Any]:
    """Stop a run, resume it and measure its weights again."""
    command = ["--run", run, "--checkpoint-every", "1s", *options]
    with started(command, Preemption(30)) as child:
        if child.until(named("checkpoint")) is None:
            raise SystemExit(child.last_words())
        child.signal(signal.SIGTERM)
        code = child.end()
    with started(command, Preemption(30)) as child:
        first = child.until(named("first_step"))
        finish(child)
    words = [sys.executable, "-m", "job.cli", "evaluate", run, "--json", *evaluation(options)]
    measured = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
    accuracy = report(run)["accuracy"]["final"]
    result = {
        "exit_code": code,
        "resumed": [event["event"] for event in child.events].count("resume") == 1,
        "first_step": first,
        "accuracy": accuracy,
        "evaluated": measured["accuracy"],
    }
    if code != PREEMPTED.code or not result["resumed"] or accuracy != measured["accuracy"]:
        raise SystemExit(f"stopped, resumed and evaluated: {json.dumps(result)}")
    return result


def evaluation(options: Sequence[str]) -> list[str]:
    """Return those of train's options that name the data."""
    kept = ["--demo"] if "--demo" in options else []
    for name, value in pairwise(options):
        if name in EVALUATE:
            kept += [name, value]
    return kept


def seeds(run: str, numbers: Sequence[str], options: Sequence[str]) -> dict[str, Any]:
    """Train a run for each seed; return each one's accuracy, and its seconds as a process."""
    result: dict[str, Any] = {"accuracy": {}, "seconds": {}, "images_per_second": {}}
    for number in numbers:
        began = time.perf_counter()
        with started(["--run", f"{run}/{number}", "--seed", number, *options], Preemption(30)) as child:
            finish(child)
        result["seconds"][number] = round(time.perf_counter() - began, 1)
        result["accuracy"][number] = report(f"{run}/{number}")["accuracy"]["final"]
        epochs = [event["images_per_second"] for event in child.events if event["event"] == "epoch"]
        result["images_per_second"][number] = statistics.median(epochs)
    result["mean_accuracy"] = statistics.mean(result["accuracy"].values())
    result["median_images_per_second"] = statistics.median(result["images_per_second"].values())
    return result


def main() -> None:
    """Make the runs, and print the result."""
    kind, *words = sys.argv[1:] or [""]
    with tempfile.TemporaryDirectory(prefix="bench-runs-") as folder:
        run = f"{folder}/run"
        if kind == "stopped":
            result = stopped(run, words)
        elif kind == "seeds" and words:
            result = seeds(run, words[0].split(","), words[1:])
        else:
            raise SystemExit(__doc__)
    print(json.dumps({"options": words, **result}, indent=2))


if __name__ == "__main__":
    main()
