"""Write bench/SCORES.md, what well-known networks score: `python bench/score_table.py`, about a minute."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torchvision import models

from job.network.wide_resnet import wide_resnet
from job.score.rules import score
from job.score.tally import CIFAR100_BASELINE, IMAGENET_BASELINE, Baseline, Tally

TABLE = Path(__file__).with_name("SCORES.md")

IMAGENET_NETWORKS = [
    "alexnet",
    "vgg16",
    "googlenet",
    "inception_v3",
    "squeezenet1_1",
    "densenet121",
    "resnet18",
    "resnet50",
    "wide_resnet50_2",
    "resnext50_32x4d",
    "shufflenet_v2_x1_0",
    "mnasnet1_0",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "regnet_y_400mf",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
]

HEAD = """# What networks score under the rule set `official`

Written by `python bench/score_table.py` with untrained weights of float32, torchvision {torchvision}; the
test `tests/score/test_score_table.py` compares rows with what is counted now. Lower is better. With the
freebie, which an entry that quantises nothing may claim, parameters and multiplications count as 16-bit
values; without it each counts 1.

| network | image | relative to | freebie | parameters | operations | score |
|---|---|---|---|---|---|---|
"""


def counted(network: nn.Module, size: int, baseline: Baseline, freebie: bool) -> Tally:
    """Return the official count of `network` on one image of 3 x `size` x `size`."""
    scores = score(network, (3, size, size), ["official"], baseline=baseline, freebie=freebie)
    return scores.rule_sets["official"]


def rows(name: str, make: Callable[[], nn.Module], size: int, baseline: Baseline) -> Iterator[str]:
    """Yield a row with the freebie and one without it."""
    torch.manual_seed(0)
    network = make()
    for freebie in (True, False):
        tally = counted(network, size, baseline, freebie)
        yield (
            f"| {name} | {size} x {size} | {baseline.name} | {'yes' if freebie else 'no'} |"
            f" {float(tally.parameters):,.0f} | {float(tally.total):,.0f} | {tally.score:.4f} |"
        )


def wide(depth: int, width: int) -> Iterator[str]:
    """Yield the rows of a WideResNet for CIFAR-100."""
    return rows(f"WideResNet-{depth}-{width}", lambda: wide_resnet(depth, width), 32, CIFAR100_BASELINE)


def of_torchvision(name: str) -> Iterator[str]:
    """Yield the rows of one of torchvision's networks."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    size = 299 if name == "inception_v3" else 224
    return rows(name, lambda: getattr(models, name)(**options), size, IMAGENET_BASELINE)


def main() -> None:
    """Write the table."""
    import torchvision

    torch.set_num_threads(1)
    lines = [*wide(22, 6), *wide(28, 10)]
    for name in IMAGENET_NETWORKS:
        print(name, file=sys.stderr)
        lines += of_torchvision(name)
    TABLE.write_text(HEAD.format(torchvision=torchvision.__version__) + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
