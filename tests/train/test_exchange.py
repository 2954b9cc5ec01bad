"""The tree of sums, whose order does not depend on how many processes add which part."""

import pytest
import torch
from torch import nn

from job.machine.processes import ALONE
from job.train.exchange import Bucket, ShardedStep, Subtree, tree_sum


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
