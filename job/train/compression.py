"""What the phases after the dense one do around a step, each a pure function of (seed, epoch, step)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job.network import compressed, weights
from job.phases import PRUNE, QUANTISE, STATISTICS, Phase
from job.recipe import Recipe
from job.train.step import Precision

RAMP = 0.5
"""Share of the pruning's epochs, rounded up, in which its zeros grow; the others train with them."""

STEP_SIZE_LR_FACTOR = 0.1
"""Learning rate of a step size over a weight's: Adam moves both by about the rate, and steps are small."""


def sparsity_at(phase: Phase, epoch: int, final: float) -> float:
    """Return the share of zeros in an epoch, from 0, of the pruning: cubic (Zhu, Gupta: arXiv:1710.01878)."""
    ramp = math.ceil(RAMP * phase.epochs)
    progress = min(1.0, (epoch - phase.first + 1) / ramp)
    return final * (1 - (1 - progress) ** 3)


class Teacher:
    """Mixes a trained network's answers into the targets, `share` of them.

    Their cross-entropy has the gradient of (1 - share) cross-entropy + share KL(teacher || network).
    """

    def __init__(self, network: nn.Module, share: float, precision: str, device: torch.device) -> None:
        network = network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.model, self.share = Precision(network, precision), share

    @classmethod
    def of(cls, recipe: Recipe, dense: nn.Module | bytes, device: torch.device) -> Teacher:
        """Return the recipe's teacher with a network, or with the one in a file of weights."""
        network = weights.load(dense)[0] if isinstance(dense, bytes) else dense
        return cls(network, recipe.distillation, recipe.precision, device)

    @torch.no_grad()
    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the targets [N, classes] for the mixed images [N, 3, H, W] and their mixed labels."""
        return targets.lerp(self.model(images).softmax(1), self.share)


class Compression:
    """Prunes, quantises and re-estimates `network` in place, in the phases that do."""

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        self.network, self.recipe = network, recipe
        self.norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
        self.step_sizes = [
            step for _, layer in compressed.layers(network) for step in (layer.weight_step, layer.input_step)
        ]

    def enter(self, phase: Phase) -> list[list[nn.Parameter]]:
        """Let the network compute as in `phase`, without a change of its values.

        Returns what trains: the weights, then any step sizes.
        """
        if phase.name == QUANTISE or (phase.name == STATISTICS and self.recipe.quantise_cycles):
            compressed.quantise(self.network, self.recipe.weight_bits, self.recipe.activation_bits)
        step_sizes = set(self.step_sizes)
        weights = [parameter for parameter in self.network.parameters() if parameter not in step_sizes]
        return [weights, self.step_sizes] if phase.name == QUANTISE else [weights]

    def begin_epoch(self, phase: Phase, epoch: int, images: Tensor | None) -> None:
        """Do what comes before an epoch's first step; `images` are that step's, needed where `needs_images`.

        Done twice it has the same result, so that a state may be taken before or after.
        """
        if phase.name == PRUNE:
            compressed.prune(self.network, sparsity_at(phase, epoch, self.recipe.sparsity))
        if images is not None:
            compressed.calibrate(self.network, images, Precision(self.network, self.recipe.precision))

    @staticmethod
    def needs_images(phase: Phase, epoch: int) -> bool:
        """Return whether the epoch starts by calibrating on its first images."""
        return phase.name == QUANTISE and epoch == phase.first

    def after_step(self, phase: Phase) -> None:
        """Undo what the optimizer did to zeros."""
        if phase.name in (PRUNE, QUANTISE):
            compressed.keep_zeros(self.network)

    @torch.no_grad()
    def observe(self, images: Tensor, targets: Tensor, done: int) -> Tensor:
        """Average a batch into the norms' statistics, of which `done` are in already; return the loss.

        In fp32, as the network is judged.
        """
        for norm in self.norms:
            norm.momentum = 1 / (done + 1)
        return F.cross_entropy(self.network(images), targets)


def effective_weights(network: nn.Module) -> Iterator[tuple[str, compressed.LayerBits | None, Tensor]]:
    """Yield each convolution and linear layer: its name, its bits and its weight as it computes with it."""
    for name, layer in network.named_modules():
        if isinstance(layer, compressed.Layer) and layer.bits:
            yield name, layer.bits, compressed.quantised_weight(layer, layer.bits.weight)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            yield name, None, layer.weight
