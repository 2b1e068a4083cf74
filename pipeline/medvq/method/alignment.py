"""Unsupervised alignment: every image is registered to the mean training image.

Position and scale of the thorax give labels away and blur features that are pooled on a grid, so
they are removed: for each image a scale and a shift in each axis are found that maximise its
normalised cross-correlation (NCC) with a template, which is the mean of the images so aligned. No
label and no test image takes part in the template.

The maximisation is Gauss-Newton with Levenberg's damping on the normalised residual, as in the
enhanced correlation coefficient of [1]_: for images of zero mean and unit norm the squared distance
is 2 - 2 NCC, and with four parameters (six in 3-D) the normal equations are tiny.

The search is in double precision and its positions are rounded to single: in single precision the
order of a sum, which differs between machines, numbers of threads and libraries, decides greys that
lie between two bytes, and now and then whether one more step is taken.

References
----------
.. [1] Evangelidis, Psarakis: Parametric image alignment using enhanced correlation coefficient
   maximization. IEEE TPAMI 30 (2008) 1858.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medvq.config import AlignmentConfig
from medvq.method.pooling import average_over_cells

Items = TypeVar("Items", Tensor, NDArray[Any])

# The search stays within scales of 0.55 to 1.5 and shifts of a quarter of the image side.
_LOG_SCALE_LIMITS, _SHIFT_LIMIT = (-0.6, 0.4), 0.5
# Candidates to start from reach so far to both sides of the mean position.
_START_SCALE, _START_SHIFT = 0.35, 0.25
_COARSE_SIZE = 28  # side of the images that candidates are compared on, in pixels
_BLUR = 5  # side of the neighbourhood that images are averaged over: detail has local optima
LAST_STEP = 1e-3  # a search ends with a step of less than a twentieth of a pixel
LARGEST_STEP = 0.15  # since the model of the cost is local
_TEMPLATE_IMAGES = 1536  # more hardly change their mean
_CHUNK = 256  # images that are searched for together, which bounds the memory


def sampling_grid(positions: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return where each output pixel is read, in the coordinates of ``grid_sample``.

    Parameters
    ----------
    positions : shape (B, 2n) for n spatial axes in the order x, y(, z): n logarithms of scale, then
        n shifts in halves of the image side. A point u of the output shows the input at
        ``exp(log_scale) * u + shift``; zero is the identity.
    size : the n sides of the output, in tensor order ((z,) y, x).

    Returns
    -------
    Shape (B, *size, n).
    """
    n = len(size)
    scales = positions[:, :n, None].exp() * torch.eye(n).to(positions)
    theta = torch.cat([scales, positions[:, n:, None]], dim=2)
    return F.affine_grid(theta, [positions.shape[0], 1, *size], align_corners=False)


def warp(images: Tensor, positions: Tensor, size: tuple[int, ...]) -> Tensor:
    """Cut images (B, C, *spatial) out at their positions, resized; the border is repeated.

    In the precision of the images.
    """
    grid = sampling_grid(positions.to(images.dtype), size)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Return the position x(u) = outer(inner(u))."""
    n = outer.shape[1] // 2
    log_scale = outer[:, :n] + inner[:, :n]
    shift = outer[:, :n].exp() * inner[:, n:] + outer[:, n:]
    return torch.cat([log_scale, shift], dim=1)


def invert(positions: Tensor) -> Tensor:
    """Return the inverse: ``compose(p, invert(p))`` is zero."""
    n = positions.shape[1] // 2
    return torch.cat([-positions[:, :n], -(-positions[:, :n]).exp() * positions[:, n:]], dim=1)


@dataclass(frozen=True)
class Registration:
    """The positions of images in the template, float32 (B, 2n), and their NCC there, (B,).

    ``failed`` (B,) is true where it was too poor and the mean position was taken instead.
    """

    positions: Tensor
    correlation: Tensor
    failed: Tensor


@dataclass(frozen=True)
class Alignment:
    """A fitted template, blurred, float32 (1, 1, *spatial), and the search for images in it."""

    template: Tensor
    config: AlignmentConfig

    @classmethod
    def fit(cls, images: Tensor, config: AlignmentConfig) -> Self:
        """Make the template from training images of shape (N, 1, *spatial), uint8 or [0, 1]."""
        images = of_template(images)
        small = torch.cat([shrink(chunk, config.size) for chunk in images.split(_CHUNK)])
        centre = mean_position(config, small.ndim - 2)
        positions = centre.repeat(len(small), 1)
        template = cls(_mean(small, positions), config)
        for _ in range(config.rounds):
            found = [template._search(chunk)[0] for chunk in small.split(_CHUNK)]
            positions = torch.cat(found)
            # Nothing else holds the template in place: all images could drift together.
            positions = positions - positions.mean(0) + centre
            template = cls(_mean(small, positions), config)
        return template

    def register(self, images: Tensor) -> Registration:
        """Find the position of each image of shape (B, 1, *spatial), uint8 or [0, 1]."""
        centre = mean_position(self.config, images.ndim - 2).float()
        found = [self._search(shrink(chunk, self.config.size)) for chunk in images.split(_CHUNK)]
        positions, correlation = (torch.cat(parts).float() for parts in zip(*found, strict=True))
        failed = ~(correlation >= self.config.min_correlation)
        return Registration(torch.where(failed[:, None], centre, positions), correlation, failed)

    def _search(self, small: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions and correlations of shrunken images."""
        start = best_candidates(self.template, self.config)(small)
        return _levenberg(small, self.template, start, self.config)


def of_template(images: Items) -> Items:
    """Return the images, evenly spaced, that a template is made from; see :meth:`Alignment.fit`."""
    return images[:: max(1, len(images) // _TEMPLATE_IMAGES)][:_TEMPLATE_IMAGES]


def best_candidates(template: Tensor, config: AlignmentConfig) -> Callable[[Tensor], Tensor]:
    """Return a function to the best of a few hundred positions, since the search is local.

    Each candidate is tried by putting the template, not the image, at its place: so all images
    against all candidates are three matrix products. Only where the template then has content is
    compared. The function takes shrunken images and returns a position for each.
    """
    n, template = template.ndim - 2, template.double()
    size = (_COARSE_SIZE,) * n
    candidates = _candidates(config, n)
    inverse = invert(candidates)
    template = average_over_cells(template, size)
    placed = warp(template.expand(len(inverse), *template.shape[1:]), inverse, size).flatten(1)
    inside = (sampling_grid(inverse, size).abs().amax(-1) <= 1).double().flatten(1)
    pixels = inside.sum(1)
    weight = inside * (placed - (placed * inside).sum(1, keepdim=True) / pixels[:, None])
    weight = weight / weight.norm(dim=1, keepdim=True)
    penalty = config.pull * (candidates - mean_position(config, n)).square().sum(1)

    def best(small: Tensor) -> Tensor:
        image = average_over_cells(small, size).flatten(1)
        mean = image @ inside.T / pixels
        variance = (image.square() @ inside.T - pixels * mean.square()).clamp_min(1e-6)
        correlation = image @ weight.T / variance.sqrt()
        return candidates[(2 - 2 * correlation + penalty).argmin(1)]

    return best


def mean_position(config: AlignmentConfig, axes: int = 2) -> Tensor:
    """Return the position around which all are found, and that of an image that fails."""
    return torch.tensor([-config.zoom] * axes + [0.0] * axes, dtype=torch.float64)


def _candidates(config: AlignmentConfig, axes: int) -> Tensor:
    """Return positions (K, 2n) spread over what is plausible: 5^4 in 2-D, 3^6 in 3-D."""
    steps = 5 if axes == 2 else 3
    scales = torch.linspace(-_START_SCALE, _START_SCALE, steps, dtype=torch.float64) - config.zoom
    shifts = torch.linspace(-_START_SHIFT, _START_SHIFT, steps, dtype=torch.float64)
    return torch.cartesian_prod(*[scales] * axes, *[shifts] * axes)


def shrink(images: Tensor, side: int) -> Tensor:
    """Return images, uint8 or [0, 1], as blurred squares (or cubes) of ``side``, in double."""
    n = images.ndim - 2
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    small = average_over_cells(images.double() / scale, [side] * n)
    blurred = F.pad(small, (_BLUR // 2,) * (2 * n), mode="replicate")
    # Not by pooling, which ONNX Runtime has in single precision alone.
    for axis in range(2, 2 + n):
        moved = [blurred.narrow(axis, at, side) for at in range(_BLUR)]
        blurred = torch.stack(moved).mean(0)
    return blurred


def _mean(small: Tensor, positions: Tensor) -> Tensor:
    chunks = zip(small.split(_CHUNK), positions.split(_CHUNK), strict=True)
    aligned = torch.cat([warp(images, p, tuple(small.shape[2:])) for images, p in chunks])
    return aligned.mean(0, keepdim=True).float()


def _levenberg(
    images: Tensor, template: Tensor, start: Tensor, config: AlignmentConfig
) -> tuple[Tensor, Tensor]:
    """Minimise ``2 - 2 NCC + pull |p - centre|^2`` from ``start``; return positions and NCC."""
    n = images.ndim - 2
    low, high = search_limits(n)
    evaluate, layers = search_cost(template, config), search_layers(images)
    positions = start.clamp(low, high)
    damping = torch.full_like(start[:, :1], 1e-2)
    cost, correlation, gradient, curvature = evaluate(layers, positions)
    active = torch.arange(len(start))  # until their steps have become short
    for _ in range(config.iterations):
        bend = curvature[active]
        damped = bend + torch.diag_embed(damping[active] * bend.diagonal(dim1=1, dim2=2) + 1e-8)
        step = torch.linalg.solve(damped, gradient[active][..., None])[..., 0]
        step = step.clamp(-LARGEST_STEP, LARGEST_STEP)
        trial = (positions[active] + step).clamp(low, high)
        state = evaluate(layers[active], trial)
        short = step.abs().amax(1) <= LAST_STEP
        # Rounding hides the gain of a step that short; all the same it is the better place.
        better = (state[0] < cost[active]) | short
        won = active[better]
        positions[won] = trial[better]
        cost[won], correlation[won], gradient[won], curvature[won] = (s[better] for s in state)
        factor = torch.where(better[:, None], 0.3, 5.0)
        damping[active] = (damping[active] * factor).clamp(1e-6, 1e3)
        active = active[~short]
        if not len(active):
            break
    return positions, correlation


def search_limits(axes: int) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest position that is searched, (2 * axes,) each."""
    limits = [_LOG_SCALE_LIMITS] * axes + [(-_SHIFT_LIMIT, _SHIFT_LIMIT)] * axes
    low, high = torch.tensor(limits, dtype=torch.float64).T
    return low, high


def search_layers(images: Tensor) -> Tensor:
    """Return shrunken images with their slopes, (B, 1 + n, *spatial), for :func:`search_cost`."""
    n = images.ndim - 2
    # Slopes per half image side, the unit of shifts; in the order x, y(, z).
    slopes = [_slope(images, axis) * images.shape[axis] / 2 for axis in range(-1, -n - 1, -1)]
    return torch.cat([images, *slopes], 1)


def _slope(images: Tensor, axis: int) -> Tensor:
    """Return central differences; as torch.gradient, which no graph of any batch size can hold."""
    last = images.shape[axis] - 1
    step = images.narrow(axis, 1, last) - images.narrow(axis, 0, last)
    inner = (images.narrow(axis, 2, last - 1) - images.narrow(axis, 0, last - 1)) / 2
    return torch.cat([step.narrow(axis, 0, 1), inner, step.narrow(axis, last - 1, 1)], axis)


def search_cost(
    template: Tensor, config: AlignmentConfig
) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """Return the cost as a function of layers and positions.

    It returns cost, NCC, descending gradient and curvature.
    """
    n, template = template.ndim - 2, template.double()
    size, centre = tuple(template.shape[2:]), mean_position(config, n)
    target = (template - template.mean()).flatten(1)
    target = target / target.norm().clamp_min(1e-6)
    points = sampling_grid(torch.zeros_like(centre)[None], size).flatten(1, -2).transpose(1, 2)

    def evaluate(layers: Tensor, p: Tensor) -> tuple[Tensor, ...]:
        warped = warp(layers, p, size).flatten(2)
        image, by_shift = warped[:, :1], warped[:, 1:]
        # Products of the image and its slopes by scale and shift, about their means, have all that
        # follows: no image is centred or scaled.
        rows = torch.cat([by_shift * points, by_shift, image], 1)
        mean = rows.mean(-1, keepdim=True)
        gram = rows @ rows.transpose(1, 2) - rows.shape[-1] * mean @ mean.transpose(1, 2)
        norm = gram[:, -1:, -1:].clamp_min(1e-12).sqrt()
        unit = torch.cat([p[:, :n].exp(), torch.ones_like(p)[:, n:]], 1)[..., None] / norm
        along = unit * gram[:, :-1, -1:] / norm  # slopes of the unit image, in its direction
        towards = rows @ target.T
        correlation = towards[:, -1:] / norm
        gradient = unit * towards[:, :-1] - along * correlation
        curvature = unit * gram[:, :-1, :-1] * unit.transpose(1, 2) - along @ along.transpose(1, 2)
        away, pull = p - centre, config.pull
        ncc = correlation[:, 0, 0]
        cost = 2 - 2 * ncc + pull * away.square().sum(-1)
        curvature = curvature + pull * torch.eye(2 * n, dtype=p.dtype)
        return cost, ncc, gradient[..., 0] - pull * away, curvature

    return evaluate
