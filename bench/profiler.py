"""Where a step's time goes: PyTorch's profiler over a few steps of the job's loop.

    python -m bench.profiler [--width 6 --batch-size 256]

Prints JSON: the operators by the time their kernels take on the device (on a processor: their own time), with
calls and time a step, and the host's time a step.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from job.checks.bench.loops import full
from job.machine import device as devices
from job.recipe import PRECISIONS, Recipe

SHOWN = 25


def table(recipe: Recipe, device: torch.device, steps: int) -> dict[str, Any]:
    """Return the dearest operators of an epoch of `steps` steps, all times in milliseconds a step."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with full(recipe, device, steps) as job:
        job()
        with profile(activities=activities) as profiler:
            job()
    events = profiler.key_averages()

    def on_device(event: Any) -> float:
        return float(event.self_cpu_time_total if device.type == "cpu" else event.self_device_time_total)

    rows = sorted(events, key=on_device, reverse=True)[:SHOWN]
    return {
        "device_ms": sum(map(on_device, events)) / steps / 1e3,
        "host_ms": sum(event.self_cpu_time_total for event in events) / steps / 1e3,
        "operators": [
            {"name": row.key, "calls": row.count / steps, "ms": on_device(row) / steps / 1e3} for row in rows
        ],
    }


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--depth", type=int, default=22)
    parser.add_argument("--width", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    options = parser.parse_args()
    device = devices.choose("any" if options.device == "auto" else options.device)
    devices.configure(deterministic=True)
    recipe = Recipe(
        depth=options.depth,
        width=options.width,
        batch_size=options.batch_size,
        precision=devices.resolve_precision(options.precision, device),
    )
    result = {"machine": devices.machine(device), "precision": recipe.precision}
    print(json.dumps({**result, **table(recipe, device, options.steps)}, indent=2))


if __name__ == "__main__":
    main()
