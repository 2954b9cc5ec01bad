"""The looks that a run begins with."""

from __future__ import annotations

import torch

from job import events
from job.preflight import disk, gpu, storage
from job.preflight.check import Look
from job.settings import DataSettings, Recipe
from job.store import Store


def check(
    recipe: Recipe, run: str | None, data: DataSettings, device: torch.device, store: Store | None
) -> None:
    """Look at the device, the store and the disk; raise the first JobError, tell of warnings.

    `store` is the run's own, so that what it finds out about its service is found out once; None for a run
    that is given no place. A store out of reach is retried here as in any call of it. The data is not looked
    at: fetching it comes next.
    """
    looks = [
        Look("gpu", lambda: gpu.check_device(device)),
        Look("kernel", lambda: gpu.check_work(device)),
        *storage.looks(run, store),
        Look("disk", lambda: disk.check_space(recipe, run, data)),
    ]
    for look in looks:
        found = look.at()
        if found.status == "warning":
            events.warn("preflight", check=found.name, reason=found.text, fix=found.fix)
