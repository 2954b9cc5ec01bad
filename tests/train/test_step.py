"""The step as a GPU would see it: no operator waits for the device, and none depends on the data."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from job.network.wide_resnet import wide_resnet
from job.phases import Cycle
from job.recipe import Recipe
from job.train import augment
from job.train.loader import Images, Normalisation, Plan, TrainingBatches
from job.train.step import Precision, loss_scaler
from job.train.trainer import Trainer, adamw

CPU = torch.device("cpu")
SYNCHRONISING = {
    "aten._local_scalar_dense.default",  # .item(), float(), bool(), `if tensor`
    "aten.equal.default",
    "aten.nonzero.default",
    "aten.masked_select.default",
    "aten.unique_dim.default",
    "aten._unique2.default",
}
STEPS = 20


class Count(TorchDispatchMode):
    """Counts the operators that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.seen[str(function)] += 1
        return function(*arguments, **(keywords or {}))


def recipe(precision: str) -> Recipe:
    return Recipe(depth=10, width=1, cycles=(Cycle(2, 5e-3),), batch_size=4, precision=precision)


def batches(precision: str = "fp32", steps: int = STEPS) -> TrainingBatches:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (4 * steps, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images = Images(pixels, torch.arange(4 * steps) % 7)
    normalise = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), CPU)
    return TrainingBatches(images, 7, normalise, recipe(precision))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_epoch_of_twenty_steps_reads_the_device_once(precision: str) -> None:
    """The one read is the epoch's loss."""
    network = wide_resnet(10, 1, 7).to(memory_format=torch.channels_last)
    between: list[int] = []
    count = Count()

    def synchronisations() -> int:
        return sum(number for name, number in count.seen.items() if name in SYNCHRONISING)

    trainer = Trainer(
        network, batches(precision), recipe(precision), lambda: between.append(synchronisations())
    )
    with count:
        trainer.train_epoch()
    assert len(between) == STEPS
    assert between[-1] == between[0]
    assert synchronisations() == between[-1] + 1  # the mean loss, read at the end


def test_the_count_sees_a_read() -> None:
    with Count() as count:
        float(torch.ones(3).sum())
    assert sum(number for name, number in count.seen.items() if name in SYNCHRONISING) == 1


def fake_plan(steps: int, size: int) -> Plan:
    """Return a plan without values; it is drawn once an epoch, outside the step."""
    generator = torch.Generator().manual_seed(0)
    transforms = augment.prepare(augment.draw(steps * size, 4, generator), 32)
    shaped = augment.Transforms(*(each.view(steps, size, *each.shape[1:]) for each in transforms))
    order = torch.zeros(steps, size, dtype=torch.int64)
    return Plan(order, shaped, augment.draw_mix(steps, size, 0.4, generator))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_step_is_the_same_whatever_the_data_are(precision: str) -> None:
    """Fake tensors have shapes and no values: whatever would read one is an error."""
    loader = batches(precision, steps=2)
    plan = fake_plan(2, 4)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        network = wide_resnet(10, 1, 7)
        model, optimizer = Precision(network, precision), adamw(network.parameters(), 1e-3, 0.1)
        loader.images = Images(*(mode.from_tensor(each) for each in vars(loader.images).values()))
        total = torch.zeros(())
        for step in range(2):
            images, targets = loader.batch(plan, step)
            loss = F.cross_entropy(model(images), targets)
            loss.backward()
            optimizer.set_hypers(lr=1e-3, mom=0.9)
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach()
        with pytest.raises(DataDependentOutputException):
            total.item()


def test_an_overflow_skips_an_fp16_step_and_halves_the_scale_without_a_read() -> None:
    parameter = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer, scaler = adamw([parameter], 1e-2, 0.0), loss_scaler("fp16", CPU)
    scales = []
    for gradient in (1.0, float("inf"), 1.0):
        before = parameter.detach().clone()
        scaler.scale((parameter * gradient).sum()).backward()
        with Count() as count:
            scaler.step(optimizer.opt)
            scaler.update()
        assert not SYNCHRONISING & count.seen.keys()
        assert torch.equal(parameter.detach(), before) == (gradient == float("inf"))
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
    assert scales == [65536.0, 32768.0, 32768.0]


def test_no_step_keeps_another_ones_graph() -> None:
    trainer = Trainer(wide_resnet(10, 1, 7), batches(steps=3), recipe("fp32"), after_step=lambda: None)
    trainer.train_epoch()
    assert trainer.loss_total.grad_fn is None
