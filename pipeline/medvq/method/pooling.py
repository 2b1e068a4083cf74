"""Images averaged over cells, and resized; in a graph of ONNX both are products of matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def average_over_cells(images: Tensor, size: Sequence[int]) -> Tensor:
    """Average (B, C, *spatial) over cells, which overlap where they do not divide it.

    >>> average_over_cells(torch.arange(4.0).view(1, 1, 1, 4), (1, 2))
    tensor([[[[0.5000, 2.5000]]]])
    """
    if not torch.onnx.is_in_onnx_export():
        return F.interpolate(images, list(size), mode="area")
    sides = zip(map(int, images.shape[2:]), size, strict=True)
    return _weighted(images, [averaging_weights(*pair) for pair in sides])


def resize(pictures: Tensor, side: int) -> Tensor:
    """Resize pictures (B, C, height, width) to (B, C, side, side), linearly and without aliases."""
    if not torch.onnx.is_in_onnx_export():
        return F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
    sides = map(int, pictures.shape[2:])
    return _weighted(pictures, [linear_weights(before, side) for before in sides])


def _weighted(images: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return the weighted sums along each axis of images, by matrices (after, before)."""
    *depth, rows, columns = (one.to(images.dtype) for one in weights)
    for slices in depth:
        planes = slices @ images.flatten(3)
        images = planes.view(*planes.shape[:3], *map(int, images.shape[3:]))
    return rows @ images @ columns.T


def averaging_weights(before: int, after: int) -> Tensor:
    """Return the matrix (after, before), in double, that averages a line over cells.

    >>> averaging_weights(3, 2)
    tensor([[0.5000, 0.5000, 0.0000],
            [0.0000, 0.5000, 0.5000]], dtype=torch.float64)
    """
    rows = []
    for cell in range(after):
        start, end = cell * before // after, -(-(cell + 1) * before // after)
        rows.append([float(start <= at < end) / (end - start) for at in range(before)])
    return torch.tensor(rows, dtype=torch.float64)


def linear_weights(before: int, after: int) -> Tensor:
    """Return the matrix (after, before), in double, that resizes a line: triangles, as Pillow's.

    They are as wide as an output pixel where it is larger than the pixels before.

    >>> linear_weights(2, 4)
    tensor([[1.0000, 0.0000],
            [0.7500, 0.2500],
            [0.2500, 0.7500],
            [0.0000, 1.0000]], dtype=torch.float64)
    """
    scale = before / after
    rows = []
    for pixel in range(after):
        centre = (pixel + 0.5) * scale - 0.5
        row = [max(0.0, 1 - abs(at - centre) / max(scale, 1)) for at in range(before)]
        rows.append([weight / sum(row) for weight in row])
    return torch.tensor(rows, dtype=torch.float64)
