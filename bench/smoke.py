"""Does the step hold its promises on this device: same bits, exact resume, no reads, right gradients?

    python -m bench.smoke [--steps 50] [--precision bf16 --precision fp16 --precision fp32]

Trains on images of noise, and prints JSON. In each precision: the SHA-256 of network and moments, twice; the
same with the state encoded and restored half way; on a GPU as a CUDA graph too, and with each read of the
device within a step made an error; the gradients of a batch against those in float64 on the processor. Exits
with 1 where bits differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from job.checks.bench.loops import batches, default_network
from job.machine import device as devices
from job.phases import Cycle
from job.recipe import PRECISIONS, Recipe
from job.run.state import TrainingState, largest
from job.train.step import CudaRecorder, Gradients, GraphRecorder, Precision, loss_scaler
from job.train.trainer import Trainer


class HalfWayError(Exception):
    """Ends an epoch between two steps."""


def trainer(
    recipe: Recipe, device: torch.device, steps: int, recorder: Callable[[], GraphRecorder] | None = None
) -> Trainer:
    """Return a trainer at its first step, the same each time."""
    torch.manual_seed(recipe.seed)
    model = default_network(recipe, torch.device("cpu")).to(device)
    return Trainer(model, batches(recipe, device, steps), recipe, lambda: None, recorder)


def bits(trained: Trainer) -> str:
    """Return the SHA-256 of network, moments, loss scale and loss, as a checkpoint has them."""
    state = trained.state([])
    digest = hashlib.sha256(repr((sorted(state.scaler.items()), float(state.loss_total))).encode())
    for tensors in (state.network, *state.optimizer):
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def whole(
    recipe: Recipe, device: torch.device, steps: int, recorder: Callable[[], GraphRecorder] | None = None
) -> str:
    """Train an epoch; return its bits."""
    trained = trainer(recipe, device, steps, recorder)
    trained.train_epoch()
    return bits(trained)


def resumed(recipe: Recipe, device: torch.device, steps: int) -> str:
    """Train half an epoch, and the rest from its encoded state in another trainer; return the bits."""
    first = trainer(recipe, device, steps)

    def stop() -> None:
        if first.step == steps // 2:
            raise HalfWayError

    first.after_step = stop
    with suppress(HalfWayError):
        first.train_epoch()
    second = trainer(recipe, device, steps)
    data = first.state([]).encode()
    second.restore(TrainingState.decode(data, largest(second.network.state_dict())))
    second.train_epoch()
    return bits(second)


def without_reads(recipe: Recipe, device: torch.device, steps: int) -> str:
    """Train an epoch whose steps after the first may not wait for the GPU; return its bits."""
    trained = trainer(recipe, device, steps)

    def after_step() -> None:
        torch.cuda.set_sync_debug_mode("default" if trained.step == steps else "error")

    trained.after_step = after_step
    try:
        trained.train_epoch()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return bits(trained)


def gradient_error(recipe: Recipe, device: torch.device) -> float:
    """Return the largest relative distance of a gradient from that in float64 on the processor."""
    one = trainer(recipe, device, 1)
    images, targets = one.batches.batch(one.batches.plan(), 0)
    exact = default_network(recipe, torch.device("cpu")).double()
    exact.load_state_dict(one.network.state_dict())
    F.cross_entropy(exact(images.double().cpu()), targets.double().cpu()).backward()
    scaler = loss_scaler(recipe.precision, device)
    Gradients(Precision(one.network, recipe.precision), scaler)(images, targets)
    scale = scaler.get_scale()
    return max(
        float((gradient(mine).double().cpu() / scale - gradient(right)).norm() / gradient(right).norm())
        for mine, right in zip(one.network.parameters(), exact.parameters(), strict=True)
    )


def gradient(parameter: nn.Parameter) -> torch.Tensor:
    """Return a parameter's gradient, which it has."""
    assert parameter.grad is not None
    return parameter.grad


def flags() -> dict[str, Any]:
    """Return the flags of fp32 arithmetic, as PyTorch reads them back."""
    backends: Any = torch.backends
    reads: dict[str, Callable[[], Any]] = {
        "fp32_precision": lambda: backends.fp32_precision,
        "cuda.matmul.fp32_precision": lambda: backends.cuda.matmul.fp32_precision,
        "cudnn.conv.fp32_precision": lambda: backends.cudnn.conv.fp32_precision,
        "cudnn.rnn.fp32_precision": lambda: backends.cudnn.rnn.fp32_precision,
        "cudnn.benchmark": lambda: backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled,
    }
    return {name: read() for name, read in reads.items()}


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--precision", choices=PRECISIONS[1:], action="append")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--depth", type=int, default=22)
    parser.add_argument("--width", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    device = devices.choose("any" if options.device == "auto" else options.device)
    devices.configure(deterministic=True)
    result: dict[str, Any] = {"machine": devices.machine(device), "flags": flags()}
    result["same_bits"] = True
    for precision in options.precision or ("bf16", "fp16", "fp32"):
        recipe = Recipe(
            depth=options.depth,
            width=options.width,
            batch_size=options.batch_size,
            precision=precision,
            cycles=(Cycle(1, 5e-3),),
        )
        found = {"once": whole(recipe, device, options.steps), "again": whole(recipe, device, options.steps)}
        found["resumed"] = resumed(recipe, device, options.steps)
        if device.type == "cuda":
            found["graph"] = whole(recipe, device, options.steps, CudaRecorder)
            found["without_reads"] = without_reads(recipe, device, options.steps)
        same = len(set(found.values())) == 1
        result[precision] = {
            "bits": found,
            "same_bits": same,
            "gradient_error": gradient_error(replace(recipe, batch_size=16), device),
        }
        result["same_bits"] &= same
    print(json.dumps(result, indent=2))
    if not result["same_bits"]:
        raise SystemExit("bits differ")


if __name__ == "__main__":
    main()
