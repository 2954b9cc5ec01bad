"""A roofline: the least time that a step's arithmetic and memory traffic take on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from job.checks.bench.loops import Bare
from job.settings import Recipe
from job.train.precision import REDUCED

SIDE = 2048  # of the matrices that the arithmetic is measured on
COPIED_BYTES = 2**28
REPEATS = 5


class Traffic(TorchDispatchMode):
    """Collects (floating-point operations, bytes of arguments and results) of each operator."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[float, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        if function.is_view or function is torch.ops.aten.detach.default:
            return result
        count = flop_registry.get(function.overloadpacket)
        operations = count(*arguments, **(keywords or {}), out_val=result) if count else 0
        tensors = [leaf for leaf in tree_flatten((arguments, keywords, result))[0] if torch.is_tensor(leaf)]
        self.operators.append((operations, sum(leaf.numel() * leaf.element_size() for leaf in tensors)))
        return result


def floor(recipe: Recipe, device: torch.device) -> dict[str, float]:
    """Return the step's operations and bytes, the machine's best of both a second, and the floor they make.

    The floor lets each operator take the longer of its arithmetic and its memory traffic, every operand
    going to memory and back, at the rates of a large matrix product and of a large copy. Caches make less
    possible; it is a guide and no bound.
    """
    bare = Bare(recipe, device, 1)
    bare.step()
    with Traffic() as traffic:
        bare.step()
    operations, moved = peak_operations(recipe.precision, device), peak_bytes(device)
    seconds = sum(max(flops / operations, size / moved) for flops, size in traffic.operators)
    return {
        "operations": sum(flops for flops, _ in traffic.operators),
        "bytes": sum(size for _, size in traffic.operators),
        "operations_a_second": operations,
        "bytes_a_second": moved,
        "images_per_second": recipe.batch_size / seconds,
    }


def peak_operations(precision: str, device: torch.device) -> float:
    """Return the floating-point operations a second of a matrix product."""
    matrix = torch.ones(SIDE, SIDE, dtype=REDUCED.get(precision, torch.float32), device=device)
    return 2 * SIDE**3 / _shortest(lambda: matrix @ matrix, device)


def peak_bytes(device: torch.device) -> float:
    """Return the bytes read and written a second by a copy."""
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / _shortest(lambda: target.copy_(source), device)


def _shortest(work: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
