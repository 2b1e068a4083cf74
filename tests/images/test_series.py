"""Series whose slices do not go together: in units, in whose they are, in what turns them over."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from factories.images import ct_series, save_dicom
from medvq.errors import UnreadableImage
from medvq.images.formats import read_series
from pydicom.dataset import Dataset, FileDataset

BODY = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)


def saved(series: list[FileDataset], folder: Path) -> list[Path]:
    return [save_dicom(folder / f"{n}.dcm", header) for n, header in enumerate(series)]


def in_hounsfield(series: list[FileDataset]) -> None:
    for header in series:
        header.RescaleIntercept = -1024


def one_without_rescale(series: list[FileDataset]) -> None:
    in_hounsfield(series)
    del series[2].RescaleSlope, series[2].RescaleIntercept


def one_with_half_a_rescale(series: list[FileDataset]) -> None:
    in_hounsfield(series)
    series[2].RescaleSlope = None


def one_with_a_table(series: list[FileDataset]) -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [2, 0, 16], b"\xff\xff\0\0"
    series[2].ModalityLUTSequence = [table]


def one_inverted(series: list[FileDataset]) -> None:
    series[2].PresentationLUTShape = "INVERSE"


def counted_backwards(series: list[FileDataset]) -> None:
    for header in series:
        header.PixelSpacing = [0.5, -0.75]


def of_several_patients(series: list[FileDataset]) -> None:
    for header, patient in zip(series, ("Ann", "", "Ann", "Bo", "Ann"), strict=True):
        header.PatientID = patient


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (one_without_rescale, "some slices state a rescale and others none"),
        (one_with_half_a_rescale, "some slices state a rescale and others none"),
        (one_with_a_table, "some slices state a rescale and others none"),
        (one_inverted, "some slices are inverted"),
        (counted_backwards, "PixelSpacing is not positive"),
        (of_several_patients, "name several patients"),
    ],
)
def test_a_series_of_slices_that_do_not_go_together_is_refused(
    tmp_path: Path, spoil: Callable[[list[FileDataset]], None], reason: str
) -> None:
    series = ct_series(BODY)
    spoil(series)
    with pytest.raises(UnreadableImage, match=reason):
        read_series(saved(series, tmp_path))


def test_a_slice_without_a_rescale_may_stand_beside_those_that_change_nothing(
    tmp_path: Path,
) -> None:
    series = ct_series(BODY)
    expected = read_series(saved(series, tmp_path))
    del series[2].RescaleSlope, series[2].RescaleIntercept
    np.testing.assert_array_equal(read_series(saved(series, tmp_path)), expected)
