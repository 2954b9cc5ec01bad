"""Augmentation and mixup against fastai v1's formulas, worked out with numpy one transform at a time."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from job.train import augment
from job.train.augment import Choices

SIZE = 32


def choices(**chosen: object) -> Choices:
    """Return the choices for one image: neutral but for those given."""
    neutral = {
        "flip": [1.0],
        "shift": [[0.0], [0.0]],
        "warp": [[0.0]] * 4,
        "angle": [0.0],
        "zoom": [1.0],
        "centre": [[0.5], [0.5]],
        "brightness": [0.5],
        "contrast": [1.0],
    }
    return Choices(**{name: torch.tensor(value) for name, value in (neutral | chosen).items()})


def done(**chosen: object) -> augment.Transforms:
    """Return what the choices do to one image."""
    return augment.prepare(choices(**chosen), SIZE)


def image(seed: int = 0, size: int = SIZE) -> torch.Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_neutral_choices_change_nothing() -> None:
    assert torch.allclose(augment.augment(image(), done()), image(), atol=1e-5)


def test_flip_mirrors_left_and_right() -> None:
    flipped = augment.augment(image(), done(flip=[-1.0]))
    assert torch.allclose(flipped, image().flip(-1), atol=1e-5)


@pytest.mark.parametrize(("right", "down"), [(4, -4), (-3, 2), (0, 4)])
def test_shift_is_a_crop_after_reflection_padding(right: int, down: int) -> None:
    padded = np.pad(image().numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect")
    crop = padded[:, :, 4 + down : 36 + down, 4 + right : 36 + right]
    shifted = augment.augment(image(), done(shift=[[float(right)], [float(down)]]))
    assert np.allclose(shifted, crop, atol=1e-5)


def v1_warp(points: np.ndarray, m: list[float]) -> np.ndarray:
    """Solve v1's eight equations for the perspective that takes the targets to the corners; apply it."""
    corners = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    targets = [(-1 - m[3], -1 - m[1]), (-1 - m[2], 1 + m[1]), (1 + m[3], -1 - m[0]), (1 + m[2], 1 + m[0])]
    rows, right = [], []
    for (x, y), (u, v) in zip(targets, corners, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    a, b, c, d, e, f, g, h = np.linalg.solve(np.array(rows), np.array(right))
    x, y = points.T
    return np.stack([(a * x + b * y + c), (d * x + e * y + f)], axis=1) / (g * x + h * y + 1)[:, None]


def test_coordinates_are_v1s_transforms_in_v1s_order() -> None:
    m, angle, scale, centre, shift = [0.17, -0.06, 0.2, -0.11], math.radians(8.0), 1.07, (0.3, 0.9), (3, -2)
    line = np.linspace(-1, 1, SIZE)
    points = np.stack([np.tile(line, SIZE), np.repeat(line, SIZE)], axis=1)
    points = points * [-1, 1]  # flip, on the output grid
    points = points + np.array(shift) * 2 / (SIZE - 1)  # crop
    points = v1_warp(points, m)
    zoom_shift = [(1 - 1 / scale) * (2 * pct - 1) for pct in centre]
    points = points / scale + zoom_shift  # zoom, then rotation: (R Z) applied to the warped grid
    points = points @ np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).T

    drawn = choices(
        flip=[-1.0],
        shift=[[3.0], [-2.0]],
        warp=[[value] for value in m],
        angle=[angle],
        zoom=[scale],
        centre=[[centre[0]], [centre[1]]],
    )
    maps = augment.projection(drawn, SIZE)[0].double().numpy()
    homogeneous = (
        np.concatenate([np.stack([np.tile(line, SIZE), np.repeat(line, SIZE)], 1), np.ones((SIZE**2, 1))], 1)
        @ maps.T
    )
    assert np.allclose(homogeneous[:, :2] / homogeneous[:, 2:], points, atol=1e-5)


def test_resampling_is_bilinear_and_reflects_at_the_centres_of_the_border_pixels() -> None:
    source = image(size=5)
    angle = math.radians(10)
    result = augment.resample(source, augment.projection(choices(angle=[angle], shift=[[2.0], [1.0]]), 5))

    def reflected(position: float) -> float:
        position = abs(position) % 8  # period 2 (size - 1)
        return 8 - position if position > 4 else position

    pixels = source[0, 0].double().numpy()
    expected = np.empty((5, 5))
    for row in range(5):
        for column in range(5):
            x, y = column / 2 - 1 + 2 * 2 / 4, row / 2 - 1 + 1 * 2 / 4
            u = math.cos(angle) * x - math.sin(angle) * y
            v = math.sin(angle) * x + math.cos(angle) * y
            c, r = reflected((u + 1) * 2), reflected((v + 1) * 2)
            c0, r0 = min(int(c), 3), min(int(r), 3)
            a, b = c - c0, r - r0
            expected[row, column] = (
                pixels[r0, c0] * (1 - a) * (1 - b)
                + pixels[r0, c0 + 1] * a * (1 - b)
                + pixels[r0 + 1, c0] * (1 - a) * b
                + pixels[r0 + 1, c0 + 1] * a * b
            )
    assert np.allclose(result[0, 0], expected, atol=1e-5)


def test_lighting_shifts_and_scales_in_logit_space() -> None:
    # x = 0.25: logit -ln 3; b = 0.6: logit ln 1.5; sum -ln 2; times 1.25; sigmoid = 1 / (1 + 2^1.25).
    lit = augment.light(torch.full((1, 3, 2, 2), 0.25), *done(brightness=[0.6], contrast=[1.25])[1:])
    assert torch.allclose(lit, torch.tensor(1 / (1 + 2**1.25)))


def test_lighting_keeps_black_and_white_finite() -> None:
    extremes = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    lit = augment.light(extremes.clone(), *done(brightness=[0.4], contrast=[1.25])[1:])
    assert torch.allclose(lit, extremes, atol=1e-6)


COUNT = 100_000
FOUR_SIGMA = 4 / math.sqrt(COUNT)


@pytest.fixture(scope="module")
def drawn() -> Choices:
    return augment.draw(COUNT, 4, torch.Generator().manual_seed(22))


def assert_uniform(values: torch.Tensor, low: float, high: float) -> None:
    quantiles = torch.quantile(values.double()[:COUNT], torch.linspace(0, 1, 11, dtype=torch.float64))
    expected = torch.linspace(low, high, 11, dtype=torch.float64)
    assert torch.allclose(quantiles, expected, atol=(high - low) * 3 * FOUR_SIGMA), quantiles


@pytest.mark.parametrize(
    ("name", "neutral", "low", "high"),
    [("angle", 0.0, -10.0, 10.0), ("zoom", 1.0, 1.0, 1.1), ("brightness", 0.5, 0.4, 0.6)],
)
def test_three_in_four_images_get_a_uniform_magnitude(
    drawn: Choices, name: str, neutral: float, low: float, high: float
) -> None:
    values = getattr(drawn, name)
    applied = values != neutral
    assert applied.double().mean().item() == pytest.approx(0.75, abs=FOUR_SIGMA)
    assert_uniform(values[applied].rad2deg() if name == "angle" else values[applied], low, high)


def test_contrast_is_log_uniform(drawn: Choices) -> None:
    applied = drawn.contrast != 1
    assert applied.double().mean().item() == pytest.approx(0.75, abs=FOUR_SIGMA)
    assert_uniform(drawn.contrast[applied].log(), math.log(0.8), math.log(1.25))


def test_warp_moves_all_four_magnitudes_or_none(drawn: Choices) -> None:
    applied = (drawn.warp != 0).all(0)
    assert torch.equal(applied, (drawn.warp != 0).any(0))
    assert applied.double().mean().item() == pytest.approx(0.75, abs=FOUR_SIGMA)
    for magnitudes in drawn.warp:
        assert_uniform(magnitudes[applied], -0.2, 0.2)
    correlation = torch.corrcoef(drawn.warp[:, applied]) - torch.eye(4)
    assert correlation.abs().max() < 2 * FOUR_SIGMA


def test_flip_and_shift(drawn: Choices) -> None:
    assert (drawn.flip == -1).double().mean().item() == pytest.approx(0.5, abs=FOUR_SIGMA)
    assert_uniform(drawn.centre.flatten(), 0, 1)
    for shift in drawn.shift:
        values, counts = shift.unique(return_counts=True)
        assert values.tolist() == list(range(-4, 5))
        assert torch.allclose(counts / COUNT, torch.tensor(1 / 9), atol=FOUR_SIGMA)


def test_what_is_applied_is_chosen_independently(drawn: Choices) -> None:
    applied = torch.stack(
        [
            drawn.flip == -1,
            drawn.warp[0] != 0,
            drawn.angle != 0,
            drawn.zoom != 1,
            drawn.brightness != 0.5,
            drawn.contrast != 1,
        ]
    ).double()
    assert (torch.corrcoef(applied) - torch.eye(6)).abs().max() < 2 * FOUR_SIGMA


def test_no_crop_means_no_shift() -> None:
    assert not augment.draw(64, 0, torch.Generator().manual_seed(0)).shift.any()


def test_shares_are_the_larger_part_of_a_beta_variable() -> None:
    drawn = augment.draw_mix(100, 1_000, 0.4, torch.Generator().manual_seed(22))
    # P(max(l, 1 - l) <= x) = P(l <= x) - P(l <= 1 - x)
    beta = stats.beta(0.4, 0.4)
    test = stats.kstest(drawn.share.flatten().double().numpy(), lambda x: beta.cdf(x) - beta.cdf(1 - x))
    assert drawn.share.min() >= 0.5
    assert test.pvalue > 1e-4, test


def test_partners_are_a_permutation() -> None:
    drawn = augment.draw_mix(3, 256, 0.4, torch.Generator().manual_seed(0))
    assert drawn.partner.sort().values.tolist() == [list(range(256))] * 3
    assert not torch.equal(drawn.partner[0], drawn.partner[1])


def test_mixing_and_its_loss_are_v1s() -> None:
    generator = torch.Generator().manual_seed(1)
    images, logits = torch.rand(5, 3, 4, 4, generator=generator), torch.randn(5, 7, generator=generator)
    labels = torch.tensor([0, 6, 2, 2, 5])
    drawn = augment.Mix(*(each[0] for each in augment.draw_mix(1, 5, 0.4, generator)))
    mixed, targets = augment.mix(images, F.one_hot(labels, 7).float(), drawn)

    share, partner = drawn
    for index in range(5):
        expected = images[index] * share[index] + images[partner[index]] * (1 - share[index])
        assert torch.allclose(mixed[index], expected, atol=1e-6)
    two_losses = share * F.cross_entropy(logits, labels, reduction="none") + (1 - share) * F.cross_entropy(
        logits, labels[partner], reduction="none"
    )
    assert torch.allclose(F.cross_entropy(logits, targets), two_losses.mean())
