"""The vector-quantised autoencoder, flat or hierarchical, 2-D and 3-D in one class.

The encoder halves the resolution at every level with 4x4 strided convolutions, the deepest levels
carry residual blocks, and the decoder mirrors it [1]_. The deepest level is always quantized; a
hierarchy quantizes shallower ones too. There the encoder's map is joined with what the decoder has
made of the coarser codes, so that finer codes need not repeat what coarser ones say, and the
decoder goes on from both [2]_.

References
----------
.. [1] van den Oord, Vinyals, Kavukcuoglu: Neural Discrete Representation Learning. NeurIPS 2017,
   arXiv 1711.00937.
.. [2] Razavi, van den Oord, Vinyals: Generating Diverse High-Fidelity Images with VQ-VAE-2.
   NeurIPS 2019, arXiv 1906.00446.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from medvq.config import PretrainConfig
from medvq.method.collectives import BatchNorm2d, BatchNorm3d
from medvq.method.quantizer import QuantizerOutput, VectorQuantizer

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {2: BatchNorm2d, 3: BatchNorm3d}
_LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}


class EncoderOutput(NamedTuple):
    """What the encoder makes of images (B, C, *spatial).

    Attributes
    ----------
    levels : feature maps of every level, (B, widths[i], *spatial / 2^(i + 1)).
    latent : the deepest level projected to the codebook's dimension, before quantization.
    """

    levels: list[Tensor]
    latent: Tensor


class VQVAEOutput(NamedTuple):
    """One pass through the whole autoencoder.

    Attributes
    ----------
    images : the reconstruction, same shape as the input.
    encoded : see :class:`Encoded`.
    latents : what each codebook was given, coarsest first: (B, dim, *grid).
    codes : int64, the grids of code indices, coarsest first: (B, *grid).
    loss : scalar, the sum of the quantizers'.
    """

    images: Tensor
    encoded: EncoderOutput
    latents: list[Tensor]
    codes: list[Tensor]
    loss: Tensor


class ResidualBlock(nn.Module):
    """A bottleneck: normalise, 3x3 to ``hidden`` channels, normalise, 1x1 back, add."""

    def __init__(
        self, spatial_dims: int, channels: int, hidden: int, *, batch_norm: bool = True
    ) -> None:
        super().__init__()
        make = _Layers(spatial_dims, batch_norm)
        conv = _CONVOLUTION[spatial_dims]
        self.branch = nn.Sequential(
            make.norm(channels),
            nn.ReLU(),
            conv(channels, hidden, 3, padding=1, bias=not batch_norm),
            make.norm(hidden),
            nn.ReLU(inplace=True),
            conv(hidden, channels, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features of shape (B, channels, *spatial), the same back."""
        out: Tensor = features + self.branch(features)
        return out


class _Layers(NamedTuple):
    """Makes the parts of encoders and decoders, all of one kind."""

    spatial_dims: int
    batch_norm: bool
    residual_blocks: int = 1

    def norm(self, width: int) -> nn.Module:
        return _NORM[self.spatial_dims](width) if self.batch_norm else nn.Identity()

    def halve(self, before: int, after: int) -> list[nn.Module]:
        conv = _CONVOLUTION[self.spatial_dims]
        return self._then(conv(before, after, 4, 2, 1, bias=not self.batch_norm), after)

    def double(self, before: int, after: int) -> list[nn.Module]:
        conv = _TRANSPOSED[self.spatial_dims]
        return self._then(conv(before, after, 4, 2, 1, bias=not self.batch_norm), after)

    def mix(self, before: int, after: int) -> list[nn.Module]:
        """For maps that lie side by side."""
        conv = _CONVOLUTION[self.spatial_dims]
        mixed = self._then(conv(before, after, 3, padding=1, bias=not self.batch_norm), after)
        return mixed + self.residual(after)

    def residual(self, width: int) -> list[nn.Module]:
        hidden = max(width // 4, 32)
        return [
            ResidualBlock(self.spatial_dims, width, hidden, batch_norm=self.batch_norm)
            for _ in range(self.residual_blocks)
        ]

    def _then(self, convolution: nn.Module, width: int) -> list[nn.Module]:
        return [convolution, self.norm(width), nn.ReLU(inplace=True)]


class Encoder(nn.Module):
    """Images to the feature maps of every level."""

    def __init__(
        self, make: _Layers, channels: int, widths: Sequence[int], residual_levels: int
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for number, (before, width) in enumerate(pairwise([channels, *widths])):
            level = make.halve(before, width)
            if number >= len(widths) - residual_levels:
                level += make.residual(width)
            self.levels.append(nn.Sequential(*level))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, channels, *spatial) to one map per level, halved each time."""
        maps = []
        for level in self.levels:
            images = level(images)
            maps.append(images)
        return maps


class CodeLevel(nn.Module):
    """One codebook: from a map of the encoder to codes, and from codes to a finer map.

    Every method takes ``coarser``: the map that the coarser codes were decoded to, in a list that
    is empty at the coarsest level.

    Parameters
    ----------
    width : channels of the encoder's map.
    coarser : channels of the decoded coarser codes; 0 at the coarsest level.
    decoder_widths : channels of the decoded map at this resolution and after each doubling, down to
        where the next codebook stands; at the finest level those of the image are the last.
    finest : whether what is decoded is the image.
    size, dim, decay, commitment, bypass : see :class:`VectorQuantizer`.
    """

    def __init__(
        self,
        make: _Layers,
        width: int,
        coarser: int,
        decoder_widths: Sequence[int],
        *,
        finest: bool,
        size: int,
        dim: int,
        decay: float,
        commitment: float,
        bypass: bool,
    ) -> None:
        super().__init__()
        joined = make.mix(width + coarser, width) if coarser else []
        self.join = nn.Sequential(*joined)
        self.project = _CONVOLUTION[make.spatial_dims](width, dim, 1)
        self.quantizer = VectorQuantizer(
            size, dim, decay=decay, commitment=commitment, bypass=bypass
        )
        layers = make.mix(dim + coarser, decoder_widths[0])
        for before, after in pairwise(decoder_widths[:-1] if finest else decoder_widths):
            layers += make.double(before, after)
        if finest:
            before, channels = decoder_widths[-2:]
            layers.append(_TRANSPOSED[make.spatial_dims](before, channels, 4, 2, 1))
        self.decoder = nn.Sequential(*layers)

    def latent(self, features: Tensor, coarser: list[Tensor]) -> Tensor:
        """What is quantized, (B, dim, *grid), of the encoder's map (B, width, *grid)."""
        latent: Tensor = self.project(self.join(torch.cat([features, *coarser], 1)))
        return latent

    def decode(self, values: Tensor, coarser: list[Tensor]) -> Tensor:
        """Codebook vectors (B, dim, *grid) to the finer map, or to the image."""
        decoded: Tensor = self.decoder(torch.cat([values, *coarser], 1))
        return decoded


class VQVAE(nn.Module):
    """Encoder, quantizers and decoder; flat, or with ``finer`` codebooks a hierarchy.

    Parameters
    ----------
    spatial_dims : 2 or 3.
    channels : of the images.
    widths : channels of each level; the image is halved as often as there are entries.
    residual_levels : how many of the deepest levels carry residual blocks.
    residual_blocks : how many each of them carries, and as many follow wherever codes are decoded.
    batch_norm : whether convolutions are batch-normalised.
    decoder_widths : the decoder's, shallowest first as in ``widths``; None mirrors the encoder.
    codebook_size : of the deepest level.
    codebook_dim, decay, commitment, bypass : see :class:`VectorQuantizer`.
    finer : (halvings, codebook size) of every other level that has codes, coarsest first: they lie
        on the grid of the image halved so often.

    Examples
    --------
    >>> images = torch.zeros(1, 1, 16, 16)
    >>> flat = VQVAE(codebook_size=16, codebook_dim=4, widths=(8, 8)).eval()
    >>> [tuple(codes.shape) for codes in flat.encode(images)]
    [(1, 4, 4)]
    >>> two = VQVAE(codebook_size=16, codebook_dim=4, widths=(8, 8), finer=[(1, 4)]).eval()
    >>> [tuple(codes.shape) for codes in two.encode(images)]
    [(1, 4, 4), (1, 8, 8)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 2,
        channels: int = 1,
        widths: Sequence[int] = (32, 64, 128, 256),
        residual_levels: int = 2,
        residual_blocks: int = 1,
        batch_norm: bool = True,
        decoder_widths: Sequence[int] | None = None,
        codebook_size: int = 512,
        codebook_dim: int = 64,
        decay: float = 0.99,
        commitment: float = 0.25,
        bypass: bool = False,
        finer: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims={spatial_dims} must be 2 or 3")
        self.halvings = [len(widths), *(halvings for halvings, _ in finer)]
        if any(fine >= coarse for coarse, fine in pairwise([*self.halvings, 0])):
            raise ValueError(f"halvings {self.halvings} must fall, and stay above 0")
        make = _Layers(spatial_dims, batch_norm, residual_blocks)
        self.encoder = Encoder(make, channels, widths, residual_levels)
        made = [channels, *(decoder_widths or widths)]
        sizes = [codebook_size, *(size for _, size in finer)]
        self.code_levels = nn.ModuleList(
            CodeLevel(
                make,
                widths[halvings - 1],
                0 if halvings == len(widths) else made[halvings],
                made[until : halvings + 1][::-1],
                finest=until == 0,
                size=size,
                dim=codebook_dim,
                decay=decay,
                commitment=commitment,
                bypass=bypass,
            )
            for (halvings, until), size in zip(pairwise([*self.halvings, 0]), sizes, strict=True)
        )
        # Convolutions and the quantizer alike then read the channels of a place side by side.
        self.to(memory_format=_LAYOUT[spatial_dims])  # type: ignore[call-overload]  # torch's stubs lack it

    @property
    def quantizers(self) -> list[VectorQuantizer]:
        """One for each level of codes, coarsest first."""
        return [level.quantizer for level in self._levels]

    def features(self, images: Tensor) -> EncoderOutput:
        """Everything before quantization, of images (B, channels, *spatial)."""
        levels = self.encoder(images)
        return EncoderOutput(levels, self._levels[0].latent(levels[-1], []))

    def forward(self, images: Tensor) -> VQVAEOutput:
        """Encode, quantize, decode."""
        encoded = self.features(images)
        latents, quantized, coarser = self._quantize(encoded)
        return VQVAEOutput(
            self._levels[-1].decode(quantized[-1].values, coarser),
            encoded,
            latents,
            [one.codes for one in quantized],
            torch.stack([one.loss for one in quantized]).sum(),
        )

    def quantize(self, encoded: EncoderOutput) -> tuple[list[Tensor], list[Tensor]]:
        """What each level quantizes, (B, dim, *grid), and its codes (B, *grid), coarsest first."""
        latents, quantized, _ = self._quantize(encoded)
        return latents, [one.codes for one in quantized]

    def encode(self, images: Tensor) -> list[Tensor]:
        """The grids of code indices (B, *grid), coarsest first."""
        return self.quantize(self.features(images))[1]

    def decode(self, *codes: Tensor) -> Tensor:
        """Images of the grids of code indices (B, *grid) of every level, coarsest first."""
        coarser: list[Tensor] = []
        for level, grid in zip(self._levels, codes, strict=True):
            coarser = [level.decode(level.quantizer.decode(grid), coarser)]
        return coarser[0]

    def _quantize(
        self, encoded: EncoderOutput
    ) -> tuple[list[Tensor], list[QuantizerOutput], list[Tensor]]:
        """Latents and what they become, and what all levels but the finest decode to."""
        coarsest = self._levels[0]
        latents, quantized = [encoded.latent], [coarsest.quantizer(encoded.latent)]
        coarser: list[Tensor] = []
        for (before, level), halvings in zip(
            pairwise(self._levels), self.halvings[1:], strict=True
        ):
            coarser = [before.decode(quantized[-1].values, coarser)]
            latents.append(level.latent(encoded.levels[halvings - 1], coarser))
            quantized.append(level.quantizer(latents[-1]))
        return latents, quantized, coarser

    @property
    def _levels(self) -> list[CodeLevel]:
        return [level for level in self.code_levels if isinstance(level, CodeLevel)]


def bits_per_position(
    alphabets: Sequence[float], halvings: Sequence[int], spatial_dims: int
) -> float:
    """What the codes of an image take, in bits per pixel or voxel.

    Parameters
    ----------
    alphabets : of each level, its codebook's size, which gives the nominal rate; or the perplexity
        of its use, which gives the rate of an ideal entropy coder of single codes.
    halvings : of each level, how often the image was halved.

    Examples
    --------
    Three bits for every square of 2 x 2 pixels, and four for every square of 4 x 4:

    >>> bits_per_position([16, 8], [2, 1], 2)
    1.0
    """
    return sum(
        math.log2(size) / (1 << halved * spatial_dims)
        for size, halved in zip(alphabets, halvings, strict=True)
    )


def use_of_codes(codes: Tensor, size: int) -> Tensor:
    """How often each code stands in ``codes``, int64 (size,)."""
    return torch.bincount(codes.reshape(-1).cpu(), minlength=size)


def architecture(
    config: PretrainConfig, channels: int = 1, spatial_dims: int = 2
) -> dict[str, Any]:
    """The arguments of :class:`VQVAE` that ``config`` asks for, for such images."""
    return {
        "spatial_dims": spatial_dims,
        "channels": channels,
        "widths": list(config.widths),
        "residual_levels": config.residual_levels,
        "residual_blocks": config.residual_blocks,
        "batch_norm": config.batch_norm,
        "decoder_widths": list(config.decoder_widths or config.widths),
        "codebook_size": config.codebook_size,
        "codebook_dim": config.codebook_dim,
        "decay": config.decay,
        "commitment": config.commitment,
        "bypass": config.bypass_codebook,
        "finer": [[codes.halvings, codes.codebook_size] for codes in config.finer],
    }
