"""What `--bits` declares: weights computed in `forward`, and the width of sums."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job.errors import UsageError
from job.score import report
from job.score.bits import Declared
from job.score.rules import Scores, score
from job.score.tally import ACCUMULATORS, Tally

SHAPE = (3, 32, 32)
RESULTS = 8 * 30 * 30  # of a 3x3 convolution to 8 channels
PRODUCTS, SUMS = RESULTS * 27, RESULTS * 26


def declare(**sections: Any) -> Declared:
    return Declared.parse(json.dumps(sections))


def official(model: nn.Module, shape: tuple[int, ...] = SHAPE, **sections: Any) -> Tally:
    return score(model, shape, ["official"], declared=declare(**sections)).rule_sets["official"]


class Computed(nn.Module):
    """A convolution whose weight is computed in `forward` from the layer's, and from more tensors."""

    def __init__(self, compute: Callable[..., Tensor], **tensors: Tensor) -> None:
        super().__init__()
        self.compute = compute
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.conv.weight.data = torch.linspace(-1, 1, 216).reshape(8, 3, 3, 3)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.compute(self.conv.weight, *self.buffers()))


def dorefa(weight: Tensor) -> Tensor:
    scaled = torch.tanh(weight)
    scaled = scaled / (2 * scaled.abs().max()) + 0.5
    return 2 * (scaled * 255).round() / 255 - 1


def mask(zeros: int) -> Tensor:
    values = torch.ones(216)
    values[:zeros] = 0
    return values.reshape(8, 3, 3, 3)


def test_dorefa_at_8_bits_for_weights_and_activations() -> None:
    tally = official(Computed(dorefa), parameters={"*.weight": 8}, activations={"*": 8})
    assert PRODUCTS * 8 / 32 + SUMS == 235_800
    assert tally.total == 235_800
    assert tally.parameters == Fraction(216 * 8, 32)


def test_signs_are_one_bit_each() -> None:
    tally = official(Computed(torch.sign), parameters={"*.weight": 1})
    assert tally.total == Fraction(PRODUCTS, 32) + SUMS
    assert tally.parameters == Fraction(216, 32)


def test_a_weight_written_as_step_size_times_rounded_values_has_both() -> None:
    model = Computed(
        lambda w, step: (w / step).round().clamp(-8, 7) * step, step=torch.full((8, 1, 1, 1), 0.3)
    )
    tally = official(model, parameters={"*.weight": 4})
    # The 32-bit activations decide the products' width. 0 is among the levels of 19 weights.
    values = int((model.conv.weight / model.get_buffer("step")).round().count_nonzero())
    assert values == 216 - 32
    assert tally.parameters == Fraction(values * 4 + 216, 32) + 8
    assert tally.total == 900 * values + 900 * (values - 8)
    declared = {"bits": 4, "scales": 1}
    assert official(model, parameters={"*.weight": declared}).parameters == tally.parameters - 7


@pytest.mark.parametrize("kind", [torch.float32, torch.bool])
def test_the_zeros_of_a_mask_are_seen_and_the_mask_is_not_stored(kind: torch.dtype) -> None:
    model = Computed(lambda w, kept: w * kept, kept=mask(108).to(kind))
    tally = official(model, parameters={"*.weight": 8})
    assert tally.parameters == Fraction(108 * 8 + 216, 32)
    assert tally.total == 900 * 108 + 900 * (108 - 4)  # four of the eight filters are gone


def test_a_masked_quantised_weight_keeps_its_levels() -> None:
    def quantise_and_mask(weight: Tensor, kept: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(weight, 0.125, 0, -8, 7) * kept

    model = Computed(quantise_and_mask, kept=mask(108))
    model.conv.weight.data.fill_(0.5)
    scores = score(model, SHAPE, ["official"])
    assert not scores.freebie
    assert scores.rule_sets["official"].parameters == Fraction(108 * 4 + 216, 32) + 1


def test_a_weight_computed_at_each_call_is_stored_once() -> None:
    class Twice(Computed):
        def forward(self, x: Tensor) -> Tensor:
            weight = torch.cat([self.conv.weight, self.conv.weight[:1]])[:, :1].sign()
            again = torch.cat([self.conv.weight, self.conv.weight[:1]])[:, :1].sign()
            return F.conv2d(F.conv2d(x, weight, groups=3, padding=1), again, groups=9, padding=1)

    assert official(Twice(torch.sign), parameters={"(aten.sign)": 1}).parameters == Fraction(9 * 9, 32)


@pytest.mark.parametrize(
    ("compute", "tensors", "sources"),
    [
        (lambda w, other: w + other, {"other": torch.full((8, 3, 3, 3), 0.5)}, "conv.weight, other"),
        (lambda w, other: (w.flatten(1) @ other).reshape(8, 3, 3, 3), {"other": torch.ones(27, 27)}, "other"),
    ],
)
def test_a_declaration_that_cannot_reach_what_is_multiplied_is_refused_by_name(
    compute: Callable[..., Tensor], tensors: dict[str, Tensor], sources: str
) -> None:
    declared: dict[str, Any] = {"conv.weight": 8} if sources != "other" else {"other": 8}
    with pytest.raises(UsageError, match="has no effect") as failure:
        official(Computed(compute, **tensors), parameters=declared)
    assert repr(next(iter(declared))) in failure.value.message
    assert sources in failure.value.message
    # Under the name that the message has it can be declared.
    name = failure.value.message.split("reads '")[1].split("'")[0]
    assert official(Computed(compute, **tensors), parameters={name: 8}).parameters == Fraction(216 * 8, 32)


def accumulators(model: nn.Module, shape: tuple[int, ...], **sections: Any) -> tuple[Tally, Tally, Scores]:
    scores = score(model, shape, ["official"], declared=declare(**sections))
    tally = scores.rule_sets["official"]
    return tally, tally.with_accumulators(), scores


def dense(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.ones_(layer.weight)
    return layer


def test_exact_accumulators_grow_by_a_bit_a_level() -> None:
    quantised = {"parameters": {"weight": 4}, "activations": {"*": 4}}
    tally, exact, scores = accumulators(dense(5, 3), (5,), **quantised, accumulators={"*": "exact"})
    # Five products of 8 bits: two additions of 8 bits, one of 9 (the fifth product waits), and one of 10
    # bits; three outputs.
    assert tally.total == Fraction(15 * 4, 32) + 3 * 4
    assert exact.total == Fraction(15 * 4, 32) + Fraction(3 * (8 + 8 + 9 + 10), 32)
    document = scores.to_json()["official"]
    assert document["total"] == float(tally.total)
    assert document["accumulators"] == {
        "total": float(exact.total),
        "operation_term": float(exact.total) / 10.49e9,
        "score": exact.score,
        "rule": ACCUMULATORS,
    }
    shown = report.text(scores)
    assert f"with the declared accumulators: {float(exact.total):,.0f} operations" in shown
    assert "RULES: an operation whose widest input has b bits counts b/32" in shown


def test_exact_accumulators_of_a_sparse_binary_weight_and_a_bias() -> None:
    layer = dense(8, 1, bias=True)
    layer.weight.data[0, ::2] = 0
    bits = {"parameters": {"weight": 1, "bias": 10}, "activations": {"*": 8}}
    _, exact, _ = accumulators(layer, (8,), **bits, accumulators={"*": "exact"})
    # +-1 times 8 bits is 8 bits; four products: two additions of 8 bits and one of 9; the sum has 10 bits, as
    # the bias has.
    assert exact.total == Fraction(4 * 8, 32) + Fraction(8 + 8 + 9 + 10, 32)
    bits["parameters"] = {"weight": 1}
    _, wide_bias, _ = accumulators(layer, (8,), **bits, accumulators={"*": "exact"})
    assert wide_bias.total == exact.total + Fraction(22, 32)


def test_no_accumulator_is_wider_than_32_bits() -> None:
    tally, exact, scores = accumulators(dense(1000, 2), (1000,), accumulators={"*": "exact"})
    assert exact.total == tally.total
    assert scores.freebie  # nothing is quantised by that


class Block(nn.Module):
    """A convolution, its batch norm's place taken by a multiplication, and a ReLU, all in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 4, 1, 1))
        self.bias = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, self.weight, self.bias)) + 1


def test_multiplications_additions_and_what_follows_are_declared_apart() -> None:
    bits = {"parameters": {"weight": 4}, "activations": {":conv": 4, ":relu": 12}}
    tally, narrow, _ = accumulators(Block(), (4, 3, 3), **bits, accumulators={":conv": 16})
    results = 2 * 9
    after = Fraction(results * 12, 32) + results  # ReLU, and an addition to 32 bits
    assert tally.total == Fraction(results * 4 * 4, 32) + results * 3 + results + after
    assert narrow.total == Fraction(results * 4 * 4, 32) + Fraction(results * (3 + 1) * 16, 32) + after


def test_accumulators_are_declared_by_layer() -> None:
    model = nn.Sequential(nn.Conv2d(4, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense(2, 3))
    bits = {"parameters": {"*.weight": 4}, "activations": {"0": 4, "3": 4, "1": 6}}
    widths = {"0": 20, "1": "exact", "*": 32}
    _, narrow, scores = accumulators(model, (4, 2, 2), **bits, accumulators=widths)
    assert not scores.freebie
    conv = Fraction(32 * 4, 32) + Fraction(24 * 20, 32)
    mean = Fraction(2 * (6 + 6 + 7), 32) + 2  # of four values of 6 bits, and * 1/4
    assert narrow.total == conv + mean + Fraction(6 * 4, 32) + 3


def test_narrow_accumulators_are_a_quantisation() -> None:
    assert not score(dense(8, 1), (8,), declared=declare(accumulators={"*": 16})).freebie
    assert score(dense(8, 1), (8,), declared=declare(accumulators={"*": 32})).freebie


@pytest.mark.parametrize("width", [0, 33, "wide", True, {"bits": 4}])
def test_an_accumulator_that_is_no_width_is_refused(width: object) -> None:
    with pytest.raises(UsageError, match=r"accumulators '\*': .* is not a width"):
        declare(accumulators={"*": width})


def test_an_accumulator_of_no_layer_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no accumulators match 'head'"):
        official(dense(8, 1), (8,), accumulators={"head": "exact"})
