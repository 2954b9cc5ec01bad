"""What a step consists of: operators, reads of the device, arithmetic, memory traffic; and what they allow.

    python -m bench.step --loop job         or bare, or stock: fastai's

Trains a few epochs of four steps for the peak memory, then traces a step, and prints JSON. The roofline lets
each operator take the longer of its arithmetic and its memory traffic at the measured rates.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from job.checks.bench.loops import Bare, full
from job.checks.bench.stock import Stock, images
from job.checks.bench.timing import Stopwatch
from job.machine import device as devices
from job.recipe import PRECISIONS, Recipe
from job.train.step import REDUCED

STEPS = 4
EPOCHS = 3  # before the peak memory is read
READ = "aten._local_scalar_dense.default"  # .item(), float(), `if tensor`
SIDE_ON_CPU, SIDE_ON_GPU = 1024, 8192  # of the matrices; an H100 does 1024 in less than a launch takes
COPIED_BYTES = 2**28
REPEATS = 10


@dataclass(frozen=True)
class Operator:
    """One call: floating-point operations, and bytes of arguments and results."""

    name: str
    operations: float
    bytes: int


class Trace(TorchDispatchMode):
    """Collects the operators of each step, `mark` being called where one ends."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[Operator]] = [[]]

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        result = function(*arguments, **keywords)
        operations, size = 0, 0
        if not function.is_view and function is not torch.ops.aten.detach.default:
            if count := flop_registry.get(function.overloadpacket):
                operations = count(*arguments, **keywords, out_val=result)
            leaves = [leaf for leaf in tree_leaves((arguments, keywords, result)) if torch.is_tensor(leaf)]
            size = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
        self.steps[-1].append(Operator(str(function), operations, size))
        return result

    def mark(self) -> None:
        """Begin another step."""
        self.steps.append([])


Epoch = Callable[[Callable[[], None]], None]
"""Trains an epoch of STEPS steps and calls what it is given after each."""


@contextmanager
def loop(name: str, recipe: Recipe, device: torch.device) -> Iterator[Epoch]:
    """Make the job's loop, the bare one or stock fastai's."""
    if name == "job":
        with full(recipe, device, STEPS) as job:
            after_step = job.trainer.after_step

            def train(mark: Callable[[], None]) -> None:
                def marked() -> None:
                    after_step()
                    mark()

                job.trainer.after_step = marked
                job()

            yield train
    elif name == "bare":
        bare = Bare(recipe, device, 1)

        def step(mark: Callable[[], None]) -> None:
            for _ in range(STEPS):
                bare.step()
                mark()

        yield step
    else:
        marks: list[Callable[[], None]] = []
        with images(STEPS * recipe.batch_size) as folder:
            stock = Stock(recipe, device, folder, after_step=lambda: marks[-1](), workers=0)

            def fit(mark: Callable[[], None]) -> None:
                marks.append(mark)
                stock.fit()

            yield fit


def measure(name: str, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Return {operators, reads, operations, bytes} of the last whole step, and the process's peak memory."""
    with loop(name, recipe, device) as epoch:
        for _ in range(EPOCHS):
            epoch(lambda: None)
        peak = peak_memory(device)
        with Trace() as trace:
            epoch(trace.mark)
    last = trace.steps[-2]  # what follows the last mark is no step
    products, copied = product_rate(recipe.precision, device), copy_rate(device)
    floor = sum(max(each.operations / products, each.bytes / copied) for each in last)
    return {
        "operators": len(last),
        "reads": sum(each.name == READ for each in last),
        "operations": sum(each.operations for each in last),
        "bytes": sum(each.bytes for each in last),
        "peak_memory_bytes": peak,
        "operations_per_second": products,
        "bytes_per_second": copied,
        "roofline_images_per_second": recipe.batch_size / floor,
    }


def peak_memory(device: torch.device) -> int:
    """Return the most bytes this process has held: on a GPU what PyTorch had allocated there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def product_rate(precision: str, device: torch.device) -> float:
    """Return the floating-point operations a second of a large product of random matrices.

    Random, because a GPU draws less power and runs faster on zeros and ones.
    """
    side = SIDE_ON_CPU if device.type == "cpu" else SIDE_ON_GPU
    dtype = REDUCED.get(precision, torch.float32)
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / shortest(lambda: one @ other, device)


def copy_rate(device: torch.device) -> float:
    """Return the bytes read and written a second by a large copy."""
    source = torch.randint(0, 256, (COPIED_BYTES,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / shortest(lambda: target.copy_(source), device)


def shortest(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the quickest of a few runs of `work`, on the device's clock."""
    watch = Stopwatch(device)
    for _ in range(REPEATS + 1):
        watch.mark()
        work()
    watch.mark()
    return min(watch.laps()[1:])


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--loop", choices=("job", "bare", "stock"), default="job")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--depth", type=int, default=22)
    parser.add_argument("--width", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    options = parser.parse_args()
    device = devices.choose("any" if options.device == "auto" else options.device)
    if options.loop != "stock":
        devices.configure(deterministic=True)
    settings = {
        "depth": options.depth,
        "width": options.width,
        "batch_size": options.batch_size,
        "precision": devices.resolve_precision(options.precision, device),
    }
    measured = measure(options.loop, Recipe(**settings), device)
    result = {"machine": devices.machine(device), "settings": settings, "loop": options.loop, **measured}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
