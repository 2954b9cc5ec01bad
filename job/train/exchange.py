"""The gradients and statistics of a step's shards, added up in one order whichever processes computed them.

A batch is cut into S shards, S a power of two. Each is computed as by itself, from the step's weights and
running statistics, with tensors of one shape and so with the same kernels. N processes, N a power of two
and at most S, compute S / N consecutive shards each. What is added is a binary tree over the shards, ((g0 +
g1) + (g2 + g3)) + ..., and its form does not depend on N: a process adds the subtree of its own shards;
then each gets the same slice of all N subtrees, in the processes' order, and adds them as the tree
continues; then all get all slices. No sum is left to a library, which could add in another order for
another N: what it moves are copies. A float32 sum is determined by its two operands, so each sum has the
same bits for every N, and so have the mean, which is the sum times 1 / S, and the weights.

All-to-all and all-gather together move 2 (N - 1) / N of the bytes, as much as a ring's all-reduce.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from job.machine.processes import Group
from job.train.loader import Batch

BUCKET_BYTES = 2**23
"""Of gradients that are exchanged together, while the backward pass computes those of earlier layers."""


def tree_sum(values: Sequence[Tensor]) -> Tensor:
    """Return the sum of 2^n tensors of one shape: neighbours are added, then neighbouring sums."""
    while len(values) > 1:
        values = [left + right for left, right in zip(values[::2], values[1::2], strict=True)]
    return values[0]


class Subtree:
    """The sum of tensors that come one after another, with the additions of `tree_sum`."""

    def __init__(self) -> None:
        self.sums: list[tuple[int, Tensor]] = []  # of how many tensors each is

    def add(self, value: Tensor) -> None:
        """Add a tensor, whose memory becomes the subtree's."""
        count = 1
        while self.sums and self.sums[-1][0] == count:
            value = self.sums.pop()[1].add_(value)
            count *= 2
        self.sums.append((count, value))

    def take(self) -> Tensor:
        """Return the sum of the 2^n tensors, and start again."""
        ((_, total),) = self.sums
        self.sums = []
        return total


class Bucket:
    """Tensors that are exchanged together, as one flat float32 tensor of a multiple of `shards` elements."""

    def __init__(self, like: Sequence[Tensor], group: Group, shards: int) -> None:
        self.like, self.group, self.shards = like, group, shards
        self.size = sum(tensor.numel() for tensor in like)
        self.subtree = Subtree()

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Add a shard's values."""
        flat = torch.empty(self.size + -self.size % self.shards, device=self.like[0].device)
        flat[self.size :] = 0
        torch._foreach_copy_(self._views(flat), list(tensors))
        self.subtree.add(flat)

    def scatter(self) -> None:
        """Begin to get this process's slice of each process's sum."""
        self.total = self.subtree.take()
        if self.group.count > 1:
            self.slices = torch.empty_like(self.total)
            self.work = self.group.all_to_all(self.slices, self.total)

    def gather(self) -> None:
        """Add the slices, and begin to get the sums of the other ones."""
        if self.group.count > 1:
            self.work.wait()
            self.slice = tree_sum(self.slices.view(self.group.count, -1).unbind())
            self.work = self.group.all_gather(self.total, self.slice)

    def finish(self, tensors: Sequence[Tensor]) -> None:
        """Set `tensors` to the mean over all shards."""
        if self.group.count > 1:
            self.work.wait()
        torch._foreach_copy_(list(tensors), self._views(self.total.mul_(1 / self.shards)))

    def _views(self, flat: Tensor) -> list[Tensor]:
        """Return the tensors' places in `flat`, each in the layout of its tensor."""
        views, offset = [], 0
        for tensor in self.like:
            views.append(flat[offset:].as_strided(tensor.shape, tensor.stride()))
            offset += tensor.numel()
        return views


class ShardedStep:
    """Computes this process's shards of a step, one after another, and the mean over the shards of all.

    Gradients of `parameters` are exchanged in buckets, in the order of the backward pass; with `overlap`
    during that of the last shard, by hooks, which a recorded one would not call.
    """

    def __init__(
        self, network: nn.Module, parameters: Sequence[nn.Parameter], group: Group, shards: int, overlap: bool
    ) -> None:
        norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
        self.statistics = [
            buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None
        ]
        self.counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
        self.parts = list(_parts(parameters[::-1]))
        self.buckets = [Bucket(part, group, shards) for part in self.parts]
        loss = torch.zeros((), device=parameters[0].device)
        self.rest = Bucket([loss, *self.statistics], group, shards)
        self.overlap = overlap
        self.missing: list[int] = []  # gradients of each bucket, while the last shard's backward pass runs
        self.scattered = 0  # buckets of this step
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                partial(self._gradient_ready, number)
            )
            for number, part in enumerate(self.parts if overlap else [])
            for parameter in part
        ]

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for hook in self.hooks:
            hook.remove()

    def __call__(
        self, shards: Sequence[Batch], compute: Callable[[Tensor, Tensor], Tensor], learns: bool = True
    ) -> Tensor:
        """Return the mean loss; gradients and batch norms' statistics become the means over all shards.

        `compute` returns a shard's loss and, where it `learns`, leaves its gradients in the parameters.
        """
        before = [buffer.clone() for buffer in self.statistics]
        self.scattered = 0
        for number, shard in enumerate(shards):
            if number:
                torch._foreach_copy_(self.statistics, before)
            overlapped = learns and self.overlap and number + 1 == len(shards)
            if overlapped:
                self.missing = [len(part) for part in self.parts]
            loss = compute(*shard)
            self.missing = []
            if learns and not overlapped:
                for bucket, part in zip(self.buckets, self.parts, strict=True):
                    bucket.add(_gradients(part))
            self.rest.add([loss, *self.statistics])
        if self.counts:
            torch._foreach_sub_(self.counts, len(shards) - 1)  # they count steps
        return self._mean(loss, learns)

    def _gradient_ready(self, number: int, parameter: Tensor) -> None:
        """Take the buckets that are complete, in their order, into the exchange."""
        if not self.missing:
            return
        self.missing[number] -= 1
        while self.scattered < len(self.parts) and self.missing[self.scattered] == 0:
            self.buckets[self.scattered].add(_gradients(self.parts[self.scattered]))
            self._scatter()

    def _scatter(self) -> None:
        """Start the next bucket, and continue the one before, which had time since."""
        self.buckets[self.scattered].scatter()
        if self.scattered:
            self.buckets[self.scattered - 1].gather()
        self.scattered += 1

    def _mean(self, loss: Tensor, learns: bool) -> Tensor:
        self.rest.scatter()
        if learns:
            while self.scattered < len(self.buckets):
                self._scatter()
            self.buckets[-1].gather()
        self.rest.gather()
        if learns:
            for bucket, part in zip(self.buckets, self.parts, strict=True):
                bucket.finish(_gradients(part))
        mean = torch.empty_like(loss)
        self.rest.finish([mean, *self.statistics])
        return mean


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _parts(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield parts of `parameters` of BUCKET_BYTES or a little more, the last one with what is left."""
    part: list[nn.Parameter] = []
    for parameter in parameters:
        part.append(parameter)
        if sum(each.nbytes for each in part) >= BUCKET_BYTES:
            yield part
            part = []
    if part:
        yield part
