"""Convolutions and linear layers that can be pruned and quantised; until then they compute as torch's own do.

Quantisation is simulated: a value becomes the nearest of its levels times a step size that is learned (LSQ:
Esser et al., Learned Step Size Quantization, arXiv:1902.08153). Of each layer the weight and what it reads
are quantised, not the residual stream between the blocks. The state is parameters and buffers alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job.network.wide_resnet import Layers, wide_resnet

EDGE_BITS = 8
"""Bits of the first and the last layer, whatever those of the others are."""

STEM, LINEAR = "stem", "linear"

SMALLEST_STEP = 1e-6

SIGNS = (-1, 1)
"""The levels of a weight of 1 bit."""


class LayerBits(NamedTuple):
    """Bits of a layer's weight and of what it reads, and whether that has a sign."""

    weight: int
    activation: int
    signed: bool = False


class LearnedStep(torch.autograd.Function):
    """Round values to `levels` times a step size; the gradients are LSQ's, equations 3 and 5.

    The values' gradient passes where they lie inside the levels. The step's is, of each value v / step, its
    distance to the level inside and the level itself outside, in sum times 1 / sqrt(numel * highest level).
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        """Return the rounded values, in their dtype and layout; levels of -1 and 1 are without 0."""
        ctx.save_for_backward(values, step)  # and not their ratio, which nobody else keeps
        ctx.levels = low, high
        ratio = _ratio(values, step)
        level = _nearest_level(ratio, low, high, out=ratio)
        return torch.mul(level, step, out=torch.empty_like(values))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Return the gradients of values and step."""
        values, step = ctx.saved_tensors
        low, high = ctx.levels
        gradient, ratio = gradients[0].float(), _ratio(values, step)
        # Its bounds are numbers and need no read of the device: 0 at and outside them, else the gradient.
        inside = torch.ops.aten.hardtanh_backward(gradient, ratio, low, high)
        level = _nearest_level(ratio, low, high, out=torch.empty_like(gradient))
        of_step = level.mul_(gradient).addcmul_(inside, ratio, value=-1).sum()
        return inside.to(values.dtype), of_step.to(step.dtype) / math.sqrt(values.numel() * high), None, None


def _ratio(values: Tensor, step: Tensor) -> Tensor:
    """Return values / step in float32, which only a factor with a dimension makes of bf16 and fp16."""
    return values * (1 / step).view(1)


def _nearest_level(ratio: Tensor, low: int, high: int, out: Tensor) -> Tensor:
    """Write the level nearest to each ratio to `out`, which may be `ratio`, and return that."""
    if (low, high) == SIGNS:
        return torch.gt(ratio, 0, out=out).mul_(2).sub_(1)
    return torch.round(ratio, out=out).clamp_(low, high)


def rounded(values: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """Return the nearest of the levels times `step`, with the gradients of `LearnedStep`.

    Without gradients it is computed by operators whose levels and scales the score reads, to the same bits in
    fp32; on a processor they take three times as long as what trains.
    """
    if torch.is_grad_enabled():
        result: Tensor = LearnedStep.apply(values, step, low, high)
        return result
    if (low, high) == SIGNS:  # two levels, -1 and 1, around a zero point of a half
        half = torch.full((1,), 0.5, device=step.device)
        flat = values.reshape(1, -1)
        return torch.fake_quantize_per_channel_affine(flat, 2 * step.view(1), half, 0, 0, 1).view(
            values.shape
        )
    zero = torch.zeros(1, dtype=torch.int32, device=step.device)
    return torch.fake_quantize_per_tensor_affine(values, step, zero, low, high)


def levels(bits: int, signed: bool) -> tuple[int, int]:
    """Return the lowest and the highest level of an activation, or of a weight of 2 bits and more."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def weight_levels(bits: int) -> tuple[int, int]:
    """Return the lowest and the highest level of a weight; of 1 bit they are the signs, without 0."""
    return SIGNS if bits == 1 else levels(bits, signed=True)


class CompressedConv2d(nn.Conv2d):
    """A convolution with a mask of the weights that are kept and two step sizes; see `Layer`."""

    mask: Tensor
    weight_step: nn.Parameter
    input_step: nn.Parameter
    bits: LayerBits | None = None

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        _prepare(self)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Map [N, inputs, H, W] to [N, outputs, H', W']."""
        read, weight = _quantised(self, input)
        result: Tensor = self._conv_forward(read, weight, self.bias)
        return result


class CompressedLinear(nn.Linear):
    """A linear layer with a mask of the weights that are kept and two step sizes; see `Layer`."""

    mask: Tensor
    weight_step: nn.Parameter
    input_step: nn.Parameter
    bits: LayerBits | None = None

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        _prepare(self)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Map [N, inputs] to [N, outputs]."""
        read, weight = _quantised(self, input)
        return F.linear(read, weight, self.bias)


Layer: TypeAlias = CompressedConv2d | CompressedLinear
"""Masked weights are stored as zeros. Until it is quantised `bits` is None and the step sizes have no use."""

COMPRESSED = Layers(CompressedConv2d, CompressedLinear)


def _prepare(layer: Layer) -> None:
    layer.register_buffer("mask", torch.ones_like(layer.weight, dtype=torch.bool))
    layer.weight_step = nn.Parameter(torch.ones(()))
    layer.input_step = nn.Parameter(torch.ones(()))


def _quantised(layer: Layer, read: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `layer` reads and its weight, as it computes with them."""
    if layer.bits is None:
        return read, layer.weight
    low, high = levels(layer.bits.activation, layer.bits.signed)
    return rounded(read, layer.input_step, low, high), quantised_weight(layer, layer.bits.weight)


def quantised_weight(layer: Layer, bits: int) -> Tensor:
    """Return the weight as levels times its step; what is masked stays 0, which signs alone are not."""
    weight = rounded(layer.weight, layer.weight_step, *weight_levels(bits))
    return weight * layer.mask if bits == 1 else weight


@torch.no_grad()
def integer_levels(layer: Layer) -> Tensor:
    """Return the levels of a quantised layer's weight as int8, in its shape; masked weights are 0."""
    assert layer.bits is not None
    weight = quantised_weight(layer, layer.bits.weight)
    return (weight / layer.weight_step).round().to(torch.int8)


def build(depth: int, width: int, classes: int) -> nn.Sequential:
    """Return the network with such layers; the same random numbers give the same weights as `wide_resnet`."""
    return wide_resnet(depth, width, classes, COMPRESSED)


def layers(network: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Yield the layers that can be compressed, with their names; none of a plain network."""
    for name, module in network.named_modules():
        if isinstance(module, Layer):
            yield name, module


def is_prunable(name: str) -> bool:
    """Return whether the weights of the layer of that name may become zeros: not in the first and last."""
    return name not in (STEM, LINEAR)


def prune(network: nn.Module, sparsity: float) -> None:
    """Prune that share of each layer's weights, those of the smallest magnitude; pruned weights stay zero.

    Not those of the first and the last layer. Of equal magnitudes the first are taken, so that what was
    pruned before stays so.
    """
    for name, layer in layers(network):
        if is_prunable(name):
            magnitudes = layer.weight.detach().abs().flatten()
            smallest = magnitudes.argsort(stable=True)[: round(sparsity * magnitudes.numel())]
            kept = torch.ones_like(magnitudes, dtype=torch.bool)
            kept[smallest] = False
            layer.mask.copy_(kept.view(layer.mask.shape))
    keep_zeros(network)


@torch.no_grad()
def keep_zeros(network: nn.Module) -> None:
    """Make the masked weights zeros again, which decay and moments have moved, and keep steps positive."""
    for _, layer in layers(network):
        layer.weight.mul_(layer.mask)
        layer.weight_step.clamp_(min=SMALLEST_STEP)
        layer.input_step.clamp_(min=SMALLEST_STEP)


def quantise(network: nn.Module, weight_bits: int, activation_bits: int) -> None:
    """Quantise weights and activations to these bits, and to EDGE_BITS in the first and the last layer."""
    for name, layer in layers(network):
        edge = not is_prunable(name)
        layer.bits = LayerBits(
            EDGE_BITS if edge else weight_bits, EDGE_BITS if edge else activation_bits, signed=name == STEM
        )


def bits_of(network: nn.Module) -> LayerBits | None:
    """Return the bits of the layers between the first and the last; None where nothing is quantised."""
    return next((layer.bits for name, layer in layers(network) if is_prunable(name)), None)


@torch.no_grad()
def calibrate(network: nn.Module, images: Tensor, model: nn.Module) -> None:
    """Set each quantised layer's steps to 2 mean|v| / sqrt(highest level), as LSQ begins.

    The activations are those of `images` through `model`, which runs `network`, in evaluation mode and before
    anything is rounded; the weights those that are kept.
    """
    bits = {layer: layer.bits for _, layer in layers(network)}
    hooks = []
    for layer in bits:
        layer.bits = None
        hooks.append(layer.register_forward_pre_hook(_measure))
    training = network.training
    network.eval()
    try:
        for layer, of_layer in bits.items():
            assert of_layer is not None
            high = weight_levels(of_layer.weight)[1]
            mean = layer.weight.abs().sum() / layer.mask.sum()
            layer.weight_step.copy_(mean if of_layer.weight == 1 else 2 * mean / math.sqrt(high))
            layer.bits = None
        model(images)
        for layer, of_layer in bits.items():
            assert of_layer is not None
            high = levels(of_layer.activation, of_layer.signed)[1]
            layer.input_step.mul_(2 / math.sqrt(high))
            layer.bits = of_layer
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    keep_zeros(network)


def _measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    assert isinstance(layer, Layer)
    layer.input_step.copy_(inputs[0].float().abs().mean())
