"""Every precondition of a run, in seconds whatever hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from job.errors import JobError, MachineError
from job.preflight import disk, source, storage
from job.preflight.check import Check, Look, failure
from job.settings import Placement, Recipe
from job.store import open_store

NETWORK_SECONDS = 3.0
"""What store and source are waited for, from the start on, most of which PyTorch's import takes too."""

DEVICE_SECONDS = 60.0
"""What a kernel is waited for; a first one loads a gigabyte of libraries from a disk that may be slow."""

RETRY_SECONDS = 1.0


def examine(recipe: Recipe, placement: Placement, store_cache: str | None) -> list[Check]:
    """Return every finding, in the order in which `train` would meet them; raise UsageError."""
    store = open_store(placement.run, RETRY_SECONDS) if placement.run else None
    stored = _Background(storage.looks(placement.run, store), NETWORK_SECONDS)
    sources, cache = placement.data.data, Path(placement.data.cache)
    at_data = Look("data", lambda: source.check_data(sources, cache, store_cache))
    data = _Background([at_data], NETWORK_SECONDS)
    device = _look_at_device(recipe, placement.device.device)
    space = Look("disk", lambda: disk.check_space(recipe, placement.run, placement.data)).safely()
    return [*device, *stored.found(), space, disk.check_shared_memory(), *data.found()]


def _look_at_device(recipe: Recipe, requested: str) -> list[Check]:
    from job.machine import device as devices
    from job.preflight import gpu  # PyTorch takes a second or two, in which the network answers

    try:
        device = devices.choose(requested)
    except JobError as error:
        return [failure("gpu", error)]
    looks = [
        Look("gpu", lambda: gpu.check_device(device)),
        Look("kernel", lambda: gpu.check_work(device), late="The GPU hangs: use another machine"),
        Look("precision", lambda: gpu.check_precision(recipe.precision, device)),
    ]
    if recipe.compile:
        looks.append(Look("compile", lambda: gpu.check_compiler(device)))
    return _Background(looks, DEVICE_SECONDS).found()


def exit_code(checks: Sequence[Check]) -> int:
    """Return that of the first failure which no other machine would mend, else of the first, else 0.

    So a scheduler does not retry (74) what is refused (77) or set wrongly (78) besides.
    """
    codes = [check.exit_code for check in checks if check.status == "failed"]
    return next((code for code in codes if code != MachineError.exit_code), codes[0] if codes else 0)


class _Background:
    """Looks, one after the other, in a thread that is left alone when the time is over."""

    def __init__(self, looks: Sequence[Look], seconds: float) -> None:
        self._looks, self._seconds = looks, seconds
        self._deadline = time.monotonic() + seconds
        self._found: list[Check] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def found(self) -> list[Check]:
        """Wait for the rest; a look that comes to no end has failed, and those after it are left out."""
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        found = list(self._found)
        if len(found) < len(self._looks):
            late = MachineError(f"no answer within {self._seconds:g} s", self._looks[len(found)].late)
            found.append(failure(self._looks[len(found)].name, late))
        return found

    def _run(self) -> None:
        for look in self._looks:
            self._found.append(look.safely())
