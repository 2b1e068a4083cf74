"""NIfTI volumes with one value outside of the field of view, which no header field names."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from factories.images import Array, save_nifti
from medvq.images.formats import Window, read_image
from medvq.images.formats.notes import recorded

INSIDE = np.random.default_rng(0).integers(-1024, 1500, (12, 11, 10))
OUTSIDE = np.zeros(INSIDE.shape, bool)
OUTSIDE[:3] = True


def shown(values: Array) -> Array:
    """The values of the field of view over their percentiles, slice by slice; black outside."""
    low, high = np.percentile(values[~OUTSIDE], [0.5, 99.5])
    grey = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    return np.where(OUTSIDE, 0, grey).transpose(2, 1, 0)


@pytest.mark.parametrize(
    ("kind", "padding"),
    [(np.int16, -32768), (np.int16, -10000), (np.float32, -3.4e38), (np.float64, -1e300)],
)
def test_a_value_far_below_all_others_is_black_and_takes_no_range(
    tmp_path: Path, kind: type[np.generic], padding: float
) -> None:
    stored = np.where(OUTSIDE, padding, INSIDE).astype(kind)
    path = save_nifti(tmp_path / "x.nii.gz", stored)
    with recorded() as notes:
        (image,) = read_image(path)
    np.testing.assert_allclose(image, shown(stored), atol=1e-5)
    assert [text for text in notes.notices if "far below all others" in text]
    (windowed,) = read_image(path, 1, Window(0, 500))
    assert windowed.transpose(2, 1, 0)[OUTSIDE].max() == 0


@pytest.mark.parametrize("background", [0, -1100])
def test_a_background_is_a_part_of_the_picture(tmp_path: Path, background: int) -> None:
    values = INSIDE + (3000 if background == 0 else 0)
    stored = np.where(OUTSIDE, background, values).astype(np.int16)
    low, high = np.percentile(stored, [0.5, 99.5])
    with recorded() as notes:
        (image,) = read_image(save_nifti(tmp_path / "x.nii.gz", stored))
    expected = np.clip((stored - low) / (high - low), 0, 1).transpose(2, 1, 0)
    np.testing.assert_allclose(image, expected, atol=1e-5)
    assert notes.notices == ()


def test_a_few_voxels_far_below_are_no_padding(tmp_path: Path) -> None:
    stored = INSIDE.astype(np.int16)
    stored[0, 0, 0] = -32768
    with recorded() as notes:
        read_image(save_nifti(tmp_path / "x.nii.gz", stored))
    assert notes.notices == ()


@pytest.mark.parametrize(
    ("kind", "padding"),
    [(np.float32, 1e20), (np.float32, np.finfo(np.float32).max), (np.float64, 1e300)],
)
def test_one_value_beyond_any_measurement_is_black(
    tmp_path: Path, kind: type[np.generic], padding: float
) -> None:
    stored = np.where(OUTSIDE, padding, INSIDE).astype(kind)
    path = save_nifti(tmp_path / "x.nii.gz", stored)
    with recorded() as notes:
        (image,) = read_image(path)
    np.testing.assert_allclose(image, shown(stored), atol=1e-5)
    assert notes.notices == (
        "voxels of one value beyond 10^12, which stands for none: shown black",
    )
    (windowed,) = read_image(path, 1, Window(0, 500))
    assert windowed.transpose(2, 1, 0)[OUTSIDE].max() == 0


def test_large_numbers_that_are_measurements_are_shown(tmp_path: Path) -> None:
    (image,) = read_image(save_nifti(tmp_path / "x.nii", INSIDE * np.float32(1e15)))
    (expected,) = read_image(save_nifti(tmp_path / "x.nii", INSIDE.astype(np.float32)))
    np.testing.assert_allclose(image, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["<i2", "<u2", ">u2", "<i4"])
def test_the_largest_integer_far_above_all_others_takes_no_range(tmp_path: Path, kind: str) -> None:
    stored = np.where(OUTSIDE, np.iinfo(np.dtype(kind)).max, INSIDE + 1024).astype(kind)
    low, high = np.percentile(stored[~OUTSIDE], [0.5, 99.5])
    path = tmp_path / "x.nii"
    header = nibabel.Nifti1Header(endianness=kind[0])
    nibabel.save(nibabel.Nifti1Image(stored, np.diag([-1.0, -1, 1, 1]), header, dtype=kind), path)
    with recorded() as notes:
        (image,) = read_image(path)
    expected = np.clip((stored.astype(float) - low) / (high - low), 0, 1).transpose(2, 1, 0)
    np.testing.assert_allclose(image, expected, atol=1e-5)
    assert [text for text in notes.notices if "no part of the range" in text]


def test_values_up_to_the_largest_integer_are_a_part_of_the_picture(tmp_path: Path) -> None:
    stored = (INSIDE.astype(np.int64) + 1024) * 25
    stored[OUTSIDE] = 65535
    low, high = np.percentile(stored, [0.5, 99.5])
    (image,) = read_image(save_nifti(tmp_path / "x.nii", stored.astype(np.uint16)))
    expected = np.clip((stored - low) / (high - low), 0, 1).transpose(2, 1, 0)
    np.testing.assert_allclose(image, expected, atol=1e-5)
