"""Vision Transformers as the encoder and the decoder of a VQ-VAE, for pictures and volumes.

The image is cut into patches, each a token, and attention sees all of them at once [1]_; the
decoder is a second Transformer, over the quantized map [2]_. The layers are MONAI's. Positions are
sines and cosines of the place in the grid, computed for the grid at hand, so that one network
serves images of any size that patches fill.

References
----------
.. [1] Dosovitskiy et al.: An Image is Worth 16x16 Words: Transformers for Image Recognition at
   Scale. ICLR 2021, arXiv 2010.11929.
.. [2] Yu et al.: Vector-quantized Image Modeling with Improved VQGAN. ICLR 2022, arXiv 2110.04627.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.blocks import PatchEmbed, TransformerBlock
from torch import Tensor, nn

from medvq.method.encoder_maps import EncoderMaps

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_LONGEST = 10_000.0  # of the wavelengths of positions, in places over 2 pi
_EXPANSION = 4  # of the channels within a block's perceptron [1]_


class ViTEncoder(nn.Module):
    """Images to two maps, both with one place for each patch: of half of the blocks, and of all.

    Parameters
    ----------
    spatial_dims, channels : of the images.
    patch : side of a patch.
    width : channels of the maps; a multiple of 4 for pictures, of 6 for volumes, and of ``heads``.
    depth : number of blocks, at least 2.
    """

    def __init__(
        self, spatial_dims: int, channels: int, patch: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.patches = PatchEmbed(patch, channels, width, spatial_dims=spatial_dims)
        self.first = Transformer(width, depth // 2, heads)
        self.second = Transformer(width, depth - depth // 2, heads)

    def shallowest(self, levels: int) -> list[nn.Module]:
        """Return the modules that the first ``levels`` maps are made by; 0 is all there is."""
        if levels:
            raise ValueError("a Vision Transformer has no shallow levels")
        return []

    def forward(self, images: Tensor) -> EncoderMaps:
        """Return the two maps (B, width, *spatial / patch), normalised over channels."""
        patches = self.patches(images)
        middle = self.first(patches + _positions(patches))
        maps = [_normalised(middle), _normalised(self.second(middle))]
        return EncoderMaps(maps, maps[-1:])


class ViTDecoder(nn.Module):
    """A quantized map (B, dim, *grid) to images (B, channels, *grid * patch).

    Parameters
    ----------
    dim : channels of the quantized map; others as of :class:`ViTEncoder`.
    """

    def __init__(
        self, spatial_dims: int, dim: int, channels: int, patch: int, width: int, depth: int,
        heads: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.widen = _CONVOLUTION[spatial_dims](dim, width, 1)
        self.blocks = Transformer(width, depth, heads)
        self.pixels = _TRANSPOSED[spatial_dims](width, channels, patch, patch)

    def forward(self, values: Tensor) -> Tensor:
        wide = self.widen(values)
        images: Tensor = self.pixels(_normalised(self.blocks(wide + _positions(wide))))
        return images


class Transformer(nn.Module):
    """Blocks of attention among all places of a map (B, width, *grid)."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_block(width, heads) for _ in range(depth)))

    def forward(self, maps: Tensor) -> Tensor:
        tokens = self.blocks(maps.flatten(2).mT)
        out: Tensor = tokens.mT.unflatten(2, maps.shape[2:])
        return out


def _block(width: int, heads: int) -> TransformerBlock:
    block = TransformerBlock(
        width, _EXPANSION * width, heads, qkv_bias=True, use_flash_attention=True
    )
    # MONAI makes it without cross-attention, too: weights that nothing would use.
    block.norm_cross_attn = nn.Identity()
    return block


def _positions(maps: Tensor) -> Tensor:
    """Return the code of each place of maps (B, C, *grid), as (C, *grid).

    As MONAI's ``build_sincos_position_embedding``, which warns of a default of torch's.
    """
    grid = maps.shape[2:]
    each = maps.shape[1] // (2 * len(grid))
    frequencies = _LONGEST ** (torch.arange(each, device=maps.device) / -each)
    places = torch.meshgrid(
        *(torch.arange(side, device=maps.device) for side in grid), indexing="ij"
    )
    angles = [place * frequencies.view(-1, *[1] * len(grid)) for place in places]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)])


def _normalised(maps: Tensor) -> Tensor:
    """Normalise every place of maps (B, C, *grid) over its channels."""
    return F.layer_norm(maps.movedim(1, -1), maps.shape[1:2]).movedim(-1, 1)
