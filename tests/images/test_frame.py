"""Features of the frame around the object, by hand."""

import numpy as np
import pytest
import torch
from medvq.images.frame import frame_features
from numpy.typing import NDArray


def test_frame_features_by_hand() -> None:
    image: NDArray[np.uint8] = np.zeros((1, 30, 30), np.uint8)
    image[0, :2, :2] = [[0, 40], [80, 120]]
    image[0, 4:24, 4:24] = 255  # the middle, which no feature may depend on
    features = frame_features(image, torch.tensor([[0.1, 0.2, -0.1, 0.0]]))[0]
    assert features.shape == (2 * 96 + 4,)
    assert features[0] == 60
    assert features[96] == pytest.approx(np.sqrt(2000))
    assert not features[1:96].any()
    assert not features[97:192].any()
    np.testing.assert_allclose(features[192:], [25.5, 51, -25.5, 0], rtol=1e-6)
