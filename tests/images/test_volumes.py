"""Volumes: slices in their place whatever their order, axes turned one way, one range for all."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from medvq.errors import UnreadableImage
from medvq.images.formats import Window, read_image, read_series
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

Volume = NDArray[np.int16]
SERIES = generate_uid()

# Direction cosines of rows and columns, and the volume (head, back, left) sliced that way: axes
# (slice, row, column).
PLANES: dict[str, tuple[list[int], Callable[[Volume], Volume]]] = {
    "axial": ([1, 0, 0, 0, 1, 0], lambda v: v),
    "axial from the feet, prone": ([-1, 0, 0, 0, 1, 0], lambda v: v[::-1, :, ::-1]),
    "coronal": ([1, 0, 0, 0, 0, -1], lambda v: v[::-1].transpose(1, 0, 2)),
    "sagittal": ([0, 1, 0, 0, 0, -1], lambda v: v[::-1].transpose(2, 0, 1)[::-1]),
}


def body(seed: int = 0) -> Volume:
    """(depth, height, width), towards head, back and left; every size another."""
    return np.random.default_rng(seed).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)


def ct_slice(stored: Volume, orientation: list[int], position: NDArray[np.float64]) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    header.SeriesInstanceUID, header.Modality = SERIES, "CT"
    header.ImageOrientationPatient = orientation
    header.ImagePositionPatient = [round(float(x), 6) for x in position]
    header.PixelSpacing = [0.5, 0.75]
    header.RescaleSlope, header.RescaleIntercept = 1, 0
    header.set_pixel_data(np.ascontiguousarray(stored), "MONOCHROME2", 16)
    return header


def ct_series(volume: Volume, plane: str = "axial", spacing: float = 2.0) -> list[FileDataset]:
    orientation, cut = PLANES[plane]
    normal = np.cross(orientation[:3], orientation[3:])
    start = np.array([12.5, -30.25, 100.0])
    return [
        ct_slice(stored, orientation, start + number * spacing * normal)
        for number, stored in enumerate(cut(volume))
    ]


def saved(headers: list[FileDataset], folder: Path, order: list[int] | None = None) -> list[Path]:
    """Written so that file names say nothing of the order."""
    order = order or list(np.random.default_rng(1).permutation(len(headers)))
    paths = [folder / f"{name}.dcm" for name in order]
    for path, header in zip(paths, headers, strict=True):
        header.save_as(path, enforce_file_format=True)
    return sorted(paths)


def soft_tissue(volume: Volume) -> NDArray[np.float64]:
    return np.clip((volume - 39.5) / 399 + 0.5, 0, 1)


def robust(volume: NDArray[np.generic]) -> NDArray[np.float64]:
    low, high = np.percentile(volume, [0.5, 99.5])
    return np.clip((volume - low) / (high - low), 0, 1)


@pytest.mark.parametrize("plane", PLANES)
def test_a_series_is_put_together_by_geometry(tmp_path: Path, plane: str) -> None:
    paths = saved(ct_series(body(), plane), tmp_path)
    for some in (paths, paths[::-1]):
        found = read_series(some)
        assert found.shape == (1, 5, 6, 7)
        np.testing.assert_allclose(found[0], soft_tissue(body()), atol=1e-6)


def test_a_series_and_its_nifti_are_one_volume(tmp_path: Path) -> None:
    paths = saved(ct_series(body(), "sagittal"), tmp_path)
    # Towards right, front and head, as most NIfTI files are.
    image = nibabel.Nifti1Image(body().transpose(2, 1, 0)[::-1, ::-1], np.diag([2, 0.5, 0.75, 1.0]))
    nibabel.save(image, tmp_path / "x.nii.gz")
    window = Window(0, 500)
    np.testing.assert_array_equal(
        read_series(paths, window), read_image(tmp_path / "x.nii.gz", 1, window)
    )


def test_a_copy_of_an_instance_is_dropped(tmp_path: Path) -> None:
    paths = saved(ct_series(body()), tmp_path)
    copy = tmp_path / "copy.dcm"
    copy.write_bytes(paths[2].read_bytes())
    np.testing.assert_allclose(read_series([copy, *paths])[0], soft_tissue(body()), atol=1e-6)


def without(position: int) -> Callable[[list[FileDataset]], None]:
    return lambda series: series.pop(position) and None


def change(**values: object) -> Callable[[list[FileDataset]], None]:
    def apply(series: list[FileDataset]) -> None:
        for name, value in values.items():
            setattr(series[2], name, value)

    return apply


def lose(name: str) -> Callable[[list[FileDataset]], None]:
    return lambda series: delattr(series[2], name)


def tilt(series: list[FileDataset]) -> None:
    for number, header in enumerate(series):
        header.ImagePositionPatient[1] += 0.7 * number


def one_smaller(series: list[FileDataset]) -> None:
    series[2].set_pixel_data(np.zeros((4, 7), np.int16), "MONOCHROME2", 16)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without(2), "gap"),
        (change(ImagePositionPatient=[12.5, -30.25, 102.0]), "two slices at one place"),
        (change(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "differ in orientation"),
        (change(PixelSpacing=[0.5, 0.9]), "differ in pixel spacing"),
        (change(PhotometricInterpretation="PALETTE COLOR"), "in colour"),
        (change(NumberOfFrames=2), "of several frames"),
        (lose("ImagePositionPatient"), "states no ImagePositionPatient"),
        (lose("ImageOrientationPatient"), "states no ImageOrientationPatient"),
        (lose("PixelData"), "without pixel data"),
        (tilt, "shifted against each other"),
        (one_smaller, "differ in size"),
    ],
)
def test_a_series_that_makes_no_volume(
    tmp_path: Path, spoil: Callable[[list[FileDataset]], None], reason: str
) -> None:
    series = ct_series(body())
    spoil(series)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_series(saved(series, tmp_path))
    assert str(tmp_path) not in str(caught.value)


def test_a_window_that_all_slices_state_is_used_and_others_are_not(tmp_path: Path) -> None:
    series = ct_series(body())
    for header in series:
        header.WindowCenter, header.WindowWidth, header.VOILUTFunction = 100, 800, "LINEAR_EXACT"
    paths = saved(series, tmp_path)
    shown = np.clip((body() - 100) / 800 + 0.5, 0, 1)
    np.testing.assert_allclose(read_series(paths)[0], shown, atol=1e-6)
    series[3].WindowWidth = 600
    paths = saved(series, tmp_path)
    np.testing.assert_allclose(read_series(paths)[0], soft_tissue(body()), atol=1e-6)
    lung = np.clip((body() + 600.0 + 0.5) / 1499 + 0.5, 0, 1)
    np.testing.assert_allclose(read_series(paths, Window(-600, 1500))[0], lung, atol=1e-6)


def test_magnetic_resonance_is_scaled_by_the_whole_volume(tmp_path: Path) -> None:
    series = ct_series(body())
    for number, header in enumerate(series):
        header.Modality, header.SOPClassUID = "MR", MRImageStorage
        header.WindowCenter, header.WindowWidth = 100 + number, 800
    paths = saved(series, tmp_path)
    np.testing.assert_allclose(read_series(paths)[0], robust(body()), atol=1e-5)


def test_frames_that_state_their_place_are_a_volume(tmp_path: Path) -> None:
    series = ct_series(body())
    order = [3, 0, 4, 1, 2]
    header = series[0]
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    header.Modality = "MR"
    header.set_pixel_data(body()[order], "MONOCHROME2", 16)
    shared = Dataset()
    plane, measures = Dataset(), Dataset()
    plane.ImageOrientationPatient = header.ImageOrientationPatient
    measures.PixelSpacing = header.PixelSpacing
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    header.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for number in order:
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = series[number].ImagePositionPatient
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    header.PerFrameFunctionalGroupsSequence = Sequence(frames)
    for name in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
        delattr(header, name)
    header.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    np.testing.assert_allclose(read_image(tmp_path / "x.dcm")[0], robust(body()), atol=1e-5)


ORIENTATIONS = ["RAS", "LPS", "LAS", "PIR", "SAL", "IRP"]


@pytest.mark.parametrize("stored_as", ORIENTATIONS)
def test_a_nifti_volume_is_turned_one_way(tmp_path: Path, stored_as: str) -> None:
    volume = body().astype(np.float32)
    spl = nibabel.orientations.axcodes2ornt("SPL")
    turn = nibabel.orientations.ornt_transform(spl, nibabel.orientations.axcodes2ornt(stored_as))
    stored = nibabel.orientations.apply_orientation(volume, turn)
    axes = {"R": [1, 0, 0], "A": [0, 1, 0], "S": [0, 0, 1]}
    axes |= {"L": [-1, 0, 0], "P": [0, -1, 0], "I": [0, 0, -1]}
    affine = np.eye(4)
    affine[:3, :3] = np.array([axes[letter] for letter in stored_as], float).T @ np.diag([1, 2, 3])
    assert aff2axcodes(affine) == tuple(stored_as)
    nibabel.save(nibabel.Nifti1Image(stored, affine), tmp_path / "x.nii")
    found = read_image(tmp_path / "x.nii", channels=3)
    np.testing.assert_allclose(found, np.stack([robust(volume)] * 3), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "upright"),
    [
        ((1, 6, 7), lambda v: v[0]),
        ((5, 1, 7), lambda v: v[::-1, 0]),
        ((5, 6, 1), lambda v: v[::-1, :, 0]),
    ],
)
def test_a_single_slice_stands_head_up(
    tmp_path: Path, shape: tuple[int, ...], upright: Callable[[Volume], Volume]
) -> None:
    volume = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    image = nibabel.Nifti1Image(volume.transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]))
    nibabel.save(image, tmp_path / "x.nii.gz")
    found = read_image(tmp_path / "x.nii.gz")
    np.testing.assert_allclose(found[0], upright(volume) / 255, atol=1e-6)


def test_a_stated_range_of_display_goes_before_percentiles(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(body().transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]))
    image.header["cal_min"], image.header["cal_max"] = -100, 300
    nibabel.save(image, tmp_path / "x.nii")
    shown = np.clip((body() + 100) / 400, 0, 1)
    np.testing.assert_allclose(read_image(tmp_path / "x.nii")[0], shown, atol=1e-6)


def a_nan(path: Path) -> None:
    volume = body().astype(np.float32)
    volume[1, 2, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)


def times(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.stack([body(), body()], axis=-1), np.eye(4)), path)


def complex_numbers(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(body().astype(np.complex64), np.eye(4)), path)


def flat(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(body(), np.eye(4)), path)
    stored = bytearray(path.read_bytes())
    stored[254:256], stored[280:328] = b"\1\0", bytes(48)  # sform_code; srow_x, y, z
    path.write_bytes(stored)


def cut(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(body(), np.eye(4)), path)
    path.write_bytes(path.read_bytes()[:-50])


def huge(path: Path) -> None:
    header = nibabel.Nifti1Image(body(), np.eye(4)).header
    header["dim"][1:4] = 30000
    path.write_bytes(header.binaryblock + b"\0" * 1000)


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("Ann.nii", a_nan, "pixels that are not numbers"),
        ("Ann.nii.gz", times, "several volumes"),
        ("Ann.nii", complex_numbers, "complex numbers"),
        ("Ann.nii", flat, "which way the volume lies"),
        ("Ann.nii", cut, "not a readable image"),
        ("Ann.nii.gz", cut, "not a readable image"),
        ("Ann.nii", huge, "more than the 268 million samples"),
        ("Ann.nii", lambda path: path.write_text("no volume"), "not a readable image"),
    ],
)
def test_a_nifti_file_that_is_refused(
    tmp_path: Path, name: str, write: Callable[[Path], None], reason: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_image(tmp_path / name)
    assert "Ann" not in str(caught.value)


def test_hippocampus_volumes(real_data: Path) -> None:
    for path in sorted((real_data / "hippocampus").glob("*.nii.gz"))[:5]:
        stored = np.asanyarray(nibabel.load(path).dataobj)  # towards right, front and head
        found = read_image(path)
        expected = robust(stored).transpose(2, 1, 0)[:, ::-1, ::-1]
        np.testing.assert_allclose(found[0], expected, atol=1e-5)
