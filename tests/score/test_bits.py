"""Quantised and sparse models: every expected number is the rules' formula, written out."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.ao.quantization as ao
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_

from job.errors import UsageError
from job.score.bits import Declared
from job.score.rules import score
from job.score.tally import Baseline, Tally

SHAPE = (4, 8, 8)


def declare(**sections: Any) -> Declared:
    return Declared.parse(json.dumps(sections))


def official(model: nn.Module, declared: Declared | None = None, shape: tuple[int, ...] = SHAPE) -> Tally:
    return score(model, shape, ["official"], declared=declared).rule_sets["official"]


def counted(tally: Tally, kind: str) -> Fraction:
    return sum((line.counted for line in tally.lines if line.kind == kind), Fraction())


def every(nth: int, *shape: int) -> nn.Parameter:
    """Return a weight of ones in which every `nth` value is a zero."""
    values = torch.ones(shape).flatten()
    values[::nth] = 0
    return nn.Parameter(values.reshape(shape))


def convolution(weight: nn.Parameter) -> nn.Conv2d:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], bias=False)
    layer.weight = weight
    return layer


def test_half_sparse_4_bit_network_scores_what_the_formula_in_the_rules_gives() -> None:
    # Two convolutions, 4 channels to 8 and 8 to 6, every second weight a zero, all values of 4 bits.
    network = nn.Sequential(convolution(every(2, 8, 4, 3, 3)), nn.ReLU(), convolution(every(2, 6, 8, 3, 3)))
    tally = official(network, declare(parameters={"*.weight": 4}, activations={"*": 4}))
    # Stored: the non-zero values at 4 bits, and a bit for every place; 32 bits are one parameter.
    weights = (8 * 4 * 9, 6 * 8 * 9)
    parameters = sum(n / 2 * 4 + n for n in weights) / 32
    # A filter has 18 and 36 non-zero weights: so many multiplications of two 4-bit values for each output,
    # one addition less in 32-bit accumulators. A ReLU is a multiplication-class operation on 4 bits.
    outputs = (8 * 6 * 6, 6 * 4 * 4)
    operations = (
        (outputs[0] * 18 + outputs[1] * 36) * 4 / 32 + outputs[0] * 17 + outputs[1] * 35 + outputs[0] * 4 / 32
    )
    assert tally.parameters == parameters
    assert tally.total == operations
    assert tally.score == parameters / 36.5e6 + operations / 10.49e9


def test_the_widest_input_decides() -> None:
    # RULES: a multiplication with one 3-bit and one 5-bit input counts 5/32; with a 32-bit input, whole.
    network = nn.Sequential(nn.Conv2d(4, 2, 1, bias=False))
    products, sums = 2 * 64 * 4, 2 * 64 * 3
    both = official(network, declare(parameters={"0.weight": 3}, activations={"0": 5}))
    assert both.total == Fraction(products * 5, 32) + sums
    assert official(network, declare(parameters={"0.weight": 8})).total == products + sums


@pytest.mark.parametrize(
    ("activations", "bits"),
    [
        ({}, 1),  # float32 has a sign bit of its own
        ({"*": {"bits": 8, "sign_bit": True}}, 1),
        ({"*": 8}, 8),  # a two's complement has not
    ],
)
def test_a_binary_weight_costs_a_sign_bit_where_there_is_one(activations: dict[str, Any], bits: int) -> None:
    network = nn.Sequential(nn.Conv2d(4, 2, 1, bias=False))
    tally = official(network, declare(parameters={"0.weight": 1}, activations=activations))
    assert tally.total == Fraction(2 * 64 * 4 * bits, 32) + 2 * 64 * 3
    assert tally.parameters == Fraction(8, 32)


def test_zeros_among_binary_weights_need_the_bitmask() -> None:
    network = nn.Sequential(convolution(every(4, 2, 4, 1, 1)))
    tally = official(network, declare(parameters={"0.weight": 1}))
    assert tally.parameters == Fraction(6 * 1 + 8, 32)
    assert tally.total == Fraction(64 * 6, 32) + 64 * (2 + 2)


def test_the_freebie_is_for_entries_that_quantise_nothing() -> None:
    network = nn.Sequential(nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 1, bias=False))
    bare = score(network, SHAPE)
    assert bare.freebie
    assert bare.rule_sets["official"].parameters == Fraction((8 + 2 + 4) * 16, 32)
    assert counted(bare.rule_sets["official"], "conv") == (64 * 8 + 64 * 4) / 2 + 64 * 8 + 64 * 2
    one_layer = score(network, SHAPE, declared=declare(parameters={"1.weight": 8}))
    assert not one_layer.freebie
    assert one_layer.rule_sets["official"].parameters == 8 + 2 + 4 * Fraction(8, 32)
    assert counted(one_layer.rule_sets["official"], "conv") == 64 * 8 + 64 * 8 + 64 * 4 + 64 * 2


def test_pruned_weights_are_stored_with_a_bitmask_and_keep_the_freebie() -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 3))
    prune.l1_unstructured(network[0], "weight", amount=0.75)
    expected = Fraction(72 * 16 + 288, 32) + 8 * Fraction(16, 32)
    scores = score(network, SHAPE)
    assert scores.freebie
    assert scores.rule_sets["official"].parameters == expected
    assert counted(scores.rule_sets["official"], "conv").denominator == 1
    products = sum(line.multiplications for line in scores.rule_sets["official"].lines)
    assert products == 72 * 36
    # It goes by the name of the weight, whether or not the pruning has been made permanent.
    four_bits = declare(parameters={"0.weight": 4})
    assert official(network, four_bits).parameters == Fraction(72 * 4 + 288, 32) + 8
    prune.remove(network[0], "weight")
    assert official(network, four_bits).parameters == Fraction(72 * 4 + 288, 32) + 8
    assert official(network).parameters == expected
    # The rule sets of 2019 know the architecture only.
    assert scores.rule_sets["writeup"].parameters == 4 * 8 * 9 + 8


def test_block_sparsity_takes_one_bit_a_block() -> None:
    # RULES: a 512x128 matrix with 4x4 block sparsity has a bitmask of 4096 bits. Every second block is zero.
    layer = nn.Linear(128, 512, bias=False)
    blocks = torch.ones(128, 32).flatten()
    blocks[::2] = 0
    kept = blocks.reshape(128, 32).repeat_interleave(4, 0).repeat_interleave(4, 1)
    layer.weight = nn.Parameter(kept)
    tally = official(layer, declare(parameters={"weight": {"bits": 8, "block": [4, 4]}}), shape=(128,))
    assert tally.parameters == Fraction(512 * 128 // 2 * 8 + 4096, 32)
    # Blocks that do not divide the matrix: 3 x 5 values in 2 x 2 blocks make 2 x 3 blocks.
    small = nn.Linear(5, 3, bias=False)
    small.weight = nn.Parameter(torch.tensor([[1.0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]))
    tally = official(small, declare(parameters={"weight": {"bits": 8, "block": [2, 2]}}), shape=(5,))
    assert tally.parameters == Fraction((4 + 1) * 8 + 6, 32)


def test_blocks_of_a_weight_that_is_stored_flat_are_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.arange(8.0))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight.view(2, 4))

    with pytest.raises(UsageError, match=r"block.*'wei\*'.*'weight'.*shape \[8\]"):
        official(Flat(), declare(parameters={"wei*": {"bits": 8, "block": [2, 2]}}), shape=(4,))


def test_a_quantised_weight_absorbs_no_batch_norm_and_no_factor() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) * 0.2

    tally = official(Scaled(), declare(parameters={"conv.weight": 4}))
    elements = 2 * 64
    assert {line.kind: line.counted for line in tally.lines} == {
        "conv": elements * 4 + elements * 3,
        "norm": elements + elements,
        "multiply": elements,
    }
    assert tally.parameters == Fraction(8 * 4, 32) + 2 + 2


def test_a_mask_of_truth_values_is_no_binary_weight() -> None:
    class Masked(nn.Module):
        mask: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.ones(4, 8, 8, dtype=torch.bool))
            self.conv = nn.Conv2d(4, 2, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x * self.mask)

    tally = official(Masked(), declare(parameters={"conv.weight": 8}))
    assert counted(tally, "multiply") == 256


def test_a_filter_pruned_away_has_no_additions_to_save() -> None:
    weight = nn.Parameter(torch.ones(4, 4, 1, 1))
    weight.data[0] = 0
    tally = official(nn.Sequential(convolution(weight)))
    (line,) = tally.lines
    assert (line.multiplications, line.additions) == (3 * 64 * 4, 3 * 64 * 3)


def test_a_bitmask_is_stored_where_the_operations_saved_are_worth_more_than_its_bits() -> None:
    # One in eight of 32 4-bit values is 0: with a bitmask they take 28 * 4 + 32 bits instead of 32 * 4, half
    # a parameter more: 1.4e-8 of the score. At 64 positions 4 products and 4 additions fewer, of 32 bits
    # (the activations are): 512 operations, 4.9e-8.
    few = declare(parameters={"*weight": 4})
    tally = official(nn.Sequential(convolution(every(8, 8, 4, 1, 1))), few)
    assert tally.parameters == Fraction(28 * 4 + 32, 32)
    assert tally.total == 64 * 28 + 64 * (28 - 8)
    # At one position 8 operations: 7.6e-10, which do not pay for it.
    layer = nn.Linear(4, 8, bias=False)
    layer.weight = every(8, 8, 4)
    tally = official(layer, few, shape=(4,))
    assert tally.parameters == Fraction(32 * 4, 32)
    assert tally.total == 32 + 24
    # Relative to a network with few operations they do.
    small = score(layer, (4,), ["official"], declared=few, baseline=Baseline("small", 1e6, 100))
    assert small.rule_sets["official"].parameters == Fraction(28 * 4 + 32, 32)
    assert small.rule_sets["official"].total == 28 + 20


def test_five_percent_of_zeros_are_left_out_of_the_operations() -> None:
    # 256 filters of 256x3x3, every twentieth weight a 0, at 16 bits: 29,492 are zeros. The bitmask takes
    # 589,824 bits, the zeros gave 471,872: 3,686 parameters more, 1.0e-4 of the score. At 64 positions
    # the zeros were as many products at 16 bits and additions at 32: 2,831,232 operations, 2.7e-4.
    layer = convolution(every(20, 256, 256, 3, 3))
    tally = official(layer, shape=(256, 10, 10))
    values, zeros = 256 * 256 * 9, 29_492
    assert tally.parameters == Fraction((values - zeros) * 16 + values, 32)
    assert tally.total == Fraction(64 * (values - zeros), 2) + 64 * (values - zeros - 256)
    assert (values - 16 * zeros) / 32 / 36.5e6 < 64 * zeros * 1.5 / 10.49e9


def test_a_weight_of_zeros_only_is_untrained_and_not_pruned() -> None:
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    tally = official(layer, shape=(4,))
    assert sum(line.multiplications for line in tally.lines) == 12
    assert tally.parameters == Fraction(15 * 16, 32)


def test_sparse_linear_layers_and_matrices_count_their_non_zero_weights() -> None:
    layer = nn.Linear(8, 4, bias=False)
    layer.weight = every(2, 4, 8)
    (line,) = official(layer, shape=(8,)).lines
    assert (line.multiplications, line.additions) == (16, 12)
    (line,) = official(nn.Sequential(nn.Flatten(0, 1), layer), shape=(3, 8)).lines
    assert (line.multiplications, line.additions) == (3 * 16, 3 * 12)


def test_scales_are_stored_values() -> None:
    layer = nn.Linear(8, 4, bias=False)
    tally = official(layer, declare(parameters={"weight": {"bits": 4, "scales": 4}}), shape=(8,))
    assert tally.parameters == Fraction(32 * 4, 32) + 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_taken_from_the_model(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()).to(dtype)
    scores = score(network, SHAPE)
    assert not scores.freebie
    tally = scores.rule_sets["official"]
    assert tally.parameters == Fraction((16 + 4) * 16, 32)
    # Products and ReLUs of 16 bits; the sums and the bias meet in 32-bit accumulators.
    assert tally.total == Fraction((64 * 16 + 64 * 4) * 16, 32) + 64 * 16


class Quantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = ao.QuantStub(), ao.DeQuantStub()
        self.conv, self.relu, self.pool = nn.Conv2d(4, 8, 3), nn.ReLU(), nn.MaxPool2d(2)
        self.linear = nn.Linear(8 * 9, 5)
        nn.init.ones_(self.conv.weight)
        nn.init.ones_(self.linear.weight)
        self.linear.bias.data = torch.linspace(-1e4, 1e4, 5)  # logits on both sides of 0: a zero point

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv(self.quant(x))))
        return self.dequant(self.linear(x.flatten(1)))


def test_pytorch_quantised_modules_carry_their_bits() -> None:
    model = Quantised().eval()
    model = ao.fuse_modules(model, [["conv", "relu"]])
    model.qconfig = ao.get_default_qconfig("x86")
    model = ao.prepare(model)
    model(torch.linspace(-1, 2, 256).reshape(1, 4, 8, 8))
    scores = score(ao.convert(model), SHAPE)
    tally = scores.rule_sets["official"]
    assert not scores.freebie
    # Weights of 8 bits with a 32-bit scale a filter (their zero points are 0), biases of 32; a 32-bit scale
    # and an 8-bit zero point for the input and the logits, a scale alone after the ReLU.
    weights = Fraction(288 * 8, 32) + 8 + 8 + Fraction(360 * 8, 32) + 5 + 5
    assert tally.parameters == weights + 3 + Fraction(2 * 8, 32)
    elements = 8 * 36
    # The result is scaled by a 32-bit multiplication; the ReLU works on its 8 bits.
    conv = Fraction(elements * 36 * 8, 32) + elements * 35 + elements + elements + Fraction(elements * 8, 32)
    assert counted(tally, "conv") == conv
    assert counted(tally, "max pool") == Fraction(72 * 3 * 8, 32)
    # The bias, the scale and the zero point of the logits.
    assert counted(tally, "linear") == Fraction(360 * 8, 32) + 5 * 71 + 5 + 5 + 5
    assert counted(tally, "quantise") == 256 * 2
    assert counted(tally, "dequantise") == 5 * 2


def test_torchao_tensors_carry_their_bits() -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16, bias=False))
    nn.init.ones_(model.get_parameter("0.weight"))
    nn.init.ones_(model.get_parameter("2.weight"))
    quantize_(model, Int8WeightOnlyConfig())
    kind = type(model[0].weight)
    tally = official(model, shape=(64,))
    # 8-bit weights with a 32-bit scale for each row, a 32-bit bias.
    assert tally.parameters == Fraction((64 * 32 + 32 * 16) * 8, 32) + 32 + 16 + 32
    # The activations are float32, so the products count whole.
    assert tally.total == 64 * 32 + 63 * 32 + 32 + 32 + 32 * 16 + 31 * 16
    assert type(model[0].weight) is kind


def test_torchao_int4_counts_four_bits_though_stored_in_bytes() -> None:
    model = nn.Sequential(nn.Linear(64, 32, bias=False))
    nn.init.ones_(model.get_parameter("0.weight"))
    quantize_(model, IntxWeightOnlyConfig(weight_dtype=torch.int4))  # type: ignore[attr-defined]
    assert official(model, shape=(64,)).parameters == Fraction(64 * 32 * 4, 32) + 32


def test_simulated_quantisation_has_the_bits_of_its_levels() -> None:
    class Simulated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 8))

        def forward(self, x: Tensor) -> Tensor:
            weight = torch.fake_quantize_per_tensor_affine(self.weight, 0.125, 0, -8, 7)
            return torch.fake_quantize_per_tensor_affine(x, 0.25, 0, -32, 31) @ weight.t()

    tally = official(Simulated(), shape=(8,))
    # 4-bit weights and 6-bit activations, each with a 32-bit scale; no zero points.
    assert tally.parameters == Fraction(32 * 4, 32) + 1 + 1
    assert counted(tally, "linear") == Fraction(32 * 6, 32) + 28
    assert counted(tally, "quantise") == 0


class Between(nn.Module):
    """4-bit values, a function of them, and a layer of 4-bit weights."""

    order: Tensor

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))
        self.function = function
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fake_quantize_per_tensor_affine(x, 0.25, 0, 0, 15)
        return self.function(x, self.order) @ torch.fake_quantize_per_tensor_affine(
            self.weight, 0.125, 0, -8, 7
        )


REORDERED = [
    lambda x, order: x[:, order],
    lambda x, order: x.index_select(1, order),
    lambda x, order: x.gather(1, order[None]),
    lambda x, order: x.take(order)[None],
]


@pytest.mark.parametrize("function", REORDERED)
def test_values_that_are_reordered_keep_their_bits(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    tally = official(Between(function), shape=(4,))
    assert counted(tally, "permutation") == Fraction(4 * 4, 32)
    assert counted(tally, "linear") == Fraction(16 * 4, 32) + 12


SLOPED = [lambda x: F.leaky_relu(x, 0.3), lambda x: F.prelu(x, torch.ones(1))]


@pytest.mark.parametrize("function", [*SLOPED, F.relu])
def test_a_slope_makes_values_of_more_bits_and_a_relu_does_not(function: Callable[[Tensor], Tensor]) -> None:
    tally = official(Between(lambda x, _: function(x)), shape=(4,))
    assert counted(tally, "linear") == Fraction(16 * (32 if function in SLOPED else 4), 32) + 12


def test_integers_and_masks_are_no_quantisation() -> None:
    class Masked(nn.Module):
        order: Tensor
        mask: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("order", torch.arange(4))
            self.register_buffer("mask", torch.ones(4, dtype=torch.bool))

        def forward(self, x: Tensor) -> Tensor:
            return x[:, self.order].masked_fill(self.mask, 0)

    assert score(Masked(), (4,)).freebie


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("{", "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        ('{"parameters": ' + 10**5 * '{"a": ', "not JSON: too deeply nested"),
        ("[]", "expected an object"),
        ('{"weights": {}}', "expected an object"),
        ('{"parameters": 4}', "not an object of patterns"),
        ('{"parameters": {"*": 0}}', "not a width"),
        ('{"parameters": {"*": 33}}', "not a width"),
        ('{"parameters": {"*": true}}', "not a width"),
        ('{"parameters": {"*": 4.5}}', "not a width"),
        ('{"parameters": {"*": {"scales": 3}}}', "not a width"),
        ('{"parameters": {"*": {"bits": 4, "scales": -1}}}', "not a width"),
        ('{"parameters": {"*": {"bits": 4, "sign_bit": true}}}', "has no field 'sign_bit'"),
        ('{"parameters": {"*": {"bits": 4, "block": [4]}}}', "not a width"),
        ('{"parameters": {"*": {"bits": 4, "block": [4, 0]}}}', "not a width"),
        ('{"parameters": {"*": {"bits": 4, "block": 4}}}', "not a width"),
        ('{"activations": {"*": {"bits": 4, "sign_bit": 1}}}', "not a width"),
        ('{"parameters": {"*": {"bits": 4, "scale": 1}}}', "has no field 'scale'.*bits, scales, block"),
        ('{"activations": {"*": {"sign": true}}}', "has no field 'sign'.*bits, sign_bit"),
    ],
)
def test_a_declaration_that_is_wrong_is_refused(text: str | bytes, cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        Declared.parse(text)


@pytest.mark.parametrize("section", ["parameters", "activations"])
def test_a_pattern_that_fits_nothing_is_refused(section: str) -> None:
    with pytest.raises(UsageError, match=r"match 'conv9\.\*'"):
        official(nn.Sequential(nn.Conv2d(4, 2, 1)), declare(**{section: {"conv9.*": 4}}))


def test_the_first_pattern_that_fits_holds() -> None:
    declared = declare(parameters={"stem.*": 8, "*": 4})
    assert declared.value("stem.weight") == declare(parameters={"*": 8}).value("x")
    assert declared.value("block.weight") == declare(parameters={"*": 4}).value("x")
