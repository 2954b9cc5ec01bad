"""Random small convolutional networks against a count with nested loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from job.score.rules import score

SIZE = 8  # pixels a side


@dataclass(frozen=True)
class Conv:
    outputs: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    groups: int
    bias: bool


@dataclass(frozen=True)
class Step:
    """bn, relu, average, maximum; `residual` adds a 3x3 convolution, `skip` a batch norm of the input."""

    name: str


class Network(nn.Module):
    def __init__(self, steps: list[Conv | Step], channels: int) -> None:
        super().__init__()
        self.names: list[str] = []
        self.layers = nn.ModuleList()
        for step in steps:
            self.names.append("conv" if isinstance(step, Conv) else step.name)
            self.layers.append(_layer(step, channels))
            channels = step.outputs if isinstance(step, Conv) else channels
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in zip(self.names, self.layers, strict=True):
            x = x + layer(x) if name in ("residual", "skip") else layer(x)
        return self.head(x.mean((2, 3)))


def _layer(step: Conv | Step, channels: int) -> nn.Module:
    if isinstance(step, Conv):
        return nn.Conv2d(
            channels,
            step.outputs,
            step.kernel,
            step.stride,
            step.padding,
            step.dilation,
            step.groups,
            step.bias,
        )
    layers: dict[str, Callable[[], nn.Module]] = {
        "bn": lambda: nn.BatchNorm2d(channels),
        "skip": lambda: nn.BatchNorm2d(channels),
        "relu": nn.ReLU,
        "average": lambda: nn.AvgPool2d(2, 1),
        "maximum": lambda: nn.MaxPool2d(2, 1),
        "residual": lambda: nn.Conv2d(channels, channels, 3, padding=1),
    }
    return layers[step.name]()


@dataclass
class Count:
    multiplications: int = 0
    additions: int = 0
    parameters: int = 0
    channels: int = 0
    size: int = SIZE
    bias_of_last: bool | None = field(default=None)  # of the convolution just before; None: there is none

    def convolve(self, conv: Conv) -> None:
        starts = [
            start
            for start in range(0, self.size + 2 * conv.padding, conv.stride)
            if start + conv.dilation * (conv.kernel - 1) < self.size + 2 * conv.padding
        ]
        for _filter in range(conv.outputs):
            self.parameters += conv.bias
            for _channel in range(self.channels // conv.groups):
                self.parameters += conv.kernel * conv.kernel
            for _row in starts:
                for _column in starts:
                    terms = 0
                    for _channel in range(self.channels // conv.groups):
                        for _tap_row in range(conv.kernel):
                            for _tap_column in range(conv.kernel):
                                terms += 1
                    self.multiplications += terms
                    self.additions += terms - 1 + conv.bias
        self.channels, self.size = conv.outputs, len(starts)

    @property
    def elements(self) -> int:
        return self.channels * self.size * self.size

    def standing_norm(self) -> None:
        for _ in range(self.elements):
            self.multiplications += 1
            self.additions += 1
        self.parameters += 2 * self.channels

    def folded_norm(self, has_bias: bool) -> None:
        if not has_bias:  # else the shift goes into the bias, counted already
            self.additions += self.elements
            self.parameters += self.channels

    def step(self, step: Conv | Step) -> None:
        before, self.bias_of_last = self.bias_of_last, None
        if isinstance(step, Conv):
            self.convolve(step)
            self.bias_of_last = step.bias
        elif step.name == "bn" and before is not None:
            self.folded_norm(before)
            self.bias_of_last = True  # a second batch norm folds into the same convolution
        elif step.name == "bn":
            self.standing_norm()
        elif step.name == "skip":
            self.standing_norm()
            self.additions += self.elements
        elif step.name == "residual":
            self.convolve(Conv(self.channels, 3, 1, 1, 1, 1, bias=True))
            self.additions += self.elements
        elif step.name == "relu":
            self.multiplications += self.elements
        else:
            self.size -= 1
            for _ in range(self.elements):
                self.additions += 3
                self.multiplications += step.name == "average"


@st.composite
def networks(draw: Any) -> tuple[list[Conv | Step], int]:
    channels = first = draw(st.sampled_from([1, 2, 4]))
    steps: list[Conv | Step] = []
    size = SIZE
    for _ in range(draw(st.integers(1, 6))):
        name = draw(
            st.sampled_from(["conv", "conv", "bn", "bn", "relu", "average", "maximum", "residual", "skip"])
        )
        if name == "conv":
            groups = draw(st.sampled_from([group for group in (1, 2, 4) if channels % group == 0]))
            conv = Conv(
                outputs=groups * draw(st.integers(1, 2)) * (1 if groups > 1 else 2),
                kernel=draw(st.integers(1, 3)),
                stride=draw(st.integers(1, 2)),
                padding=draw(st.integers(0, 1)),
                dilation=draw(st.integers(1, 2)),
                groups=groups,
                bias=draw(st.booleans()),
            )
            reach = conv.dilation * (conv.kernel - 1)
            if reach >= size + 2 * conv.padding:
                continue
            size = (size + 2 * conv.padding - reach - 1) // conv.stride + 1
            channels = conv.outputs
            steps.append(conv)
        elif name not in ("average", "maximum") or size > 1:
            size -= name in ("average", "maximum")
            steps.append(Step(name))
    return steps, first


@settings(max_examples=60, deadline=None)
@given(networks())
def test_random_networks_agree_with_a_count_by_nested_loops(network: tuple[list[Conv | Step], int]) -> None:
    steps, channels = network
    expected = Count(channels=channels)
    for step in steps:
        expected.step(step)
    expected.additions += expected.channels * (expected.size**2 - 1)  # the mean
    expected.multiplications += expected.channels
    expected.multiplications += 3 * expected.channels  # the head
    expected.additions += 3 * expected.channels
    expected.parameters += 3 * expected.channels + 3

    tally = score(Network(steps, channels), (channels, SIZE, SIZE), ["official"], freebie=False).rule_sets[
        "official"
    ]
    assert sum(line.multiplications for line in tally.lines) == expected.multiplications
    assert sum(line.additions for line in tally.lines) == expected.additions
    assert tally.total == expected.multiplications + expected.additions
    assert tally.parameters == expected.parameters
