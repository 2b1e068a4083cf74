"""Bytes, images in [0, 1] and the range of networks."""

import numpy as np
import torch
from medvq.method.scaling import from_network, to_bytes, to_network, to_unit


def test_bytes_are_scaled_to_the_range_of_networks() -> None:
    images = np.array([[[0, 255], [51, 204]]], np.uint8)
    torch.testing.assert_close(to_unit(images), torch.tensor([[[[0.0, 1.0], [0.2, 0.8]]]]))
    expected = torch.tensor([[[[-2.0, 2.0], [-1.2, 1.2]]]])
    torch.testing.assert_close(to_network(to_unit(images)), expected)


def test_scaling_is_undone() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    unit = to_unit(images)
    torch.testing.assert_close(from_network(to_network(unit)), unit)
    assert (to_bytes(to_network(unit))[:, 0] == images).all()
