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

from medvq.config import AugmentConfig

_LUMINANCE = (0.299, 0.587, 0.114)
_GREY_SHARE = 0.2


def spread(unit: Tensor, low: float, high: float) -> Tensor:
    """Numbers in [0, 1) to [low, high)."""
    return unit * (high - low) + low


def numbers_for_changes(spatial_dims: int = 2) -> int:
    """How many random numbers :func:`changes_of` takes for each image."""
    return (1 if spatial_dims == 2 else 3) + 4 * spatial_dims + 3


def changes_of(
    unit: Tensor, config: AugmentConfig, strength: float, spatial_dims: int = 2
) -> Tensor:
    """What makes random versions, of random numbers.

    Parameters
    ----------
    unit : (B, :func:`numbers_for_changes`), uniform in [0, 1).
    config : the ranges at strength 1.
    strength : multiplies every range; at 0 nothing changes. Flips and crops, which have no range
        around nothing, are made as configured at any strength above 0.

    Returns
    -------
    Shape (B, 6 + 1) in 2-D: angle (radians), logarithms of the scales in x and y, shifts in x
    and y in halves of the side, logarithm of gamma, and -1 where mirrored, else 1. Shape
    (B, 10 + 1) in 3-D: three angles about x, y and z, then three scales, three shifts and the
    rest. The ranges are uniform and symmetric around 0.
    """
    n = spatial_dims
    limits = (
        *[math.radians(config.rotation_degrees)] * (1 if n == 2 else 3),
        *[config.log_scale] * n,
        *[config.shift] * n,
        config.log_gamma,
    )
    drawn, flip, share, aspect, place = unit.split([len(limits), 1, 1, n, n], 1)
    limit = torch.tensor(limits) * strength
    changes = torch.cat([(2 * drawn - 1) * limit, torch.ones(len(unit), 1)], 1)
    if strength > 0 and config.smallest_crop < 1:
        scales = slice(changes.shape[1] - 2 - 2 * n, changes.shape[1] - 2 - n)
        shifts = slice(scales.stop, scales.stop + n)
        share = spread(share, config.smallest_crop, 1.0)
        aspect = spread(aspect, -0.14, 0.14)
        log_side = (share.log() / n + aspect - aspect.mean(1, keepdim=True)).clamp_max(0.0)
        changes[:, scales] += log_side
        changes[:, shifts] += spread(place, -1, 1) * (1 - log_side.exp())
    if strength > 0 and config.flip:
        changes[:, -1:] = 1.0 - 2.0 * (flip < 0.5)
    return changes


def draw_changes(
    number: int,
    config: AugmentConfig,
    strength: float,
    generator: torch.Generator,
    spatial_dims: int = 2,
) -> Tensor:
    """:func:`changes_of` the next numbers of ``generator``, for ``number`` images."""
    unit = torch.rand((number, numbers_for_changes(spatial_dims)), generator=generator)
    return changes_of(unit, config, strength, spatial_dims)


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
    grid = _affine_grid(theta, images.shape[2:])
    moved = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    return torch.pow(moved.clamp(0.0, 1.0), log_gamma.exp().reshape(-1, *[1] * (n + 1)))


def _affine_grid(theta: Tensor, size: Sequence[int]) -> Tensor:
    """What ``F.affine_grid`` makes of (B, n, n + 1), which takes three times as long: its product
    with matrices of so few columns is slow.
    """
    n = len(size)
    columns = theta.reshape(len(theta), *[1] * n, n, n + 1)
    grid = columns[..., n]
    for axis, side in enumerate(reversed(size)):
        centres = (torch.arange(side, device=theta.device) + 0.5) * (2 / side) - 1
        grid = grid + centres.reshape(-1, *[1] * (axis + 1)) * columns[..., axis]
    return grid


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
    if strength == 0:
        return images
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


def numbers_for_disturbances(spatial_dims: int, cut_outs: int) -> int:
    """How many random numbers :func:`disturbances_of` takes for each image."""
    return 7 + spatial_dims * cut_outs


def disturbances_of(
    unit: Tensor, config: AugmentConfig, channels: int, spatial: Sequence[int]
) -> Disturbances:
    """What disturbs images (B, channels, *spatial), of random numbers.

    ``unit`` is (B, :func:`numbers_for_disturbances`), uniform in [0, 1).
    """
    contrast, brightness, noise, sharpness, angle, saturation, grey = unit[:, :7].unbind(1)
    if channels == 3 and config.colour > 0:
        colours = _colours(angle, saturation, grey, config.colour)
    else:
        colours = torch.eye(3).expand(len(unit), 3, 3)
    highest = torch.tensor([side - _wide(side) + 1 for side in spatial])
    places = unit[:, 7:].reshape(len(unit), config.cut_outs, len(spatial))
    return Disturbances(
        spread(contrast, 0.6, 1.4),
        spread(brightness, -0.15, 0.15),
        spread(noise, 0.0, 0.05),
        spread(sharpness, -config.blur / 2, config.blur),
        colours,
        (places * highest).long(),
    )


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
    drawn : see :func:`disturbances_of`, on the same device.
    noise : normal numbers of the shape of ``images``.
    """
    config = config or AugmentConfig()

    def per_image(values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (images.ndim - 1))

    mean = images.mean(tuple(range(1, images.ndim)), keepdim=True)
    if images.shape[1] == 3 and config.colour > 0:
        images = torch.einsum("bij,bj...->bi...", drawn.colours, images)
    contrast = per_image(drawn.contrast)
    disturbed = torch.addcmul(mean * (1 - contrast) + per_image(drawn.brightness), images, contrast)
    if config.blur > 0:
        disturbed = disturbed.lerp(_blurred(disturbed), per_image(drawn.sharpness))
    disturbed = torch.addcmul(disturbed, noise, per_image(drawn.noise))
    _cut_out(disturbed, drawn.corners, mean)
    return disturbed


def _wide(side: int) -> int:
    return round(0.22 * side)


def _cut_out(images: Tensor, corners: Tensor, mean: Tensor) -> None:
    """Set the boxes at ``corners`` (B, cut-outs, axes) to ``mean`` (B, 1, 1, ...), in place.

    By their indices, since a mask is of all pixels.
    """
    axes = images.ndim - 2
    number = torch.arange(len(images), device=images.device)
    index = [number.reshape(-1, *[1] * (axes + 1))]
    for axis, side in enumerate(images.shape[2:]):
        along = torch.arange(_wide(side), device=images.device)
        shape = [1, 1, *(-1 if a == axis else 1 for a in range(axes))]
        index.append(
            corners[..., axis].reshape(*corners.shape[:2], *[1] * axes) + along.reshape(shape)
        )
    images.movedim(1, -1)[tuple(index)] = mean.movedim(1, -1)[:, None]


def _blurred(images: Tensor) -> Tensor:
    """The mean of every pixel's neighbourhood of 5 along each axis; borders are repeated.

    Sums of shifted images, one axis after another: of few channels torch's own pooling takes six
    times as long or more. Four are two pairs.
    """
    axes = images.ndim - 2
    images = F.pad(images, (2, 2) * axes, mode="replicate") / 5**axes
    for axis in range(2, images.ndim):
        side = images.shape[axis]
        pairs = images.narrow(axis, 0, side - 1) + images.narrow(axis, 1, side - 1)
        fours = pairs.narrow(axis, 0, side - 4) + pairs.narrow(axis, 2, side - 4)
        images = fours.add_(images.narrow(axis, 4, side - 4))
    return images


def _colours(angle: Tensor, saturation: Tensor, grey: Tensor, strength: float) -> Tensor:
    """(B, 3, 3) that turn and stretch colours around grey: hue and saturation, at strength 1 by up
    to 36 degrees and 80%; a fifth of them make grey. Of numbers (B,) in [0, 1).
    """
    angle = spread(angle, -math.pi / 5, math.pi / 5) * strength
    saturation = 1 + spread(saturation, -0.8, 0.8) * strength
    saturation = torch.where(grey < _GREY_SHARE, 0.0, saturation)
    # About the grey axis, as in the YIQ space of colour television.
    axis = 3**-0.5 * angle[:, None].expand(-1, 3)
    luminance = torch.tensor(_LUMINANCE).expand(3, 3)
    colour = torch.eye(3) - luminance
    return luminance + saturation[:, None, None] * (_rotations(axis) @ colour)
