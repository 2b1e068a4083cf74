"""What an encoder makes of images."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class EncoderMaps(NamedTuple):
    """The feature maps of images (B, channels, *spatial)."""

    levels: list[Tensor]  # one map (B, C, *spatial / 2^(i + 1)) of every level, to be quantized
    embedding: list[Tensor]  # maps that say what is shown, shallowest first
