"""Layers that are pruned and quantised, and LSQ's gradients against its formula."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from job.network import compressed
from job.network.compressed import SIGNS, build, calibrate, layers, levels, prune, quantise, rounded
from job.network.wide_resnet import wide_resnet

LEVELS = [
    levels(4, signed=True),
    levels(4, signed=False),
    levels(8, signed=True),
    levels(1, signed=False),
    SIGNS,
]


def network(width: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return build(10, width, 5)


def nearest_level(ratio: Tensor, low: int, high: int) -> Tensor:
    if (low, high) == SIGNS:
        return torch.where(ratio > 0, 1.0, -1.0)
    return ratio.round().clamp(low, high)


def by_formula(values: Tensor, step: Tensor, low: int, high: int, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """LSQ's equations 2 and 3, and 5 with the factor of its section 2.2, element by element."""
    of_values, of_step = torch.zeros_like(values), 0.0
    for index, (value, upstream) in enumerate(zip(values.tolist(), gradient.tolist(), strict=True)):
        ratio = value / float(step)
        level = float(nearest_level(torch.tensor(ratio), low, high))
        if low < ratio < high:
            of_values[index] = upstream
            of_step += upstream * (level - ratio)
        else:
            of_step += upstream * (low if ratio <= low else high)
    return of_values, torch.tensor(of_step / math.sqrt(len(values) * high))


def by_straight_through(
    values: Tensor, step: Tensor, low: int, high: int, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Autograd's gradients of a rounding that passes them on, the step's scaled."""
    values, step = values.clone().requires_grad_(), step.clone().requires_grad_()
    factor = 1 / math.sqrt(values.numel() * high)
    scaled = (step - step * factor).detach() + step * factor
    ratio = (values / scaled).clamp(low, high)
    level = ratio + (nearest_level(ratio, low, high) - ratio).detach()
    (level * scaled).backward(gradient)
    assert values.grad is not None
    assert step.grad is not None
    return values.grad, step.grad


@pytest.mark.parametrize(("low", "high"), LEVELS)
@pytest.mark.parametrize("reference", [by_formula, by_straight_through])
def test_gradients_are_those_of_lsq(
    low: int, high: int, reference: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(500, generator=generator) * high / 2
    gradient = torch.randn(500, generator=generator)
    step = torch.tensor(0.37)
    expected = reference(values, step, low, high, gradient)
    values, step = values.requires_grad_(), step.requires_grad_()
    result = rounded(values, step, low, high)
    assert torch.allclose(result, nearest_level(values / step, low, high) * step, rtol=1e-6)
    result.backward(gradient)
    assert values.grad is not None
    torch.testing.assert_close(values.grad, expected[0])
    torch.testing.assert_close(step.grad, expected[1], rtol=1e-4, atol=1e-6)


def test_until_it_is_compressed_it_is_the_plain_network_to_the_bit() -> None:
    compressible = network()
    torch.manual_seed(0)
    plain = wide_resnet(10, 1, 5)
    images = torch.randn(4, 3, 32, 32)
    for one in (plain, compressible):
        one(images).square().sum().backward()
    assert torch.equal(plain(images), compressible(images))
    gradients = {name: parameter.grad for name, parameter in compressible.named_parameters()}
    for name, parameter in plain.named_parameters():
        gradient = gradients.pop(name)
        assert parameter.grad is not None
        assert gradient is not None
        assert torch.equal(parameter.grad, gradient)
    assert all(gradient is None for gradient in gradients.values())  # of the step sizes


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.75])
def test_pruning_leaves_the_largest_weights(sparsity: float) -> None:
    pruned, before = network(), dict(network().named_parameters())
    prune(pruned, sparsity)
    for name, layer in layers(pruned):
        kept = layer.weight != 0
        assert torch.equal(layer.mask, kept)
        original = before[f"{name}.weight"]
        assert torch.equal(layer.weight, torch.where(kept, original, 0))
        if not compressed.is_prunable(name):
            assert kept.all()
            continue
        assert int((~kept).sum()) == round(sparsity * kept.numel())
        assert original[~kept].abs().max() <= original[kept].abs().min() if sparsity else True


def test_what_is_pruned_stays_so_as_pruning_goes_on() -> None:
    pruned = network()
    prune(pruned, 0.3)
    first = {name: layer.weight == 0 for name, layer in layers(pruned)}
    prune(pruned, 0.6)
    assert all((layer.weight[first[name]] == 0).all() for name, layer in layers(pruned))


@pytest.mark.parametrize("bits", [(4, 4), (1, 8), (2, 1)])
def test_a_step_of_the_optimizer_leaves_zeros_zeros(bits: tuple[int, int]) -> None:
    trained = network()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=0.1)
    trained(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()  # so that every weight has moments
    prune(trained, 0.75)
    quantise(trained, *bits)
    calibrate(trained, images := torch.randn(4, 3, 32, 32), trained)
    for _ in range(2):
        trained(images).square().sum().backward()
        optimizer.step()
        assert any((layer.weight[~layer.mask] != 0).any() for _, layer in layers(trained))
        compressed.keep_zeros(trained)
        for _, layer in layers(trained):
            assert (layer.weight[~layer.mask] == 0).all()
            assert layer.weight_step > 0
            assert (compressed.quantised_weight(layer, bits[0])[~layer.mask] == 0).all()


@pytest.mark.parametrize("bits", [(4, 4), (1, 8), (8, 2)])
def test_a_quantised_layer_computes_with_few_values(bits: tuple[int, int]) -> None:
    quantised = network()
    prune(quantised, 0.5)
    quantise(quantised, *bits)
    images = torch.randn(8, 3, 32, 32)
    calibrate(quantised, images, quantised)
    layer = quantised.get_submodule("block1.conv1")
    assert isinstance(layer, compressed.CompressedConv2d)
    seen: dict[str, Tensor] = {}
    kernel = torch.nn.functional.conv2d

    def watch(name: str) -> Callable[..., Tensor]:
        def convolve(read: Tensor, weight: Tensor, *rest: object) -> Tensor:
            seen[name], seen[f"{name}.weight"] = read, weight
            return kernel(read, weight, None, layer.stride, layer.padding)

        return convolve

    layer._conv_forward = watch("conv1")  # type: ignore[method-assign]
    quantised(images)
    assert len(seen["conv1"].unique()) <= 2 ** bits[1]
    assert len(seen["conv1.weight"].unique()) <= 2 ** bits[0] + (bits[0] == 1)  # signs, and the zeros
    assert torch.equal(seen["conv1.weight"] == 0, ~layer.mask) or bits[0] > 1


def test_steps_begin_as_lsq_has_them() -> None:
    quantised, images = network(), torch.randn(8, 3, 32, 32)
    prune(quantised, 0.5)
    statistics = {name: buffer.clone() for name, buffer in quantised.named_buffers()}
    quantise(quantised, 4, 4)
    calibrate(quantised, images, quantised)
    found = dict(layers(quantised))
    stem, conv = found["stem"], found["block1.conv1"]
    kept = conv.weight[conv.mask].abs().mean()
    torch.testing.assert_close(conv.weight_step.detach(), 2 * kept / math.sqrt(7))
    torch.testing.assert_close(stem.input_step.detach(), 2 * images.abs().mean() / math.sqrt(127))
    assert quantised.training
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in quantised.named_buffers())
