"""The parts of `micronet bench`: each measures one claim and returns plain values."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from job import events
from job.checks.bench import augmenting, host
from job.checks.bench.loops import Bare, full
from job.checks.bench.rounds import difference, interleave, ratio, spread, with_mean
from job.checks.bench.stock import apart, images
from job.machine import device as devices
from job.settings import Recipe
from job.train.step import CudaRecorder

FEWEST_STEPS, MOST_STEPS = 4, 200
CHECKPOINT_SECONDS = 10.0
CHECKPOINT_ROUND_SECONDS = 2.7 * CHECKPOINT_SECONDS  # the first is due at once, so three, and time to end
COPIES = 10
SETTINGS = ("depth", "width", "batch_size", "precision", "compile")
EPOCHS, EPOCH_IMAGES = 600, 50_000  # of the default recipe on CIFAR-100


@dataclass(frozen=True)
class Bench:
    """What is measured, and how often: rounds of about `seconds` for each subject."""

    recipe: Recipe
    device: torch.device
    rounds: int
    seconds: float
    price: float | None = None  # of an hour of this machine
    graph: bool = False  # of the job's loop

    def loop(self) -> dict[str, Any]:
        """Compare the job's loop with the bare loop at the same precision, and with stock fastai."""
        steps = self.steps(self.seconds)
        with ExitStack() as stack:
            recorder = CudaRecorder() if self.graph else None
            job = stack.enter_context(full(self.recipe, self.device, steps, recorder=recorder))
            folder = stack.enter_context(images(steps * self.recipe.batch_size))
            stock = stack.enter_context(apart(self.recipe, self.device, folder))
            bare = Bare(self.recipe, self.device, steps)
            measured = interleave({"job": job, "bare": bare, "stock": stock}, self.rounds)
        rate = spread(measured["job"])["median"]
        hours = EPOCHS * EPOCH_IMAGES / rate / 3600
        return {
            "steps": steps,
            "images_per_second": {name: spread(rates) for name, rates in measured.items()},
            "job_to_bare": ratio(measured, "job", "bare"),
            "job_to_stock": ratio(measured, "job", "stock"),
            "hours_of_600_epochs": hours,
            "cost_of_600_epochs": None if self.price is None else hours * self.price,
        }

    def augmentation(self) -> dict[str, Any]:
        """Compare the augmentation, mixup included, with fastai's, torchvision's and one `grid_sample`."""
        measured = augmenting.measure(self.device, self.rounds)
        return {
            "images_per_second": {name: spread(rates) for name, rates in measured.items()},
            **{f"job_to_{name}": ratio(measured, "job", name) for name in measured if name != "job"},
        }

    def checkpoints(self) -> dict[str, Any]:
        """Compare the loop that saves to a folder every 10 s with the one that does not save."""
        steps = self.steps(CHECKPOINT_ROUND_SECONDS, most=10**6)
        with ExitStack() as stack:
            saving = stack.enter_context(full(self.recipe, self.device, steps, CHECKPOINT_SECONDS))
            plain = stack.enter_context(full(self.recipe, self.device, steps))
            measured = interleave({"saving": saving, "plain": plain}, self.rounds)
            copies = []
            for _ in range(COPIES):
                started = time.perf_counter()
                saving.trainer.state([])
                copies.append(time.perf_counter() - started)
        return {
            "steps": steps,
            "images_per_second": {name: spread(rates) for name, rates in measured.items()},
            "saving_to_plain": ratio(measured, "saving", "plain"),
            "lost_seconds": with_mean(saving.lost_seconds[1:]),
            "blocked_seconds": spread(saving.blocked_seconds),
            "copy_seconds": spread(copies),
        }

    def determinism(self) -> dict[str, Any]:
        """Compare the bare loop with deterministic algorithms and without."""
        steps = self.steps(self.seconds)
        bare = Bare(self.recipe, self.device, steps)

        def under(deterministic: bool) -> float:
            torch.use_deterministic_algorithms(deterministic)
            torch.backends.cudnn.benchmark = not deterministic
            return bare()

        measured = interleave({"on": lambda: under(True), "off": lambda: under(False)}, self.rounds)
        devices.configure(self.recipe.deterministic)
        return {
            "images_per_second": {name: spread(rates) for name, rates in measured.items()},
            "on_to_off": ratio(measured, "on", "off"),
        }

    def host(self) -> dict[str, Any]:
        """Compare what the job's loop and fastai's cost the host in a step, besides its operators."""
        measured = host.measure(self.recipe, self.device, self.rounds)
        return {
            "steps_per_second": {name: spread(rates) for name, rates in measured.items()},
            "overhead_seconds": {name: difference(measured, name, "operators") for name in ("job", "fastai")},
        }

    def steps(self, seconds: float, most: int = MOST_STEPS) -> int:
        """Return how many steps of the bare loop take about `seconds`."""
        bare = Bare(self.recipe, self.device, 1)
        bare()
        rate = max(bare() for _ in range(2))
        return min(most, max(FEWEST_STEPS, round(seconds * rate / self.recipe.batch_size)))


def run(bench: Bench, parts: tuple[str, ...]) -> dict[str, Any]:
    """Return {part: its values} for `parts`, with the machine and the settings they hold for."""
    recipe = replace(bench.recipe, precision=devices.resolve_precision(bench.recipe.precision, bench.device))
    bench = replace(bench, recipe=recipe)
    devices.configure(recipe.deterministic)
    results: dict[str, Any] = {
        "machine": devices.machine(bench.device),
        "settings": {
            **{name: getattr(recipe, name) for name in SETTINGS},
            "graph": bench.graph,
        },
    }
    for part in parts:
        events.emit("bench", part=part)
        results[part] = getattr(bench, part)()
    return results
