"""The same arithmetic counts the same, by one operator or written out."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job.score.rules import score
from job.score.tally import Tally

X = 24
S = (2, 3, 4)
RESULTS = 3 * 12  # of a 1x1 convolution to 3 channels: sums of two products


class Before(nn.Module):
    """A function of the image, then a 1x1 convolution whose weight has 4 bits."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(3, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.fake_quantize_per_tensor_affine(self.weight, 0.5, 0, -8, 7)
        return F.conv2d(self.function(x), weight)


def official(model: nn.Module) -> Tally:
    return score(model, S, ["official"]).rule_sets["official"]


def quantised(x: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, 0.3, 0, 0, 15)


WRITTEN_OUT: list[Callable[[Tensor], Tensor]] = [
    lambda x: (x / 0.3).round().clamp(0, 15) * 0.3,
    lambda x: (x * 3.3).clamp(0, 15).round() * 0.3,
    lambda x: F.hardtanh(x / 0.3, 0, 15).round() * 0.3,
    lambda x: torch.round(x.div(torch.tensor(0.3))).clamp_(0, 15).mul_(torch.tensor(0.3)),
    # DoReFa: the bounds times 15 are whole numbers.
    lambda x: (x.clamp(0, 1) * 15).round() / 15,
]


@pytest.mark.parametrize("function", [quantised, *WRITTEN_OUT])
def test_a_conversion_to_levels_counts_its_scale_alone(function: Callable[[Tensor], Tensor]) -> None:
    tally = official(Before(function))
    # One multiplication a value by the scale, then products of 4-bit values. The way back is taken in by
    # whatever scales the convolution's results.
    assert tally.total == X + Fraction(RESULTS * 2 * 4, 32) + RESULTS


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.fake_quantize_per_tensor_affine(x, 1.0, 0, 0, 15),
        lambda x: x.round().clamp(0, 15),
        lambda x: x.clamp(0, 15).round(),
        lambda x: (x * 4).round().clamp(0, 15) / 4,  # changes the exponent only, as in fake_quantize
    ],
)
def test_rounding_and_clamping_to_whole_numbers_is_a_conversion(function: Callable[[Tensor], Tensor]) -> None:
    assert official(Before(function)).total == Fraction(RESULTS * 2 * 4, 32) + RESULTS


def test_rounding_or_clamping_alone_is_no_conversion() -> None:
    # 32-bit products; a rounding is a bitwise operation, a clamp a ReLU of other bounds.
    products = RESULTS * 2 + RESULTS
    assert official(Before(torch.round)).total == X + products
    assert official(Before(lambda x: x.clamp(0, 15))).total == X + products
    assert official(Before(lambda x: x.round().clamp(0, 14.5))).total == 2 * X + products
    # What is rounded is read once more, so both values exist.
    assert official(Before(lambda x: (y := x.round()).clamp(0, 15) + y)).total == 3 * X + products


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def there_and_back(x: Tensor, zero_point: int = 5) -> Tensor:
    q = torch.quantize_per_tensor(x, 0.3, zero_point, torch.quint8)
    return q.dequantize()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (there_and_back, 4 * X),  # the model returns it
        (lambda x: there_and_back(there_and_back(x)), 2 * X + 4 * X),  # the next scale takes the first one in
        (lambda x: there_and_back(x).exp(), 4 * X + Fraction(X * 8, 32)),
        (lambda x: there_and_back(F.relu(there_and_back(x))), 2 * X + Fraction(X * 8, 32) + 4 * X),
        # Two summands: one is brought to the scale of the other, the sum to that of its quantisation.
        (
            lambda x: there_and_back(there_and_back(x) + there_and_back(x, 3)),
            2 * X + 2 * X + 2 * X + Fraction(X * 8, 32) + 4 * X,
        ),
    ],
)
def test_the_way_back_counts_where_nothing_takes_it_in(
    function: Callable[[Tensor], Tensor], expected: Fraction
) -> None:
    assert official(Function(function)).total == expected
