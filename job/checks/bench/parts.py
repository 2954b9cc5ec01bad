"""The parts of `micronet bench`: each measures one claim about speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2

from job import events
from job.checks.bench import parallel
from job.checks.bench.loops import CLASSES, Bare, batches, full
from job.checks.bench.results import (
    AugmentationFigures,
    CheckpointFigures,
    DeterminismFigures,
    HostFigures,
    LoopFigures,
    ParallelFigures,
    Results,
)
from job.checks.bench.stock import apart, event_learner, fastai_augmentation, images
from job.checks.bench.timing import (
    Measured,
    Spread,
    Subject,
    difference,
    interleave,
    ratio,
    seconds,
    spread,
    with_mean,
)
from job.data.cifar import CIFAR100_MEAN, CIFAR100_STD
from job.machine import device as devices
from job.machine import launch
from job.recipe import Recipe
from job.train.loader import TrainingBatches
from job.train.step import CudaRecorder, Gradients, Precision, loss_scaler
from job.train.trainer import BETA2, adamw

FEWEST_STEPS, MOST_STEPS = 4, 200
CHECKPOINT_SECONDS = 10.0
CHECKPOINT_ROUND_SECONDS = 2.7 * CHECKPOINT_SECONDS  # the first is due at once, so three, and time to end
COPIES = 10
AUGMENTED_BATCH, AUGMENTED_BATCHES = 256, 20
HOST_STEPS, HOST_BATCH = 200, 2  # images: the operators are as short as they get
EPOCHS, EPOCH_IMAGES = 600, 50_000  # of the default recipe on CIFAR-100


@dataclass(frozen=True)
class Bench:
    """What is measured, and how often: `rounds` of about `seconds` for each subject."""

    recipe: Recipe
    device: torch.device
    rounds: int
    seconds: float
    price: float | None = None  # of an hour of this machine
    graph: bool = False  # of the job's loop

    def loop(self) -> LoopFigures:
        """Compare the job's loop with the bare loop at the same precision, and with stock fastai."""
        steps = self._steps(self.seconds)
        with ExitStack() as stack:
            recorder = CudaRecorder if self.graph else None
            job = stack.enter_context(full(self.recipe, self.device, steps, recorder=recorder))
            folder = stack.enter_context(images(steps * self.recipe.batch_size))
            stock = stack.enter_context(apart(self.recipe, self.device, folder))
            bare = Bare(self.recipe, self.device, steps)
            measured = interleave({"job": job, "bare": bare, "stock": stock}, self.rounds)
        rate = spread(measured["job"])["median"]
        hours = EPOCHS * EPOCH_IMAGES / rate / 3600
        return {
            "steps": steps,
            "images_per_second": _spreads(measured),
            "job_to_bare": ratio(measured, "job", "bare"),
            "job_to_stock": ratio(measured, "job", "stock"),
            "hours_of_600_epochs": hours,
            "cost_of_600_epochs": None if self.price is None else hours * self.price,
        }

    def augmentation(self) -> AugmentationFigures:
        """Compare the augmentation with fastai's, torchvision's and one `grid_sample`.

        Only the job's has mixup, and torchvision's is applied to one image at a time.
        """
        loader = batches(Recipe(batch_size=AUGMENTED_BATCH), self.device, AUGMENTED_BATCHES)
        pixels = loader.images.pixels[:AUGMENTED_BATCH]
        floats = pixels.div(255)
        grid = torch.rand(AUGMENTED_BATCH, 32, 32, 2, device=self.device) * 2 - 1
        fastai = fastai_augmentation()
        torchvision = v2.Compose(
            [
                v2.RandomCrop(32, padding=4, padding_mode="reflect"),
                v2.RandomHorizontalFlip(),
                v2.RandomPerspective(0.2, p=0.75),
                v2.RandomAffine(10, scale=(1.0, 1.1)),
                v2.ColorJitter(0.2, 0.2),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(CIFAR100_MEAN, CIFAR100_STD),
            ]
        )

        def resample() -> torch.Tensor:
            return F.grid_sample(floats, grid, padding_mode="reflection", align_corners=True)

        def rate(batches: int, work: Callable[[], object]) -> Subject:
            return lambda: batches * AUGMENTED_BATCH / seconds(work, self.device)

        subjects = {
            "job": rate(AUGMENTED_BATCHES, lambda: [None for _ in loader]),
            "fastai": rate(AUGMENTED_BATCHES, lambda: [fastai(pixels) for _ in range(AUGMENTED_BATCHES)]),
            "torchvision": rate(1, lambda: [torchvision(image) for image in pixels]),
            "grid_sample": rate(AUGMENTED_BATCHES, lambda: [resample() for _ in range(AUGMENTED_BATCHES)]),
        }
        measured = interleave(subjects, self.rounds)
        return {
            "images_per_second": _spreads(measured),
            "job_to_fastai": ratio(measured, "job", "fastai"),
            "job_to_torchvision": ratio(measured, "job", "torchvision"),
            "job_to_grid_sample": ratio(measured, "job", "grid_sample"),
        }

    def host(self) -> HostFigures:
        """Compare what the job's loop and fastai's cost the host in a step, besides its operators.

        All make their batches, and the two loops do after a step what an attempt at a run does.
        """
        recipe = replace(self.recipe, batch_size=HOST_BATCH, compile=False)
        scaler = loss_scaler(recipe.precision, self.device)
        model, loader = Precision(self._cheap_network(), recipe.precision), self._host_batches(recipe)
        gradients = Gradients(model, scaler)
        optimizer = adamw(model.parameters(), 1e-3, recipe.weight_decay).opt
        total = torch.zeros((), device=self.device)

        def operators() -> None:
            for pixels, targets in loader:
                total.add_(gradients(pixels, targets))
                for group in optimizer.param_groups:
                    group["lr"], group["betas"] = 1e-3, (0.9, BETA2)
                scaler.step(optimizer)
                scaler.update()

        with full(recipe, self.device, HOST_STEPS, network=self._cheap_network()) as job:
            job.trainer.after_step = job.checkpointing.after_step  # without the bench's own clocks
            learner = event_learner(
                self._cheap_network(), self._host_batches(recipe), recipe, job.checkpointing.after_step
            )
            measured = interleave(
                {
                    "job": lambda: job() / HOST_BATCH,
                    "fastai": lambda: HOST_STEPS / seconds(lambda: learner.fit(1), self.device),
                    "operators": lambda: HOST_STEPS / seconds(operators, self.device),
                },
                self.rounds,
            )
        return {
            "steps_per_second": _spreads(measured),
            "overhead_seconds": {name: difference(measured, name, "operators") for name in ("job", "fastai")},
        }

    def determinism(self) -> DeterminismFigures:
        """Compare the bare loop with deterministic algorithms and without."""
        bare = Bare(self.recipe, self.device, self._steps(self.seconds))

        def under(deterministic: bool) -> float:
            torch.use_deterministic_algorithms(deterministic)
            torch.backends.cudnn.benchmark = not deterministic
            return bare()

        measured = interleave({"on": lambda: under(True), "off": lambda: under(False)}, self.rounds)
        devices.configure(self.recipe.deterministic)
        return {"images_per_second": _spreads(measured), "on_to_off": ratio(measured, "on", "off")}

    def checkpoints(self) -> CheckpointFigures:
        """Compare the loop that saves to a folder every CHECKPOINT_SECONDS with one that never saves."""
        steps = self._steps(CHECKPOINT_ROUND_SECONDS, most=10**6)
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
            "images_per_second": _spreads(measured),
            "saving_to_plain": ratio(measured, "saving", "plain"),
            "lost_seconds": with_mean(saving.lost_seconds[1:]),
            "blocked_seconds": spread(saving.blocked_seconds),
            "copy_seconds": spread(copies),
        }

    def parallel(self) -> ParallelFigures:
        """Compare numbers of shards in one process, and several processes with one; model several GPUs."""
        processes = launch.resolve(launch.AUTO, parallel.SHARED, self.device.type)
        steps = self._steps(self.seconds)
        return parallel.compare(self.recipe, self.device, steps, self.rounds, processes)

    def _steps(self, seconds: float, most: int = MOST_STEPS) -> int:
        """Return how many steps of the bare loop take about `seconds`."""
        bare = Bare(self.recipe, self.device, 1)
        bare()
        rate = max(bare() for _ in range(2))
        return min(most, max(FEWEST_STEPS, round(seconds * rate / self.recipe.batch_size)))

    def _cheap_network(self) -> nn.Sequential:
        """Return a network of three operators and 400 parameters, [N, 3, 32, 32] to [N, CLASSES]."""
        return nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3, CLASSES)).to(self.device)

    def _host_batches(self, recipe: Recipe) -> TrainingBatches:
        return batches(recipe, self.device, HOST_STEPS)


def _spreads(measured: Measured) -> dict[str, Spread]:
    return {name: spread(rates) for name, rates in measured.items()}


def measure(bench: Bench, parts: tuple[str, ...]) -> Results:
    """Return what `parts` measure, with the machine and the settings they hold for."""
    recipe = replace(bench.recipe, precision=devices.resolve_precision(bench.recipe.precision, bench.device))
    bench = replace(bench, recipe=recipe)
    devices.configure(recipe.deterministic)
    results: Results = {
        "machine": devices.machine(bench.device),
        "settings": {
            "depth": recipe.depth,
            "width": recipe.width,
            "batch_size": recipe.batch_size,
            "precision": recipe.precision,
            "compile": recipe.compile,
            "graph": bench.graph,
        },
    }
    for part in parts:
        events.emit("bench", part=part)
        results[part] = getattr(bench, part)()  # type: ignore[literal-required]
    return results
