"""Operators dispatched in a step, and how many of them make the host wait for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from job.checks.bench.loops import Bare, full
from job.checks.bench.stock import Stock, images
from job.settings import Recipe

STEPS = 4
READ = "aten._local_scalar_dense.default"  # .item(), float(), `if tensor`


class Count(TorchDispatchMode):
    """Counts operators; `marks` are the totals, and the reads among them, at each `mark`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.reads = 0
        self.marks: list[tuple[int, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.total += 1
        self.reads += str(function) == READ
        return function(*arguments, **(keywords or {}))

    def mark(self) -> None:
        """Note where a step ends."""
        self.marks.append((self.total, self.reads))

    def a_step(self) -> dict[str, int]:
        """Return {operators, reads} of the last whole step."""
        (total, reads), (before, reads_before) = self.marks[-1], self.marks[-2]
        return {"operators": total - before, "reads": reads - reads_before}


def count(recipe: Recipe, device: torch.device) -> dict[str, dict[str, int]]:
    """Return what a step of the job's loop, the bare loop and stock fastai dispatches, at width 1."""
    recipe = Recipe(depth=recipe.depth, width=1, batch_size=16, precision=recipe.precision)
    counted = {}
    with Count() as seen, full(recipe, device, STEPS) as job:
        after_step = job.trainer.after_step

        def note() -> None:
            after_step()
            seen.mark()

        job.trainer.after_step = note
        job()
        counted["job"] = seen.a_step()
    bare = Bare(recipe, device, 1)
    with Count() as seen:
        for _ in range(2):
            bare.step()
            seen.mark()
        counted["bare"] = seen.a_step()
    seen = Count()
    with images(STEPS * recipe.batch_size) as folder:
        stock = Stock(recipe, device, folder, after_step=seen.mark, workers=0)
        with seen:
            stock.fit()
        counted["stock"] = seen.a_step()
    return counted
