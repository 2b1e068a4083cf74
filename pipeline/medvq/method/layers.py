"""The layers that encoders and decoders of pictures and volumes are made of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

from medvq.method.collectives import BatchNorm2d, BatchNorm3d

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {2: BatchNorm2d, 3: BatchNorm3d}
_FEWEST_HIDDEN = 32  # channels of a residual block's bottleneck, else a quarter of its width


class Layers(NamedTuple):
    """A builder of layers, all of one dimension and alike normalised."""

    dims: int
    batch_norm: bool
    residual_blocks: int = 1

    def norm(self, width: int) -> nn.Module:
        return _NORM[self.dims](width) if self.batch_norm else nn.Identity()

    def halve(self, before: int, after: int) -> list[nn.Module]:
        conv = CONVOLUTION[self.dims](before, after, 4, 2, 1, bias=not self.batch_norm)
        return [conv, self.norm(after), nn.ReLU(inplace=True)]

    def double(self, before: int, after: int) -> list[nn.Module]:
        conv = TRANSPOSED[self.dims](before, after, 4, 2, 1, bias=not self.batch_norm)
        return [conv, self.norm(after), nn.ReLU(inplace=True)]

    def mix(self, before: int, after: int) -> list[nn.Module]:
        conv = CONVOLUTION[self.dims](before, after, 3, padding=1, bias=not self.batch_norm)
        return [conv, self.norm(after), nn.ReLU(inplace=True), *self.residual(after)]

    def residual(self, width: int) -> list[nn.Module]:
        return [
            ResidualBlock(
                self.dims, width, max(width // 4, _FEWEST_HIDDEN), batch_norm=self.batch_norm
            )
            for _ in range(self.residual_blocks)
        ]


class ResidualBlock(nn.Module):
    """A bottleneck: normalise, 3x3 to ``hidden`` channels, normalise, 1x1 back, add."""

    def __init__(
        self, spatial_dims: int, channels: int, hidden: int, *, batch_norm: bool = True
    ) -> None:
        super().__init__()
        norm, conv = Layers(spatial_dims, batch_norm).norm, CONVOLUTION[spatial_dims]
        self.branch = nn.Sequential(
            norm(channels),
            nn.ReLU(),
            conv(channels, hidden, 3, padding=1, bias=not batch_norm),
            norm(hidden),
            nn.ReLU(inplace=True),
            conv(hidden, channels, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = features + self.branch(features)
        return out


class Encoder(nn.Module):
    """Images to the feature maps of every level."""

    def __init__(
        self, layers: Layers, channels: int, widths: Sequence[int], residual_levels: int
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for number, (before, width) in enumerate(pairwise([channels, *widths])):
            level = layers.halve(before, width)
            if number >= len(widths) - residual_levels:
                level += layers.residual(width)
            self.levels.append(nn.Sequential(*level))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one map per level, each half as large as the one before."""
        maps = []
        for level in self.levels:
            images = level(images)
            maps.append(images)
        return maps
