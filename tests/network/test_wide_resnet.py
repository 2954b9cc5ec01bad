import pytest
import torch
from torch import nn
from torch.nn import functional as F

from job.network.wide_resnet import wide_resnet


def test_default_network_is_the_entrys() -> None:
    network = wide_resnet()
    modules = list(network.modules())
    assert sum(parameter.numel() for parameter in network.parameters()) == 9_693_108
    assert len(list(network.parameters())) == 62
    assert sum(isinstance(module, nn.Conv2d) for module in modules) == 22
    assert sum(isinstance(module, nn.BatchNorm2d) for module in modules) == 19
    assert {(norm.eps, norm.momentum) for norm in modules if isinstance(norm, nn.BatchNorm2d)} == {
        (1e-5, 0.1)
    }


def test_state_dict_names_are_stable() -> None:
    names = set(wide_resnet().state_dict())
    norm = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    expected = {"stem.weight", "linear.weight", "linear.bias"} | {f"bn.{name}" for name in norm}
    for block in range(1, 10):
        expected |= {f"block{block}.conv{conv}.weight" for conv in (1, 2)}
        expected |= {f"block{block}.bn{bn}.{name}" for bn in (1, 2) for name in norm}
    expected |= {f"block{block}.shortcut.weight" for block in (1, 4, 7)}
    assert names == expected


def test_forward_is_the_recipes_formula() -> None:
    """One block a group, in evaluation mode, written out with the functions of `torch.nn.functional`."""
    torch.manual_seed(0)
    network = wide_resnet(depth=10, width=1, classes=7).eval()
    state = network.state_dict()
    for name, tensor in state.items():
        if name.endswith(("running_mean", "bias")):
            tensor.normal_()
        elif name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
            tensor.uniform_(0.5, 2)
    x = images = torch.randn(2, 3, 32, 32)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"].view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = F.conv2d(x, state["stem.weight"], padding=1)
    for block, stride in ((1, 1), (2, 2), (3, 2)):
        h = norm(x, f"block{block}.bn1").clamp(min=0)
        out = F.conv2d(h, state[f"block{block}.conv1.weight"], stride=stride, padding=1)
        out = norm(out, f"block{block}.bn2").clamp(min=0)
        out = F.conv2d(out, state[f"block{block}.conv2.weight"], padding=1)
        shortcut = state.get(f"block{block}.shortcut.weight")  # 16 to 16 channels: none in the first block
        x = out * 0.2 + (h if shortcut is None else F.conv2d(h, shortcut, stride=stride))
    pooled = norm(x, "bn").clamp(min=0).mean((2, 3))
    expected = pooled @ state["linear.weight"].T + state["linear.bias"]
    with torch.no_grad():
        assert torch.allclose(network(images), expected, atol=1e-4)


def test_initialisation_is_kaiming_normal_by_fan_in() -> None:
    torch.manual_seed(0)
    weight = wide_resnet().state_dict()["block9.conv2.weight"]  # 1.3 M values
    assert weight.std().item() == pytest.approx((2 / (384 * 9)) ** 0.5, rel=0.01)
    assert weight.mean().item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("depth", "width"), [(21, 6), (4, 1), (22, 0)])
def test_what_makes_no_network_is_an_error(depth: int, width: int) -> None:
    with pytest.raises(ValueError, match="6n"):
        wide_resnet(depth, width)
