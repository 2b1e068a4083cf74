"""Trivial features that every result is shown beside.

All are made of the same aligned images and the same random versions as MedVQ's own.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
_PIXELS = {2: 16, 3: 8}


def raw_pixels(images: Tensor) -> Floats:
    """Each channel averaged to 16x16, of a volume to 8x8x8; (B, C, *spatial) in [0, 1] to
    (B, C * 256) or (B, C * 512).
    """
    axes = images.ndim - 2
    return F.interpolate(images, (_PIXELS[axes],) * axes, mode="area").flatten(1).numpy()


def histogram_of_oriented_gradients(images: Tensor) -> Floats:
    """HOG over cells of an eighth of the side (Dalal, Triggs, CVPR 2005), OpenCV's; (B, 1764).

    Of the mean of the channels of pictures (B, C, S, S).
    """
    side = images.shape[-1] // 8 * 8
    cell = (side // 8, side // 8)
    block = (2 * cell[0], 2 * cell[1])
    describe = cv2.HOGDescriptor((side, side), block, cell, cell, 9)
    bytes_ = (images.mean(1)[:, :side, :side] * 255).round().byte().numpy()
    return np.stack([describe.compute(image) for image in bytes_]).astype(np.float32)


def pooled(features: Tensor, grid: int) -> Floats:
    """Feature maps (B, C, *spatial) averaged over a grid of cells, flattened."""
    pool = F.adaptive_avg_pool2d if features.ndim == 4 else F.adaptive_avg_pool3d
    return pool(features.float(), grid).flatten(1).cpu().numpy()


def untrained(build: type[torch.nn.Module], **arguments: object) -> torch.nn.Module:
    """A network as it is before training, the same one every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(**arguments).eval()
