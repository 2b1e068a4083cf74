"""Random versions of images, made from whole batches of tensors.

No flips: the heart is on the left. What is random comes from the generator alone, so a version is
the same on every machine that draws the same numbers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import AugmentConfig


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [low, high)."""
    return torch.rand(shape, generator=generator) * (high - low) + low


def draw_changes(
    number: int, config: AugmentConfig, strength: float, generator: torch.Generator
) -> Tensor:
    """Draw what makes ``number`` random versions.

    Parameters
    ----------
    config : the ranges at strength 1.
    strength : multiplies every range; at 0 nothing changes.

    Returns
    -------
    Shape (number, 6): angle (radians), logarithms of the scales in x and y, shifts in x and y in
    halves of the side, logarithm of gamma; each uniform and symmetric around 0.
    """
    limits = (
        math.radians(config.rotation_degrees),
        config.log_scale,
        config.log_scale,
        config.shift,
        config.shift,
        config.log_gamma,
    )
    drawn = [uniform((number,), -one * strength, one * strength, generator) for one in limits]
    return torch.stack(drawn, 1)


def change(images: Tensor, changes: Tensor) -> Tensor:
    """Apply each image's changes (B, 6) of :func:`draw_changes` to images (B, C, height, width).

    Returns
    -------
    Same shape, in [0, 1]; what comes from beyond the border is black.
    """
    angle, log_x, log_y, shift_x, shift_y, log_gamma = changes.unbind(1)
    scale_x, scale_y = log_x.exp(), log_y.exp()
    theta = torch.stack(
        [
            torch.stack([angle.cos() * scale_x, -angle.sin() * scale_y, shift_x], 1),
            torch.stack([angle.sin() * scale_x, angle.cos() * scale_y, shift_y], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    return moved.clamp(0.0, 1.0) ** log_gamma.exp()[:, None, None, None]


def random_versions(
    images: Tensor, config: AugmentConfig, strength: float, generator: torch.Generator
) -> Tensor:
    """One random version of each image (B, C, height, width) in [0, 1]: scale in each axis, shift,
    rotation and gamma; see :func:`draw_changes`.
    """
    return change(images, draw_changes(len(images), config, strength, generator))


def disturb(images: Tensor, generator: torch.Generator, cut_outs: int = 2) -> Tensor:
    """Contrast, brightness, noise and cut-outs: what a network should see through.

    Each cut-out sets a square of 22% of the side to the mean grey of its image.
    """
    batch, _, height, width = images.shape
    per_image = (batch, 1, 1, 1)
    mean = images.mean((1, 2, 3), keepdim=True)
    contrast = uniform(per_image, 0.6, 1.4, generator)
    brightness = uniform(per_image, -0.15, 0.15, generator)
    noise = torch.randn(images.shape, generator=generator) * uniform(per_image, 0, 0.05, generator)
    disturbed = (images - mean) * contrast + mean + brightness + noise
    tall, wide = round(0.22 * height), round(0.22 * width)
    rows, columns = torch.arange(height), torch.arange(width)
    for _ in range(cut_outs):
        top = torch.randint(0, height - tall + 1, (batch, 1), generator=generator)
        left = torch.randint(0, width - wide + 1, (batch, 1), generator=generator)
        in_rows = (rows >= top) & (rows < top + tall)
        in_columns = (columns >= left) & (columns < left + wide)
        inside = (in_rows[:, None, :, None]) & (in_columns[:, None, None, :])
        disturbed = torch.where(inside, mean, disturbed)
    return disturbed
