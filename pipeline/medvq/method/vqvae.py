"""The vector-quantised autoencoder: images to a grid of codes, and back.

One set of modules serves pictures and volumes. The encoder halves the resolution once for every
entry of ``widths``; the decoder mirrors it [1]_. The deepest level is always quantized. A hierarchy
also quantizes shallower levels: there the encoder's map is joined with the map that the coarser
codes decode to, so that finer codes need not repeat coarser ones [2]_.

References
----------
.. [1] van den Oord, Vinyals, Kavukcuoglu: Neural Discrete Representation Learning. NeurIPS 2017,
   arXiv 1711.00937.
.. [2] Razavi, van den Oord, Vinyals: Generating Diverse High-Fidelity Images with VQ-VAE-2.
   NeurIPS 2019, arXiv 1906.00446.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from medvq.config import PretrainConfig
from medvq.method.collectives import BatchNorm2d, BatchNorm3d, all_reduce_sum, rank
from medvq.method.efficientnet import EfficientNetLite0
from medvq.method.encoder_maps import EncoderMaps
from medvq.method.quantizer import QuantizerOutput, VectorQuantizer

if TYPE_CHECKING:
    from medvq.method.vit import ViTEncoder

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {2: BatchNorm2d, 3: BatchNorm3d}
_FEWEST_HIDDEN = 32  # channels of a residual block's bottleneck
_LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class Architecture:
    """The shape of a :class:`VQVAE`; stored in the header of its weights.

    See also :class:`~medvq.config.PretrainConfig` and :class:`VectorQuantizer`.
    """

    spatial_dims: int = 2
    channels: int = 1  # of the images
    encoder: str = "convolutional"  # or "efficientnet_lite0", "vit"
    widths: Sequence[int] = (32, 64, 128, 256)  # channels of each level
    residual_levels: int = 2  # how many of the deepest levels carry residual blocks
    residual_blocks: int = 1  # of each of them, and wherever codes are decoded
    batch_norm: bool = True
    decoder_widths: Sequence[int] | None = None  # shallowest first; None mirrors the encoder
    codebook_size: int = 512  # of the deepest level
    codebook_dim: int = 64
    decay: float = 0.99
    commitment: float = 0.25
    bypass: bool = False
    finer: Sequence[Sequence[int]] = ()  # (halvings, codebook size) of other levels, coarsest first
    depth: int = 6  # of a Vision Transformer, in blocks; its width is that of every level
    decoder_depth: int = 4
    heads: int = 3

    @classmethod
    def from_config(cls, config: PretrainConfig, channels: int = 1, spatial_dims: int = 2) -> Self:
        """Return the architecture that ``config`` asks for, for such images."""
        names = {field.name for field in fields(cls)} - {"widths", "decoder_widths", "finer"}
        return cls(
            spatial_dims=spatial_dims,
            channels=channels,
            widths=config.level_widths,
            decoder_widths=config.decoder_widths or config.level_widths,
            bypass=config.bypass_codebook,
            finer=[(codes.halvings, codes.codebook_size) for codes in config.finer],
            **config.vit.model_dump(include={"depth", "decoder_depth", "heads"}),
            **config.model_dump(include=names),
        )


class EncoderOutput(NamedTuple):
    """The feature maps of images (B, C, *spatial)."""

    # The map of every level, (B, widths[i], *spatial / 2^(i + 1)); of a Vision Transformer two
    # maps with a place for each patch.
    levels: list[Tensor]
    embedding: list[Tensor]  # maps that say what is shown, shallowest first
    latent: Tensor  # the deepest map projected to the codebook's dimension, before quantization


class VQVAEOutput(NamedTuple):
    """One pass through the whole autoencoder."""

    images: Tensor  # the reconstruction, same shape as the input
    encoded: EncoderOutput
    latents: list[Tensor]  # the input of each codebook, coarsest first: (B, dim, *grid)
    codes: list[Tensor]  # int64, the grids of code indices, coarsest first: (B, *grid)
    loss: Tensor  # scalar, the sum of the quantizers' losses


class _Layers(NamedTuple):
    """A builder of layers."""

    dims: int
    batch_norm: bool
    residual_blocks: int = 1

    def norm(self, width: int) -> nn.Module:
        return _NORM[self.dims](width) if self.batch_norm else nn.Identity()

    def halve(self, before: int, after: int) -> list[nn.Module]:
        conv = _CONVOLUTION[self.dims](before, after, 4, 2, 1, bias=not self.batch_norm)
        return [conv, self.norm(after), nn.ReLU(inplace=True)]

    def double(self, before: int, after: int) -> list[nn.Module]:
        conv = _TRANSPOSED[self.dims](before, after, 4, 2, 1, bias=not self.batch_norm)
        return [conv, self.norm(after), nn.ReLU(inplace=True)]

    def mix(self, before: int, after: int) -> list[nn.Module]:
        conv = _CONVOLUTION[self.dims](before, after, 3, padding=1, bias=not self.batch_norm)
        return [conv, self.norm(after), nn.ReLU(inplace=True), *self.residual(after)]

    def residual(self, width: int) -> list[nn.Module]:
        blocks = range(self.residual_blocks)
        return [ResidualBlock(self.dims, width, self.batch_norm) for _ in blocks]


class ResidualBlock(nn.Module):
    """A bottleneck: normalise, 3x3 to a quarter of the channels, normalise, 1x1 back, add."""

    def __init__(self, spatial_dims: int, channels: int, batch_norm: bool) -> None:
        super().__init__()
        hidden = max(channels // 4, _FEWEST_HIDDEN)
        norm, conv = _Layers(spatial_dims, batch_norm).norm, _CONVOLUTION[spatial_dims]
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
        self, layers: _Layers, channels: int, widths: Sequence[int], residual_levels: int
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for number, (before, width) in enumerate(pairwise([channels, *widths])):
            level = layers.halve(before, width)
            if number >= len(widths) - residual_levels:
                level += layers.residual(width)
            self.levels.append(nn.Sequential(*level))

    def shallowest(self, levels: int) -> list[nn.Module]:
        """Return the modules that the first ``levels`` maps are made by."""
        return [*self.levels[:levels]]

    def forward(self, images: Tensor) -> EncoderMaps:
        """Return one map per level, each half as large as the one before."""
        maps = []
        for level in self.levels:
            images = level(images)
            maps.append(images)
        return EncoderMaps(maps, maps[-1:])


def _encoder(shape: Architecture, layers: _Layers) -> Encoder | EfficientNetLite0 | ViTEncoder:
    if shape.encoder == "efficientnet_lite0":
        return EfficientNetLite0(shape.channels)
    if shape.encoder == "vit":
        # Its layers are MONAI's, whose import takes longer than many commands do without it.
        from medvq.method.vit import ViTEncoder

        patch, width = 2 ** len(shape.widths), shape.widths[-1]
        return ViTEncoder(
            shape.spatial_dims, shape.channels, patch, width, shape.depth, shape.heads
        )
    return Encoder(layers, shape.channels, shape.widths, shape.residual_levels)


class CodeLevel(nn.Module):
    """One codebook: from a map of the encoder to codes, and from codes to a finer map.

    Its methods take ``coarser``: the map that the coarser codes were decoded to, in a list that is
    empty at the coarsest level.

    Parameters
    ----------
    width, coarser : channels of the encoder's map and of the decoded coarser codes, 0 without any.
    decoder_widths : channels of the decoded map at this resolution and after each doubling, down to
        the resolution of the next codebook; at the finest level those of the image are the last.
    """

    def __init__(
        self,
        shape: Architecture,
        width: int,
        coarser: int,
        decoder_widths: Sequence[int],
        *,
        finest: bool,
        size: int,
    ) -> None:
        super().__init__()
        layers = _Layers(shape.spatial_dims, shape.batch_norm, shape.residual_blocks)
        dim = shape.codebook_dim
        self.join = nn.Sequential(*(layers.mix(width + coarser, width) if coarser else ()))
        self.project = _CONVOLUTION[layers.dims](width, dim, 1)
        self.quantizer = VectorQuantizer(
            size, dim, decay=shape.decay, commitment=shape.commitment, bypass=shape.bypass
        )
        self.decoder = _decoder(shape, layers, dim + coarser, decoder_widths, finest=finest)

    def latent(self, features: Tensor, coarser: list[Tensor]) -> Tensor:
        """Return the quantizer's input (B, dim, *grid) for the encoder's map (B, width, *grid)."""
        latent: Tensor = self.project(self.joined(features, coarser))
        return latent

    def joined(self, features: Tensor, coarser: list[Tensor]) -> Tensor:
        """Return what is projected: the encoder's map, joined with the decoded coarser codes."""
        joined: Tensor = self.join(torch.cat([features, *coarser], 1))
        return joined

    @torch.no_grad()
    def fit(self, joined: Tensor, seed: int) -> None:
        """Project on the principal components of ``joined`` (B, width, *grid); fit the codebook.

        For a network that is not trained: a random projection would keep less of the map.
        """
        vectors = joined.float().movedim(1, -1).flatten(0, -2).cpu().numpy()
        number = min(self.project.out_channels, *vectors.shape)
        pca = PCA(number, svd_solver="covariance_eigh").fit(vectors)
        components = torch.from_numpy(pca.components_)
        fitted = {"weight": components, "bias": -components @ torch.from_numpy(pca.mean_)}
        for name, parameter in self.project.named_parameters():
            values = parameter.new_zeros(len(parameter), *fitted[name].shape[1:])
            values[:number] = fitted[name]
            # Machines may round otherwise, and all processes are to have the same.
            parameter.copy_(all_reduce_sum(values * (rank() == 0)).view(parameter.shape))
        self.quantizer.fit(self.project(joined), seed)

    def decode(self, values: Tensor, coarser: list[Tensor]) -> Tensor:
        """Decode codebook vectors (B, dim, *grid) to the finer map, or to the image."""
        decoded: Tensor = self.decoder(torch.cat([values, *coarser], 1))
        return decoded


def _decoder(
    shape: Architecture, layers: _Layers, before: int, widths: Sequence[int], *, finest: bool
) -> nn.Module:
    """Return the layers from ``before`` channels to a map of ``widths[-1]``, see CodeLevel."""
    if shape.encoder == "vit":
        from medvq.method.vit import ViTDecoder

        patch, width = 2 ** len(shape.widths), shape.widths[-1]
        return ViTDecoder(
            layers.dims, before, shape.channels, patch, width, shape.decoder_depth, shape.heads
        )
    decoder = layers.mix(before, widths[0])
    for narrow, wide in pairwise(widths[:-1] if finest else widths):
        decoder += layers.double(narrow, wide)
    if finest:
        before, channels = widths[-2:]
        decoder.append(_TRANSPOSED[layers.dims](before, channels, 4, 2, 1))
    return nn.Sequential(*decoder)


class VQVAE(nn.Module):
    """Encoder, quantizers and decoder; flat, or with finer codebooks a hierarchy.

    >>> shape = Architecture(codebook_size=16, codebook_dim=4, widths=(8, 8), finer=[(1, 4)])
    >>> coarse, fine = VQVAE(shape).eval().encode(torch.zeros(1, 1, 16, 16))
    >>> tuple(coarse.shape), tuple(fine.shape)
    ((1, 4, 4), (1, 8, 8))
    """

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        self.shape = shape
        self._frozen: list[nn.Module] = []
        if shape.spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims={shape.spatial_dims} must be 2 or 3")
        widths = shape.widths
        self.halvings = [len(widths), *(halvings for halvings, _ in shape.finer)]
        ends = [*self.halvings, 0]
        if any(fine >= coarse for coarse, fine in pairwise(ends)):
            raise ValueError(f"halvings {self.halvings} must fall, and stay above 0")
        layers = _Layers(shape.spatial_dims, shape.batch_norm, shape.residual_blocks)
        self.encoder = _encoder(shape, layers)
        decoded = [shape.channels, *(shape.decoder_widths or widths)]
        sizes = [shape.codebook_size, *(size for _, size in shape.finer)]
        self.code_levels = nn.ModuleList(
            CodeLevel(
                shape,
                widths[start - 1],
                0 if start == len(widths) else decoded[start],
                decoded[end : start + 1][::-1],
                finest=end == 0,
                size=size,
            )
            for (start, end), size in zip(pairwise(ends), sizes, strict=True)
        )
        # Convolutions and quantizers then read the channels of a place side by side.
        self.to(memory_format=_LAYOUT[shape.spatial_dims])  # type: ignore[call-overload]  # torch's stubs lack it

    def freeze(self, levels: int) -> None:
        """Keep the weights and the statistics of the encoder's shallowest levels as they are."""
        self._frozen = self.encoder.shallowest(levels)
        for module in self._frozen:
            module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    @property
    def quantizers(self) -> list[VectorQuantizer]:
        """One for each level of codes, coarsest first."""
        return [level.quantizer for level in self._levels]

    def features(self, images: Tensor) -> EncoderOutput:
        """Compute everything before quantization, of images (B, channels, *spatial)."""
        levels, embedding = self.encoder(images)
        return EncoderOutput(levels, embedding, self._levels[0].latent(levels[-1], []))

    def forward(self, images: Tensor) -> VQVAEOutput:
        """Encode, quantize, decode."""
        encoded = self.features(images)
        latents, quantized, coarser = self._quantize(encoded)
        return VQVAEOutput(
            self._levels[-1].decode(quantized[-1].values, coarser),
            encoded,
            latents,
            [level.codes for level in quantized],
            torch.stack([level.loss for level in quantized]).sum(),
        )

    def quantize(self, encoded: EncoderOutput) -> tuple[list[Tensor], list[Tensor]]:
        """Return each level's latent (B, dim, *grid) and codes (B, *grid), coarsest first."""
        latents, quantized, _ = self._quantize(encoded)
        return latents, [level.codes for level in quantized]

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the grids of code indices (B, *grid), coarsest first."""
        return self.quantize(self.features(images))[1]

    def decode(self, *codes: Tensor) -> Tensor:
        """Return the images of grids of code indices (B, *grid), one per level, coarsest first."""
        coarser: list[Tensor] = []
        for level, grid in zip(self._levels, codes, strict=True):
            coarser = [level.decode(level.quantizer.decode(grid), coarser)]
        return coarser[0]

    def _quantize(
        self, encoded: EncoderOutput
    ) -> tuple[list[Tensor], list[QuantizerOutput], list[Tensor]]:
        """Return the latents, their quantization, and the map decoded from all but the finest."""
        latents = [encoded.latent]
        quantized = [self._levels[0].quantizer(encoded.latent)]
        coarser: list[Tensor] = []
        levels = pairwise(self._levels)
        for (before, level), halvings in zip(levels, self.halvings[1:], strict=True):
            coarser = [before.decode(quantized[-1].values, coarser)]
            latents.append(level.latent(encoded.levels[halvings - 1], coarser))
            quantized.append(level.quantizer(latents[-1]))
        return latents, quantized, coarser

    @torch.no_grad()
    def fit_codes(self, batches: Callable[[], Iterable[Tensor]], seed: int) -> None:
        """Fit projections and codebooks to images, coarsest level first; see CodeLevel.fit.

        Parameters
        ----------
        batches : returns the images (B, channels, *spatial), the same in every process.
        """
        for number, level in enumerate(self._levels):
            level.fit(torch.cat([self._joined(number, images) for images in batches()]), seed)

    def _joined(self, number: int, images: Tensor) -> Tensor:
        """Return what a level projects of images."""
        encoded = self.features(images)
        quantized = self._quantize(encoded)[1] if number else []
        coarser: list[Tensor] = []
        for level, out in zip(self._levels[:number], quantized[:number], strict=True):
            coarser = [level.decode(out.values, coarser)]
        return self._levels[number].joined(encoded.levels[self.halvings[number] - 1], coarser)

    @property
    def _levels(self) -> list[CodeLevel]:
        return [level for level in self.code_levels if isinstance(level, CodeLevel)]
