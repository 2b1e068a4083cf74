"""Area averaging on bytes, against an average that takes every pixel by hand."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medvq.errors import UnreadableImage
from medvq.images import resizing as fitting
from medvq.images.resizing import fit_to_shape, shrink_bytes
from numpy.typing import NDArray


def by_hand(picture: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Each cell's mean: every pixel weighted with the area that it shares with the cell."""
    weights = []
    for pixels, cells in zip(picture.shape, shape, strict=True):
        table = np.zeros((cells, pixels))
        for cell in range(cells):
            low, high = cell * pixels / cells, (cell + 1) * pixels / cells
            for pixel in range(pixels):
                table[cell, pixel] = max(0.0, min(high, pixel + 1) - max(low, pixel))
        weights.append(table * cells / pixels)
    return np.asarray(weights[0] @ picture @ weights[1].T)


@settings(max_examples=40)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 9),
)
def test_bytes_are_averaged_over_areas(h: int, w: int, high: int, wide: int, seed: int) -> None:
    shape = (min(h, high), min(w, wide))
    picture = np.random.default_rng(seed).integers(0, 256, (h, w), np.uint8)
    expected = by_hand(picture, shape)
    found = shrink_bytes(picture, shape)
    assert found.dtype == np.uint8
    # To the nearest, ties either way.
    assert np.abs(found - expected).max() <= 0.5 + 1e-6


def test_a_constant_stays_what_it_is() -> None:
    for value in (0, 1, 127, 255):
        picture = np.full((201, 173), value, np.uint8)
        assert (shrink_bytes(picture, (37, 41)) == value).all()


def test_a_large_picture_does_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.full((3000, 3001), 255, np.uint8)
    assert picture.size > fitting._INTEGRAL_PIXELS
    picture[::2] = 253
    assert (shrink_bytes(picture, (30, 30)) == 254).all()


def test_real_radiographs_are_shrunk_as_before(real_data: Path) -> None:
    """The tolerance: a grey level where rounding is a tie, one pixel in five hundred."""
    files = sorted((real_data / "kermany-fullres").glob("*/*"))
    for file in files[::6]:
        picture = np.asarray(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE), np.uint8)
        grey = np.asarray(picture[None] / np.float32(255), np.float32)
        slow = fit_to_shape(grey, (224, 224), "stretch")[0]
        difference = np.abs(shrink_bytes(picture, (224, 224)) - slow.astype(int))
        assert difference.max() <= 1
        assert difference.mean() < 0.002


@pytest.mark.parametrize(
    ("shape", "new"), [((1, 40, 30, 25), (16, 32, 25)), ((3, 20, 33, 48), (25, 16, 16))]
)
def test_a_large_volume_is_resized_as_a_small_one(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], new: tuple[int, ...]
) -> None:
    volume = np.random.default_rng(0).random(shape, np.float32)
    small = fit_to_shape(volume, new, "stretch").astype(int)
    monkeypatch.setattr(fitting, "_BLUR_BYTES", 0)
    large = fit_to_shape(volume, new, "stretch")
    assert np.abs(large - small).max() <= 1  # ties in rounding
    assert np.mean(large != small) < 1e-3


@pytest.mark.parametrize(
    ("shape", "new", "reason"),
    [
        (
            (1, 9, 8, 7),
            (4, 4),
            r"a volume, where pictures .*: save .*image_size .* as \[depth, height, width",
        ),
        (
            (1, 9, 8),
            (4, 4, 4),
            r"a picture, where volumes .*: take it out .*series_as_volumes.*image_size .* as one",
        ),
    ],
)
def test_another_number_of_axes_is_refused_with_the_way_out(
    shape: tuple[int, ...], new: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        fit_to_shape(np.zeros(shape, np.float32), new, "stretch")
