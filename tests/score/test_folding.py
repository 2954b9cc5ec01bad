"""What folds into a convolution, and everything that keeps it from folding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job.score.rules import score

ELEMENTS = 4 * 6 * 6  # of a 3x3 convolution's 4 channels on 2 x 8 x 8
CONV = 4 * 2 * 9  # its weights


class Parts(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Any], *, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, bias=bias)
        self.norm = nn.BatchNorm2d(4)
        self.other = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.full((4, 1, 1), 0.5))
        self.plane = nn.Parameter(torch.full((6, 6), 0.5))
        self.run = forward

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def counted(model: nn.Module) -> tuple[int, int, int]:
    """Return multiplications and additions besides the convolutions' dot products, and the parameters."""
    tally = score(model, (2, 8, 8), ["official"], freebie=False).rule_sets["official"]
    convolutions = sum(line.operator == "aten.convolution" for line in tally.lines)
    multiplications = sum(line.multiplications for line in tally.lines) - convolutions * ELEMENTS * 18
    additions = sum(line.additions for line in tally.lines) - convolutions * ELEMENTS * 17
    return multiplications, additions, int(tally.parameters)


FOLDING: dict[str, tuple[nn.Module, tuple[int, int, int]]] = {
    "batch norm": (Parts(lambda m, x: m.norm(m.conv(x))), (0, ELEMENTS, CONV + 4)),
    # The convolution's own bias is an addition already, and the shift goes into it.
    "batch norm after a bias": (Parts(lambda m, x: m.norm(m.conv(x)), bias=True), (0, ELEMENTS, CONV + 4)),
    "number": (Parts(lambda m, x: m.conv(x) * 0.2), (0, 0, CONV)),
    "division by a number": (Parts(lambda m, x: m.conv(x) / 5), (0, 0, CONV)),
    "factor a channel": (Parts(lambda m, x: m.scale * m.conv(x)), (0, 0, CONV)),
    "number, then batch norm": (Parts(lambda m, x: m.norm(m.conv(x) * 0.2)), (0, ELEMENTS, CONV + 4)),
    "batch norm, then number": (Parts(lambda m, x: m.norm(m.conv(x)) * 0.2), (0, ELEMENTS, CONV + 4)),
    "the same pair twice": (
        Parts(lambda m, x: m.norm(m.conv(x)) + m.norm(m.conv(x + 0))),
        (0, 3 * ELEMENTS + 2 * 64, CONV + 4),
    ),
}

STANDING: dict[str, tuple[nn.Module, tuple[int, int, int]]] = {
    "another consumer": (
        Parts(lambda m, x: (lambda y: m.norm(y) + y)(m.conv(x))),
        (ELEMENTS, 2 * ELEMENTS, CONV + 8),
    ),
    "the result is returned too": (
        Parts(lambda m, x: (lambda y: (m.norm(y), y))(m.conv(x))),
        (ELEMENTS, ELEMENTS, CONV + 8),
    ),
    "something in between": (
        Parts(lambda m, x: m.norm(F.relu(m.conv(x)))),
        (2 * ELEMENTS, ELEMENTS, CONV + 8),
    ),
    "a sum": (Parts(lambda m, x: m.norm(m.conv(x) + m.conv(x))), (ELEMENTS, 2 * ELEMENTS, CONV + 8)),
    "a factor a position": (Parts(lambda m, x: m.conv(x) * m.plane), (ELEMENTS, 0, CONV + 36)),
    "a factor from the image": (Parts(lambda m, x: m.conv(x) * x.mean()), (ELEMENTS + 1, 127, CONV)),
    "a number divided by it": (Parts(lambda m, x: 0.2 / m.conv(x)), (2 * ELEMENTS, 0, CONV)),
    "a division that rounds": (
        Parts(lambda m, x: torch.div(m.conv(x), 2, rounding_mode="floor")),
        (ELEMENTS, ELEMENTS, CONV),
    ),
    "another batch norm on the same weights": (
        Parts(lambda m, x: m.norm(m.conv(x)) + m.other(m.conv(x))),
        (2 * ELEMENTS, 3 * ELEMENTS, CONV + 16),
    ),
    "the same weights bare": (
        Parts(lambda m, x: m.norm(m.conv(x)) + m.conv(x)),
        (ELEMENTS, 2 * ELEMENTS, CONV + 8),
    ),
}


@pytest.mark.parametrize("case", FOLDING)
def test_folds(case: str) -> None:
    model, expected = FOLDING[case]
    assert counted(model) == expected


@pytest.mark.parametrize("case", STANDING)
def test_does_not_fold(case: str) -> None:
    model, expected = STANDING[case]
    assert counted(model) == expected


def test_a_batch_norm_of_the_batch_itself_does_not_fold() -> None:
    model = Parts(lambda m, x: m.norm(m.conv(x)))
    model.norm = nn.BatchNorm2d(4, track_running_stats=False)
    # Four channels of 36 values: 2n + 3 and 3n - 1, and the affine.
    assert counted(model) == (4 * 75 + ELEMENTS, 4 * 107 + ELEMENTS, CONV + 8)


@pytest.mark.parametrize("freebie", [True, False])
def test_a_batch_norm_with_statistics_from_the_code(freebie: bool) -> None:
    """Zeros and ones are fills, which are not stored; scale and shift are computed from them and are."""
    norm = lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4))  # noqa: E731
    folded = Parts(lambda m, x: norm(m.conv(x)))
    bare = Parts(lambda m, x: norm(F.relu(m.conv(x))) + norm(x[:, [0, 1, 0, 1], 2:, 2:]))
    for model, values in ((folded, CONV + 4), (bare, CONV + 2 * (4 + 4) + 4)):
        tally = score(model, (2, 8, 8), ["official"], freebie=freebie).rule_sets["official"]
        assert tally.parameters == values / (2 if freebie else 1)


def test_a_linear_layer_does_not_absorb_its_batch_norm() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 4), nn.BatchNorm1d(4))
    tally = score(model, (2, 8, 8), ["official"], freebie=False).rule_sets["official"]
    assert sum(line.multiplications for line in tally.lines) == 128 * 4 + 4
    assert tally.parameters == 128 * 4 + 4 + 2 * 4
