"""Room for the data and, where the run lives in a folder, for its checkpoints."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from job.data.archive import CIFAR100, parse_source
from job.data.download import kept
from job.errors import MachineError, PermissionRefusedError
from job.preflight.check import Check, ok
from job.preflight.storage import RUNS
from job.run.manifests import KEPT
from job.settings import DEMO_DATA, DataSettings, Recipe
from job.store import local_path
from job.store.local import LocalStore

MB = 10**6
UNPACKED = 1.1  # bytes for each of the archive: 186 MB for CIFAR-100's 169 MB
STATE_BYTES = 12  # for each parameter: weights and two moments in fp32
WEIGHTS_BYTES = 4
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, not written to


def check_space(recipe: Recipe, run: str | None, data: DataSettings) -> Check:
    """Compare what the run will need with what is free, disk by disk.

    Counted is what is known beforehand and not there yet: a download of unknown size is measured against
    the disk when it begins. Raises MachineError, and PermissionRefusedError for a cache that may not be
    written.
    """
    cache = Path(data.cache)
    folder = _existing(cache)
    if not os.access(folder, os.W_OK, effective_ids=True):
        raise PermissionRefusedError(
            f"{cache} may not be written", "Give this user the right, or name another folder with --cache"
        )
    needs = [(folder, data_bytes(data.data, cache)), *_run_needs(recipe, run)]
    disks: dict[int, list[tuple[Path, int]]] = defaultdict(list)
    for folder, needed in needs:
        disks[folder.stat().st_dev].append((folder, needed))
    return ok("disk", "; ".join(_compare(needs) for needs in disks.values()))


def _run_needs(recipe: Recipe, run: str | None) -> list[tuple[Path, int]]:
    path = local_path(run or RUNS)
    if path is None:
        return []
    there = sum(entry.size for entry in LocalStore(path).list("objects")) if run else 0
    return [(_existing(path), max(0, run_bytes(recipe) - there))]


def _compare(needs: Sequence[tuple[Path, int]]) -> str:
    """Return how much one disk has and needs; MachineError where that is less."""
    folders = " and ".join(dict.fromkeys(str(folder) for folder, _ in needs))
    free, needed = shutil.disk_usage(needs[0][0]).free, sum(needed for _, needed in needs)
    text = f"{folders}: {free / MB:,.0f} MB free, {needed / MB:,.0f} MB will be needed"
    if needed > free:
        raise MachineError(
            f"no space left for the run in {text}", "Free some, or use another disk with --cache and --run"
        )
    return text


def check_shared_memory() -> Check:
    """Say how much shared memory there is; this job needs none."""
    try:
        size = shutil.disk_usage(SHARED_MEMORY).total
    except OSError:
        return ok("shared memory", "none, and none is needed")
    return ok("shared memory", f"{size / MB:,.0f} MB; none is needed, since there are no worker processes")


def data_bytes(sources: Sequence[str], cache: Path) -> int:
    """Return the bytes still to be downloaded and unpacked into `cache`, 0 where that cannot be known."""
    if tuple(sources) == (DEMO_DATA,):
        return 0
    source = parse_source(sources[0]) if sources else CIFAR100[0]
    if not source.sha256 or not source.size:
        return 0
    download = 0 if kept(source.sha256, cache).exists() else source.size
    return download + (0 if (cache / source.sha256).exists() else round(source.size * UNPACKED))


def run_bytes(recipe: Recipe) -> int:
    """Return the bytes that a run's folder grows to: the checkpoints kept, one more, and two sets of weights.

    The second set is the copy for people. For 100 classes.
    """
    return parameters(recipe) * ((KEPT + 1) * STATE_BYTES + 2 * WEIGHTS_BYTES)


def parameters(recipe: Recipe) -> int:
    """Return the number of the network's parameters, for 100 classes.

    By formula: building it takes 0.1 s, and on the meta device 2 s of imports (torch 2.14.1).
    """
    blocks = (recipe.depth - 4) // 6
    inputs, total = 16, 3 * 16 * 9
    for group in range(3):
        outputs = 16 * recipe.width * 2**group
        for _ in range(blocks):
            total += 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs**2
            total += inputs * outputs if inputs != outputs else 0
            inputs = outputs
    return total + 2 * inputs + 100 * inputs + 100


def _existing(path: Path) -> Path:
    """Return the folder, or the nearest one above it that there is."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
