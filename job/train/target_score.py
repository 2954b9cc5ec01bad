"""The sparsity that a score asks for, by the score's own count of random zeros in the recipe's network."""

from __future__ import annotations

from dataclasses import replace

import torch

from job.data.cifar import Dataset
from job.errors import ConfigurationError
from job.network import compressed
from job.recipe import MAX_SPARSITY, Recipe
from job.score.rules import score as rule_sets

GRID = 10_000
"""Sparsities are whole multiples of 1 / GRID."""

STEP = 1.5
"""Value of every weight and step size; dividing by a power of two would count as no operation."""

NEAR = 3  # of those, around where the score would be the target if it were linear


def choose_sparsity(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Return the recipe with the least sparsity that brings its score down to the target, if it has one.

    Raises ConfigurationError where no sparsity does.
    """
    target = recipe.target_score
    if not target:
        return recipe
    sample = Sample(recipe, len(dataset.classes), dataset.train.images.shape[1:])
    most = round(MAX_SPARSITY * GRID)
    dense, best = sample.score(0.0), sample.score(most / GRID)
    if best > target:
        raise ConfigurationError(
            f"--target-score {target:g}: with {most / GRID:.0%} zeros this network still scores {best:.4g}",
            "Ask for a higher score, fewer bits or a smaller network",
        )
    if dense <= target:
        return replace(recipe, sparsity=0.0)
    low, high = 0, most  # the first misses the target, the second reaches it
    guess = round(most * (dense - target) / (dense - best))
    hints = [guess + NEAR, guess - NEAR]
    while high - low > 1:
        middle = hints.pop() if hints else (low + high) // 2
        middle = min(max(middle, low + 1), high - 1)
        low, high = (low, middle) if sample.score(middle / GRID) <= target else (middle, high)
    return replace(recipe, sparsity=high / GRID)


class Sample:
    """The network of a recipe with random zeros and its bits, to be counted before anything is trained."""

    def __init__(self, recipe: Recipe, classes: int, shape: tuple[int, ...]) -> None:
        self.shape = shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = compressed.build(recipe.depth, recipe.width, classes)
            sizes = {name: layer.weight.numel() for name, layer in compressed.layers(self.network)}
            self.orders = {name: torch.randperm(size) for name, size in sizes.items()}
        if recipe.quantise_cycles:
            compressed.quantise(self.network, recipe.weight_bits, recipe.activation_bits)

    @torch.no_grad()
    def score(self, sparsity: float) -> float:
        """Return the official score with that share of zeros in each prunable layer."""
        for name, layer in compressed.layers(self.network):
            order = self.orders[name]
            zeros = round(sparsity * len(order)) if compressed.is_prunable(name) else 0
            layer.mask.copy_((order >= zeros).view(layer.mask.shape))
            layer.weight.copy_(layer.mask).mul_(STEP)
            layer.weight_step.fill_(STEP)
            layer.input_step.fill_(STEP)
        return rule_sets(self.network, self.shape, ["official"]).rule_sets["official"].score
