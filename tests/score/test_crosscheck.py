"""torchstat as the second opinion."""

from __future__ import annotations

import pytest
from torch import nn

from job.errors import JobError
from job.network.wide_resnet import wide_resnet
from job.score.architecture import cross_check
from job.score.rules import score
from job.score.trace import trace


def test_torchstat_agrees_on_every_layer_of_the_default_network_that_it_can_count() -> None:
    # 22 convolutions, the ten ReLU modules and the linear layer.
    assert cross_check(trace(wide_resnet(), (3, 32, 32))) == 22 + 10 + 1


def test_torchstat_agrees_on_each_kind_of_layer_it_can_count() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2),
        nn.ReLU6(),
        nn.Conv2d(4, 4, 3, stride=2, bias=False),
        nn.MaxPool2d(2, 1),
        nn.AvgPool2d((2, 1), 1),
        nn.Flatten(),
        nn.Linear(4 * 1 * 2, 3),
        nn.ReLU(),
    )
    assert cross_check(trace(model, (2, 9, 9))) == 7


def test_a_layer_that_is_called_twice_is_compared_as_a_whole() -> None:
    conv = nn.Conv2d(2, 2, 3, padding=1)
    assert cross_check(trace(nn.Sequential(conv, conv), (2, 5, 5))) == 1


def test_a_disagreement_is_an_error_that_shows_both_numbers() -> None:
    conv = nn.Conv2d(2, 2, 3)
    conv.kernel_size = (5, 5)  # torchstat believes the attribute; what is executed is the weight's 3x3
    with pytest.raises(JobError) as failure:
        score(nn.Sequential(conv), (2, 5, 5))
    # 18 outputs of 50 and of 18 products, so many additions with the bias.
    assert "torchstat counts 900 multiplications and 900 additions in layer 0" in failure.value.message
    assert "this counter 324 and 324" in failure.value.message
