"""One small network, dense and half zero, as each of PyTorch's ways to quantise leaves it, counted by hand.

A 3x3 convolution from 4 to 8 channels with a bias, a ReLU, the mean and a linear layer to 5 logits; the image
has 8 x 8 pixels. 288 results of the convolution are sums of 36 products (of 18 where every second weight is a
zero), 5 logits of 8 (4). Weights that a quantisation could round to 0 there are none.
"""

from __future__ import annotations

import copy
import warnings
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.ao.quantization as ao
from torch import Tensor, nn
from torch.ao.quantization import quantize_fx
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    quantize_,
)
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

from job.score.rules import score
from job.score.tally import Tally

SHAPE = (4, 8, 8)
IMAGE = torch.linspace(-1, 2, 256).reshape(1, *SHAPE)

IN, CONV, POOLED, LOGITS = 256, 288, 8, 5  # values

pytestmark = pytest.mark.filterwarnings("ignore")


class Network(nn.Module):
    def __init__(self, half: bool) -> None:
        super().__init__()
        self.conv, self.relu, self.linear = nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Linear(8, 5)
        for layer in (self.conv, self.linear):
            weight = torch.linspace(1, 2, layer.weight.numel())
            weight[:: 2 if half else weight.numel() + 1] = 0 if half else 1
            layer.weight.data = weight.reshape(layer.weight.shape)
        assert self.conv.bias is not None
        self.conv.bias.data.fill_(0.5)
        self.linear.bias.data = torch.linspace(-900, 300, 5)  # logits on both sides of 0: a zero point

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.relu(self.conv(x)).mean((2, 3)))


class Stubbed(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.quant, self.network, self.dequant = ao.QuantStub(), network, ao.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.network(self.quant(x)))


def eager(half: bool) -> nn.Module:
    model = Stubbed(Network(half)).eval()
    model = ao.fuse_modules(model, [["network.conv", "network.relu"]])
    model.qconfig = ao.get_default_qconfig("x86")
    model = ao.prepare(model)
    model(IMAGE)
    return ao.convert(model)


def fx_prepared(half: bool) -> Any:
    mapping = ao.get_default_qconfig_mapping("x86")
    model = quantize_fx.prepare_fx(Network(half).eval(), mapping, (IMAGE,))
    model(IMAGE)
    return model


def pt2e(half: bool, per_channel: bool) -> nn.Module:
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=per_channel))
    with warnings.catch_warnings(action="ignore"):
        model = prepare_pt2e(torch.export.export(Network(half).eval(), (IMAGE,)).module(), quantizer)
        model(IMAGE)
        return convert_pt2e(model)


def official(model: nn.Module) -> Tally:
    scores = score(model, SHAPE, ["official"])
    assert not scores.freebie
    assert scores.unknown == ()
    return scores.rule_sets["official"]


def conv(half: bool, bits: int) -> Fraction:
    """Return products of so many bits, and in 32 bits their sums and a bias."""
    n = 18 if half else 36
    return Fraction(CONV * n * bits, 32) + CONV * (n - 1) + CONV


def linear(half: bool, bits: int) -> Fraction:
    n = 4 if half else 8
    return Fraction(LOGITS * n * bits, 32) + LOGITS * (n - 1) + LOGITS


def weights(half: bool, conv_bits: int, linear_bits: int) -> Fraction:
    """Return values and biases; half of them with a bit for every place."""
    bits = 288 * conv_bits + 40 * linear_bits
    return Fraction(bits // 2 + 288 + 40 if half else bits, 32) + 8 + 5


MEAN = POOLED * 35 + POOLED

both = pytest.mark.parametrize("half", [False, True], ids=["dense", "half zero"])


@both
@pytest.mark.parametrize("make", [eager, lambda half: quantize_fx.convert_fx(fx_prepared(half))])
def test_integer_modules_of_the_eager_and_fx_modes(make: Any, half: bool) -> None:
    tally = official(make(half))
    # The image is scaled and shifted. The convolution's results are scaled (their zero point is 0), the
    # ReLU works on 8 bits. Logits are scaled and shifted, and scaled and shifted back.
    assert tally.total == (
        (2 * IN)
        + (conv(half, 8) + CONV + Fraction(CONV * 8, 32))
        + MEAN
        + (linear(half, 8) + 2 * LOGITS)
        + 2 * LOGITS
    )
    # Scales: one for each filter and row, one each for image, ReLU and logits; two zero points of 8 bits.
    assert tally.parameters == weights(half, 8, 8) + (8 + 5) + 3 + Fraction(2 * 8, 32)


@both
@pytest.mark.parametrize("decomposed", [False, True])
def test_reference_modules_of_the_fx_mode(decomposed: bool, half: bool) -> None:
    convert = (
        quantize_fx._convert_to_reference_decomposed_fx if decomposed else quantize_fx.convert_to_reference_fx
    )
    tally = official(convert(fx_prepared(half)))
    # Each result is 32 bits wide until it is quantised: the ReLU, whose zero point then is 0, and the mean.
    assert tally.total == (
        (2 * IN)
        + (conv(half, 8) + CONV + CONV)
        + (MEAN + POOLED)
        + (linear(half, 8) + 2 * LOGITS)
        + 2 * LOGITS
    )
    # The mean has the scale of what it is of. The decomposed form says that activations have 7 bits.
    points = Fraction(2 * (7 if decomposed else 8), 32)
    assert tally.parameters == weights(half, 8, 8) + (8 + 5) + 3 + points


@both
@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
def test_pt2e(per_channel: bool, half: bool) -> None:
    tally = official(pt2e(half, per_channel))
    # XNNPACK's activations have a zero point everywhere, that after a ReLU is -128.
    assert tally.total == (
        (2 * IN)
        + (conv(half, 8) + CONV + 2 * CONV)
        + (MEAN + 2 * POOLED)
        + (linear(half, 8) + 2 * LOGITS)
        + 2 * LOGITS
    )
    # Weights are symmetric: scales without zero points.
    scales = 8 + 5 if per_channel else 1 + 1
    assert tally.parameters == weights(half, 8, 8) + scales + 3 + Fraction(3 * 8, 32)


@both
@pytest.mark.parametrize(
    ("config", "bits"),
    [
        (Int8WeightOnlyConfig(), 8),
        (IntxWeightOnlyConfig(weight_dtype=torch.int4), 4),  # type: ignore[attr-defined]
    ],
    ids=["int8", "int4"],
)
def test_torchao_weight_only(config: Any, bits: int, half: bool) -> None:
    model = Network(half)
    quantize_(model, config)
    tally = official(model)
    # Only linear layers are quantised, and what their weights meet has 32 bits.
    assert tally.total == conv(half, 32) + CONV + MEAN + linear(half, 32)
    assert tally.parameters == weights(half, 32, bits) + 5


@both
def test_torchao_dynamic(half: bool) -> None:
    model = Network(half)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    tally = official(model)
    # The linear layer finds its input's largest magnitude (|x| of 8 values, 7 comparisons) and from it a
    # scale, divides the 8 values by it, and scales the logits by it and by that of each row.
    assert tally.total == (conv(half, 32) + CONV + MEAN + linear(half, 8) + (8 + 7) + 1 + POOLED + 2 * LOGITS)
    assert tally.parameters == weights(half, 32, 8) + 5


class Learned(nn.Module):
    """Learned step sizes: 4-bit weights, a step a filter, and 4-bit activations, one step each."""

    def __init__(self, half: bool) -> None:
        super().__init__()
        self.network = Network(half)
        self.steps = nn.ParameterList([torch.tensor([step]) for step in (0.1, 0.2, 0.3)])
        self.filter_steps = nn.ParameterList([torch.full((n,), 0.3) for n in (8, 5)])
        self.zeros = nn.ParameterList([torch.zeros(n) for n in (1, 8, 5)])

    def activation(self, x: Tensor, index: int) -> Tensor:
        step = self.steps[index]
        return torch._fake_quantize_learnable_per_tensor_affine(x, step, self.zeros[0], 0, 15, 1.0)

    def weight(self, layer: nn.Conv2d | nn.Linear, index: int) -> Tensor:
        step, zero = self.filter_steps[index], self.zeros[index + 1]
        return torch._fake_quantize_learnable_per_channel_affine(layer.weight, step, zero, 0, -8, 7, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        conv, linear = self.network.conv, self.network.linear
        x = nn.functional.conv2d(self.activation(x, 0), self.weight(conv, 0), conv.bias)
        x = self.activation(nn.functional.relu(x), 1).mean((2, 3))
        return nn.functional.linear(self.activation(x, 2), self.weight(linear, 1), linear.bias)


@both
def test_learnable_fake_quantisation(half: bool) -> None:
    tally = official(Learned(half))
    # Each quantisation divides by a step; what it keeps of 4 bits meets weights of 4 bits. The step by which
    # the mean's 288 values are multiplied back the next quantisation takes in.
    assert tally.total == IN + conv(half, 4) + CONV + CONV + MEAN + POOLED + linear(half, 4)
    assert tally.parameters == weights(half, 4, 4) + (8 + 5) + 3


def test_the_network_that_is_not_quantised_has_the_freebie() -> None:
    for half in (False, True):
        scores = score(copy.deepcopy(Network(half)), SHAPE, ["official"])
        assert scores.freebie
        products = CONV * (18 if half else 36) + CONV + POOLED + LOGITS * (4 if half else 8)
        sums = CONV * (18 if half else 36) + POOLED * 35 + LOGITS * (4 if half else 8)
        assert scores.rule_sets["official"].total == Fraction(products, 2) + sums
        assert scores.rule_sets["official"].parameters == weights(half, 16, 16) - Fraction(13, 2)
