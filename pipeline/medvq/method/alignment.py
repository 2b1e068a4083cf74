"""Unsupervised alignment: every image registered to the mean training image.

Position and scale of the thorax give labels away and blur whatever is pooled on a grid, so they are
taken out: for each image a scale and a shift in each axis are found that maximise its normalised
cross-correlation with a template, which is the mean of the images so aligned. No label and no test
image takes part in the template.

The maximisation is Gauss-Newton with Levenberg's damping on the normalised residual, as in the
enhanced correlation coefficient of [1]_: for images of zero mean and unit norm the squared distance
is 2 - 2 NCC, and with four parameters (six in 3-D) the normal equations are tiny. Every image is
solved for itself: a batch changes nothing but speed.

References
----------
.. [1] Evangelidis, Psarakis: Parametric image alignment using enhanced correlation coefficient
   maximization. IEEE TPAMI 30 (2008) 1858.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from medvq.config import AlignmentConfig

LOG_SCALE_LIMITS = (-0.6, 0.4)
SHIFT_LIMIT = 0.5
_COARSE_SIZE = 28
_STEP_THAT_ENDS = 1e-3
_TEMPLATE_IMAGES = 1536
_CHUNK = 256


def sampling_grid(positions: Tensor, size: tuple[int, ...]) -> Tensor:
    """Where each output pixel is read, in the normalised coordinates of ``grid_sample``.

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
    theta = torch.cat([torch.diag_embed(positions[:, :n].exp()), positions[:, n:, None]], dim=2)
    return F.affine_grid(theta, [len(positions), 1, *size], align_corners=False)


def warp(images: Tensor, positions: Tensor, size: tuple[int, ...]) -> Tensor:
    """Cut each image (B, C, *spatial) out at its position and bring it to ``size``; see
    :func:`sampling_grid`. Differentiable in both. Beyond the border the border is repeated.
    """
    grid = sampling_grid(positions, size)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The position that reads at ``outer`` what is read at ``inner``: x = outer(inner(u))."""
    n = outer.shape[1] // 2
    log_scale = outer[:, :n] + inner[:, :n]
    shift = outer[:, :n].exp() * inner[:, n:] + outer[:, n:]
    return torch.cat([log_scale, shift], dim=1)


def invert(positions: Tensor) -> Tensor:
    """The position that undoes ``positions``: ``compose(p, invert(p))`` is zero."""
    n = positions.shape[1] // 2
    return torch.cat([-positions[:, :n], -(-positions[:, :n]).exp() * positions[:, n:]], dim=1)


@dataclass(frozen=True)
class Registration:
    """What was found for each image.

    Attributes
    ----------
    positions : shape (B, 2n), as :func:`sampling_grid` takes them.
    correlation : shape (B,), the normalised cross-correlation with the template there.
    failed : shape (B,), true where it was too poor and the mean position was taken instead.
    """

    positions: Tensor
    correlation: Tensor
    failed: Tensor


@dataclass(frozen=True)
class Alignment:
    """A fitted template and the search for the position of an image in it.

    Attributes
    ----------
    template : shape (1, 1, *spatial), blurred.
    config : the settings that it was fitted with.
    """

    template: Tensor
    config: AlignmentConfig

    @classmethod
    def fit(cls, images: Tensor, config: AlignmentConfig) -> Self:
        """Make the template from training images of shape (N, 1, *spatial), uint8 or [0, 1].

        At most 1,536 of them, evenly spaced, are used: a mean needs no more.
        """
        images = images[:: max(1, len(images) // _TEMPLATE_IMAGES)][:_TEMPLATE_IMAGES]
        small = _shrink(images, config.size)
        centre = mean_position(config, small.ndim - 2)
        positions = centre.repeat(len(small), 1)
        template = cls(_mean(small, positions), config)
        for _ in range(config.rounds):
            positions = template._search(small, template._best_starts(small))[0]
            # Nothing else holds the template in place: all images could drift together.
            positions = positions - positions.mean(0) + centre
            template = cls(_mean(small, positions), config)
        return template

    def register(self, images: Tensor) -> Registration:
        """Find the position of each image of shape (B, 1, *spatial), uint8 or [0, 1]."""
        centre = mean_position(self.config, images.ndim - 2)
        found, correlations = [], []
        for chunk in images.split(_CHUNK):
            small = _shrink(chunk, self.config.size)
            positions, correlation = self._search(small, self._best_starts(small))
            found.append(positions)
            correlations.append(correlation)
        correlation = torch.cat(correlations)
        failed = ~(correlation >= self.config.min_correlation)
        positions = torch.where(failed[:, None], centre, torch.cat(found))
        return Registration(positions, correlation, failed)

    def _search(self, small: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        centre = mean_position(self.config, small.ndim - 2)
        parts = [
            _levenberg(images, self.template, positions, centre, self.config)
            for images, positions in zip(small.split(_CHUNK), start.split(_CHUNK), strict=True)
        ]
        return torch.cat([p for p, _ in parts]), torch.cat([c for _, c in parts])

    def _best_starts(self, small: Tensor) -> Tensor:
        """The best of a few hundred positions for each image, since the search is local.

        Each candidate is tried by putting the template, not the image, at its place: so all images
        against all candidates are three matrix products. Only where the template then has content
        is compared.
        """
        n = small.ndim - 2
        size = (_COARSE_SIZE,) * n
        candidates = _candidates(self.config, n)
        undo = invert(candidates)
        template = F.interpolate(self.template, list(size), mode="area")
        placed = warp(template.expand(len(undo), *template.shape[1:]), undo, size).flatten(1)
        inside = (sampling_grid(undo, size).abs().amax(-1) <= 1).float().flatten(1)
        pixels = inside.sum(1)
        weight = inside * (placed - (placed * inside).sum(1, keepdim=True) / pixels[:, None])
        weight = weight / weight.norm(dim=1, keepdim=True)
        penalty = self.config.pull * (candidates - mean_position(self.config, n)).square().sum(1)
        starts = []
        for chunk in small.split(_CHUNK):
            image = F.interpolate(chunk, list(size), mode="area").flatten(1)
            mean = image @ inside.T / pixels
            variance = (image.square() @ inside.T - pixels * mean.square()).clamp_min(1e-6)
            correlation = image @ weight.T / variance.sqrt()
            starts.append(candidates[(2 - 2 * correlation + penalty).argmin(1)])
        return torch.cat(starts)


def _candidates(config: AlignmentConfig, axes: int) -> Tensor:
    """Positions (K, 2n) spread over what is plausible: 5^4 in 2-D, 3^6 in 3-D."""
    steps = 5 if axes == 2 else 3
    scales = torch.linspace(-0.35, 0.35, steps) - config.zoom
    shifts = torch.linspace(-0.25, 0.25, steps)
    return torch.cartesian_prod(*[scales] * axes, *[shifts] * axes)


def mean_position(config: AlignmentConfig, axes: int = 2) -> Tensor:
    """The position around which all are found, and that of an image that cannot be placed."""
    centre = torch.zeros(2 * axes)
    centre[:axes] = -config.zoom
    return centre


def _shrink(images: Tensor, side: int) -> Tensor:
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    shape = [side] * (images.ndim - 2)
    parts = [
        _blur(F.interpolate(chunk.float() / scale, shape, mode="area"))
        for chunk in images.split(_CHUNK)
    ]
    return torch.cat(parts)


def _blur(images: Tensor, width: int = 5) -> Tensor:
    n = images.ndim - 2
    padded = F.pad(images, (width // 2,) * (2 * n), mode="replicate")
    pool = F.avg_pool2d if n == 2 else F.avg_pool3d
    return pool(padded, width, stride=1)


def _mean(small: Tensor, positions: Tensor) -> Tensor:
    size = tuple(small.shape[2:])
    return torch.cat(
        [
            warp(images, chunk, size)
            for images, chunk in zip(small.split(_CHUNK), positions.split(_CHUNK), strict=True)
        ]
    ).mean(0, keepdim=True)


def _unit(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Zero mean and unit norm along the last axis, and the norm."""
    centred = flat - flat.mean(-1, keepdim=True)
    norm = centred.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return centred / norm, norm


def _levenberg(
    images: Tensor, template: Tensor, start: Tensor, centre: Tensor, config: AlignmentConfig
) -> tuple[Tensor, Tensor]:
    """Minimise ``2 - 2 NCC + pull |p - centre|^2`` from ``start``; return positions and NCC.

    An image whose steps have become smaller than a twentieth of a pixel leaves the batch.
    """
    n = images.ndim - 2
    size = tuple(images.shape[2:])
    target, _ = _unit(template.flatten(1))
    # Slopes per half image side, the unit of shifts; in the order x, y(, z).
    slopes = torch.gradient(images, dim=list(range(-1, -n - 1, -1)))
    layers = torch.cat([images, *(g * s / 2 for g, s in zip(slopes, size[::-1], strict=True))], 1)
    identity = sampling_grid(torch.zeros(1, 2 * n), size).flatten(1, -2).transpose(1, 2)
    low = torch.tensor([LOG_SCALE_LIMITS[0]] * n + [-SHIFT_LIMIT] * n)
    high = torch.tensor([LOG_SCALE_LIMITS[1]] * n + [SHIFT_LIMIT] * n)

    def evaluate(layers: Tensor, p: Tensor) -> tuple[Tensor, ...]:
        warped = warp(layers, p, size).flatten(2)
        value, norm = _unit(warped[:, 0])
        by_shift = warped[:, 1:]
        by_scale = by_shift * identity * p[:, :n, None].exp()
        slope = torch.cat([by_scale, by_shift], 1)
        slope = (slope - slope.mean(-1, keepdim=True)) / norm[:, None]
        slope = slope - value[:, None] * (slope @ value[..., None])
        correlation = (value * target).sum(-1)
        cost = 2 - 2 * correlation + config.pull * (p - centre).square().sum(-1)
        gradient = (slope @ target[..., None])[..., 0] - config.pull * (p - centre)
        curvature = slope @ slope.transpose(1, 2) + config.pull * torch.eye(2 * n)
        return cost, correlation, gradient, curvature

    positions = start.clamp(low, high)
    damping = torch.full((len(start), 1), 1e-2)
    cost, correlation, gradient, curvature = evaluate(layers, positions)
    active = torch.arange(len(start))
    for _ in range(config.iterations):
        bend = curvature[active]
        damped = bend + torch.diag_embed(damping[active] * bend.diagonal(dim1=1, dim2=2) + 1e-8)
        step = torch.linalg.solve(damped, gradient[active][..., None])[..., 0].clamp(-0.15, 0.15)
        trial = (positions[active] + step).clamp(low, high)
        state = evaluate(layers[active], trial)
        # Rounding hides the gain of a step that small; all the same it is the better place.
        better = (state[0] < cost[active]) | (step.abs().amax(1) <= _STEP_THAT_ENDS)
        won = active[better]
        positions[won] = trial[better]
        cost[won], correlation[won], gradient[won], curvature[won] = (s[better] for s in state)
        damping[active] = torch.where(
            better[:, None], damping[active] * 0.3, damping[active] * 5.0
        ).clamp(1e-6, 1e3)
        active = active[step.abs().amax(1) > _STEP_THAT_ENDS]
        if not len(active):
            break
    return positions, correlation
