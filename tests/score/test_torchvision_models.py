"""Published networks: no operator unknown, and the multiply-accumulates that torchvision publishes."""

from __future__ import annotations

import pytest
from torchvision import models

from job.score.rules import Scores, score

SHAPE = (3, 224, 224)
DOTS = ("conv", "linear", "matmul")


def published(name: str) -> float:
    """Return the 10^9 multiply-accumulates of the weights' metadata, which has three decimals."""
    weights = next(weight for weight in models.get_model_weights(name) if "V1" in weight.name)
    operations: float = weights.meta["_ops"]
    return operations


def dot_multiplications(scores: Scores) -> int:
    lines = scores.rule_sets["official"].lines
    return sum(line.multiplications for line in lines if line.kind in DOTS)


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v2", "resnet18", "resnet50", "efficientnet_b0", "mobilenet_v3_small", "mobilenet_v3_large"],
)
def test_convolutional_networks_agree_with_the_published_figure(name: str) -> None:
    scores = score(getattr(models, name)(), SHAPE)
    assert scores.unknown == ()
    assert dot_multiplications(scores) / 1e9 == pytest.approx(published(name), rel=0.01)


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t"])
def test_networks_of_linear_layers_agree_with_the_published_figure(name: str) -> None:
    scores = score(getattr(models, name)(), SHAPE)
    assert scores.unknown == ()
    assert dot_multiplications(scores) / 1e9 == pytest.approx(published(name), rel=0.001)


def test_vit_b_16_agrees_with_the_published_figure_once_its_softmax_is_set_apart() -> None:
    scores = score(models.vit_b_16(), SHAPE)
    assert scores.unknown == ()
    lines = scores.rule_sets["official"].lines
    attention = [line.multiplications for line in lines if line.kind == "attention"]
    # 12 layers of 12 heads; 197 tokens (14 x 14 patches and the class) of 64 values each.
    pairs = 12 * 197 * 197
    assert attention == 12 * [pairs * 64 + pairs * 64 + pairs + 2 * pairs]
    # What is published has the two products, not the scale, the exponentials and the divisions.
    products = dot_multiplications(scores) + 12 * 2 * pairs * 64
    assert products / 1e9 == pytest.approx(published("vit_b_16"), rel=0.001)
    assert (products + 12 * 3 * pairs) / products == pytest.approx(1.001, abs=0.0001)


def test_shufflenet_pays_for_its_shuffles_as_the_rules_say() -> None:
    tally = score(models.shufflenet_v2_x1_0(), SHAPE, ["official"]).rule_sets["official"]
    shuffles = [line.multiplications for line in tally.lines if line.kind == "permutation"]
    # Three stages of 4, 8 and 4 units: a multiplication for each of 116 x 28 x 28 values, and so on.
    assert shuffles == 4 * [116 * 28 * 28] + 8 * [232 * 14 * 14] + 4 * [464 * 7 * 7]
    # Each stage's permutation matrix is stored once: its ones at 16 bits, and one bit for every place.
    matrices = [value.counted for value in tally.values if value.name.endswith("permutation")]
    assert [float(matrix) for matrix in matrices] == [(n * 16 + n * n) / 32 for n in (116, 232, 464)]


def test_swin_stores_its_masks_and_not_its_shapes() -> None:
    tally = score(models.swin_t(), SHAPE, ["official"], freebie=False).rule_sets["official"]
    parameters = sum(parameter.numel() for parameter in models.swin_t().parameters())
    # Added to the parameters: the masks of the shifted windows (64, 16 and three times 4 windows of 49 x 49,
    # computed from shapes alone) and the 12 index tables into the position biases.
    masks, tables = (64 + 16 + 3 * 4) * 49 * 49, 12 * 49 * 49
    assert tally.parameters == parameters + masks + tables
