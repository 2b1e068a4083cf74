"""The vector-quantised autoencoder, 2-D and 3-D in one class.

The encoder halves the resolution at every level with 4x4 strided convolutions, the deepest levels
carry a residual block, and the decoder mirrors it [1]_.

References
----------
.. [1] van den Oord, Vinyals, Kavukcuoglu: Neural Discrete Representation Learning. NeurIPS 2017,
   arXiv 1711.00937.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.models.collective import BatchNorm2d, BatchNorm3d
from pipeline.models.quantizer import VectorQuantizer

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {2: BatchNorm2d, 3: BatchNorm3d}
_LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}


class Encoded(NamedTuple):
    """What the encoder makes of images (B, C, *spatial).

    Attributes
    ----------
    levels : feature maps of every level, (B, widths[i], *spatial / 2^(i + 1)).
    latent : the deepest level projected to the codebook's dimension, before quantization.
    """

    levels: list[Tensor]
    latent: Tensor


class Reconstructed(NamedTuple):
    """One pass through the whole autoencoder.

    Attributes
    ----------
    images : the reconstruction, same shape as the input.
    encoded : see :class:`Encoded`.
    codes : int64, the latent grid of code indices, (B, *latent).
    loss : scalar, the quantizer's.
    """

    images: Tensor
    encoded: Encoded
    codes: Tensor
    loss: Tensor


class ResidualBlock(nn.Module):
    """A bottleneck: normalise, 3x3 to ``hidden`` channels, normalise, 1x1 back, add."""

    def __init__(self, spatial_dims: int, channels: int, hidden: int) -> None:
        super().__init__()
        conv, norm = _CONVOLUTION[spatial_dims], _NORM[spatial_dims]
        self.branch = nn.Sequential(
            norm(channels),
            nn.ReLU(),
            conv(channels, hidden, 3, padding=1, bias=False),
            norm(hidden),
            nn.ReLU(inplace=True),
            conv(hidden, channels, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features of shape (B, channels, *spatial), the same back."""
        out: Tensor = features + self.branch(features)
        return out


class Encoder(nn.Module):
    """Images to the feature maps of every level."""

    def __init__(
        self, spatial_dims: int, channels: int, widths: Sequence[int], residual_levels: int
    ) -> None:
        super().__init__()
        conv, norm = _CONVOLUTION[spatial_dims], _NORM[spatial_dims]
        self.levels = nn.ModuleList()
        before = channels
        for number, width in enumerate(widths):
            level: list[nn.Module] = [
                conv(before, width, 4, stride=2, padding=1, bias=False),
                norm(width),
                nn.ReLU(inplace=True),
            ]
            if number >= len(widths) - residual_levels:
                level.append(ResidualBlock(spatial_dims, width, max(width // 4, 32)))
            self.levels.append(nn.Sequential(*level))
            before = width

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, channels, *spatial) to one map per level, halved each time."""
        maps = []
        for level in self.levels:
            images = level(images)
            maps.append(images)
        return maps


class Decoder(nn.Module):
    """Quantized latents back to images; ``widths`` are those of the encoder's levels."""

    def __init__(self, spatial_dims: int, channels: int, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        conv, norm = _CONVOLUTION[spatial_dims], _NORM[spatial_dims]
        deepest = widths[-1]
        layers: list[nn.Module] = [
            conv(dim, deepest, 3, padding=1, bias=False),
            norm(deepest),
            nn.ReLU(inplace=True),
            ResidualBlock(spatial_dims, deepest, max(deepest // 4, 32)),
        ]
        for before, width in zip(widths[::-1], widths[-2::-1], strict=False):
            layers += [
                _TRANSPOSED[spatial_dims](before, width, 4, stride=2, padding=1, bias=False),
                norm(width),
                nn.ReLU(inplace=True),
            ]
        layers.append(_TRANSPOSED[spatial_dims](widths[0], channels, 4, stride=2, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        """Latents (B, dim, *latent) to images (B, channels, *spatial)."""
        images: Tensor = self.layers(latent)
        return images


class VQVAE(nn.Module):
    """Encoder, quantizer and decoder.

    Parameters
    ----------
    spatial_dims : 2 or 3.
    channels : of the images.
    widths : channels of each level; the image is halved as often as there are entries.
    residual_levels : how many of the deepest levels carry a residual block.
    decoder_widths : the decoder's, shallowest first as in ``widths``; None mirrors the encoder.
    codebook_size, codebook_dim, decay, commitment : see :class:`VectorQuantizer`.

    Examples
    --------
    >>> net = VQVAE(codebook_size=16, codebook_dim=4, widths=(8, 8)).eval()
    >>> net.encode(torch.zeros(1, 1, 16, 16)).shape
    torch.Size([1, 4, 4])
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 2,
        channels: int = 1,
        widths: Sequence[int] = (32, 64, 128, 256),
        residual_levels: int = 2,
        decoder_widths: Sequence[int] | None = None,
        codebook_size: int = 512,
        codebook_dim: int = 64,
        decay: float = 0.99,
        commitment: float = 0.25,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims={spatial_dims} must be 2 or 3")
        self.encoder = Encoder(spatial_dims, channels, widths, residual_levels)
        self.project = _CONVOLUTION[spatial_dims](widths[-1], codebook_dim, 1)
        self.quantizer = VectorQuantizer(
            codebook_size, codebook_dim, decay=decay, commitment=commitment
        )
        self.decoder = Decoder(spatial_dims, channels, decoder_widths or widths, codebook_dim)
        # Convolutions and the quantizer alike then read the channels of a place side by side.
        # torch's types know the argument of tensors alone.
        self.to(memory_format=_LAYOUT[spatial_dims])  # type: ignore[call-overload]  # not in its stubs

    def features(self, images: Tensor) -> Encoded:
        """Everything before quantization, of images (B, channels, *spatial)."""
        levels = self.encoder(images)
        return Encoded(levels, self.project(levels[-1]))

    def forward(self, images: Tensor) -> Reconstructed:
        """Encode, quantize, decode."""
        encoded = self.features(images)
        quantized = self.quantizer(encoded.latent)
        return Reconstructed(
            self.decoder(quantized.values), encoded, quantized.codes, quantized.loss
        )

    def encode(self, images: Tensor) -> Tensor:
        """The latent grid of code indices (B, *latent)."""
        return self.quantizer.encode(self.features(images).latent)

    def decode(self, codes: Tensor) -> Tensor:
        """Images of a latent grid of code indices (B, *latent)."""
        images: Tensor = self.decoder(self.quantizer.decode(codes))
        return images


def use_of_codes(codes: Tensor, size: int) -> Tensor:
    """How often each code stands in ``codes``, int64 (size,)."""
    return torch.bincount(codes.reshape(-1).cpu(), minlength=size)
