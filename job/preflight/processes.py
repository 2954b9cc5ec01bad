"""Several processes on one machine: their share of the recipe, their GPUs, and how they reach each other."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from job.errors import ConfigurationError
from job.machine.launch import SHARED_MEMORY_MIB, require_divisible
from job.preflight.check import OTHER_MACHINE, Check, Finding, ok, warning

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where NCCL creates its segments

TAKEN = 0.1  # share of it that other programs may have

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process sees: its model and its memory in bytes."""

    name: str
    memory: int

    def __str__(self) -> str:
        """Return the model with its memory."""
        return f"{self.name} ({self.memory / GIB:.1f} GiB)"


def checks(shards: int, processes: int, device_type: str) -> list[Check]:
    """Return the checks of a run in `processes` processes on "cuda" or "cpu"; none for a single process.

    They start no kernel. Those of the GPUs need CUDA to start, so the device's own come before them.
    """
    if processes == 1:
        return []
    found = [Check("shards", lambda: check_shards(shards, processes), OTHER_MACHINE)]
    if device_type == "cuda":
        found += [
            Check("gpus", lambda: check_gpus(processes, visible()), OTHER_MACHINE),
            Check("peers", lambda: describe_peers(pairs_without_peer_access(processes)), OTHER_MACHINE),
            Check("shared-memory", lambda: check_shared_memory(SHARED_MEMORY, processes), OTHER_MACHINE),
        ]
    found.append(Check("backend", lambda: check_backend(device_type), OTHER_MACHINE))
    return found


def check_shards(shards: int, processes: int) -> Finding:
    """Check that each process gets as many shards as every other; raise ConfigurationError."""
    require_divisible(shards, processes)
    return ok("shards", f"{shards} shards, {shards // processes} for each of {processes} processes")


def check_gpus(processes: int, gpus: Sequence[Gpu]) -> Finding:
    """Check that there is a GPU for each process, all of one kind; raise ConfigurationError."""
    listed = ", ".join(f"cuda:{number} {gpu}" for number, gpu in enumerate(gpus)) or "none"
    if processes > len(gpus):
        raise ConfigurationError(
            f"--processes {processes} takes {processes} GPUs, and this process sees {len(gpus)}: {listed}",
            "Give fewer processes, or give the container more GPUs",
        )
    used = set(gpus[:processes])
    if len(used) > 1:
        raise ConfigurationError(
            f"the GPUs are not all of one kind, so a run's bits would depend on which it gets: {listed}",
            f"Name {processes} equal ones in CUDA_VISIBLE_DEVICES, or give fewer processes",
        )
    return ok("gpus", f"{processes} of {len(gpus)}, each {gpus[0]}")


def describe_peers(pairs: Sequence[tuple[int, int]]) -> Finding:
    """Report how the GPUs exchange data; `pairs` are those that cannot read each other's memory."""
    if not pairs:
        return ok("peers", "each GPU reads the others' memory directly")
    named = ", ".join(f"cuda:{one} and cuda:{other}" for one, other in pairs)
    return ok("peers", f"through the host's memory, which is slower: {named}")


def check_shared_memory(folder: Path, processes: int) -> Finding:
    """Check that there is room for NCCL's segments in /dev/shm, where it would fail to start."""
    needed = SHARED_MEMORY_MIB * processes
    fix = (
        f"Start the container with --shm-size={needed}m or --ipc=host; on Kubernetes mount an emptyDir of "
        f"medium Memory at {folder}"
    )
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return warning("shared-memory", f"{folder} cannot be used: {error.strerror}", fix)
    text = f"{folder} has {free // MIB:,} MiB free"
    if free < needed * MIB * (1 - TAKEN):
        return warning(
            "shared-memory", f"{text} of the {needed:,} that NCCL in {processes} processes should have", fix
        )
    return ok("shared-memory", text)


def check_backend(device_type: str) -> Finding:
    """Check that this PyTorch has the library that exchanges the gradients; raise ConfigurationError."""
    import torch
    from torch import distributed

    name = "nccl" if device_type == "cuda" else "gloo"
    if not (distributed.is_available() and distributed.is_backend_available(name)):
        raise ConfigurationError(
            f"PyTorch {torch.__version__} is built without {name}",
            "Use the PyTorch of this project's lock file",
        )
    if name == "gloo":
        return ok("backend", "gloo, part of PyTorch")
    version = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return ok("backend", f"NCCL {'.'.join(map(str, version))}")


def visible() -> list[Gpu]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves, in CUDA's order."""
    import torch

    properties = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [Gpu(found.name, found.total_memory) for found in properties]


def pairs_without_peer_access(processes: int) -> list[tuple[int, int]]:
    """Return the pairs, among the GPUs of so many processes, that cannot read each other's memory."""
    import torch

    used = range(min(processes, torch.cuda.device_count()))
    pairs = [(one, other) for other in used for one in range(other)]
    return [pair for pair in pairs if not torch.cuda.can_device_access_peer(*pair)]
