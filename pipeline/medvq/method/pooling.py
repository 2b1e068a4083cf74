"""Averages of images over cells of a grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def average_over_cells(images: Tensor, size: Sequence[int]) -> Tensor:
    """Average (B, C, *spatial) over cells, which overlap where they do not divide it.

    Where a graph is traced for ONNX, which knows cells that divide alone, by a product of matrices.

    >>> average_over_cells(torch.arange(4.0).view(1, 1, 1, 4), (1, 2))
    tensor([[[[0.5000, 2.5000]]]])
    """
    if not torch.onnx.is_in_onnx_export():
        return F.interpolate(images, list(size), mode="area")
    spatial = [int(side) for side in images.shape[2:]]
    *depth, rows, columns = map(averaging_weights, spatial, size)
    for slices in depth:
        planes = slices @ images.flatten(3)
        images = planes.view(*planes.shape[:3], *spatial[1:])
    return rows @ images @ columns.T


def averaging_weights(before: int, after: int) -> Tensor:
    """Return the matrix (after, before) that averages a line over cells.

    >>> averaging_weights(3, 2)
    tensor([[0.5000, 0.5000, 0.0000],
            [0.0000, 0.5000, 0.5000]])
    """
    rows = []
    for cell in range(after):
        start, end = cell * before // after, -(-(cell + 1) * before // after)
        rows.append([float(start <= at < end) / (end - start) for at in range(before)])
    return torch.tensor(rows)
