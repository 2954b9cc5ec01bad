"""WRN-22-6 and the baseline WRN-28-10 under the three rule sets, against numbers derived by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from job.network.wide_resnet import wide_resnet
from job.score.rules import score


def test_default_network_has_every_number_of_the_writeup() -> None:
    assert score(wide_resnet(), rule_sets=["writeup"]).to_json()["writeup"] == {
        "parameters": 9_693_108,
        "operations": {
            "conv": {
                "multiplications": 1_384_562_688,
                "additions": 1_383_342_080,
                "counted": 2_075_623_424,
            },
            "linear": {"multiplications": 38_400, "additions": 38_300, "counted": 57_500},
            "pool": {"multiplications": 384, "additions": 24_576, "counted": 24_768},
        },
        "total": 2_075_705_692,
        "parameter_term": 9_693_108 / 36.5e6,
        "operation_term": 2_075_705_692 / 10.49e9,
        "score": 0.4634393112239968,
    }


def test_default_network_has_every_number_of_the_leaderboard() -> None:
    listed = score(wide_resnet(), rule_sets=["leaderboard"]).to_json()["leaderboard"]
    assert listed["operations"]["conv"]["counted"] == 2_075_623_424
    assert listed["operations"]["relu"] == {
        "multiplications": 540_672,
        "additions": 0,
        "counted": 270_336,
    }
    assert listed["parameters"] == 9_693_108
    assert listed["total"] == 2_075_976_028
    assert listed["score"] == 0.46346508205335807


def test_default_network_official_is_derived_by_hand_term_by_term() -> None:
    # Elements of an activation: 16 channels after the stem, then 96 at 32x32, 192 at 16x16, 384 at 8x8.
    stem, a, b, c = 16 * 1024, 96 * 1024, 192 * 256, 384 * 64
    # Convolutions as (outputs, length of the dot product): the stem, then in each group the first block's
    # first convolution and shortcut from the narrower group, and five more 3x3 convolutions.
    convolutions = [(stem, 3 * 9)]
    for outputs, before, channels in ((a, 16, 96), (b, 96, 192), (c, 192, 384)):
        convolutions += [(outputs, before * 9), (outputs, before), *5 * [(outputs, channels * 9)]]
    assert len(convolutions) == 22
    products = sum(outputs * length for outputs, length in convolutions)
    sums = sum(outputs * (length - 1) for outputs, length in convolutions)
    # Folded batch norms: the first block's first (its input is the stem, which nothing else reads) and the
    # second of each of the nine blocks (its input is conv1). Each leaves an addition an element.
    folded = stem + 3 * a + 3 * b + 3 * c
    # Standing: the first of blocks 2 to 9 (the input is a residual sum) and the tail's.
    standing = 2 * a + (a + 2 * b) + (b + 2 * c) + c
    # The 0.2 of each block multiplies conv2, which nothing else reads: folded, so no multiplication.
    # A ReLU follows each of the 19 batch norms; nine residual sums; the pool's 64 values for 384 channels.
    relu = stem + 3 * a + 3 * b + 3 * c + standing
    residual = 3 * a + 3 * b + 3 * c
    multiplications = {
        "conv": products,
        "norm": standing,
        "relu": relu,
        "add": 0,
        "pool": 384,
        "linear": 384 * 100,
    }
    additions = {
        "conv": sums + folded,
        "norm": standing,
        "relu": 0,
        "add": residual,
        "pool": 384 * 63,
        "linear": 383 * 100 + 100,
    }
    total = sum(multiplications.values()) / 2 + sum(additions.values())
    # Stored: the convolutions and the linear layer; a value a channel for a folded batch norm, two for a
    # standing one; all at 16 bits.
    weights = 16 * 27 + sum(
        before * channels * 9 + before * channels + 5 * channels * channels * 9
        for before, channels in ((16, 96), (96, 192), (192, 384))
    )
    norms = (16 + 3 * 96 + 3 * 192 + 3 * 384) + 2 * (3 * 96 + 3 * 192 + 3 * 384)
    parameters = (weights + 384 * 100 + 100 + norms) / 2

    official = score(wide_resnet(), rule_sets=["official"]).to_json()["official"]
    counted = official["operations"]
    assert {kind: row["multiplications"] for kind, row in counted.items()} == multiplications
    assert {kind: row["additions"] for kind, row in counted.items()} == additions
    assert official["total"] == total == 2_078_052_416
    assert official["parameters"] == parameters == 4_845_538
    assert official["score"] == parameters / 36.5e6 + total / 10.49e9


def test_baseline_scores_two_when_every_value_counts_32_bits() -> None:
    baseline = score(wide_resnet(28, 10), rule_sets=["official"], freebie=False).to_json()["official"]
    # The challenge quotes 36.5 M parameters and 10.49 B operations.
    assert round(baseline["parameters"] / 1e6, 1) == 36.5
    assert round(baseline["total"] / 1e9, 2) == 10.49
    assert round(baseline["score"], 2) == 2.00


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_only_read(training: bool) -> None:
    network = wide_resnet(10, 1, 7).train(training)
    network.get_submodule("block1").register_forward_hook(lambda *_: None)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in network.state_dict().items()}
    modules = {
        name: (
            module.training,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            set(vars(module)),
        )
        for name, module in network.named_modules()
    }
    score(network)
    after = network.state_dict()
    assert after.keys() == before.keys()
    for name, (address, value) in before.items():
        assert after[name].data_ptr() == address
        assert torch.equal(after[name], value)
    assert modules == {
        name: (
            module.training,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            set(vars(module)),
        )
        for name, module in network.named_modules()
    }
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_the_layer_classes_of_this_process_are_left_alone() -> None:
    classes = (nn.Module, nn.Conv2d, nn.Linear, nn.ReLU, nn.BatchNorm2d)
    calls = [layer.__call__ for layer in classes]
    score(wide_resnet(10, 1, 7))
    assert [layer.__call__ for layer in classes] == calls
    assert torch.is_grad_enabled()
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


def test_a_network_on_the_meta_device_is_counted_too() -> None:
    with torch.device("meta"):
        network = wide_resnet()
    assert score(network).to_json()["leaderboard"]["score"] == 0.46346508205335807
