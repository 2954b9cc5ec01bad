"""torchstat as the second opinion."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job.errors import JobError
from job.network.wide_resnet import wide_resnet
from job.score.rules import score
from job.score.torchstat_check import cross_check
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


class Calls(nn.Module):
    """Calls one layer on several inputs that are made of the image."""

    def __init__(self, layer: nn.Module, *inputs: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.inputs = layer, inputs

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.layer(of(x)) for of in self.inputs]


def doubled(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda _module, _inputs, output: output * 2)
    return layer


def adapted(layer: nn.Linear) -> nn.Module:
    """Add a product of low rank to what `layer` returns, as adapters do."""
    down, up = torch.ones(2, layer.in_features), torch.ones(layer.out_features, 2)
    layer.register_forward_hook(
        lambda _module, inputs, output: output + F.linear(F.linear(inputs[0], down), up)
    )
    return layer


@pytest.mark.parametrize(
    ("model", "shape", "compared"),
    [
        pytest.param(
            Calls(nn.Linear(4, 3), lambda x: x, lambda x: x[:, 0]), (5, 4), 1, id="linear on rows and one row"
        ),
        pytest.param(
            Calls(nn.Conv2d(2, 3, 3), lambda x: x, lambda x: torch.cat((x, x))), (2, 5, 5), 1, id="two images"
        ),
        pytest.param(doubled(nn.Conv2d(2, 3, 3)), (2, 5, 5), 1, id="a hook that multiplies"),
        pytest.param(doubled(nn.ReLU()), (4,), 1, id="a hook after a ReLU"),
        pytest.param(adapted(nn.Linear(4, 3)), (4,), 0, id="a hook with the layer's own operator"),
    ],
)
def test_what_torchstat_cannot_count_is_no_disagreement(
    model: nn.Module, shape: tuple[int, ...], compared: int
) -> None:
    assert cross_check(trace(model, shape)) == compared


def test_a_disagreement_is_an_error_that_shows_both_numbers() -> None:
    conv = nn.Conv2d(2, 2, 3)
    conv.kernel_size = (5, 5)  # torchstat believes the attribute; what is executed is the weight's 3x3
    with pytest.raises(JobError) as failure:
        score(nn.Sequential(conv), (2, 5, 5))
    # 18 outputs of 50 and of 18 products, so many additions with the bias.
    assert "torchstat counts 900 multiplications and 900 additions in layer 0" in failure.value.message
    assert "this counter 324 and 324" in failure.value.message
