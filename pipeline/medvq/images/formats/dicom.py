"""DICOM as a viewer shows it, through pydicom, with GDCM for compressed pixels.

A picture goes through these steps, each skipped where the header does not ask for it (PS3.3
C.7.6.3, C.11.1, C.11.2): decompression; the modality LUT or rescale; the range shown; inversion of
MONOCHROME1; padding (Pixel Padding Value, and up to the range limit) to black.

The range shown is, in this order: the window that the configuration demands; the first VOI LUT; the
first window; for CT in Hounsfield units ``SOFT_TISSUE``; for signed, rescaled or more than 16-bit
values, and for MR, PET and NM, whose scale means nothing, the 0.5th to the 99.5th percentile; else
all bits stored, as a PNG of the same pixels would be. Volumes: :func:`show_volume`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut
from pydicom.pixels.processing import apply_voi

from medvq.errors import UnreadableImage
from medvq.images.formats.codestream import coded_size, run_length_pixels
from medvq.images.formats.display import (
    Image,
    Values,
    Window,
    check_size,
    robust_range,
    stretch,
)
from medvq.images.formats.notes import notice
from medvq.images.formats.parsing import parse

SOFT_TISSUE = Window(40, 400)
"""What CT without a window is shown with, in Hounsfield units: the abdominal soft tissue preset."""

_IS_NO_IMAGE = "a DICOM object that is no image: "
_TABLES = frozenset({"ModalityLUTSequence", "VOILUTSequence"})
# Modalities of which the range of all stored bits is not the range to show.
_NO_SCALE = frozenset({"CT", "MR", "PT", "NM"})
# By what the name that PS3.6 gives the class of the object contains.
_NO_IMAGE = {
    "Segmentation": "a segmentation",
    "RT Dose": "a dose distribution",
    "Parametric Map": "a parametric map",
    "RT Structure Set": "a set of structures",
    "Plan Storage": "a treatment plan",
    "Treatment Record": "a treatment record",
    "Encapsulated": "an encapsulated document",
    "SR Storage": "a structured report",
    "Key Object": "a list of key objects",
    "Presentation State": "a presentation state",
    "Waveform": "a waveform",
    "Registration": "a registration",
    "Fiducials": "a set of landmarks",
    "Spectroscopy": "a spectrum",
    "Raw Data": "raw data of a scanner",
    "Media Storage Directory": "a directory of other files",
}


class Slice(NamedTuple):
    """A frame: the header that holds for it, and its stored pixels (height, width[, 3])."""

    header: Dataset
    stored: Values


class Identity(NamedTuple):
    """Whom and what a DICOM object shows, from its header. For comparing, never to be shown.

    ``no_image`` is why the object is no image, and empty where it is one.
    """

    subject: str
    study: str
    series: str
    instance: str
    modality: str
    body_part: str
    view: str
    presentation_intent: str
    is_localizer: bool
    no_image: str


_IDENTITY = (
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "Modality",
    "BodyPartExamined",
    "ViewPosition",
    "PresentationIntentType",
)


def identify(path: Path) -> Identity | None:
    """Read the header of ``path`` only; None where it cannot be read."""
    tags = ["SOPClassUID", "ImageType", *_IDENTITY]
    try:
        header = parse(path, stop_before_pixels=True, specific_tags=tags)
        subject, study, series, instance, modality, body_part, view, intent = (
            str(header.get(tag) or "").strip() for tag in _IDENTITY
        )
        localizer = "LOCALIZER" in (header.get("ImageType") or ())
        reason = _no_image(header)
    except Exception:  # whatever pydicom raises, reading the image says why
        return None
    return Identity(
        subject, study, series, instance, modality, body_part, view, intent, localizer, reason
    )


def read_header(path: Path, *, pixels: bool = False) -> Dataset:
    """Read the header of an image; with ``pixels``, the data to decode as well.

    Raises
    ------
    UnreadableImage
        The file is no DICOM file, or holds another object than an image.
    """
    try:
        header = parse(path, stop_before_pixels=not pixels)
    except InvalidDicomError as error:
        raise UnreadableImage("not a DICOM file (it lacks the file header of PS3.10)") from error
    if reason := _no_image(header):
        raise UnreadableImage(reason)
    if "Rows" not in header or "Columns" not in header:
        raise UnreadableImage("a DICOM object without pixel data")
    return header


def decode(header: Dataset) -> Values:
    """Decode the pixels as stored: ([frames,] height, width[, 3]); colour as RGB.

    Raises
    ------
    UnreadableImage
        There are none, or of another length than the header says, or no decoder reads them.
    """
    if "PixelData" not in header:
        raise UnreadableImage("a DICOM object without pixel data")
    samples, frames = int(header.SamplesPerPixel), int(header.get("NumberOfFrames") or 1)
    check_size(int(header.Rows), int(header.Columns), frames, samples)
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None or syntax not in uid.AllTransferSyntaxes:
        raise UnreadableImage("pixels in an unknown transfer syntax")
    if syntax.is_encapsulated:
        _check_coded_size(header, frames)
    else:
        _check_length(header, samples, frames)
    if syntax == uid.JPEGExtended12Bit and header.BitsStored > 8:
        # pydicom will not have GDCM decode these; GDCM does, by the JPEG stream's own precision.
        header.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    photometric = str(header.PhotometricInterpretation)
    if photometric.startswith("MONOCHROME") or photometric == "PALETTE COLOR":
        expected = 1
    elif photometric == "RGB" or photometric.startswith("YBR_"):
        expected = 3
    else:
        raise UnreadableImage("pixels of an unknown photometric interpretation")
    if samples != expected:
        raise UnreadableImage("the number of samples contradicts the photometric interpretation")
    try:
        stored = np.asarray(header.pixel_array)
    except (NotImplementedError, RuntimeError) as error:
        raise UnreadableImage(f"pixels that no decoder reads ({syntax.name})") from error
    sizes = (frames, int(header.Rows), int(header.Columns), samples)
    if stored.shape != sizes[frames == 1 : 4 - (samples == 1)]:
        raise UnreadableImage("another number of frames than the header says")
    return stored


def show_picture(picture: Slice, window: Window | None = None) -> Image:
    """Show a grey image's stored pixels: (height, width) in [0, 1]."""
    header = picture.header
    values = _rescale(picture)
    inside = ~_padding(picture)
    if window is None and header.get("VOILUTSequence"):
        bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
        table = apply_voi(np.rint(values).astype(np.int64), header)
        shown = stretch(table, 0, 2**bits - 1)
    elif chosen := window or stated_window(header) or _default_window(header):
        shown = chosen.apply(values)
    elif "ModalityLUTSequence" in header:
        bits = int(header.ModalityLUTSequence[0].LUTDescriptor[2])
        shown = stretch(values, 0, 2**bits - 1)
    elif _has_scale(header):
        shown = stretch(values, 0, 2 ** int(header.BitsStored) - 1)
    else:
        shown = stretch(values, *robust_range(values[inside]))
    return _finish(shown, header, inside)


def show_volume(slices: Sequence[Slice], window: Window | None = None) -> Image:
    """Show slices over one range: (slices, height, width) in [0, 1].

    That range is the window that the configuration demands; for MR, PET and NM, whose windows an
    operator sets slice by slice, the 0.5th to the 99.5th percentile of the volume; else the window
    that all slices state; else, for CT, ``SOFT_TISSUE``; else those percentiles.
    """
    values = np.stack([_rescale(one).astype(np.float32) for one in slices])
    inside = np.stack([~_padding(one) for one in slices])
    stated = {stated_window(one.header) for one in slices}
    first = slices[0].header
    if window is None and _modality(first) not in {"MR", "PT", "NM"}:
        window = next(iter(stated)) if len(stated) == 1 else None
        window = window or _default_window(first)
    if window is None:
        shown = stretch(values, *robust_range(values[inside]))
    else:
        shown = window.apply(values)
    return _finish(shown, first, inside)


def _rescale(picture: Slice) -> Values:
    """Bring stored pixels to the units of the modality, by the modality LUT or the rescale."""
    if _first(picture.header.get("RescaleSlope")) == 0:
        notice("RescaleSlope is 0: ignored")
        return picture.stored
    return np.asarray(apply_modality_lut(picture.stored, picture.header))


def stated_window(header: Dataset) -> Window | None:
    """Return the first window of ``header``, None where there is none that can be applied."""
    center, width = (_first(header.get(name)) for name in ("WindowCenter", "WindowWidth"))
    function = str(header.get("VOILUTFunction") or "LINEAR")
    if center is None or width is None or not np.isfinite([center, width]).all():
        return None
    if function == "LINEAR_EXACT" and width > 0:
        return Window(center, width, "LINEAR_EXACT")
    if function == "SIGMOID" and width > 0:
        return Window(center, width, "SIGMOID")
    return Window(center, width) if function == "LINEAR" and width >= 1 else None


def split_frames(header: Dataset, stored: Values) -> list[Slice]:
    """Split a multi-frame image into frames, each with its own place, rescale and window.

    Raises
    ------
    UnreadableImage
        The frames state no place in space: they are a film, or a set of unrelated pictures.
    """
    shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    each = header.get("PerFrameFunctionalGroupsSequence")
    if not each or len(each) != len(stored):
        raise UnreadableImage("a DICOM object of several frames that state no place in space")
    slices = []
    for groups, pixels in zip(each, stored, strict=True):
        frame = _simple_elements(header)
        for functional in (*shared[0], *groups):
            if functional.VR == "SQ" and len(functional.value) == 1:
                frame.update(_simple_elements(functional.value[0]))
        slices.append(Slice(frame, pixels))
    return slices


def _simple_elements(header: Dataset) -> Dataset:
    """Copy what is neither a sequence nor pixels, and the sequences that hold tables of greys."""
    return Dataset(
        {
            element.tag: element
            for element in header
            if element.keyword in _TABLES or (element.VR != "SQ" and element.keyword != "PixelData")
        }
    )


def _no_image(header: Dataset) -> str:
    """Say why a DICOM object is no image; empty where it is one."""
    kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or ""
    name = uid.UID(kind).name
    return next((_IS_NO_IMAGE + what for part, what in _NO_IMAGE.items() if part in name), "")


def _check_length(header: Dataset, samples: int, frames: int) -> None:
    per_pixel = 2 if header.PhotometricInterpretation == "YBR_FULL_422" else samples
    bits = int(header.Rows) * int(header.Columns) * frames * per_pixel * int(header.BitsAllocated)
    expected = (bits + 7) // 8
    # An odd length is padded to an even one. Any other length says that the size is wrong.
    if len(header.PixelData) - expected not in {0, expected % 2}:
        raise UnreadableImage(
            "the pixel data are shorter or longer than the size in the header says"
        )


def _check_coded_size(header: Dataset, frames: int) -> None:
    rows, columns = int(header.Rows), int(header.Columns)
    run_length = header.file_meta.TransferSyntaxUID == uid.RLELossless
    for frame in generate_frames(header.PixelData, number_of_frames=frames):
        if run_length:
            # A segment of odd length is padded, and the padding may read as one pixel more.
            fits = run_length_pixels(frame) - rows * columns in {0, 1}
        else:
            fits = coded_size(frame) in {(rows, columns), None}
        if not fits:
            raise UnreadableImage("the compressed pixels are of another size than the header says")


def _finish(shown: Image, header: Dataset, inside: NDArray[np.bool_]) -> Image:
    if header.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return np.where(inside, shown, np.float32(0))


def _padding(picture: Slice) -> NDArray[np.bool_]:
    """Find the pixels whose stored value is padding (PS3.3 C.7.5.1.1.2)."""
    names = ("PixelPaddingValue", "PixelPaddingRangeLimit")
    stated = [value for name in names if (value := _first(picture.header.get(name))) is not None]
    if "PixelPaddingValue" not in picture.header or not stated:
        return np.zeros(picture.stored.shape, np.bool_)
    if picture.stored.dtype.kind == "i":
        # Many scanners write the negative value of a signed image as if it were unsigned.
        bits = 8 * picture.stored.dtype.itemsize
        stated = [value - 2**bits if value >= 2 ** (bits - 1) else value for value in stated]
    low, high = min(stated), max(stated)
    return np.asarray((picture.stored >= low) & (picture.stored <= high))


def _default_window(header: Dataset) -> Window | None:
    in_hounsfield = str(header.get("RescaleType") or "HU") == "HU" and "RescaleSlope" in header
    return SOFT_TISSUE if _modality(header) == "CT" and in_hounsfield else None


def _has_scale(header: Dataset) -> bool:
    """Say whether all bits stored are the range to show."""
    slope, intercept = (_first(header.get(f"Rescale{name}")) for name in ("Slope", "Intercept"))
    is_rescaled = slope not in {None, 1.0} or intercept not in {None, 0.0}
    is_signed = int(header.get("PixelRepresentation") or 0) == 1
    is_deep = int(header.BitsStored) > 16
    return not (is_signed or is_rescaled or is_deep or _modality(header) in _NO_SCALE)


def _modality(header: Dataset) -> str:
    return str(header.get("Modality") or "").upper()


def _first(value: object) -> float | None:
    """Return the first of one value or several as a number."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None
    return None if value is None or value == "" else float(str(value))
