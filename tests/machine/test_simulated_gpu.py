"""The simulated GPU itself: the CPU's bits, and a GPU's manners."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch

from job.network.wide_resnet import wide_resnet
from job.phases import Cycle
from job.recipe import Recipe
from job.train.loader import Images, Normalisation, TrainingBatches
from job.train.trainer import Trainer
from tests.simulated_gpu import BOARD, DEVICE, Fault
from tests.simulated_gpu.attempts import Device, on_device

CPU = torch.device("cpu")


def trained(device: torch.device, precision: str) -> dict[str, Any]:
    """Train six steps; return losses, bits and loss scale."""
    recipe = Recipe(10, 1, cycles=(Cycle(2, 5e-3),), batch_size=8, precision=precision)
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (24, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(24) % 5
    normalise = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), device)
    batches = TrainingBatches(Images(pixels.to(device), labels.to(device)), 5, normalise, recipe)
    torch.manual_seed(22)
    network = wide_resnet(10, 1, 5).to(device).to(memory_format=torch.channels_last)
    trainer = Trainer(network, batches, recipe, lambda: None)
    losses = []
    for _ in range(recipe.epochs):
        losses.append(trainer.train_epoch()["train_loss"])
        trainer.next_epoch()
    state = trainer.state([])
    tensors = [*state.network.values(), *(moment for each in state.optimizer for moment in each.values())]
    bits = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()
    return {"losses": losses, "bits": bits, "scaler": state.scaler}


def on_both(precision: str) -> list[dict[str, Any]]:
    return [trained(device, precision) for device in (CPU, DEVICE)]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_computes_the_bits_of_the_cpu(precision: str) -> None:
    there, here = on_device(on_both, precision)
    assert here == there


def refusals() -> list[str]:
    """Return what a scalar and a vector of the host, and a host tensor in a fused operator, come to."""
    ones, step = torch.ones(3, device=DEVICE), torch.ones(())
    said = [str((ones * step).device)]
    for meet in (
        lambda: ones + torch.ones(3),
        lambda: torch.index_select(ones, 0, torch.zeros(1, dtype=torch.int64)),
        lambda: torch._fused_adamw_(
            [ones], [ones], [ones], [ones], [], [step],
            lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
        ),
    ):  # fmt: skip
        try:
            meet()
            said.append("done")
        except RuntimeError as error:
            said.append(str(error).partition(":")[0])
    return said


def test_tensors_on_two_devices_are_refused_but_for_a_scalar_of_the_host() -> None:
    refused = "Expected all tensors to be on the same device"
    assert on_device(refusals) == ["simgpu:0", refused, refused, refused]


def asynchronous_copies() -> list[bool]:
    """Return whether host tensors hold what was copied, before and after each kind of synchronisation."""
    source, seen = torch.tensor([1.0, 2.0], device=DEVICE), []
    for synchronise in (
        torch.accelerator.synchronize,
        lambda: source.sum().item(),
        source.cpu,
    ):
        host = source.to("cpu", non_blocking=True)
        target = torch.zeros(2).copy_(source, non_blocking=True)
        early = [host.tolist(), target.tolist()]
        synchronise()
        seen += [early[0] == early[1] == [1.0, 2.0], host.tolist() == target.tolist() == [1.0, 2.0]]
    return seen


def test_a_copy_that_does_not_block_is_garbage_until_the_next_synchronisation() -> None:
    assert on_device(asynchronous_copies) == [False, True] * 3


def waits() -> tuple[dict[str, int], int]:
    ones = torch.ones(3, device=DEVICE)
    total = ones.sum()
    assert not BOARD.reads
    float(total)
    ones.nonzero()
    if total > 1:
        ones.cpu()
    return {name: count for (name, _), count in BOARD.reads.items()}, sum(BOARD.copies.values())


def test_what_waits_for_the_device_is_counted() -> None:
    assert on_device(waits) == ({"aten::_local_scalar_dense": 2, "aten::nonzero": 1}, 1)


def code_of(error: torch.AcceleratorError) -> int | None:
    return getattr(error, "error_code", None)


def dying() -> list[tuple[str, int | None]]:
    said: list[tuple[str, int | None]] = []
    ones = torch.ones(3, device=DEVICE)
    for _ in range(3):
        try:
            ones + 1
            said.append(("done", None))
        except torch.AcceleratorError as error:
            said.append((str(error), code_of(error)))
    try:
        ones.cpu()
    except torch.AcceleratorError as error:
        said.append(("copy", code_of(error)))
    return said


def test_an_error_stays_as_cudas_do() -> None:
    found = on_device(dying, device=Device(Fault("error", operator=3, code=719, message="launch failure")))
    assert found == [("done", None), ("launch failure", 719), ("launch failure", 719), ("copy", 719)]


def filling() -> tuple[int, bool, int]:
    kept = torch.zeros(500, device=DEVICE)
    views = [kept[100:], kept.view(10, 50)]
    before = BOARD.allocated
    try:
        torch.zeros(1000, device=DEVICE)
        failed = False
    except torch.OutOfMemoryError:
        failed = True
    del kept, views
    torch.zeros(1000, device=DEVICE)
    return before, failed, BOARD.allocated


def test_memory_is_limited_and_freed() -> None:
    assert on_device(filling, device=Device(memory=5000)) == (2000, True, 0)
