"""Pictures that are not what they look like: mosaics, localizers, images for processing.

Mosaics: MR scanners of one vendor put all slices of a volume side by side in one picture.
"""

from pathlib import Path

import numpy as np
import pytest
from factories.images import ct_series, dicom, save_dicom
from medvq.errors import UnreadableImage
from medvq.images.formats import read_image, read_series
from medvq.images.formats.notes import recorded

SLICES = np.random.default_rng(0).integers(0, 900, (3, 8, 8)).astype(np.uint16)
KIND = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]


def test_a_mosaic_as_a_picture_is_told(tmp_path: Path) -> None:
    for kind, told in ((KIND, 1), (KIND[:3], 0)):
        path = save_dicom(tmp_path / "x.dcm", dicom(SLICES[0], Modality="MR", ImageType=kind))
        with recorded() as notes:
            read_image(path)
        assert sum("mosaic" in text for text in notes.notices) == told


def test_a_localizer_as_a_picture_is_told(tmp_path: Path) -> None:
    for kind, told in ((["ORIGINAL", "PRIMARY", "LOCALIZER"], 1), (["ORIGINAL", "PRIMARY"], 0)):
        path = save_dicom(tmp_path / "x.dcm", dicom(SLICES[0], Modality="CT", ImageType=kind))
        with recorded() as notes:
            read_image(path)
        assert sum("a localizer" in text for text in notes.notices) == told


def test_an_image_for_processing_is_told(tmp_path: Path) -> None:
    for intent, told in (("FOR PROCESSING", 1), ("FOR PRESENTATION", 0)):
        header = dicom(SLICES[0], Modality="MG", PresentationIntentType=intent)
        with recorded() as notes:
            read_image(save_dicom(tmp_path / "x.dcm", header))
        assert sum("raw values of the detector" in text for text in notes.notices) == told


def test_greys_that_stand_for_colours_are_told(tmp_path: Path) -> None:
    for presentation, told in (("COLOR", 1), ("MIXED", 1), ("MONOCHROME", 0)):
        header = dicom(SLICES[0], Modality="US", PixelPresentation=presentation)
        with recorded() as notes:
            read_image(save_dicom(tmp_path / "x.dcm", header))
        assert sum("some stand for colours" in text for text in notes.notices) == told


def test_a_mosaic_is_no_slice_of_a_volume(tmp_path: Path) -> None:
    header = ct_series(SLICES)[0]
    header.ImageType = KIND
    with pytest.raises(UnreadableImage, match="a mosaic, which shows the slices side by side"):
        read_series([save_dicom(tmp_path / "x.dcm", header)])
