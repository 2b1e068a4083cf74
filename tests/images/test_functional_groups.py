"""Enhanced DICOM: what each frame's functional groups say goes before the header."""

from pathlib import Path

import numpy as np
import pytest
from factories.images import Array, ct_series, save_dicom
from medvq.errors import UnreadableImage
from medvq.images.formats import read_image, read_series
from medvq.images.formats.identity import identify
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ImplicitVRLittleEndian,
    generate_uid,
)

BODY = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
"""(depth, height, width), towards head, back and left; every size another."""


def macro(**elements: object) -> Sequence:
    """The one item of a functional group."""
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return Sequence([item])


def enhanced(slices: list[FileDataset], pixels: Array, uid: str, **groups: Sequence) -> FileDataset:
    """Slices in their order as the frames of one file, with more groups for each frame."""
    header = slices[0]
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = uid
    header.set_pixel_data(pixels, "MONOCHROME2", 16)
    header.NumberOfFrames = len(slices)
    shared = Dataset()
    shared.PlaneOrientationSequence = macro(
        ImageOrientationPatient=slices[0].ImageOrientationPatient
    )
    shared.PixelMeasuresSequence = macro(PixelSpacing=slices[0].PixelSpacing)
    header.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for one in slices:
        frame = Dataset()
        frame.PlanePositionSequence = macro(ImagePositionPatient=one.ImagePositionPatient)
        for name, group in groups.items():
            setattr(frame, name, group)
        frames.append(frame)
    header.PerFrameFunctionalGroupsSequence = Sequence(frames)
    for name in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
        delattr(header, name)
    del header.RescaleSlope, header.RescaleIntercept
    return header


LUNG = {
    "PixelValueTransformationSequence": macro(
        RescaleSlope=2, RescaleIntercept=-100, RescaleType="HU"
    ),
    "FrameVOILUTSequence": macro(WindowCenter=-600, WindowWidth=1500),
}


def lung(stored: Array) -> Array:
    return np.clip((2.0 * stored - 100 + 600.5) / 1499 + 0.5, 0, 1)


def test_frames_that_state_their_place_are_a_volume(tmp_path: Path) -> None:
    order = [3, 0, 4, 1, 2]
    series = ct_series(BODY)
    header = enhanced([series[number] for number in order], BODY[order], EnhancedMRImageStorage)
    header.Modality = "MR"
    path = save_dicom(tmp_path / "x.dcm", header)
    low, high = np.percentile(BODY, [0.5, 99.5])
    expected = np.clip((BODY - low) / (high - low), 0, 1)
    np.testing.assert_allclose(read_image(path)[0], expected, atol=1e-5)


def test_one_frame_has_its_functional_groups_and_four_such_files_are_a_series(
    tmp_path: Path,
) -> None:
    paths = []
    for number, one in enumerate(ct_series(BODY)[:4]):
        header = enhanced([one], BODY[number], EnhancedCTImageStorage, **LUNG)
        paths.append(save_dicom(tmp_path / f"{number}.dcm", header))
        np.testing.assert_allclose(read_image(paths[-1])[0], lung(BODY[number]), atol=1e-6)
    np.testing.assert_allclose(read_series(paths[::-1])[0], lung(BODY[:4]), atol=1e-6)
    assert len({identify(path).series for path in paths}) == 1


def test_shared_groups_alone_hold_for_one_frame(tmp_path: Path) -> None:
    (first, *_) = ct_series(BODY)
    header = enhanced([first], BODY[0], EnhancedCTImageStorage)
    for name, group in LUNG.items():
        setattr(header.SharedFunctionalGroupsSequence[0], name, group)
    del header.PerFrameFunctionalGroupsSequence
    path = save_dicom(tmp_path / "x.dcm", header)
    np.testing.assert_allclose(read_image(path)[0], lung(BODY[0]), atol=1e-6)


def test_groups_go_before_the_header_and_private_sequences_before_nothing(tmp_path: Path) -> None:
    header = enhanced(ct_series(BODY), BODY, EnhancedCTImageStorage, **LUNG)
    header.WindowCenter, header.WindowWidth = 40, 400
    header.RescaleSlope, header.RescaleIntercept = 1, 0
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [2, 0, 16], b"\xff\xff\0\0"
    header.VOILUTSequence = header.ModalityLUTSequence = [table]
    private: dict[str, object] = {
        "WindowCenter": 5,
        "WindowWidth": 9,
        "RescaleSlope": 7,
        "RescaleIntercept": 1,
    }
    private |= {"ImagePositionPatient": [0, 0, 0], "PixelSpacing": [9, 9]}
    for groups in (
        header.SharedFunctionalGroupsSequence[0],
        *header.PerFrameFunctionalGroupsSequence,
    ):
        block = groups.private_block(0x2005, "A VENDOR", create=True)
        block.add_new(0x0F, "SQ", macro(**private))
        # Converted headers list what has no macro of its own.
        groups.UnassignedPerFrameConvertedAttributesSequence = macro(**private)
    path = save_dicom(tmp_path / "x.dcm", header)
    np.testing.assert_allclose(read_image(path)[0], lung(BODY), atol=1e-6)
    header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    path = save_dicom(tmp_path / "implicit.dcm", header)
    np.testing.assert_allclose(read_image(path)[0], lung(BODY), atol=1e-6)


@pytest.mark.parametrize("parts", [None, 1, 2])
def test_a_part_of_a_concatenation_is_no_volume(tmp_path: Path, parts: int | None) -> None:
    header = enhanced(ct_series(BODY), BODY, EnhancedCTImageStorage)
    header.ConcatenationUID = generate_uid()
    header.InConcatenationNumber = 1
    if parts is not None:
        header.InConcatenationTotalNumber = parts
    path = save_dicom(tmp_path / "x.dcm", header)
    if parts == 1:
        assert read_image(path).shape == (1, *BODY.shape)
        return
    with pytest.raises(UnreadableImage, match=r"part of a concatenation .*: put its parts"):
        read_image(path)
