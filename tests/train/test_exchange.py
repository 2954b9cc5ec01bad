"""The tree of sums, whose order does not depend on how many processes add which part."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import HashStore, ProcessGroupGloo  # type: ignore[attr-defined]

from job.machine.processes import ALONE, Group, Work
from job.network.wide_resnet import wide_resnet
from job.phases import Cycle
from job.recipe import Recipe
from job.train.exchange import Bucket, ShardedStep, Subtree, tree_sum
from job.train.loader import Batch, Plan, TrainingBatches
from job.train.trainer import Trainer
from tests.train.test_trainer import assert_same_bits, batches


def numbers(count: int) -> list[torch.Tensor]:
    """Numbers of many magnitudes, so that another order of addition gives other bits."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1000, generator=generator) * 10.0**power for power in range(count)]


def test_numbers_added_in_another_order_have_other_bits() -> None:
    values = numbers(8)
    assert not torch.equal(tree_sum(values), torch.stack(values).sum(0))
    assert not torch.equal(tree_sum(values), sum(values[1:], values[0]))


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_subtrees_of_any_number_of_processes_add_up_to_the_tree(processes: int) -> None:
    values, each = numbers(8), 8 // processes
    subtrees = []
    for process in range(processes):
        subtree = Subtree()
        for value in values[process * each : (process + 1) * each]:
            subtree.add(value.clone())
        subtrees.append(subtree.take())
    assert torch.equal(tree_sum(subtrees), tree_sum(values))


def test_a_bucket_keeps_each_tensors_layout() -> None:
    image = torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last)
    tensors = [image, torch.randn(3), torch.randn(())]
    bucket = Bucket(tensors, ALONE, shards=4)
    for factor in (1.0, 2.0, 3.0, 6.0):
        bucket.add([factor * tensor for tensor in tensors])
    bucket.scatter()
    assert len(bucket.total) % 4 == 0
    found = [torch.empty_like(tensor) for tensor in tensors]
    bucket.gather()
    bucket.finish(found)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.allclose(one, 3 * other) for one, other in zip(found, tensors, strict=True))


def test_a_step_has_the_mean_gradient_and_the_mean_statistics_of_shards_that_start_alike() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    shards = [(torch.randn(3, 1, 8, 8) * scale, torch.randn(3, 2)) for scale in (1.0, 5.0)]

    def compute(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        network.zero_grad()
        loss = nn.functional.mse_loss(network(images), targets)
        loss.backward()
        return loss.detach()

    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    losses, gradients, statistics = [], [], []
    for shard in shards:
        network.load_state_dict(before, strict=False)
        losses.append(compute(*shard))
        gradients.append(
            [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
        )
        statistics.append([buffer.clone() for buffer in network.buffers()])
    network.load_state_dict(before, strict=False)

    step = ShardedStep(network, list(network.parameters()), ALONE, 2, overlap=False)
    loss = step(shards, compute)
    assert torch.allclose(loss, (losses[0] + losses[1]) / 2)
    for parameter, one, other in zip(network.parameters(), *gradients, strict=True):
        assert torch.equal(parameter.grad, (one + other) / 2)
    mean, variance, count = network.buffers()
    assert torch.equal(mean, (statistics[0][0] + statistics[1][0]) / 2)
    assert torch.equal(variance, (statistics[0][1] + statistics[1][1]) / 2)
    assert count == 1  # of steps


SHARDS, STEPS, CLASSES = 4, 4, 7
FP16 = Recipe(depth=10, width=1, cycles=(Cycle(1, 5e-3),), batch_size=4, precision="fp16", shards=SHARDS)
OVERFLOWING = 1 * SHARDS + 3  # the last shard of the second step


class Threads(Group):
    """Threads of this process, linked by gloo as processes are."""

    def __init__(self, store: HashStore, rank: int, count: int) -> None:
        super().__init__(rank, count)
        self.gloo: Any = ProcessGroupGloo(store, rank, count, timedelta(seconds=30))

    def all_to_all(self, received: torch.Tensor, sent: torch.Tensor) -> Work:
        return Work(self.gloo.alltoall_base(received, sent, [], []))

    def all_gather(self, received: torch.Tensor, sent: torch.Tensor) -> Work:
        return Work(self.gloo._allgather_base(received, sent))


class Overflowing(TrainingBatches):
    """Batches of which one shard has gradients that are too large for fp16."""

    def batch(self, plan: Plan, row: int) -> Batch:
        images, targets = super().batch(plan, row)
        return images, targets * 1e20 if row == OVERFLOWING else targets


def initial() -> nn.Module:
    """Return the network to start with; by one thread at a time, since all share the random state."""
    with torch.random.fork_rng():
        torch.manual_seed(22)
        return wide_resnet(10, 1, CLASSES).to(memory_format=torch.channels_last)


def trained(network: nn.Module, group: Group, own: Sequence[int]) -> Trainer:
    """Train an epoch of one process's shards."""
    normal = batches(FP16)
    loader = Overflowing(normal.images, CLASSES, normal.normalise, FP16, own)
    trainer = Trainer(network, loader, FP16, lambda: None, group=group)
    trainer.train_epoch()
    return trainer


def test_an_overflow_in_one_shard_leaves_the_step_out_in_all_processes() -> None:
    store = HashStore()

    def train(network: nn.Module, rank: int, count: int) -> Trainer:
        group = Threads(store, rank, count) if count > 1 else ALONE
        return trained(network, group, group.own(SHARDS))

    with ThreadPoolExecutor(2) as pool:
        alone = pool.submit(train, initial(), 0, 1).result()
        trainers = [alone, *pool.map(train, [initial(), initial()], range(2), [2, 2])]
    for trainer in trainers:
        assert_same_bits(trainer, alone)
        assert trainer.scaler.get_scale() == 65536 / 2
        assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {STEPS - 1}
