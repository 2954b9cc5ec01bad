"""Augmentation and mixup with fastai v1's distributions: choices are drawn first and applied afterwards.

All that moves pixels (flip, crop, symmetric warp, rotation, zoom) is one 3x3 projective map an image, from
output to input coordinates in [-1, 1], so that the image is resampled once. A crop with reflection padding
is a shift by whole pixels, the reflection happening at the image's own border. Mixup: Zhang et al.,
arXiv:1710.09412.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

P_FLIP = 0.5
P_APPLY = 0.75  # of warp, rotation, zoom, brightness and contrast, each by itself
MAX_WARP = 0.2  # of half the image's side, for each coordinate of a corner
MAX_ROTATE = 10.0  # degrees
MAX_ZOOM = 1.1
MAX_LIGHTING = 0.2
LOGIT_EPS = 1e-7


class Choices(NamedTuple):
    """What was drawn for N images; a transform that was not chosen has its neutral value. All float32."""

    flip: Tensor  # [N] -1 where mirrored left to right, else 1
    shift: Tensor  # [2, N] whole pixels right and down that the window moves
    warp: Tensor  # [4, N] the magnitudes m0 to m3 of the corners
    angle: Tensor  # [N] radians
    zoom: Tensor  # [N] >= 1
    centre: Tensor  # [2, N] of the zoom, x and y in [0, 1]
    brightness: Tensor  # [N] the change b in [0.4, 0.6]; 0.5 leaves the image as it is
    contrast: Tensor  # [N] the factor in [0.8, 1.25]


class Transforms(NamedTuple):
    """What is done to N images. All float32."""

    maps: Tensor  # [N, 3, 3] from output to input coordinates
    contrast: Tensor  # [N] the factor c of the logits
    shift: Tensor  # [N] what is added to them then, c logit(b)


def draw(count: int, crop_padding: int, generator: torch.Generator) -> Choices:
    """Draw the choices for `count` images on the generator's device."""
    uniform = torch.rand(18, count, generator=generator, device=generator.device)
    flip, apply, shift, warp, angle, zoom, centre, brightness, contrast = torch.split(
        uniform, [1, 5, 2, 4, 1, 1, 2, 1, 1]
    )
    chosen = apply < P_APPLY
    return Choices(
        flip=1 - 2 * (flip[0] < P_FLIP).float(),
        shift=shift.mul(2 * crop_padding + 1).floor_().sub_(crop_padding),
        warp=(2 * warp - 1) * chosen[0] * MAX_WARP,
        angle=(2 * angle[0] - 1) * chosen[1] * math.radians(MAX_ROTATE),
        zoom=1 + zoom[0] * chosen[2] * (MAX_ZOOM - 1),
        centre=centre,
        brightness=0.5 + (brightness[0] - 0.5) * chosen[3] * MAX_LIGHTING,
        contrast=torch.exp((2 * contrast[0] - 1) * chosen[4] * -math.log(1 - MAX_LIGHTING)),
    )


def projection(choices: Choices, size: int) -> Tensor:
    """Return the map from output to input coordinates, [N, 3, 3]: rotation zoom warp shift flip.

    Coordinates are (x, y, 1), -1 and 1 being the centres of the border pixels of a `size` pixel image.
    The rightmost factor acts first: the flip on the output grid, then the crop's shift, then v1's order.
    """
    flip, shift, warp, angle, zoom, centre, *_ = choices
    cos, sin, scale = angle.cos(), angle.sin(), zoom.reciprocal()
    zero, one = torch.zeros_like(flip), torch.ones_like(flip)
    offset = (1 - scale) * (2 * centre - 1)
    translation = shift * (2 / (size - 1))
    rotate = torch.stack((cos, -sin, zero, sin, cos, zero, zero, zero, one), dim=1)
    zoom_in = torch.stack((scale, zero, offset[0], zero, scale, offset[1], zero, zero, one), dim=1)
    window = torch.stack((flip, zero, translation[0], zero, one, translation[1], zero, zero, one), dim=1)
    matrices = torch.stack((rotate, zoom_in, window)).view(3, -1, 3, 3)
    return matrices[0] @ matrices[1] @ _warp(warp) @ matrices[2]


def _warp(magnitudes: Tensor) -> Tensor:
    """Return the homography [N, 3, 3] that takes v1's four target points to the corners of the square.

    With the targets p1..p4 as homogeneous columns, the rows p2 x p3, p3 x p1, p1 x p2 are the inverse
    of [p1 p2 p3] up to a factor; dividing each by its value at p4 makes the fourth point fit too.
    """
    m0, m1, m2, m3 = magnitudes + 1
    one = torch.ones_like(m0)
    targets = torch.stack((-m3, -m1, one, -m2, m1, one, m3, -m0, one, m2, m0, one), dim=1).view(-1, 4, 3)
    corners = targets[:, :3]
    rows = torch.linalg.cross(corners.roll(-1, dims=1), corners.roll(-2, dims=1))
    rows = rows / (rows @ targets[:, 3, :, None])
    # The square's corners (-1,-1), (-1,1), (1,-1) as columns, weighted so that they sum to (1,1).
    first, second, third = rows.unbind(1)
    return torch.stack((first - second + third, first + second - third, second + third - first), dim=1)


def prepare(choices: Choices, size: int) -> Transforms:
    """Compute what the drawn choices do to images of `size` pixels a side."""
    shift = choices.brightness.logit().mul_(choices.contrast)
    return Transforms(projection(choices, size), choices.contrast, shift)


def resample(images: Tensor, maps: Tensor) -> Tensor:
    """Sample `images` [N, C, S, S] where `maps` [N, 3, 3] take the grid: bilinear, reflection padding.

    x and y stay in planes of their own, which grid_sample takes as they are. Summing a row's and a column's
    part is eight times as fast as multiplying the maps with the grid's points (0.15 to 1.2 ms, 256 images).
    """
    line = torch.linspace(-1, 1, images.shape[-1], device=images.device)
    along_row = maps[:, :, 0:1] * line
    down_column = torch.addcmul(maps[:, :, 2:3], maps[:, :, 1:2], line)
    points = along_row[:, :, None, :] + down_column[:, :, :, None]
    coordinates = (points[:, :2] / points[:, 2:]).permute(0, 2, 3, 1)
    return F.grid_sample(images, coordinates, mode="bilinear", padding_mode="reflection", align_corners=True)


def light(images: Tensor, contrast: Tensor, shift: Tensor) -> Tensor:
    """Change brightness b and contrast c in place: sigmoid(c (logit(x) + logit(b))), x in [0, 1].

    `contrast` [N] is c and `shift` [N] is c logit(b).
    """
    images = images.logit_(LOGIT_EPS).mul_(contrast.view(-1, 1, 1, 1))
    return images.add_(shift.view(-1, 1, 1, 1)).sigmoid_()


def augment(images: Tensor, transforms: Transforms) -> Tensor:
    """Apply `transforms` to `images`, [N, C, S, S] float32 in [0, 1]."""
    return light(resample(images, transforms.maps), transforms.contrast, transforms.shift)


class Mix(NamedTuple):
    """Partners and shares for N images of each of R rows (or, without the first dimension, of one)."""

    share: Tensor  # [R, N] float32 of the image itself, in [0.5, 1]
    partner: Tensor  # [R, N] int64 index in the row


def draw_mix(rows: int, count: int, alpha: float, generator: torch.Generator) -> Mix:
    """Draw shares max(l, 1 - l) with l ~ Beta(alpha, alpha), and for each row a permutation of partners.

    A Beta variable is the ratio of two Gamma variables; `torch.distributions` takes no generator.
    """
    device = generator.device
    gamma = torch._standard_gamma(torch.full((2, rows, count), alpha, device=device), generator=generator)
    share = gamma[0] / gamma.sum(0)
    keys = torch.rand(rows, count, generator=generator, device=device)
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
