"""Each row of the table, on a call so small that it can be counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.ao.quantization as ao
import torch.ao.quantization.fx._decomposed  # defines quantized_decomposed
from torch import Tensor, nn
from torch.nn import functional as F

from job.score import operations
from job.score.rules import score
from job.score.trace import trace


class Call(nn.Module):
    """A model that does one thing."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class FirstOf(nn.Module):
    """The first of what a layer returns."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)[0]


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.attention(x, x, x, need_weights=False)[0]


@dataclass(frozen=True)
class Case:
    operator: str
    model: nn.Module | Callable[[Tensor], Any]
    shape: tuple[int, ...]  # of one image; the tensor has a first dimension of 1 besides
    multiplications: int
    additions: int


def weight(*shape: int) -> nn.Parameter:
    """Return numbers without a zero among them."""
    return nn.Parameter(torch.arange(1, 1 + torch.Size(shape).numel()).float().reshape(shape))


torch.manual_seed(0)  # a weight quantised to 0 would be one that is not counted

X = 2 * 3 * 4  # elements of an image of shape (2, 3, 4), which most cases use
S = (2, 3, 4)

DOT_PRODUCTS = [
    # 8 filters of 3x3x3 at 5x5 positions: 200 outputs of 27 products, 26 additions and a bias.
    Case("aten.convolution", nn.Conv2d(3, 8, 3, padding=1), (3, 5, 5), 200 * 27, 200 * 26 + 200),
    Case("aten.convolution", nn.Conv2d(3, 8, 3, stride=2, bias=False), (3, 5, 5), 32 * 27, 32 * 26),
    # Two groups: a filter sees 2 of the 4 channels; depthwise: 1 of 4.
    Case("aten.convolution", nn.Conv2d(4, 8, 3, groups=2, bias=False), (4, 5, 5), 72 * 18, 72 * 17),
    Case("aten.convolution", nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 5, 5), 36 * 9, 36 * 8),
    # Dilation 2 spreads a 3x3 kernel over 5x5: 3x3 positions in 7x7.
    Case("aten.convolution", nn.Conv2d(2, 3, 3, dilation=2, bias=False), (2, 7, 7), 27 * 18, 27 * 17),
    Case("aten.convolution", nn.Conv1d(2, 3, 4), (2, 9), 18 * 8, 18 * 7 + 18),
    Case("aten.convolution", nn.Conv3d(1, 2, 2, bias=False), (1, 3, 3, 3), 16 * 8, 16 * 7),
    # Each of 32 inputs meets 3 filters of 2x2: 384 products, summed into 192 outputs, which have a bias.
    Case("aten.convolution", nn.ConvTranspose2d(2, 3, 2, stride=2), (2, 4, 4), 384, 384 - 192 + 192),
    # Overlapping: 2 inputs, 3 taps, 1 output channel: 6 products for 4 outputs.
    Case("aten.convolution", nn.ConvTranspose1d(1, 1, 3, bias=False), (1, 2), 6, 2),
    Case("aten.addmm", nn.Linear(4, 5), (4,), 5 * 4, 5 * 3 + 5),
    Case("aten.addmm", lambda x: torch.addmm(weight(5), x, weight(4, 5), beta=2, alpha=3), (4,), 30, 20),
    Case("aten.mm", nn.Linear(4, 5, bias=False), (4,), 20, 15),
    Case("aten.bmm", lambda x: x @ x.transpose(1, 2), (3, 4), 9 * 4, 9 * 3),
    Case("aten.baddbmm", lambda x: torch.baddbmm(weight(1, 3, 3), x, x.mT), (3, 4), 36, 27 + 9),
    Case("aten.mv", lambda x: torch.mv(x, weight(4)), (4,), 4, 3),
    Case("aten.addmv", lambda x: torch.addmv(weight(1), x, weight(4)), (4,), 4, 3 + 1),
    Case("aten.dot", lambda x: torch.dot(x[0], x[0]), (4,), 4, 3),
    # Two heads, 3 queries and keys of 4: 18 scores of 4 products, their scale, exp and division, then 24
    # outputs of 3 products; additions 18 * 3, 18 - 6 in the softmax, 24 * 2.
    Case(
        "aten.scaled_dot_product_attention",
        lambda x: F.scaled_dot_product_attention(x, x, x),
        S,
        18 * 4 + 18 + 36 + 24 * 3,
        18 * 3 + 12 + 24 * 2,
    ),
    Case(
        "aten.scaled_dot_product_attention",
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=weight(3, 3)),
        S,
        18 * 4 + 18 + 36 + 24 * 3,
        18 * 3 + 12 + 24 * 2 + 18,
    ),
]

DOT_PRODUCTS += [
    # The same, but as the layer calls it, two heads of 4 values.
    Case(
        "aten._scaled_dot_product_flash_attention_for_cpu",
        SelfAttention(),
        (3, 8),
        18 * 4 + 18 + 36 + 24 * 3,
        18 * 3 + 12 + 24 * 2,
    ),
]

# An LSTM of 3 units over 5 steps of 4 values: 12 gates of 4 + 3 products, of 3 + 2 additions, two biases
# and their sum; then for each unit three sigmoids (2, 1), two tanh (1, 0), f * c + i * g (2, 1) and
# o * tanh(c) (1, 0).
DOT_PRODUCTS += [
    Case(
        "aten.mkldnn_rnn_layer",
        FirstOf(nn.LSTM(4, 3, batch_first=True)),
        (5, 4),
        5 * (12 * 7 + 3 * (3 * 2 + 2 + 2 + 1)),
        5 * (12 * (5 + 2 + 1) + 3 * (3 + 1)),
    ),
    Case(
        "aten.mkldnn_rnn_layer",
        FirstOf(nn.LSTM(4, 3, batch_first=True, bias=False)),
        (5, 4),
        5 * (12 * 7 + 3 * 11),
        5 * (12 * (5 + 1) + 3 * 4),
    ),
]

REDUCTIONS = [
    Case("aten.mean", lambda x: x.mean((2, 3)), S, 2, 2 * 11),
    Case("aten.mean", nn.AdaptiveAvgPool2d(1), S, 2, 2 * 11),
    Case("aten.avg_pool2d", nn.AvgPool2d(2), (1, 4, 6), 6, 6 * 3),
    Case("aten.avg_pool2d", nn.AvgPool2d((1, 3)), (1, 2, 6), 4, 4 * 2),
    Case("aten.avg_pool2d", nn.AvgPool1d(3), (2, 6), 4, 4 * 2),
    Case("aten.avg_pool3d", nn.AvgPool3d(2), (1, 2, 2, 4), 2, 2 * 7),
    # 5 values in windows 0-1, 1-3 and 3-4: 7 values for 3 means, in both directions 49 for 9.
    Case("aten._adaptive_avg_pool2d", nn.AdaptiveAvgPool2d(3), (1, 5, 5), 9, 49 - 9),
    Case("aten._adaptive_avg_pool3d", nn.AdaptiveAvgPool3d(2), (1, 2, 2, 4), 8, 16 - 8),
    Case("aten.max_pool2d_with_indices", nn.MaxPool2d(3, stride=1), (1, 4, 4), 0, 4 * 8),
    Case("aten.max_pool2d_with_indices", nn.MaxPool1d(2), (2, 6), 0, 6),
    Case("aten.max_pool3d_with_indices", nn.MaxPool3d(2), (1, 2, 2, 4), 0, 2 * 7),
    Case("aten.adaptive_max_pool2d", nn.AdaptiveMaxPool2d(3), (1, 5, 5), 0, 49 - 9),
    Case("aten.adaptive_max_pool3d", nn.AdaptiveMaxPool3d(2), (1, 2, 2, 4), 0, 16 - 8),
    Case("aten.sum", lambda x: x.sum(-1), S, 0, 6 * 3),
    Case("aten.cumsum", lambda x: x.cumsum(-1), S, 0, 6 * 3),
    Case("aten.max", lambda x: x.max(-1)[0], S, 0, 6 * 3),
    Case("aten.min", lambda x: x.min(), S, 0, X - 1),
    Case("aten.amax", lambda x: x.amax((2, 3)), S, 0, 2 * 11),
    Case("aten.amin", lambda x: x.amin(1), S, 0, 12),
    Case("aten.argmax", lambda x: x.argmax(-1), S, 0, 6 * 3),
    Case("aten.argmin", lambda x: x.argmin(-1), S, 0, 6 * 3),
    # Of 4 values: mean 3 + and 1 *, differences 4 +, squares 4 *, their mean 3 + and 1 *; std: a root.
    Case("aten.var", lambda x: x.var(-1), S, 6 * 6, 6 * 10),
    Case("aten.var_mean", lambda x: torch.var_mean(x, -1), S, 6 * 6, 6 * 10),
    Case("aten.std", lambda x: x.std(-1), S, 6 * 7, 6 * 10),
    Case("aten.std_mean", lambda x: torch.std_mean(x, -1), S, 6 * 7, 6 * 10),
    Case("aten.linalg_vector_norm", lambda x: F.normalize(x, dim=-1), S, 6 * 5, 6 * 3),
    Case("aten.norm", lambda x: torch.ops.aten.norm.ScalarOpt_dim(x, 2, [-1]), S, 6 * 5, 6 * 3),
    Case("aten.prod", lambda x: x.prod(-1), S, 6 * 3, 0),
    Case("aten.logsumexp", lambda x: x.logsumexp(-1), S, 6 * 5, 6 * 3),
]

# Normalising n values: n - 1 + and 1 * for the mean, n + to centre, n * and n - 1 + and 1 * for the variance,
# 1 + for eps, 1 root, n * to divide: 2n + 3 multiplications and 3n - 1 additions. The affine is n and n more.
NORMALISATIONS = [
    Case("aten.native_batch_norm", nn.BatchNorm2d(2), S, X, X),
    Case("aten.native_batch_norm", nn.BatchNorm2d(2, affine=False), S, X, X),
    Case("aten.native_batch_norm", nn.BatchNorm2d(2, track_running_stats=False), S, 2 * 27 + X, 2 * 35 + X),
    Case("aten.native_batch_norm", nn.InstanceNorm2d(2), S, 2 * 27, 2 * 35),
    Case(
        "aten._native_batch_norm_legit_no_training",
        lambda x: torch.ops.aten._native_batch_norm_legit_no_training(
            x, weight(2), weight(2), weight(2), weight(2), 0.1, 1e-5
        ),
        S,
        X,
        X,
    ),
    Case(
        "aten._native_batch_norm_legit",
        lambda x: torch.ops.aten._native_batch_norm_legit.no_stats(x, None, None, True, 0.1, 1e-5),
        S,
        2 * 27,
        2 * 35,
    ),
    Case("aten.native_layer_norm", nn.LayerNorm(4), S, 6 * 11 + X, 6 * 11 + X),
    Case("aten.native_layer_norm", nn.LayerNorm((3, 4), bias=False), S, 2 * 27 + X, 2 * 35),
    Case("aten.native_layer_norm", nn.LayerNorm(4, elementwise_affine=False), S, 6 * 11, 6 * 11),
    Case("aten.native_group_norm", nn.GroupNorm(1, 2), S, 51 + X, 71 + X),
]

FUNCTIONS = """exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sin cos tan asin acos atan sinh cosh tanh asinh
acosh atanh erf erfc"""

ACTIVATIONS = [
    Case("aten.relu", F.relu, S, X, 0),
    Case("aten.relu", nn.ReLU(inplace=True), S, X, 0),
    Case("aten.hardtanh", nn.ReLU6(), S, X, 0),
    Case("aten.clamp", lambda x: x.clamp(0, 1), S, X, 0),
    Case("aten.clamp_min", lambda x: x.clamp_min(0), S, X, 0),
    Case("aten.clamp_max", lambda x: x.clamp_max(0), S, X, 0),
    Case("aten.threshold", nn.Threshold(0.1, 20), S, X, 0),
    Case("aten.leaky_relu", nn.LeakyReLU(), S, 2 * X, 0),
    Case("aten._prelu_kernel", nn.PReLU(), S, 2 * X, 0),
    Case("aten.sigmoid", nn.Sigmoid(), S, 2 * X, X),
    Case("aten.silu", nn.SiLU(), S, 3 * X, X),
    Case("aten.hardsigmoid", nn.Hardsigmoid(), S, 2 * X, X),
    Case("aten.hardswish", nn.Hardswish(), S, 3 * X, X),
    Case("aten.elu", nn.ELU(), S, 3 * X, X),
    Case("aten.gelu", nn.GELU(), S, 4 * X, X),
    Case("aten.gelu", nn.GELU("tanh"), S, 7 * X, 2 * X),
    Case("aten.softplus", nn.Softplus(), S, 2 * X, X),
    Case("aten.log_sigmoid_forward", nn.LogSigmoid(), S, 2 * X, X),
    Case("aten.mish", nn.Mish(), S, 4 * X, X),
    Case("aten.glu", nn.GLU(), S, 3 * 12, 12),
    Case("aten._softmax", nn.Softmax(-1), S, 2 * X, 6 * 3),
    Case("aten._safe_softmax", lambda x: torch.ops.aten._safe_softmax(x, -1), S, 2 * X, 6 * 3),
    Case("aten._log_softmax", nn.LogSoftmax(-1), S, X + 6, 6 * 3 + X),
    *[Case(f"aten.{name}", getattr(torch, name), S, X, 0) for name in FUNCTIONS.split()],
    Case("aten.atan2", lambda x: torch.atan2(x, x), S, X, 0),
    Case("aten.pow", lambda x: x**2, S, X, 0),
    Case("aten.pow", lambda x: x**3, S, 2 * X, 0),
    Case("aten.pow", lambda x: x**0.5, S, X, 0),
    Case("aten.pow", lambda x: x**x, S, X, 0),
]


def compared_with_0(name: str) -> Callable[[Tensor], Tensor]:
    return lambda x: getattr(x, name)(0)


def logical(name: str) -> Callable[[Tensor], Tensor]:
    return lambda x: getattr(torch, f"logical_{name}")(x, x)


def bitwise(name: str) -> Callable[[Tensor], Tensor]:
    return lambda x: getattr(torch, f"bitwise_{name}")(x.int(), 1)


ELEMENTWISE = [
    Case("aten.add", lambda x: x + x, S, 0, X),
    Case("aten.add", lambda x: torch.add(x, x, alpha=2), S, X, X),
    Case("aten.add", lambda x: x[:, :1] + x, S, 0, X),  # broadcast
    Case("aten.sub", lambda x: x - 1, S, 0, X),
    Case("aten.rsub", lambda x: 1 - x, S, 0, X),
    Case("aten.mul", lambda x: x * x.mean((2, 3), keepdim=True), S, X, 0),  # squeeze and excite
    Case("aten.mul", lambda x: x * 0.5, S, X, 0),
    Case("aten.div", lambda x: x / 3, S, X, 0),
    Case("aten.div", lambda x: torch.div(x, 3, rounding_mode="floor"), S, X, X),
    Case("aten.div", lambda x: torch.div(x, 3, rounding_mode="trunc"), S, X, X),
    Case("aten._softmax", lambda x: x.reshape(()).softmax(0), (1,), 2, 0),
    Case("aten._softmax", lambda x: x[:, :0].softmax(1), (4,), 0, 0),
    Case("aten._softmax", lambda x: x[:, :0].softmax(0), (4,), 0, 0),
    Case("aten.sum", lambda x: x[:, :0].sum(0), (4,), 0, 0),
    Case("aten.reciprocal", lambda x: 1 / x, S, X, 0),
    Case("aten.addcmul", lambda x: torch.addcmul(x, x, x), S, 2 * X, X),
    Case("aten.addcdiv", lambda x: torch.addcdiv(x, x, x), S, 2 * X, X),
    Case("aten.lerp", lambda x: torch.lerp(x, x, 0.3), S, X, 2 * X),
    Case("aten.maximum", lambda x: torch.maximum(x, x), S, 0, X),
    Case("aten.minimum", lambda x: torch.minimum(x, x), S, 0, X),
    *[Case(f"aten.{name}", compared_with_0(name), S, 0, X) for name in ["eq", "ne", "lt", "le", "gt", "ge"]],
    Case("aten.where", lambda x: torch.where(weight(4) > 2, x, x), S, 0, X),
    Case("aten.masked_fill", lambda x: x.masked_fill(weight(4) > 2, 0), S, 0, X),
    *[
        Case(f"aten.{name}", getattr(torch, name), S, 0, X)
        for name in ["sign", "sgn", "abs", "neg", "floor", "ceil", "round", "trunc"]
    ],
    Case("aten.logical_not", torch.logical_not, S, 0, X),
    *[Case(f"aten.logical_{name}", logical(name), S, 0, X) for name in ("and", "or", "xor")],
    Case("aten.bitwise_not", lambda x: ~x.bool(), S, 0, X),
    *[Case(f"aten.bitwise_{name}", bitwise(name), S, 0, X) for name in ("and", "or", "xor")],
]

PLACED = [
    Case("aten.upsample_linear1d", nn.Upsample(scale_factor=2, mode="linear"), (1, 3), 6 * 2, 6),
    Case("aten.upsample_bilinear2d", nn.Upsample(scale_factor=2, mode="bilinear"), (1, 2, 3), 24 * 4, 24 * 3),
    Case(
        "aten.upsample_trilinear3d", nn.Upsample(scale_factor=2, mode="trilinear"), (1, 1, 1, 1), 8 * 8, 8 * 7
    ),
    Case("aten.upsample_bicubic2d", nn.Upsample(scale_factor=2, mode="bicubic"), (1, 2, 3), 24 * 16, 24 * 15),
    Case("aten.channel_shuffle", nn.ChannelShuffle(2), (4, 2, 3), 24, 0),
    Case("aten.index", lambda x: x[:, torch.tensor([1, 0])], S, X, 0),
    Case("aten.index_select", lambda x: x.index_select(1, torch.tensor([1])), S, 12, 0),
    Case("aten.gather", lambda x: x.gather(1, torch.zeros(1, 1, 3, 4, dtype=torch.long)), S, 12, 0),
    Case("aten.take", lambda x: x.take(torch.tensor([3, 2])), S, 2, 0),
]


def q(x: Tensor) -> Tensor:
    """Quantise to 8 bits with a scale that is no power of two and a zero point."""
    return torch.quantize_per_tensor(x, 0.3, 5, torch.quint8)


def quantised(layer: Any, *, relu: bool = False) -> nn.Module:
    """Return `layer` as PyTorch quantises it, between the conversions."""
    # Results on both sides of 0, so that only after a ReLU the zero point is 0.
    nn.init.ones_(layer.weight)
    layer.bias.data = torch.linspace(-50, 50, len(layer.bias))
    parts = [layer, nn.ReLU()] if relu else [layer]
    model = nn.Sequential(ao.QuantStub(), *parts, ao.DeQuantStub()).eval()
    if relu:
        model = ao.fuse_modules(model, [["1", "2"]])
    model.qconfig = ao.get_default_qconfig("x86")
    prepared = ao.prepare(model)
    shape = {nn.Linear: (1, 4), nn.Conv1d: (1, 2, 3), nn.Conv2d: (1, 2, 3, 3), nn.Conv3d: (1, 2, 3, 3, 3)}
    prepared(torch.linspace(-1, 2, torch.Size(shape[type(layer)]).numel()).reshape(shape[type(layer)]))
    return ao.convert(prepared)


def observed() -> nn.Module:
    """Return a fake quantisation that has finished observing."""
    module = ao.FusedMovingAvgObsFakeQuantize()
    module(torch.linspace(-1, 2, 9))
    module.disable_observer()
    return module


def decomposed(name: str, *args: Any) -> Callable[[Tensor], Tensor]:
    operator = getattr(torch.ops.quantized_decomposed, name)
    return lambda x: operator(x, *args)


PER_TENSOR = (0.3, 5, -128, 127, torch.int8)

# A quantised layer: the dot products; an addition for the bias, which takes in the input's zero point; a
# multiplication to the scale of the result and an addition of its zero point, unless that is 0 (as after a
# ReLU).
QUANTISED = [
    Case("quantized.conv1d", quantised(nn.Conv1d(2, 3, 2)), (2, 3), 6 * 4 + 6, 6 * 3 + 6 + 6),
    Case("quantized.conv2d", quantised(nn.Conv2d(2, 3, 2)), (2, 3, 3), 12 * 8 + 12, 12 * 7 + 12 + 12),
    Case("quantized.conv3d", quantised(nn.Conv3d(2, 2, 2)), (2, 3, 3, 3), 16 * 16 + 16, 16 * 15 + 32),
    Case("quantized.linear", quantised(nn.Linear(4, 5)), (4,), 20 + 5, 15 + 5 + 5),
    Case("quantized.conv1d_relu", quantised(nn.Conv1d(2, 3, 2), relu=True), (2, 3), 6 * 4 + 6 + 6, 6 * 3 + 6),
    Case(
        "quantized.conv2d_relu", quantised(nn.Conv2d(2, 3, 2), relu=True), (2, 3, 3), 12 * 8 + 24, 12 * 7 + 12
    ),
    Case(
        "quantized.conv3d_relu",
        quantised(nn.Conv3d(2, 1, 2), relu=True),
        (2, 3, 3, 3),
        8 * 16 + 16,
        8 * 15 + 8,
    ),
    Case("quantized.linear_relu", quantised(nn.Linear(4, 5), relu=True), (4,), 20 + 10, 15 + 5),
    # Dynamic: the input's minimum and maximum (2 * 3), scale and zero point (2, 2), itself (4, 4); then the
    # dot products, and scale and bias of the result.
    Case(
        "quantized.linear_dynamic",
        ao.quantize_dynamic(nn.Sequential(nn.Linear(4, 5)), {nn.Linear}),
        (4,),
        20 + 2 + 4 + 5,
        15 + 6 + 2 + 4 + 5,
    ),
    Case(
        "quantized.linear_relu_dynamic",
        ao.quantize_dynamic(
            nn.Sequential(nn.intrinsic.LinearReLU(nn.Linear(4, 5), nn.ReLU())),
            {nn.intrinsic.LinearReLU: ao.default_dynamic_qconfig},
        ),
        (4,),
        20 + 2 + 4 + 5 + 5,
        15 + 6 + 2 + 4 + 5,
    ),
    Case("quantized.add", lambda x: torch.ops.quantized.add(q(x), q(x), 0.3, 5), S, 2 * X, 2 * X),
    Case("quantized.add_relu", lambda x: torch.ops.quantized.add_relu(q(x), q(x), 0.3, 5), S, 3 * X, 2 * X),
    Case("quantized.mul", lambda x: torch.ops.quantized.mul(q(x), q(x), 0.3, 5), S, 2 * X, 3 * X),
    Case("quantized.cat", lambda x: torch.ops.quantized.cat([q(x), q(x)], 1, 0.3, 5), S, 2 * X, 2 * X),
    Case("quantized.relu6", lambda x: torch.ops.quantized.relu6(q(x)), S, X, 0),
    Case("quantized.hardswish", lambda x: torch.ops.quantized.hardswish(q(x), 0.3, 5), S, 5 * X, 3 * X),
    Case("aten.quantized_max_pool2d", lambda x: F.max_pool2d(q(x), 2), (1, 4, 4), 0, 4 * 3),
    Case("aten.quantize_per_tensor", q, S, X, X),
    # A power of two only changes the exponent, and no zero point is no addition.
    Case("aten.quantize_per_tensor", lambda x: torch.quantize_per_tensor(x, 0.25, 0, torch.qint8), S, 0, 0),
    Case("aten.dequantize", lambda x: q(x).dequantize(), S, X, X),
    Case(
        "aten.fake_quantize_per_tensor_affine_cachemask",
        lambda x: torch.fake_quantize_per_tensor_affine(x, 0.3, 5, 0, 15),
        S,
        X,
        X,
    ),
    Case(
        "aten.fake_quantize_per_channel_affine_cachemask",
        lambda x: torch.fake_quantize_per_channel_affine(x, torch.tensor([0.5, 2]), torch.zeros(2), 1, 0, 15),
        S,
        0,
        0,
    ),
    Case(
        "aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
        lambda x: torch.fake_quantize_per_tensor_affine(x, torch.tensor(0.3), torch.tensor(5), 0, 15),
        S,
        X,
        X,
    ),
    Case("aten._fused_moving_avg_obs_fq_helper", observed(), S, X, X),
    Case(
        "aten._fake_quantize_learnable_per_tensor_affine",
        lambda x: torch._fake_quantize_learnable_per_tensor_affine(x, weight(1) / 3, weight(1), 0, 15),
        S,
        X,
        X,
    ),
    Case(
        "aten._fake_quantize_learnable_per_channel_affine",
        lambda x: torch._fake_quantize_learnable_per_channel_affine(x, weight(2) / 3, weight(2), 1, 0, 15),
        S,
        X,
        X,
    ),
    Case("quantized_decomposed.quantize_per_tensor", decomposed("quantize_per_tensor", *PER_TENSOR), S, X, X),
    Case(
        "quantized_decomposed.quantize_per_channel",
        decomposed("quantize_per_channel", torch.ones(2), torch.zeros(2), 1, -128, 127, torch.int8),
        S,
        0,
        0,
    ),
    Case(
        "quantized_decomposed.dequantize_per_tensor",
        lambda x: torch.ops.quantized_decomposed.dequantize_per_tensor(x.to(torch.int8), *PER_TENSOR),
        S,
        X,  # the model returns it: nothing later on has a scale to take this one in
        X,
    ),
    Case(
        "quantized_decomposed.dequantize_per_channel",
        lambda x: torch.ops.quantized_decomposed.dequantize_per_channel(
            x.to(torch.int8), torch.ones(2), torch.zeros(2), 1, -128, 127, torch.int8
        ),
        S,
        0,
        0,
    ),
]

CASES = DOT_PRODUCTS + REDUCTIONS + NORMALISATIONS + ACTIVATIONS + ELEMENTWISE + PLACED + QUANTISED


def counts(case: Case) -> tuple[set[str], int, int]:
    """Return the operators counted, and the sums of those that the case is about."""
    model = case.model if isinstance(case.model, nn.Module) else Call(case.model)
    lines = score(model, case.shape, ["official"]).rule_sets["official"].lines
    of_operator = [line for line in lines if line.operator == case.operator]
    return (
        {line.operator for line in lines},
        sum(line.multiplications for line in of_operator),
        sum(line.additions for line in of_operator),
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.operator)
def test_row_agrees_with_a_hand_count(case: Case) -> None:
    operators, multiplications, additions = counts(case)
    assert case.operator in operators
    assert (multiplications, additions) == (case.multiplications, case.additions)


MOVES: list[tuple[str, Callable[[Tensor], Any]]] = [
    ("alias", lambda x: torch.ops.aten.alias(x)),
    ("as_strided", lambda x: x.as_strided((1, 2), (1, 1))),
    ("cat", lambda x: torch.cat([x, x])),
    ("clone", lambda x: x.transpose(1, 2).contiguous()),
    ("constant_pad_nd", lambda x: F.pad(x, (1, 1))),
    ("copy", lambda x: torch.empty_like(x).copy_(x)),
    ("detach", lambda x: x.detach()),
    ("diagonal", lambda x: x.diagonal(0, 2, 3)),
    ("embedding", lambda x: F.embedding(x.long(), weight(3, 4))),
    ("expand", lambda x: x.expand(2, 2, 3, 4)),
    ("flip", lambda x: x.flip(1)),
    ("im2col", lambda x: F.unfold(x, 2)),
    ("lift_fresh", lambda x: torch.ops.aten.lift_fresh(x)),
    ("permute", lambda x: x.permute(0, 2, 1, 3)),
    ("pixel_shuffle", lambda x: F.pixel_shuffle(x.view(1, 4, 6, 1), 2)),
    ("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 1)),
    ("reflection_pad1d", lambda x: F.pad(x[0], (1, 1), mode="reflect")),
    ("reflection_pad2d", lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
    ("reflection_pad3d", lambda x: F.pad(x[None], (1,) * 6, mode="reflect")),
    ("repeat", lambda x: x.repeat(1, 2, 1, 1)),
    ("replication_pad1d", lambda x: F.pad(x[0], (1, 1), mode="replicate")),
    ("replication_pad2d", lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate")),
    ("replication_pad3d", lambda x: F.pad(x[None], (1,) * 6, mode="replicate")),
    ("roll", lambda x: x.roll(1, 2)),
    ("rot90", lambda x: x.rot90(1, (2, 3))),
    ("select", lambda x: x.select(1, 0)),
    ("select_scatter", lambda x: torch.select_scatter(x, x[:, 0], 1, 1)),
    ("slice", lambda x: x[:, :, 1:]),
    ("slice_scatter", lambda x: torch.slice_scatter(x, x[:, :1], 1, 1, 2)),
    ("split", lambda x: x.split(1, 1)),
    ("split_with_sizes", lambda x: x.split([1, 1], 1)),
    ("squeeze", lambda x: x.squeeze(0)),
    ("stack", lambda x: torch.stack([x, x])),
    ("t", lambda x: x[0, 0].t()),
    ("transpose", lambda x: x.transpose(1, 2)),
    ("tril", lambda x: x.tril()),
    ("triu", lambda x: x.triu()),
    ("unbind", lambda x: x.unbind(1)),
    ("unfold", lambda x: x.unfold(2, 2, 1)),
    ("unsafe_split", lambda x: x.unsafe_split(1, 1)),
    ("unsafe_split_with_sizes", lambda x: x.unsafe_split_with_sizes([1, 1], 1)),
    ("unsqueeze", lambda x: x.unsqueeze(0)),
    ("upsample_nearest1d", lambda x: F.interpolate(x[0], scale_factor=2)),
    ("upsample_nearest2d", lambda x: F.interpolate(x, scale_factor=2)),
    ("upsample_nearest3d", lambda x: F.interpolate(x[None], scale_factor=2)),
    ("_upsample_nearest_exact1d", lambda x: F.interpolate(x[0], scale_factor=2, mode="nearest-exact")),
    ("_upsample_nearest_exact2d", lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact")),
    ("_upsample_nearest_exact3d", lambda x: F.interpolate(x[None], scale_factor=2, mode="nearest-exact")),
    ("view", lambda x: x.view(6, 4)),
    ("_unsafe_view", lambda x: x.transpose(1, 2).reshape(6, 4)),
    ("_to_copy", lambda x: x.half()),
]


@pytest.mark.parametrize(("operator", "function"), MOVES, ids=[name for name, _ in MOVES])
def test_moving_values_counts_nothing(operator: str, function: Callable[[Tensor], Any]) -> None:
    assert f"aten.{operator}" in {operation.name for operation in trace(Call(function), S).operations}
    tally = score(Call(function), S, ["official"]).rule_sets["official"]
    assert tally.total == 0
    assert tally.lines == ()


FILLS: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("arange", lambda x: torch.arange(4)),
    ("empty", lambda x: torch.empty(4)),
    ("empty_like", lambda x: torch.empty_like(x)),
    ("empty_strided", lambda x: torch.empty_strided((4,), (1,))),
    ("eye", lambda x: torch.eye(3, 4)),
    ("fill", lambda x: x.clone().fill_(3)),
    ("full", lambda x: torch.full((4,), 2)),
    ("full_like", lambda x: torch.full_like(x, 2)),
    ("linspace", lambda x: torch.linspace(0, 1, 4)),
    ("new_empty", lambda x: x.new_empty(4)),
    ("new_empty_strided", lambda x: x.new_empty_strided((4,), (1,))),
    ("new_full", lambda x: x.new_full((4,), 2)),
    ("new_ones", lambda x: x.new_ones(4)),
    ("new_zeros", lambda x: x.new_zeros(4)),
    ("ones", lambda x: torch.ones(4)),
    ("ones_like", lambda x: torch.ones_like(x)),
    ("scalar_tensor", lambda x: torch.scalar_tensor(3)),
    ("zero", lambda x: x.clone().zero_()),
    ("zeros", lambda x: torch.zeros(4)),
    ("zeros_like", lambda x: torch.zeros_like(x)),
]


@pytest.mark.parametrize(("operator", "function"), FILLS, ids=[name for name, _ in FILLS])
def test_a_fill_is_a_constant_made_of_nothing_stored(
    operator: str, function: Callable[[Tensor], Tensor]
) -> None:
    added = trace(Call(lambda x: x + function(x)), S).operations[-1]
    constant = added["other"]
    assert not constant.is_activation
    assert constant.stored == ()
    assert score(Call(lambda x: x + function(x)), S, ["official"]).rule_sets["official"].parameters == 0


def test_every_row_has_a_case_here() -> None:
    cases = {case.operator for case in CASES}
    cases |= {f"aten.{name}" for name, _ in (*MOVES, *FILLS)}
    assert cases == operations.TABLE.keys()


def test_every_row_stands_beside_its_rule() -> None:
    assert all(row.rule for row in operations.TABLE.values())
