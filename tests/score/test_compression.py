"""WideResNet-22-6 with random zeros and few bits, counted: the table that the compact recipe was chosen by.

The table has the batch norm after each first convolution and the factor 0.2 of each block folded into them.
Where these are quantised nothing folds into them, since their levels are shared by all channels:
the norms and factors are counted. So are the divisions by the step sizes and those themselves. Of ternary
weights the table has the mask alone; each that is not zero has a sign too.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from job.network import compressed
from job.recipe import RECIPES
from job.score.rules import score
from job.score.tally import CIFAR100_BASELINE, Tally
from job.train.target_score import Sample

ZEROS = (0.0, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9)
TABLE = {
    None: (0.3309, 0.1741, 0.1411, 0.1081, 0.0916, 0.0751, 0.0586, 0.0421),
    (8, 8): (0.2317, 0.1244, 0.1013, 0.0782, 0.0667, 0.0551, 0.0436, 0.0320),
    (4, 8): (0.1986, 0.1079, 0.0881, 0.0683, 0.0584, 0.0485, 0.0386, 0.0287),
    (4, 4): (0.1822, 0.0997, 0.0815, 0.0634, 0.0543, 0.0452, 0.0362, 0.0271),
    (1, 8): (None, 0.0914, 0.0749, 0.0584, 0.0502, 0.0419, 0.0337, 0.0254),
}
BLOCK_OUTPUTS = 3 * (96 + 192 / 4 + 384 / 16) * 32 * 32  # of all first convolutions, and of all second ones
CHANNELS = 3 * (96 + 192 + 384)  # of the first convolutions
LAYERS = 23


@pytest.mark.parametrize("bits", TABLE)
def test_random_zeros_score_as_the_table_has_it(bits: tuple[int, int] | None) -> None:
    recipe = RECIPES["compact"]
    if bits:
        recipe = replace(recipe, weight_bits=bits[0], activation_bits=bits[1])
    else:
        recipe = replace(recipe, quantise_cycles=())
    sample = Sample(recipe, 100, (3, 32, 32))
    sample.score(ZEROS[1])
    operations = not_in_the_table(sample) if bits else Fraction()  # of activations, whatever the zeros
    for share, expected in zip(ZEROS, TABLE[bits], strict=True):
        if expected is None:
            continue
        found = sample.score(share)
        if bits:
            found -= CIFAR100_BASELINE.score(parameters_not_in_the_table(sample, bits), operations)
        assert found == pytest.approx(expected, abs=0.5e-4 + 1e-6), share


def not_in_the_table(sample: Sample) -> Fraction:
    tally = score(sample.network, rule_sets=["official"]).rule_sets["official"]
    factors, norms, divisions = terms(tally)
    assert factors == norms == BLOCK_OUTPUTS
    return Fraction(factors + norms + divisions)


def parameters_not_in_the_table(sample: Sample, bits: tuple[int, int]) -> Fraction:
    weights = sum(
        int(layer.mask.sum())
        for name, layer in compressed.layers(sample.network)
        if compressed.is_prunable(name)
    )
    signs = Fraction(weights, 32) if bits[0] == 1 else Fraction()
    return CHANNELS + 2 * LAYERS + signs


def terms(tally: Tally) -> tuple[float, float, float]:
    """The multiplications, all of 32 bits, by 0.2, of the norms after first convolutions, and by steps."""
    factors = sum(line.multiplications for line in tally.lines if line.kind == "multiply")
    norms = sum(line.multiplications for line in tally.lines if line.layer.endswith("bn2"))
    divisions = sum(line.multiplications for line in tally.lines if line.kind == "quantise")
    return factors, norms, divisions
