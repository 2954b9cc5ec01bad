"""Mixup (Zhang et al., arXiv:1710.09412) in fastai v1's form, drawn first and applied afterwards."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Mix(NamedTuple):
    """Partners and shares for N images of each of S steps (or, without the first dimension, of one)."""

    share: Tensor  # [S, N] float32 of the image itself, in [0.5, 1]
    partner: Tensor  # [S, N] int64 index in the batch


def draw(steps: int, count: int, alpha: float, generator: torch.Generator) -> Mix:
    """Draw shares max(l, 1 - l) with l ~ Beta(alpha, alpha), and for each step a permutation of partners.

    A Beta variable is the ratio of two Gamma variables; `torch.distributions` takes no generator.
    """
    device = generator.device
    gamma = torch._standard_gamma(torch.full((2, steps, count), alpha, device=device), generator=generator)
    share = gamma[0] / gamma.sum(0)
    keys = torch.rand(steps, count, generator=generator, device=device)
    return Mix(torch.maximum(share, 1 - share), keys.argsort(dim=1, stable=True))


def mix(images: Tensor, targets: Tensor, choices: Mix) -> tuple[Tensor, Tensor]:
    """Mix `images` [N, C, H, W] and soft `targets` [N, classes] with their partners'.

    Cross-entropy is linear in its target, so that this is v1's l CE(y) + (1 - l) CE(y[partner]).
    """
    share, partner = choices
    return (
        torch.lerp(images[partner], images, share.view(-1, 1, 1, 1)),
        torch.lerp(targets[partner], targets, share.view(-1, 1)),
    )
