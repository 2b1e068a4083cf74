"""The deterministic preprocessing as MONAI transforms, from a file to a tensor.

``Compose([ReadImage(), ResizeByArea(224), Equalise(...), AlignToTemplate(...), ScaleToUnit()])`` is
what :func:`preprocessing` returns and what a bundle would ship; ingest runs the same steps over
whole sets.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from monai.transforms import Compose, Transform
from numpy.typing import NDArray
from torch import Tensor

from medvq.config import EqualiseConfig, IngestConfig
from medvq.images.formats import read_grey, resize
from medvq.images.resizing import to_bytes
from medvq.method.alignment import Alignment, warp

Bytes = NDArray[np.uint8]


class _Transform(Transform):  # type: ignore[misc]  # MONAI's types aren't followed (pyproject.toml)
    """What the transforms here have in common, for MONAI: its base class."""


class ReadImage(_Transform):
    """A path to a grey picture, (height, width) float32 in [0, 1], upright."""

    def __call__(self, path: str | Path) -> NDArray[np.float32]:
        return read_grey(Path(path))


class ResizeByArea(_Transform):
    """To (side, side) bytes by area averaging."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, grey: NDArray[np.float32]) -> Bytes:
        return to_bytes(resize(grey, self.side))


class Equalise(_Transform):
    """Contrast-limited adaptive histogram equalisation of a (height, width) byte image.

    None for ``config`` leaves the image as it is.
    """

    def __init__(self, config: EqualiseConfig | None) -> None:
        self.config = config

    def __call__(self, image: Bytes) -> Bytes:
        if self.config is None:
            return image
        # OpenCV's object keeps buffers, so every call (and thread) has its own.
        tiles = (self.config.tiles, self.config.tiles)
        return np.asarray(cv2.createCLAHE(self.config.clip_limit, tiles).apply(image), np.uint8)


class AlignToTemplate(_Transform):
    """A (height, width) byte image to its aligned (1, side, side) bytes; see
    :mod:`medvq.method.alignment`. Without an alignment the whole image is resized.
    """

    def __init__(self, alignment: Alignment | None, side: int) -> None:
        self.alignment = alignment
        self.side = side

    def __call__(self, image: Bytes) -> Tensor:
        batch = torch.from_numpy(image)[None, None]
        positions = (
            self.alignment.register(batch).positions if self.alignment else torch.zeros(1, 4)
        )
        return cut_out(batch, positions, self.side)[0]


class ScaleToUnit(_Transform):
    """Bytes to float32 in [0, 1]."""

    def __call__(self, image: Tensor) -> Tensor:
        return image.float() / 255.0


def cut_out(images: Tensor, positions: Tensor, size: int | tuple[int, ...]) -> Tensor:
    """Aligned byte images (B, C, *size) of byte images and their positions; one number for
    ``size`` is the side of a square.
    """
    size = (size, size) if isinstance(size, int) else size
    cut = [
        (warp(chunk.float(), at, size) + 0.5).clamp(0, 255).byte()
        for chunk, at in zip(torch.split(images, 256), torch.split(positions, 256), strict=True)
    ]
    return torch.cat(cut)


def preprocessing(config: IngestConfig, alignment: Alignment | None) -> Compose:
    """The chain from the path of a grey picture to a (1, side, side) float32 tensor in [0, 1]."""
    return Compose(
        [
            ReadImage(),
            ResizeByArea(config.read_shape[0]),
            Equalise(config.equalise),
            AlignToTemplate(alignment, config.image_shape[0]),
            ScaleToUnit(),
        ]
    )
