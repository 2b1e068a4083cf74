"""DICOM files to images: one file, or a CT or MR series as one volume.

The slices of a series are ordered by their place in space (PS3.3 C.7.6.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medvq.errors import UnreadableImage
from medvq.images.formats.decoding import decode
from medvq.images.formats.dicom import Slice, read_header, single_slice, split_frames
from medvq.images.formats.display import (
    SMALL_RANGE,
    Image,
    Values,
    Window,
    check_size,
    stretch,
    to_channels,
    used_range,
)
from medvq.images.formats.greys import show_picture, show_volume
from medvq.images.formats.header import numbers, text, texts, whole_number
from medvq.images.formats.identity import SEVERAL_PATIENTS
from medvq.images.formats.lookup import show_palette
from medvq.images.formats.notes import applied, notice
from medvq.images.formats.volume import to_anatomical

# Positions are decimal text of up to 16 characters; scanners round them to a hundredth of a
# millimetre or so.
_SPACING_TOLERANCE = 0.05
_ANGLE_TOLERANCE = 1e-3
# Attributes that hold the height and the width of a pixel.
_SIDES = ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio")
_SQUARE_TOLERANCE = 0.01
# Millimetres: no scanner's coordinates come near.
_FARTHEST = 1e6


def read_dicom(path: Path, channels: int, window: Window | None = None) -> Image:
    """Read one file: (channels, height, width) in [0, 1], or a volume with depth before height.

    Several frames are a volume where each states its place in space (PS3.3 C.7.6.16).

    Raises
    ------
    UnreadableImage
        No image, no pixel data, pixels that cannot be decoded, frames in time.
    """
    header = read_header(path, pixels=True)
    stored = decode(header)
    if whole_number(header, "NumberOfFrames", 1) > 1:
        return to_channels(assemble(split_frames(header, stored), window), channels, colour=False)
    if _is_mosaic(header):
        notice("a mosaic, which shows the slices of a volume side by side: read as one picture")
    if "LOCALIZER" in texts(header, "ImageType"):
        notice("a localizer, by which a scan was planned, and no slice of it: read as a picture")
    is_grey = str(header.PhotometricInterpretation).startswith("MONOCHROME")
    if is_grey and text(header, "PixelPresentation") in {"COLOR", "MIXED"}:
        notice("greys of which some stand for colours (PixelPresentation): shown as greys")
    if any(_are_unequal(numbers(header, name)) for name in _SIDES):
        notice("the pixels are not square: shown as if they were")
    if int(header.SamplesPerPixel) == 3:
        return to_channels(_show_colour(stored, header), channels, colour=True)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        return to_channels(show_palette(stored, header), channels, colour=True)
    return to_channels(show_picture(single_slice(header, stored), window), channels, colour=False)


def _is_mosaic(header: Dataset) -> bool:
    """Say whether the picture shows a whole volume, by a value that Siemens adds to ImageType."""
    return "MOSAIC" in texts(header, "ImageType")


def _are_unequal(sides: Sequence[float | None]) -> bool:
    """Say whether the height and the width of a pixel differ by more than rounding."""
    known = [side for side in sides if side]
    return len(known) == len(sides) == 2 and abs(known[0] / known[1] - 1) > _SQUARE_TOLERANCE


def _show_colour(stored: Values, header: Dataset) -> Image:
    """Show (height, width, 3) over all bits, or up to the highest value if those are far more."""
    bits = int(header.BitsStored)
    applied(f"colour ({header.PhotometricInterpretation})")
    if part := used_range(stored, bits):
        notice(SMALL_RANGE)
        applied(f"range 0 to {part[1]:g}: the part that is used")
        return stretch(stored, 0, part[1])
    applied(f"all {bits} bits")
    return stretch(stored, 0, 2**bits - 1)


def read_series(paths: Sequence[Path], window: Window | None = None) -> Image:
    """Read the files of one series, in any order: (1, depth, height, width) in [0, 1].

    A second file of an instance that shows the same pixels at the same place is dropped. The
    volume is turned as :func:`~medvq.images.formats.volume.to_anatomical` says, and shown as
    :func:`~medvq.images.formats.greys.show_volume` says.

    Raises
    ------
    UnreadableImage
        A slice cannot be read; slices differ in size, spacing or orientation, stand twice at one
        place, leave a gap, are shifted against each other (a tilted gantry), are placed in several
        frames of reference, or name several patients.
    """
    slices: list[Slice] = []
    by_instance: dict[str, list[Slice]] = {}
    for path in paths:
        header = read_header(path, pixels=True)
        check_size(whole_number(header, "Rows"), whole_number(header, "Columns"), len(paths))
        if whole_number(header, "NumberOfFrames", 1) > 1:
            raise UnreadableImage("a series with slices of several frames")
        if _is_mosaic(header):
            raise UnreadableImage("a mosaic, which shows the slices side by side in one picture")
        one = single_slice(header, decode(header))
        del header.PixelData  # decoded above; a series of compressed slices need not be held twice
        same = by_instance.setdefault(str(header.get("SOPInstanceUID", len(slices))), [])
        # Some programs give one UID to all slices, several of which may show nothing but air.
        if any(
            place(one) == place(other) and np.array_equal(one.stored, other.stored)
            for other in same
        ):
            continue
        same.append(one)
        slices.append(one)
    return assemble(slices, window)[None]


def place(one: Slice) -> list[float | None]:
    """Return where a slice lies, empty where it does not say so."""
    return numbers(one.header, "ImagePositionPatient")


def assemble(slices: Sequence[Slice], window: Window | None = None) -> Image:
    """Order slices to (depth, height, width) in [0, 1]; raises as :func:`read_series`."""
    if len({one.stored.shape for one in slices}) > 1:
        raise UnreadableImage("a series whose slices differ in size")
    headers = [one.header for one in slices]
    if not all(str(one.PhotometricInterpretation).startswith("MONOCHROME") for one in headers):
        raise UnreadableImage("a volume in colour")
    if len({str(one.PhotometricInterpretation) for one in headers}) > 1:
        raise UnreadableImage("a series whose slices differ in photometric interpretation")
    if len({text(one, "PatientID") for one in headers} - {""}) > 1:
        raise UnreadableImage(SEVERAL_PATIENTS)
    # PS3.3 C.7.4.1: positions in one say nothing of those in another.
    if len({text(one, "FrameOfReferenceUID") for one in headers} - {""}) > 1:
        raise UnreadableImage(
            "a series whose slices are placed in several frames of reference "
            "(FrameOfReferenceUID): take out the slices of all but one"
        )
    across, down = _directions(headers)
    positions = _numbers(headers, "ImagePositionPatient", 3)
    spacing = _numbers(headers, "PixelSpacing", 2)
    if (spacing <= 0).any():  # PS3.3 10.7.1.3: positive; others would turn the volume over
        raise UnreadableImage("a series whose PixelSpacing is not positive")
    if not np.allclose(spacing, spacing[0], rtol=1e-3):
        raise UnreadableImage("a series whose slices differ in pixel spacing")
    normal = np.cross(across, down)
    order = np.argsort(positions @ normal, kind="stable")
    step = _step(positions[order], normal)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([step, down * spacing[0][0], across * spacing[0][1]], axis=1)
    # DICOM counts towards left and back, NIfTI towards right and front.
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    applied(f"{len(slices)} slices ordered by position, turned to head, back and left")
    return to_anatomical(show_volume([slices[index] for index in order], window), affine)


def _directions(headers: Sequence[Dataset]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the unit vectors along which the columns and the rows of all slices are counted."""
    cosines = _numbers(headers, "ImageOrientationPatient", 6)
    if not np.allclose(cosines, cosines[0], atol=_ANGLE_TOLERANCE):
        raise UnreadableImage("a series whose slices differ in orientation")
    across, down = cosines[0][:3], cosines[0][3:]
    unit = np.allclose([across @ across, down @ down], 1, atol=_ANGLE_TOLERANCE)
    if not unit or abs(across @ down) > _ANGLE_TOLERANCE:
        raise UnreadableImage("a series whose orientation is no pair of right angles")
    return across, down


def _step(positions: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the step between ordered slices, in millimetres; it must be the same for all."""
    if len(positions) == 1:
        return normal
    steps = np.diff(positions, axis=0)
    median = float(np.median(steps @ normal))
    if (steps @ normal <= 1e-3).any():
        raise UnreadableImage("a series with two slices at one place (several phases or echoes)")
    if np.abs(steps @ normal - median).max() > _SPACING_TOLERANCE * median:
        raise UnreadableImage("a series with a gap between its slices")
    if np.abs(steps - (steps @ normal)[:, None] * normal).max() > _SPACING_TOLERANCE * median:
        raise UnreadableImage("a series whose slices are shifted against each other (a tilt)")
    return normal * median


def _numbers(headers: Sequence[Dataset], name: str, count: int) -> NDArray[np.float64]:
    """Return an attribute that every slice must state, (slices, count)."""
    values = [numbers(header, name) for header in headers]
    if any(len(value) != count for value in values):
        raise UnreadableImage(f"a series with a slice that states no {name}")
    if any(value is None or abs(value) > _FARTHEST for row in values for value in row):
        raise UnreadableImage(f"a series with a slice whose {name} is no usable number")
    return np.array(values, np.float64)
