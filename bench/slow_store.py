"""Does a slow or hung store slow the training down? Steps compared with those of a run that saves nothing.

    python -m bench.slow_store

Starts a real S3 server on loopback behind a proxy, and trains four runs in turn: two that save nothing (what
identical runs differ by), one whose store takes 1 MB/s, and one whose store takes requests without an answer.
Prints JSON: each step's time in the training thread, what a checkpoint blocked it for, and the copy alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import torch

from job import events
from job.checks.bench.loops import NEVER, Full, full
from job.checks.bench.timing import order, spread
from job.machine import device as devices
from job.recipe import Recipe
from tests.servers import FaultProxy, SeaweedFS

BUCKET = "bench"
BYTES_PER_SECOND = 1_000_000
EVERY_SECONDS = 2.0


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    events.configure()
    devices.configure(deterministic=True)
    device = torch.device("cpu")
    precision = devices.resolve_precision("auto", device)
    recipe = Recipe(width=options.width, batch_size=options.batch_size, precision=precision)

    server = SeaweedFS(Path(tempfile.mkdtemp(prefix="bench-seaweedfs-")))
    try:
        server.start()
        server.client().create_bucket(Bucket=BUCKET)
        with ExitStack() as stack:
            runs = start(stack, server, recipe, options.steps)
            measured = measure(runs, options.rounds)
            copies = copy_seconds(runs["throttled"])
        print(json.dumps(summary(measured, runs, copies, recipe), indent=2))
    finally:
        server.stop()


def start(stack: ExitStack, server: SeaweedFS, recipe: Recipe, steps: int) -> dict[str, Full]:
    """Return the four runs, each with the store that it has claimed while that was well."""
    device = torch.device("cpu")
    runs = {name: stack.enter_context(full(recipe, device, steps, NEVER)) for name in ("plain", "identical")}
    for name, fault in (("throttled", ("throttle", BYTES_PER_SECOND)), ("hung", ("stall", 0))):
        proxy = FaultProxy(server.endpoint)
        proxy.start()
        stack.callback(proxy.stop)
        os.environ.update(server.environment(), AWS_ENDPOINT_URL_S3=proxy.uri)
        store = f"s3://{BUCKET}/{uuid4().hex}"
        runs[name] = stack.enter_context(full(recipe, device, steps, EVERY_SECONDS, store))
        proxy.default = fault
    return runs


def measure(runs: dict[str, Full], rounds: int) -> dict[str, list[list[float]]]:
    """Return the steps' seconds of each run in each round."""
    names = list(runs)
    for run in runs.values():
        run()
    measured: dict[str, list[list[float]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in order(names, number):
            before = len(runs[name].step_seconds)
            runs[name]()
            measured[name].append(runs[name].step_seconds[before:])
    return measured


def copy_seconds(run: Full) -> list[float]:
    """Return what the copy off the device takes by itself."""
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        run.trainer.state([])
        seconds.append(time.perf_counter() - began)
    return seconds


def summary(
    measured: dict[str, list[list[float]]], runs: dict[str, Full], copies: list[float], recipe: Recipe
) -> dict[str, object]:
    """Return medians, 99th percentiles and the ratios of each round to the plain run of the same round."""
    plain = measured["plain"]
    result: dict[str, object] = {
        "machine": devices.machine(torch.device("cpu")),
        "settings": {"width": recipe.width, "batch_size": recipe.batch_size, "precision": recipe.precision},
        "copy_seconds": spread(copies),
    }
    for name, rounds in measured.items():
        steps = [seconds for each in rounds for seconds in each]
        pairs = list(zip(rounds, plain, strict=True))
        blocked = runs[name].blocked_seconds
        result[name] = {
            "median_step_seconds": statistics.median(steps),
            "p99_step_seconds": p99(steps),
            "median_to_plain": spread([statistics.median(a) / statistics.median(b) for a, b in pairs]),
            "p99_to_plain": spread([p99(a) / p99(b) for a, b in pairs]),
            "blocked_seconds": spread(blocked) if blocked else None,
        }
    return result


def p99(seconds: list[float]) -> float:
    """Return the 99th percentile."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[98]


if __name__ == "__main__":
    main()
