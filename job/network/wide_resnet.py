"""The wide residual network of the 2019 entry, after Zagoruyko and Komodakis (arXiv:1605.07146)."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

RESIDUAL_SCALE = 0.2


class Layers(NamedTuple):
    """The classes that a network's layers with a weight are of."""

    convolution: type[nn.Conv2d] = nn.Conv2d
    linear: type[nn.Linear] = nn.Linear


PLAIN = Layers()


class Block(nn.Module):
    """Pre-activation residual block whose shortcut, unlike the paper's, starts after the activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, convolution: type[nn.Conv2d]) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = convolution(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        # One ReLU is a module and one a function, as in 2019: the leaderboard's count saw modules only.
        self.relu = nn.ReLU()
        self.conv2 = convolution(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Identity() if inputs == outputs else convolution(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H/stride, W/stride]."""
        h = F.relu(self.bn1(x))
        residual = self.conv2(self.relu(self.bn2(self.conv1(h))))
        out: Tensor = residual * RESIDUAL_SCALE + self.shortcut(h)
        return out


class GlobalAveragePool(nn.Module):
    """Mean over height and width; unlike `AdaptiveAvgPool2d` its backward is deterministic on CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C]."""
        return x.mean((2, 3))


def wide_resnet(depth: int = 22, width: int = 6, classes: int = 100, kinds: Layers = PLAIN) -> nn.Sequential:
    """Build WRN-`depth`-`width`: [N, 3, 32, 32] images to [N, classes] logits.

    `depth` is 6n + 4 for n blocks in each of the three groups; `width` multiplies the paper's
    16, 32 and 64 channels. 22-6 with 100 classes has 9,693,108 parameters. The state dict's names
    (`stem`, `block1` ..., `bn`, `linear`) are what saved weights are read by: keep them.

    Raises ValueError for a depth or width that makes no network.
    """
    blocks, remainder = divmod(depth - 4, 6)
    if remainder or blocks < 1 or width < 1:
        raise ValueError(f"a wide residual network needs depth 6n + 4 and width >= 1, not {depth}-{width}")
    inputs = 16
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=kinds.convolution(3, inputs, 3, padding=1, bias=False)
    )
    for index in range(3 * blocks):
        group, position = divmod(index, blocks)
        outputs = 16 * width * 2**group
        stride = 2 if group > 0 and position == 0 else 1
        layers[f"block{index + 1}"] = Block(inputs, outputs, stride, kinds.convolution)
        inputs = outputs
    layers["bn"] = nn.BatchNorm2d(inputs)
    layers["relu"] = nn.ReLU()
    layers["pool"] = GlobalAveragePool()
    layers["linear"] = kinds.linear(inputs, classes)
    network = nn.Sequential(layers)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network
