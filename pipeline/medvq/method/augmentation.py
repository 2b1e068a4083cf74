"""Random versions of whole batches of images: affine and photometric augmentation, 2-D and 3-D.

Parameters are made of uniform random numbers on the CPU, so that a version is the same on every
device. Flips are made only where the configuration of a data set says so: the heart is on the left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from medvq.config import AugmentConfig

# The photometric ranges are those with which the contrastive loss was found to make features
# semantic on aligned radiographs (docs/method.md).
_CONTRAST = (0.6, 1.4)  # factor around the mean of the image
_BRIGHTNESS = (-0.15, 0.15)
_NOISE = (0.0, 0.05)  # standard deviation in each pixel, where images lie in [0, 1]
_CUT_OUT = 0.22  # side of a cut-out, as a share of the image's
_BLUR = 5  # side of the neighbourhood whose mean is the blurred image, in pixels
_ASPECT = 0.14  # half of the largest difference of a crop's log sides: up to 4 : 3, as in SimCLR
# At strength 1 hue turns by up to 36 degrees, half of what SimCLR (arXiv 2002.05709, appendix A)
# does; the change of saturation and the share of images that lose their colour are as there.
_HUE, _SATURATION, _GREY_SHARE = math.pi / 5, 0.8, 0.2
_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


def scale_to(unit: Tensor, low: float, high: float) -> Tensor:
    """Map numbers from [0, 1) to [low, high)."""
    return unit * (high - low) + low


def affine_parameter_count(spatial_dims: int = 2) -> int:
    """Return how many random numbers :func:`affine_parameters` takes for each image."""
    return (1 if spatial_dims == 2 else 3) + 4 * spatial_dims + 3


def affine_parameters(
    unit: Tensor, config: AugmentConfig, strength: float, spatial_dims: int = 2
) -> Tensor:
    """Make affine parameters (and gamma) of random numbers.

    Parameters
    ----------
    unit : (B, :func:`affine_parameter_count`), uniform in [0, 1).
    config : the ranges at strength 1.
    strength : multiplies every range; 0 gives the identity. Flips and crops, whose ranges do not
        lie around the identity, are made as configured at any strength above 0.

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
    ranged, flip, share, aspect, place = unit.split([len(limits), 1, 1, n, n], 1)
    limit = torch.tensor(limits) * strength
    parameters = torch.cat([(2 * ranged - 1) * limit, torch.ones(len(unit), 1)], 1)
    if strength > 0 and config.smallest_crop < 1:
        scales = slice(parameters.shape[1] - 2 - 2 * n, parameters.shape[1] - 2 - n)
        shifts = slice(scales.stop, scales.stop + n)
        share = scale_to(share, config.smallest_crop, 1.0)
        aspect = scale_to(aspect, -_ASPECT, _ASPECT)
        log_side = (share.log() / n + aspect - aspect.mean(1, keepdim=True)).clamp_max(0.0)
        parameters[:, scales] += log_side
        parameters[:, shifts] += scale_to(place, -1, 1) * (1 - log_side.exp())
    if strength > 0 and config.flip:
        parameters[:, -1:] = 1.0 - 2.0 * (flip < 0.5)
    return parameters


def sample_affine(
    number: int,
    config: AugmentConfig,
    strength: float,
    generator: torch.Generator,
    spatial_dims: int = 2,
) -> Tensor:
    """Sample :func:`affine_parameters` for ``number`` images."""
    unit = torch.rand((number, affine_parameter_count(spatial_dims)), generator=generator)
    return affine_parameters(unit, config, strength, spatial_dims)


def apply_affine(images: Tensor, parameters: Tensor, size: Sequence[int] | None = None) -> Tensor:
    """Apply :func:`affine_parameters` to images (B, C, *spatial) in [0, 1], on black.

    What is returned has the spatial sides ``size``; without it those of ``images``.
    """
    n = images.ndim - 2
    angles, log_scales, shifts, log_gamma, mirror = parameters.split(
        [1 if n == 2 else 3, n, n, 1, 1], dim=1
    )
    scales = log_scales.exp()
    scales = torch.cat([scales[:, :1] * mirror, scales[:, 1:]], 1)
    theta = torch.cat([_rotations(angles) * scales[:, None], shifts[..., None]], 2)
    grid = _affine_grid(theta, size or images.shape[2:])
    moved = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    return torch.pow(moved.clamp(0.0, 1.0), log_gamma.exp().reshape(-1, *[1] * (n + 1)))


def random_versions(
    images: Tensor, config: AugmentConfig, strength: float, generator: torch.Generator
) -> Tensor:
    """Return one random version of each image (B, C, *spatial) in [0, 1], without photometric."""
    if strength == 0:
        return images
    parameters = sample_affine(len(images), config, strength, generator, images.ndim - 2)
    return apply_affine(images, parameters)


def _affine_grid(theta: Tensor, size: Sequence[int]) -> Tensor:
    """Do what ``F.affine_grid`` does, in a third of the time, for ``theta`` (B, n, n + 1)."""
    n = len(size)
    columns = theta.reshape(len(theta), *[1] * n, n, n + 1)
    grid = columns[..., n]
    for axis, side in enumerate(reversed(size)):
        centres = (torch.arange(side, device=theta.device) + 0.5) * (2 / side) - 1
        grid = grid + centres.reshape(-1, *[1] * (axis + 1)) * columns[..., axis]
    return grid


def _rotations(angles: Tensor) -> Tensor:
    """Return (B, 2, 2) for angles (B, 1), or (B, 3, 3) for rotation vectors (B, 3)."""
    if angles.shape[1] == 1:
        cos, sin = angles[:, 0].cos(), angles[:, 0].sin()
        return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    x, y, z = angles.unbind(1)
    none = torch.zeros_like(x)
    rows = [(none, -z, y), (z, none, -x), (-y, x, none)]
    return torch.matrix_exp(torch.stack([torch.stack(row, 1) for row in rows], 1))


class PhotometricParameters(NamedTuple):
    """The photometric augmentation of B images; see :func:`apply_photometric`."""

    contrast: Tensor  # (B,), a factor around the mean of the image
    brightness: Tensor  # (B,), a term
    noise: Tensor  # (B,), a standard deviation
    sharpness: Tensor  # (B,), how far towards the blurred image, or below 0 away from it
    colours: Tensor  # (B, 3, 3), what colours are multiplied by
    corners: Tensor  # int64 (B, cut-outs, axes), the lowest corner of each cut-out


def photometric_parameter_count(spatial_dims: int, cut_outs: int) -> int:
    """Return how many random numbers :func:`photometric_parameters` takes for each image."""
    return 7 + spatial_dims * cut_outs


def photometric_parameters(
    unit: Tensor, config: AugmentConfig, channels: int, spatial: Sequence[int]
) -> PhotometricParameters:
    """Make parameters of random numbers (B, :func:`photometric_parameter_count`) in [0, 1)."""
    contrast, brightness, noise, sharpness, angle, saturation, grey = unit[:, :7].unbind(1)
    colours = torch.eye(3).expand(len(unit), 3, 3)
    if channels == 3 and config.colour > 0:
        colours = _colours(angle, saturation, grey, config.colour)
    places = torch.tensor([side - round(_CUT_OUT * side) + 1 for side in spatial])
    corners = unit[:, 7:].reshape(len(unit), config.cut_outs, len(spatial))
    return PhotometricParameters(
        scale_to(contrast, *_CONTRAST),
        scale_to(brightness, *_BRIGHTNESS),
        scale_to(noise, *_NOISE),
        scale_to(sharpness, -config.blur / 2, config.blur),
        colours,
        (corners * places).long(),
    )


def apply_photometric(
    images: Tensor, parameters: PhotometricParameters, noise: Tensor, config: AugmentConfig
) -> Tensor:
    """Change contrast, brightness, sharpness and colours, add noise, and cut boxes out.

    ``images`` are (B, C, *spatial) in [0, 1], which results may leave; ``noise`` are standard
    normal numbers of their shape. A cut-out is set to the mean of its image.
    """

    def per_image(values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (images.ndim - 1))

    mean = images.mean(tuple(range(1, images.ndim)), keepdim=True)
    if images.shape[1] == 3 and config.colour > 0:
        images = torch.einsum("bij,bj...->bi...", parameters.colours, images)
    contrast = per_image(parameters.contrast)
    offset = mean * (1 - contrast) + per_image(parameters.brightness)
    changed = torch.addcmul(offset, images, contrast)
    if config.blur > 0:
        changed = changed.lerp(_blur(changed), per_image(parameters.sharpness))
    changed = torch.addcmul(changed, noise, per_image(parameters.noise))
    _cut_out(changed, parameters.corners, mean)
    return changed


def _cut_out(images: Tensor, corners: Tensor, mean: Tensor) -> None:
    """Set the boxes at ``corners`` (B, cut-outs, axes) to ``mean`` (B, 1, 1, ...), in place."""
    axes = images.ndim - 2
    index = [torch.arange(len(images), device=images.device).reshape(-1, *[1] * (axes + 1))]
    for axis, side in enumerate(images.shape[2:]):
        along = torch.arange(round(_CUT_OUT * side), device=images.device)
        along = along.reshape(1, 1, *(-1 if a == axis else 1 for a in range(axes)))
        index.append(corners[..., axis].reshape(*corners.shape[:2], *[1] * axes) + along)
    images.movedim(1, -1)[tuple(index)] = mean.movedim(1, -1)[:, None]


def _blur(images: Tensor) -> Tensor:
    """Return the mean of every pixel's neighbourhood; borders are repeated.

    Sums of shifted images, one axis after another, take a sixth of the time of torch's pooling.
    """
    axes = images.ndim - 2
    images = F.pad(images, (2, 2) * axes, mode="replicate") / _BLUR**axes
    for axis in range(2, images.ndim):
        side = images.shape[axis]
        pairs = images.narrow(axis, 0, side - 1) + images.narrow(axis, 1, side - 1)
        fours = pairs.narrow(axis, 0, side - 4) + pairs.narrow(axis, 2, side - 4)
        images = fours.add_(images.narrow(axis, 4, side - 4))
    return images


def _colours(angle: Tensor, saturation: Tensor, grey: Tensor, strength: float) -> Tensor:
    """Return (B, 3, 3) that turn hues and stretch saturation, for numbers (B,) in [0, 1)."""
    angle = scale_to(angle, -_HUE, _HUE) * strength
    saturation = 1 + scale_to(saturation, -_SATURATION, _SATURATION) * strength
    saturation = torch.where(grey < _GREY_SHARE, 0.0, saturation)
    # About the grey axis, as in the YIQ space of colour television.
    axis = 3**-0.5 * angle[:, None].expand(-1, 3)
    luminance = torch.tensor(_LUMINANCE).expand(3, 3)
    colour = torch.eye(3) - luminance
    return luminance + saturation[:, None, None] * (_rotations(axis) @ colour)
