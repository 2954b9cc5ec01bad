"""Which reorderings are permutations that the rules count, and which are another order to read in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from job.score.rules import score


class Reorder(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def shuffle(groups: int) -> Callable[[Tensor], Tensor]:
    """Return ShuffleNet's channel shuffle."""
    return lambda x: x.view(1, groups, 6 // groups, 4, 4).transpose(1, 2).contiguous().view(1, 6, 4, 4)


@pytest.mark.parametrize(
    "function",
    [
        shuffle(2),
        shuffle(3),
        lambda x: x.reshape(1, 2, 3, 4, 4).permute(0, 2, 1, 3, 4).reshape(1, 6, 4, 4),
        lambda x: x.view(1, 6, 4, 2, 2).transpose(3, 4).reshape(1, 6, 4, 4),  # within the rows
    ],
)
def test_a_dimension_that_is_split_swapped_and_merged_is_permuted(
    function: Callable[[Tensor], Tensor],
) -> None:
    tally = score(Reorder(function), (6, 4, 4), ["official"], freebie=False).rule_sets["official"]
    assert [(line.kind, line.multiplications, line.additions) for line in tally.lines] == [
        ("permutation", 96, 0)
    ]


@pytest.mark.parametrize("shuffled", [Reorder(shuffle(2)), nn.ChannelShuffle(2)])
def test_the_permutation_matrix_is_stored_once_for_each_size(shuffled: nn.Module) -> None:
    model = nn.Sequential(shuffled, nn.ReLU(), shuffled)
    tally = score(model, (6, 4, 4), ["official"], freebie=False).rule_sets["official"]
    assert tally.total == 96 + 96 + 96
    # Six ones, and a bit for each of 6 x 6 places.
    assert tally.parameters == 6 + 36 / 32


@pytest.mark.parametrize(
    "function",
    [
        shuffle(1),
        shuffle(6),
        lambda x: x.flatten(2).transpose(1, 2),  # patches to tokens
        lambda x: x.view(1, 2, 3, 16).transpose(2, 3).flatten(1),  # heads apart
        lambda x: x.transpose(2, 3).transpose(2, 3),
        lambda x: x.view(1, 6, 16).view(1, 6, 4, 4),
        lambda x: torch.cat([x[:, 3:], x[:, :3]], 1),
    ],
)
def test_other_orders_and_groupings_are_free(function: Callable[[Tensor], Tensor]) -> None:
    tally = score(Reorder(function), (6, 4, 4), ["official"]).rule_sets["official"]
    assert tally.total == 0
    assert tally.parameters == 0


def test_a_split_that_something_else_reads_too_is_a_shuffle_all_the_same() -> None:
    def function(x: Tensor) -> Tensor:
        parts = x.view(1, 2, 3, 4, 4)
        return parts.transpose(1, 2).reshape(1, 6, 4, 4) + parts.flatten(1, 2)

    lines = score(Reorder(function), (6, 4, 4), ["official"]).rule_sets["official"].lines
    assert "permutation" in {line.kind for line in lines}
