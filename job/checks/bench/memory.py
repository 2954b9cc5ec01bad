"""The peak memory of a process that trains a few steps, one subject a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields

import torch

from job.checks.bench.loops import full
from job.machine import device as devices
from job.settings import Recipe

STEPS, EPOCHS = 10, 3


def peak_megabytes(subject: str, recipe: Recipe, device: torch.device) -> float:
    """Return the peak resident memory of a process that trains `subject` (job or stock), in 10^6 bytes.

    On a GPU it is the device's: what PyTorch had allocated at most.
    """
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe) if field.name != "cycles"}
    child = subprocess.Popen(  # noqa: S603 - the words are this program's own
        [sys.executable, "-m", __name__, subject, json.dumps(values), str(device)],
        stdout=subprocess.PIPE,
    )
    assert child.stdout
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"the process that measures the memory of {subject} ended with {child.returncode}")
    return float(said) / 1e6 if device.type == "cuda" else usage.ru_maxrss * 1024 / 1e6


def main(subject: str, values: str, device_name: str) -> None:
    """Train; print what the GPU's memory held at most, in bytes."""
    recipe, device = Recipe(**json.loads(values)), torch.device(device_name)
    if subject == "job":
        devices.configure(recipe.deterministic)
        with full(recipe, device, STEPS) as job:
            for _ in range(EPOCHS):
                job()
    else:
        from job.checks.bench.stock import Stock, images

        with images(STEPS * recipe.batch_size) as folder:
            stock = Stock(recipe, device, folder)
            for _ in range(EPOCHS):
                stock()
    print(torch.cuda.max_memory_allocated() if device.type == "cuda" else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
