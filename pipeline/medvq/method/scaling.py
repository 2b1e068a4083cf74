"""Scaling between cached bytes, images in [0, 1] and the range of networks.

No other module knows the network's range.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MEAN, _DEVIATION = 0.5, 0.25  # of an equalised radiograph in [0, 1]
_CPU = torch.device("cpu")


def to_unit(images: NDArray[np.uint8], device: torch.device = _CPU) -> Tensor:
    """Return cached bytes as float32 (B, C, *spatial) in [0, 1] on ``device``.

    ``images`` are (B, height, width) of grey pictures, or (B, C, *spatial) of anything else.
    """
    tensor = send(torch.from_numpy(np.ascontiguousarray(images)), device).float() / 255.0
    return tensor[:, None] if tensor.ndim == 3 else tensor


def to_network(images: Tensor) -> Tensor:
    """Return images (B, C, *spatial) in [0, 1] as ``(x - 0.5) / 0.25``, channels last in memory."""
    scaled = (images - _MEAN) / _DEVIATION
    if torch.onnx.is_in_onnx_export():  # which has no word for the layout of volumes
        return scaled
    layout = torch.channels_last if images.ndim == 4 else torch.channels_last_3d
    return scaled.contiguous(memory_format=layout)


def from_network(output: Tensor) -> Tensor:
    """Return a network's output in the scale of [0, 1]; values beyond it are not clipped."""
    return output * _DEVIATION + _MEAN


def to_bytes(output: Tensor) -> NDArray[np.uint8]:
    """Return a network's output (B, C, *spatial) as bytes of the same shape, on the CPU."""
    return (from_network(output).clamp(0, 1) * 255).round().byte().cpu().numpy()


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to ``device`` without waiting, from pinned memory."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
