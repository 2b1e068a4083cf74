"""Arrays: slices in their place whatever their order, axes turned one way, one range for all."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from factories.images import (
    PLANES,
    TO_LEFT_AND_BACK,
    Array,
    ct_series,
    noise,
    save_dicom,
    save_nifti,
)
from medvq.errors import UnreadableImage
from medvq.images.formats import Window, read_image, read_series
from medvq.images.formats.notes import Notes, recorded
from nibabel.orientations import aff2axcodes
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.tag import Tag
from pydicom.uid import MRImageStorage


def body(seed: int = 0) -> Array:
    """(depth, height, width), towards head, back and left; every size another."""
    return np.random.default_rng(seed).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)


def saved(headers: list[FileDataset], folder: Path) -> list[Path]:
    """Written so that file names say nothing of the order."""
    order = np.random.default_rng(1).permutation(len(headers))
    named = zip(order, headers, strict=True)
    return sorted(save_dicom(folder / f"{name}.dcm", header) for name, header in named)


def soft_tissue(volume: Array) -> Array:
    return np.clip((volume - 39.5) / 399 + 0.5, 0, 1)


def notes_on(path: Path) -> tuple[Array, Notes]:
    with recorded() as notes:
        return read_image(path), notes


def robust(volume: Array) -> Array:
    low, high = np.percentile(volume, [0.5, 99.5])
    return np.asarray(np.clip((volume - low) / (high - low), 0, 1))


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
    stored = body().transpose(2, 1, 0)[::-1, ::-1]
    path = save_nifti(tmp_path / "x.nii.gz", stored, np.diag([2, 0.5, 0.75, 1.0]))
    window = Window(0, 500)
    np.testing.assert_array_equal(read_series(paths, window), read_image(path, 1, window))


def test_a_copy_of_an_instance_is_dropped(tmp_path: Path) -> None:
    paths = saved(ct_series(body()), tmp_path)
    copy = tmp_path / "copy.dcm"
    copy.write_bytes(paths[2].read_bytes())
    np.testing.assert_allclose(read_series([copy, *paths])[0], soft_tissue(body()), atol=1e-6)


def test_slices_that_share_an_instance_uid_are_kept(tmp_path: Path) -> None:
    apart, shared = ct_series(body()), ct_series(body())
    for header in (*apart[:2], *shared[:2]):
        header.PixelData = bytes(len(header.PixelData))  # air, twice the same
    for header in shared:
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    for name, series in (("apart", apart), ("shared", shared)):
        for number, header in enumerate(series):
            save_dicom(tmp_path / name / str(number), header)
    one, other = (read_series(sorted((tmp_path / n).iterdir())) for n in ("apart", "shared"))
    np.testing.assert_array_equal(one, other)


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
        (change(PhotometricInterpretation="MONOCHROME1"), "differ in photometric interpretation"),
        (change(NumberOfFrames=2), "of several frames"),
        (change(FrameOfReferenceUID="1.2.4"), "in several frames of reference"),
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
    for header in series[:-1]:  # the last slice does not state it, which says nothing
        header.FrameOfReferenceUID = "1.2.3"
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


@pytest.mark.parametrize("value", ["1E155", "inf", "NaN", "9" * 400, "0,5"])
@pytest.mark.parametrize("name", ["ImagePositionPatient", "PixelSpacing"])
def test_a_place_that_is_no_number_is_refused_in_words(
    tmp_path: Path, name: str, value: str
) -> None:
    series = ct_series(body())
    tag = Tag(name)
    text = "\\".join([value] * (3 if name == "ImagePositionPatient" else 2)).encode()
    text += b" " * (len(text) % 2)
    series[2][tag] = RawDataElement(tag, "DS", len(text), text, 0, False, True)
    with pytest.raises(UnreadableImage, match=f"{name} is no usable number"):
        read_series(saved(series, tmp_path))


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
    shown = read_image(save_nifti(tmp_path / "x.nii", stored, affine), channels=3)
    np.testing.assert_allclose(shown, np.stack([robust(volume)] * 3), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "upright"),
    [
        ((1, 6, 7), lambda v: v[0]),
        ((5, 1, 7), lambda v: v[::-1, 0]),
        ((5, 6, 1), lambda v: v[::-1, :, 0]),
    ],
)
def test_a_single_slice_stands_head_up(
    tmp_path: Path, shape: tuple[int, ...], upright: Callable[[Array], Array]
) -> None:
    volume = noise(*shape)
    (shown,) = read_image(save_nifti(tmp_path / "x.nii.gz", volume.transpose(2, 1, 0)))
    np.testing.assert_allclose(shown, upright(volume) / 255, atol=1e-6)


def test_a_stated_range_of_display_goes_before_percentiles(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "x.nii", body().transpose(2, 1, 0), cal_min=-100, cal_max=300)
    expected = np.clip((body() + 100) / 400, 0, 1)
    np.testing.assert_allclose(read_image(path)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "sensible"),
    [
        (-100, 300, True),
        (-1000, 1000, True),
        (-5000, 5000, True),
        (0, 1, False),  # all white or black
        (-1e6, 1e6, False),  # all grey
        (2000, 3000, False),  # all black
        (-1000, -900, False),  # nearly all white
        (0, np.inf, False),
    ],
)
def test_a_stated_range_that_makes_no_sense_is_passed_over(
    tmp_path: Path, low: float, high: float, sensible: bool
) -> None:
    volume = body()
    path = save_nifti(tmp_path / "x.nii", volume.transpose(2, 1, 0), cal_min=low, cal_max=high)
    shown, notes = notes_on(path)
    expected = np.clip((volume - low) / (high - low), 0, 1) if sensible else robust(volume)
    np.testing.assert_allclose(shown[0], expected, atol=1e-5)
    ignored = ("cal_min and cal_max do not fit the values of the volume: ignored",)
    assert notes.notices == (() if sensible else ignored)


def test_a_mask_is_shown_in_its_stated_range(tmp_path: Path) -> None:
    mask = (body() > 900).astype(np.uint8)
    shown, notes = notes_on(save_nifti(tmp_path / "x.nii", mask, cal_max=1))
    np.testing.assert_array_equal(shown[0], mask.transpose(2, 1, 0))
    assert notes.notices == ()


def test_a_volume_without_an_orientation_is_told(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "x.nii", body())
    content = bytearray(path.read_bytes())
    for qform_code, told in ((1, False), (0, True)):
        content[252:256] = struct.pack("<hh", qform_code, 0)
        path.write_bytes(content)
        notices = notes_on(path)[1].notices
        assert any(one.startswith("sform_code and qform_code are 0") for one in notices) == told


def test_whether_it_is_compressed_is_read_from_the_content(tmp_path: Path) -> None:
    plain, packed = tmp_path / "x.nii", tmp_path / "x.nii.gz"
    save_nifti(plain, body())
    save_nifti(packed, body())
    expected = read_image(plain)
    np.testing.assert_array_equal(read_image(packed), expected)
    packed.rename(tmp_path / "y")
    plain.rename(packed)
    (tmp_path / "y").rename(plain)
    for path in (plain, packed):
        np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize("kind", ["int32", "uint32", "float64"])
def test_a_small_range_far_from_zero_keeps_its_greys(tmp_path: Path, kind: str) -> None:
    near = np.arange(6 * 5 * 4).reshape(6, 5, 4)
    expected = read_image(save_nifti(tmp_path / "near.nii", near.astype(np.int16)))
    far = save_nifti(tmp_path / "far.nii", (near + 2**30).astype(kind))
    np.testing.assert_allclose(read_image(far), expected, atol=1e-6)


def test_colour_that_is_transparent_is_black(tmp_path: Path) -> None:
    bands = [(band, np.uint8) for band in "RGBA"]
    stored = np.zeros((4, 5, 6), bands)
    for band in "RGB":
        stored[band] = noise(4, 5, 6)
    stored["A"] = 255
    stored["A"][0], stored["A"][1] = 0, 51
    (shown,) = read_image(save_nifti(tmp_path / "x.nii", stored))
    expected = noise(4, 5, 6) / 255 * (stored["A"] / 255)
    np.testing.assert_allclose(shown, expected.transpose(2, 1, 0), atol=1 / 255)
    stored["A"] = 0
    with pytest.raises(UnreadableImage, match="wholly transparent"):
        read_image(save_nifti(tmp_path / "x.nii", stored))


def test_voxels_that_are_no_numbers_are_black(tmp_path: Path) -> None:
    volume = body().astype(np.float32)
    outside = np.zeros(volume.shape, bool)
    outside[:, :, :2] = True
    path = save_nifti(tmp_path / "x.nii.gz", np.where(outside, np.nan, volume).transpose(2, 1, 0))
    shown, notes = notes_on(path)
    low, high = np.percentile(volume[~outside], [0.5, 99.5])
    expected = np.where(outside, 0, np.clip((volume - low) / (high - low), 0, 1))
    np.testing.assert_allclose(shown[0], expected, atol=1e-5)
    assert notes.notices == ("voxels that are not numbers (NaN): shown black",)
    window = read_image(path, 1, Window(0, 500))
    assert window[0][outside].max() == 0


def test_damaged_compressed_data_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.nii.gz"
    stored = save_nifti(tmp_path / "x.nii", body()).read_bytes()
    whole = gzip.compress(stored, 0)
    content = bytearray(whole)
    content[len(content) // 2] ^= 1  # stored and not compressed: only the checksum tells
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match="damaged or cut off"):
        read_image(path)
    path.write_bytes(whole + b"what a download has appended")
    assert read_image(path).shape == (1, 7, 6, 5)
    path.write_bytes(gzip.compress(stored + bytes(2**25)))
    with pytest.raises(UnreadableImage, match="far more data than its header states"):
        read_image(path)


Edit = Callable[[bytearray], None]


def field(start: int, form: str, *values: float) -> Edit:
    """Write numbers into the header."""

    def edit(content: bytearray) -> None:
        struct.pack_into(f"<{form}", content, start, *values)

    return edit


@pytest.mark.parametrize(
    ("edit", "notice"),
    [
        (field(0, "i", 348), ()),
        (field(256, "f", 5), ()),  # a quaternion that is none
        (field(280, "12f", *[0] * 12), ("the sform does not say which way",)),
        (field(280, "f", np.nan), ("the sform does not say which way",)),
        (field(280, "f", 1), ("sform and qform disagree about which way",)),
    ],
)
def test_the_form_that_says_which_way_the_volume_lies(
    tmp_path: Path, edit: Edit, notice: tuple[str, ...]
) -> None:
    image = nibabel.Nifti1Image(body().transpose(2, 1, 0), TO_LEFT_AND_BACK)
    image.set_qform(TO_LEFT_AND_BACK, 1)
    nibabel.save(image, tmp_path / "x.nii")
    content = bytearray((tmp_path / "x.nii").read_bytes())
    edit(content)
    (tmp_path / "x.nii").write_bytes(content)
    shown, notes = notes_on(tmp_path / "x.nii")
    mirrored = bool(notice) and "disagree" in notice[0]
    expected = robust(body())[..., ::-1] if mirrored else robust(body())
    np.testing.assert_allclose(shown[0], expected, atol=1e-5)
    assert len(notes.notices) == len(notice)
    assert all(one.startswith(start) for one, start in zip(notes.notices, notice, strict=True))


def test_voxels_that_are_stated_in_metres(tmp_path: Path) -> None:
    small = np.diag([-2e-6, -2e-6, 2e-6, 1])
    nibabel.save(nibabel.Nifti1Image(body().transpose(2, 1, 0), small), tmp_path / "x.nii")
    np.testing.assert_allclose(read_image(tmp_path / "x.nii")[0], robust(body()), atol=1e-5)


def edited(*edits: Edit) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        content = bytearray(save_nifti(path, body()).read_bytes())
        for edit in edits:
            edit(content)
        path.write_bytes(content)

    return write


def test_lines_of_nibabel_do_not_reach_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edited(field(80, "f", 0), field(254, "h", 77))(tmp_path / "x.nii")
    read_image(tmp_path / "x.nii")
    assert capfd.readouterr().err == ""


def stored(volume: Array) -> Callable[[Path], object]:
    return lambda path: save_nifti(path, volume)


def without_orientation(path: Path) -> None:
    content = bytearray(save_nifti(path, body()).read_bytes())
    content[254:256], content[280:328] = b"\1\0", bytes(48)  # sform_code; srow_x, y, z
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(save_nifti(path, body()).read_bytes()[:-50])


def huge(path: Path) -> None:
    header = nibabel.Nifti1Image(body(), TO_LEFT_AND_BACK).header
    header["dim"][1:4], header["vox_offset"] = 30000, 352
    path.write_bytes(header.binaryblock + b"\0" * 1000)


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("Ann.nii", stored(np.where(body() == body()[1, 2, 3], np.inf, body())), "not numbers"),
        ("Ann.nii", stored(np.full((5, 6, 7), np.nan)), "not numbers"),
        (
            "Ann.nii.gz",
            stored(np.stack([body()] * 2, axis=-1)),
            "several volumes.*; save each volume",
        ),
        ("Ann.nii", stored(body().astype(np.complex64)), "complex numbers"),
        ("Ann.nii", without_orientation, "which way the volume lies"),
        ("Ann.nii", edited(field(40, "h", 9)), "number of dimensions .* is not 1 to 7"),
        ("Ann.nii", edited(field(40, "h", 0)), "number of dimensions .* is not 1 to 7"),
        ("Ann.nii", edited(field(108, "f", 0)), "vox_offset lies within the header"),
        ("Ann.nii", edited(field(108, "f", 350)), "vox_offset lies within the header"),
        ("Ann.nii", edited(field(112, "2f", 1, np.nan)), "scl_inter is no usable number"),
        ("Ann.nii", edited(field(112, "2f", np.inf, 0)), "scl_inter is no usable number"),
        ("Ann.nii", edited(field(112, "2f", 1, 1e30)), "scl_inter is no usable number"),
        ("Ann.nii", edited(field(112, "2f", 1e36, 0)), "scl_inter is no usable number"),
        ("Ann.nii", edited(field(70, "h", 999)), "its header is damaged"),
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
