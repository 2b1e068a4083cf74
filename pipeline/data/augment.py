"""Random versions of images, made from whole batches of tensors, in 2-D and 3-D, grey and colour.

No flips unless a data set's configuration says so: the heart is on the left. What is random comes
from the generator alone, so a version is the same on every machine that draws the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import AugmentConfig

_LUMINANCE = (0.299, 0.587, 0.114)
_GREY_SHARE = 0.2


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [low, high)."""
    return torch.rand(shape, generator=generator) * (high - low) + low


def draw_changes(
    number: int,
    config: AugmentConfig,
    strength: float,
    generator: torch.Generator,
    spatial_dims: int = 2,
) -> Tensor:
    """Draw what makes ``number`` random versions.

    Parameters
    ----------
    config : the ranges at strength 1.
    strength : multiplies every range; at 0 nothing changes. Flips and crops, which have no range
        around nothing, are made as configured at any strength above 0.

    Returns
    -------
    Shape (number, 6 + 1) in 2-D: angle (radians), logarithms of the scales in x and y, shifts in x
    and y in halves of the side, logarithm of gamma, and -1 where mirrored, else 1. Shape
    (number, 10 + 1) in 3-D: three angles about x, y and z, then three scales, three shifts and the
    rest. The ranges are uniform and symmetric around 0.
    """
    n = spatial_dims
    limits = (
        *[math.radians(config.rotation_degrees)] * (1 if n == 2 else 3),
        *[config.log_scale] * n,
        *[config.shift] * n,
        config.log_gamma,
    )
    drawn = [uniform((number,), -one * strength, one * strength, generator) for one in limits]
    changes = torch.stack([*drawn, torch.ones(number)], 1)
    if strength > 0 and config.smallest_crop < 1:
        scales = slice(changes.shape[1] - 2 - 2 * n, changes.shape[1] - 2 - n)
        shifts = slice(scales.stop, scales.stop + n)
        share = uniform((number, 1), config.smallest_crop, 1.0, generator)
        aspect = uniform((number, n), -0.14, 0.14, generator)
        log_side = (share.log() / n + aspect - aspect.mean(1, keepdim=True)).clamp_max(0.0)
        changes[:, scales] += log_side
        changes[:, shifts] += uniform((number, n), -1, 1, generator) * (1 - log_side.exp())
    if strength > 0 and config.flip:
        changes[:, -1] = 1.0 - 2.0 * torch.randint(2, (number,), generator=generator)
    return changes


def change(images: Tensor, changes: Tensor) -> Tensor:
    """Apply each image's changes of :func:`draw_changes` to images (B, C, *spatial) in [0, 1].

    Returns
    -------
    Same shape, in [0, 1]; what comes from beyond the border is black.
    """
    n = images.ndim - 2
    angles, log_scales, shifts, log_gamma, mirror = changes.split(
        [1 if n == 2 else 3, n, n, 1, 1], dim=1
    )
    scales = log_scales.exp()
    scales = torch.cat([scales[:, :1] * mirror, scales[:, 1:]], 1)
    theta = torch.cat([_rotations(angles) * scales[:, None], shifts[..., None]], 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    return torch.pow(moved.clamp(0.0, 1.0), log_gamma.exp().reshape(-1, *[1] * (n + 1)))


def _rotations(angles: Tensor) -> Tensor:
    """(B, 2, 2) of angles (B, 1), or (B, 3, 3) of rotation vectors (B, 3)."""
    if angles.shape[1] == 1:
        cos, sin = angles[:, 0].cos(), angles[:, 0].sin()
        return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    x, y, z = angles.unbind(1)
    none = torch.zeros_like(x)
    rows = [(none, -z, y), (z, none, -x), (-y, x, none)]
    return torch.matrix_exp(torch.stack([torch.stack(row, 1) for row in rows], 1))


def random_versions(
    images: Tensor, config: AugmentConfig, strength: float, generator: torch.Generator
) -> Tensor:
    """One random version of each image (B, C, *spatial) in [0, 1]: rotation, scale in each axis,
    shift, gamma, and where configured a crop and a flip; see :func:`draw_changes`.
    """
    changes = draw_changes(len(images), config, strength, generator, images.ndim - 2)
    return change(images, changes)


class Disturbances(NamedTuple):
    """What :func:`disturb` does to each of B images.

    Attributes
    ----------
    contrast, brightness : (B,), a factor around the mean of the image, and a term.
    noise : (B,), the standard deviation.
    sharpness : (B,), how far towards the blurred image, or below 0 away from it.
    colours : (B, 3, 3), what colours are multiplied by.
    corners : int64 (B, cut-outs, axes), the lowest corner of each box.
    """

    contrast: Tensor
    brightness: Tensor
    noise: Tensor
    sharpness: Tensor
    colours: Tensor
    corners: Tensor


def draw_disturbances(
    shape: Sequence[int], config: AugmentConfig, generator: torch.Generator
) -> Disturbances:
    """Draw what disturbs images of ``shape`` (B, C, *spatial)."""
    batch, channels, *spatial = shape
    contrast = uniform((batch,), 0.6, 1.4, generator)
    brightness = uniform((batch,), -0.15, 0.15, generator)
    noise = uniform((batch,), 0.0, 0.05, generator)
    sharpness = uniform((batch,), -config.blur / 2, config.blur, generator)
    if channels == 3 and config.colour > 0:
        colours = _draw_colours(batch, config.colour, generator)
    else:
        colours = torch.eye(3).expand(batch, 3, 3)
    highest = torch.tensor([side - _wide(side) + 1 for side in spatial])
    places = torch.rand((batch, config.cut_outs, len(spatial)), generator=generator)
    corners = (places * highest).long()
    return Disturbances(contrast, brightness, noise, sharpness, colours, corners)


def disturb(
    images: Tensor, drawn: Disturbances, noise: Tensor, config: AugmentConfig | None = None
) -> Tensor:
    """Contrast, brightness, sharpness, noise and cut-outs: what a network should see through.

    Sharpness moves an image towards the mean of every pixel's neighbourhood of 5 along each axis,
    by up to ``config.blur`` of the way, or by up to half of that away from it. Each cut-out sets a
    box of 22% of each side to the mean of its image. Colour images change their saturation and hue
    by ``config.colour`` too, and now and then lose their colour.

    Parameters
    ----------
    images : (B, C, *spatial) in [0, 1].
    drawn : see :func:`draw_disturbances`, on the same device.
    noise : normal numbers of the shape of ``images``.
    """
    config = config or AugmentConfig()

    def per_image(values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (images.ndim - 1))

    mean = images.mean(tuple(range(1, images.ndim)), keepdim=True)
    if images.shape[1] == 3 and config.colour > 0:
        images = torch.einsum("bij,bj...->bi...", drawn.colours, images)
    disturbed = (images - mean) * per_image(drawn.contrast) + mean + per_image(drawn.brightness)
    if config.blur > 0:
        disturbed = disturbed.lerp(_blurred(disturbed), per_image(drawn.sharpness))
    disturbed = torch.addcmul(disturbed, noise, per_image(drawn.noise))
    for corner in drawn.corners.unbind(1):
        disturbed = torch.where(_boxes(corner, images.shape[2:]), mean, disturbed)
    return disturbed


def _wide(side: int) -> int:
    return round(0.22 * side)


def _boxes(corners: Tensor, spatial: Sequence[int]) -> Tensor:
    """Bool (B, 1, *spatial): true inside the box at each of ``corners`` (B, axes)."""
    inside = torch.ones((), dtype=torch.bool, device=corners.device)
    for axis, side in enumerate(spatial):
        start = corners[:, axis].reshape(-1, *[1] * (len(spatial) + 1))
        shape = [side if a == axis else 1 for a in range(len(spatial))]
        places = torch.arange(side, device=corners.device).reshape(shape)
        inside = inside & (places >= start) & (places < start + _wide(side))
    return inside


def _blurred(images: Tensor) -> Tensor:
    """The mean of every pixel's neighbourhood of 5 along each axis; borders are repeated."""
    axes = images.ndim - 2
    pool = F.avg_pool2d if axes == 2 else F.avg_pool3d
    return pool(F.pad(images, (2, 2) * axes, mode="replicate"), 5, stride=1)


def _draw_colours(batch: int, strength: float, generator: torch.Generator) -> Tensor:
    """(B, 3, 3) that turn and stretch colours around grey: hue and saturation, at strength 1 by up
    to 36 degrees and 80%; a fifth of them make grey.
    """
    angle = uniform((batch,), -math.pi / 5, math.pi / 5, generator) * strength
    saturation = 1 + uniform((batch,), -0.8, 0.8, generator) * strength
    saturation[torch.rand(batch, generator=generator) < _GREY_SHARE] = 0.0
    # About the grey axis, as in the YIQ space of colour television.
    axis = torch.full((batch, 3), 3**-0.5) * angle[:, None]
    luminance = torch.tensor(_LUMINANCE).expand(3, 3)
    colour = torch.eye(3) - luminance
    return luminance + saturation[:, None, None] * (_rotations(axis) @ colour)
