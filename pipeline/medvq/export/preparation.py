"""Images as read to prepared images, in operations of torch alone, so that a graph can hold them.

The same as :class:`medvq.images.preparation.Preparation`, which is faster: OpenCV's equalisation
written out, and the registration as a fixed number of steps, of which an image that has arrived
takes no more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvq.config import AlignmentConfig, EqualiseConfig, IngestConfig
from medvq.method.alignment import (
    LARGEST_STEP,
    LAST_STEP,
    best_candidates,
    mean_position,
    search_cost,
    search_layers,
    search_limits,
    shrink,
    warp,
)

_GREYS = 256


class TracedPreparation(nn.Module):
    """Bytes as read (B, C, *read_shape) to prepared images (B, C, *image_shape) in [0, 1].

    Parameters
    ----------
    config : the settings of ingest.
    template : (1, 1, height, width), which images are registered to; None where they are not.
    """

    def __init__(self, config: IngestConfig, template: Tensor | None) -> None:
        super().__init__()
        self.shape = config.image_shape
        self.clahe = Clahe(config.equalise, config.read_shape) if config.equalise else None
        self.register = Registrar(template, config.alignment) if template is not None else None
        # An image that is equalised alone is resampled where it stands.
        self.resamples = self.clahe is not None or config.read_shape != config.image_shape

    def forward(self, images: Tensor) -> Tensor:
        """Return the prepared images."""
        greys = self.equalise(images)
        if self.register is not None:
            return self.resample(greys, self.register(greys))
        if not self.resamples:
            return greys / 255.0
        return self.resample(greys, greys.new_zeros(greys.shape[0], 2 * len(self.shape)))

    def equalise(self, images: Tensor) -> Tensor:
        """Return bytes as numbers, equalised where the settings say so."""
        return images.float() if self.clahe is None else self.clahe(images)

    def resample(self, greys: Tensor, positions: Tensor) -> Tensor:
        """Return the images at their positions, in [0, 1]: as bytes, as they are cached."""
        whole = (warp(greys.double(), positions, self.shape) + 0.5).clamp(0, 255).floor()
        return whole.float() / 255.0


class Clahe(nn.Module):
    """OpenCV's contrast-limited adaptive histogram equalisation of grey pictures, to the byte.

    Parameters
    ----------
    shape : height and width of the pictures.
    """

    columns: Tensor
    rows: Tensor
    column_weights: Tensor
    row_weights: Tensor

    def __init__(self, config: EqualiseConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.tiles, (height, width) = config.tiles, shape
        # As OpenCV does: a side that divides is padded by a whole tile where the other does not.
        even = all(side % self.tiles == 0 for side in shape)
        self.padding = [0 if even else self.tiles - side % self.tiles for side in shape]
        self.tile = [(s + p) // self.tiles for s, p in zip(shape, self.padding, strict=True)]
        self.pixels = self.tile[0] * self.tile[1]
        self.limit = max(int(config.clip_limit * self.pixels / _GREYS), 1)
        for name, side, tile in (("row", height, self.tile[0]), ("column", width, self.tile[1])):
            at = torch.arange(side, dtype=torch.float32) * (1 / tile) - 0.5
            first = at.floor()
            near = torch.stack([first, first + 1]).long().clamp(0, self.tiles - 1)
            self.register_buffer(f"{name}s", near)  # the tiles before and behind
            self.register_buffer(f"{name}_weights", torch.stack([1 - (at - first), at - first]))

    def forward(self, images: Tensor) -> Tensor:
        """Equalise bytes (B, 1, height, width); the bytes are returned as numbers."""
        values = images[:, 0].long()
        tables = self._tables(images)
        total = torch.zeros_like(values, dtype=torch.float32)
        for row, row_weight in zip(self.rows, self.row_weights, strict=True):
            line = torch.zeros_like(total)
            for column, weight in zip(self.columns, self.column_weights, strict=True):
                tile = row[:, None] * self.tiles + column
                place = (tile * _GREYS + values).flatten(1)
                line = line + tables.gather(1, place).view_as(total) * weight
            total = total + line * row_weight[:, None]
        return total.round().clamp(0, 255)[:, None]

    def _tables(self, images: Tensor) -> Tensor:
        """Return the grey that each grey of each tile becomes, (B, tiles * tiles * 256)."""
        down, right = self.padding
        padded = F.pad(images.float(), (0, right, 0, down), mode="reflect")
        (height, width), tiles = self.tile, self.tiles
        parts = padded.view(-1, tiles, height, tiles, width).transpose(2, 3)
        parts = parts.reshape(-1, self.pixels).long()
        counts = torch.zeros(parts.shape[0], _GREYS).scatter_add(1, parts, torch.ones(parts.shape))
        clipped = counts.clamp(max=self.limit)
        excess = (counts - clipped).sum(1, keepdim=True)
        share = (excess / _GREYS).floor()
        rest = excess - share * _GREYS
        # What does not divide goes to bins that are evenly spaced.
        spacing = (_GREYS / rest.clamp(min=1)).floor()
        grey = torch.arange(_GREYS, dtype=torch.float32)
        number = (grey / spacing).floor()
        more = (number * spacing == grey) & (number < rest)
        sums = (clipped + share + more.float()).cumsum(1)
        table = (sums * ((_GREYS - 1) / self.pixels)).round().clamp(0, 255)
        return table.view(-1, tiles * tiles * _GREYS)


class Registrar(nn.Module):
    """The positions of grey pictures in a template: the search of the alignment, step by step.

    Parameters
    ----------
    template : (1, 1, height, width).
    """

    def __init__(self, template: Tensor, config: AlignmentConfig) -> None:
        super().__init__()
        self.register_buffer("template", template)
        self.config, self.start = config, best_candidates(template, config)
        self.cost = search_cost(template, config)
        self.axes = template.ndim - 2

    def forward(self, greys: Tensor) -> Tensor:
        """Return positions (B, 4) of pictures (B, 1, height, width), in [0, 255]."""
        layers, *state = self.begin(greys)
        for _ in range(self.config.iterations):
            state = [*self.step(layers, *state)]
        return self.end(*state)

    def begin(self, greys: Tensor) -> tuple[Tensor, ...]:
        """Return what every step reads, and the state that the first one changes."""
        small = shrink(greys.double() / 255, self.config.size)
        low, high = search_limits(self.axes)
        positions = torch.minimum(torch.maximum(self.start(small), low), high)
        layers = search_layers(small)
        cost = self.cost(layers, positions)
        active, damping = torch.ones_like(cost[0]) > 0, torch.full_like(positions[:, :1], 1e-2)
        return layers, positions, damping, active, *cost

    def step(
        self, layers: Tensor, positions: Tensor, damping: Tensor, active: Tensor, *before: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the state after one step; images that have arrived stay where they are."""
        low, high = search_limits(self.axes)
        cost, _, gradient, curvature = before
        unit = torch.eye(2 * self.axes, dtype=positions.dtype)
        damped = curvature + damping[..., None] * curvature * unit + 1e-8 * unit
        step = _solve(damped, gradient).clamp(-LARGEST_STEP, LARGEST_STEP)
        trial = torch.minimum(torch.maximum(positions + step, low), high)
        after = self.cost(layers, trial)
        short = step.abs().amax(1) <= LAST_STEP
        better = ((after[0] < cost) | short) & active
        row, matrix = better[:, None], better[:, None, None]
        kept = zip((better, better, row, matrix), after, before, strict=True)
        return (
            torch.where(row, trial, positions),
            (damping * torch.where(row, 0.3, 5.0)).clamp(1e-6, 1e3),
            active & ~short,
            *(torch.where(*one) for one in kept),
        )

    def end(self, positions: Tensor, *state: Tensor) -> Tensor:
        """Return the positions; the mean position where the template was not found."""
        correlation = state[3]
        found = correlation >= self.config.min_correlation
        return torch.where(found[:, None], positions, mean_position(self.config, self.axes)).float()


def _solve(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Solve positive definite systems (B, n, n), (B, n) by Gauss and Jordan's elimination.

    A graph has no operation that solves systems.
    """
    joined = torch.cat([matrices, vectors[..., None]], 2)
    for k, unit in enumerate(torch.eye(vectors.shape[1], dtype=vectors.dtype)):
        row = joined[:, k : k + 1] / joined[:, k : k + 1, k : k + 1]
        joined = joined - (joined[:, :, k : k + 1] - unit[:, None]) * row
    return joined[..., -1]
