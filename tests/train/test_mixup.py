import torch
from scipy import stats
from torch.nn import functional as F

from job.train import mixup


def test_shares_are_the_larger_part_of_a_beta_variable() -> None:
    drawn = mixup.draw(100, 1_000, 0.4, torch.Generator().manual_seed(22))
    # P(max(l, 1 - l) <= x) = P(l <= x) - P(l <= 1 - x)
    beta = stats.beta(0.4, 0.4)
    test = stats.kstest(drawn.share.flatten().double().numpy(), lambda x: beta.cdf(x) - beta.cdf(1 - x))
    assert drawn.share.min() >= 0.5
    assert test.pvalue > 1e-4, test


def test_partners_are_a_permutation() -> None:
    drawn = mixup.draw(3, 256, 0.4, torch.Generator().manual_seed(0))
    assert drawn.partner.sort().values.tolist() == [list(range(256))] * 3
    assert not torch.equal(drawn.partner[0], drawn.partner[1])


def test_mixing_and_its_loss_are_v1s() -> None:
    generator = torch.Generator().manual_seed(1)
    images, logits = torch.rand(5, 3, 4, 4, generator=generator), torch.randn(5, 7, generator=generator)
    labels = torch.tensor([0, 6, 2, 2, 5])
    drawn = mixup.Mix(*(each[0] for each in mixup.draw(1, 5, 0.4, generator)))
    mixed, targets = mixup.mix(images, F.one_hot(labels, 7).float(), drawn)

    share, partner = drawn
    for index in range(5):
        expected = images[index] * share[index] + images[partner[index]] * (1 - share[index])
        assert torch.allclose(mixed[index], expected, atol=1e-6)
    two_losses = share * F.cross_entropy(logits, labels, reduction="none") + (1 - share) * F.cross_entropy(
        logits, labels[partner], reduction="none"
    )
    assert torch.allclose(F.cross_entropy(logits, targets), two_losses.mean())
