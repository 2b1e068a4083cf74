"""DICOM files: whether they show anything, their headers, and the headers of their frames."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import pydicom
from pydicom import uid
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from medvq.errors import UnreadableImage
from medvq.images.formats.display import Values
from medvq.images.formats.header import (
    WITHOUT_PIXELS,
    items,
    modality,
    text,
    texts,
    transfer_syntax,
    whole_number,
)
from medvq.images.formats.notes import applied, notice
from medvq.images.formats.parsing import parse
from medvq.images.formats.transfers import (
    MAY_HAVE_LOST_RETURNS,
    SAMPLE,
    TRANSFERRED_AS_TEXT,
    ends_lines_as_text,
    lacks_returns,
)

_IS_NO_IMAGE = "a DICOM object that is no image: "
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
_STORAGE = "1.2.840.10008.5.1.4."
# By the beginning of the class's UID after ``_STORAGE``, for what pydicom has no name for.
_NO_IMAGE_UID = {
    "1.1.66.": "a segmentation, a registration or raw data",
    "1.1.9.": "a waveform",
    "1.1.11.": "a presentation state",
    "1.1.30": "a parametric map",
    "1.1.67": "a mapping of values",
    "1.1.68.": "a surface",
    "1.1.78.": "a measurement of the eye",
    "1.1.79.": "a report",
    "1.1.80.": "a measurement of the eye",
    "1.1.88.": "a structured report",
    "1.1.90.": "a report",
    "1.1.91.": "a set of annotations",
    "1.1.104.": "an encapsulated document",
    "1.1.200.": "a protocol",
    "1.1.201.": "an inventory",
    "34.": "an instruction for treatment",
}
_RADIOTHERAPY, _RADIOTHERAPY_IMAGES = "1.1.481.", {"1.1.481.1", "1.1.481.23", "1.1.481.24"}
_LABEL_MAPS = {"1.1.66.7", "1.1.66.8"}
# By the modality, for classes that a vendor made.
_NO_IMAGE_MODALITY = {
    "SEG": "a segmentation",
    "SR": "a structured report",
    "PR": "a presentation state",
    "KO": "a list of key objects",
    "RTSTRUCT": "a set of structures",
    "RTDOSE": "a dose distribution",
    "RTPLAN": "a treatment plan",
    "RTRECORD": "a treatment record",
    "REG": "a registration",
    "FID": "a set of landmarks",
    "RWV": "a mapping of values",
    "ECG": "a waveform",
    "HD": "a waveform",
    "DOC": "an encapsulated document",
}
# Classes that hold images although their names do not say so.
_IMAGES_BY_NAME = ("Image", "Volume Storage", "Map Storage", "DICOS", "Angiography")

# What each functional group says in place of the header (PS3.3 C.7.6.16.2).
_GROUPS = {
    "PixelValueTransformationSequence": (
        "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence",
    ),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
}  # fmt: skip
_NOT_OF_FRAMES = (
    "PixelData", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
_PARTS = "InConcatenationTotalNumber"
_SECONDARY_CAPTURE = f"{_STORAGE}1.1.7."  # and those of several frames below it
_TEXT = "text in the pixels may name the patient, and is not removed; look, and blank it first"
_SEQUENCE_DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"


class Slice(NamedTuple):
    """A frame: the header that holds for it, and its stored pixels (height, width[, 3])."""

    header: Dataset
    stored: Values


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
        reason = "not a DICOM file (it begins neither with the header of PS3.10 nor with data)"
        raise UnreadableImage(reason) from error
    except (MemoryError, UnreadableImage):
        raise
    except Exception as error:  # of dozens of types
        if ends_lines_as_text(path.read_bytes()):
            raise UnreadableImage(TRANSFERRED_AS_TEXT) from error
        raise
    if pixels and "PixelData" not in header and _is_encapsulated(header):
        # pydicom drops compressed pixels whose end is not marked.
        with io.BytesIO(path.read_bytes() + _SEQUENCE_DELIMITER) as mended:
            header = pydicom.dcmread(mended, force=True)
        if "PixelData" in header:
            notice("the end of the compressed pixels is not marked: read to the end of the file")
    if reason := no_image(header):
        raise UnreadableImage(reason)
    if pixels and _is_transferred_as_text(path, header):
        raise UnreadableImage(TRANSFERRED_AS_TEXT)
    if pixels and not _is_encapsulated(header) and lacks_returns(_stored(header)):
        notice(MAY_HAVE_LOST_RETURNS)
    if pixels and "InConcatenationNumber" in header and whole_number(header, _PARTS, 0) != 1:
        raise UnreadableImage(
            "a part of a concatenation (InConcatenationNumber): put its parts together into one "
            "object"
        )
    if "Rows" not in header or "Columns" not in header:
        raise UnreadableImage(WITHOUT_PIXELS)
    if pixels:
        _tell_of_text(header)
        if text(header, "PresentationIntentType") == "FOR PROCESSING":
            notice("for processing: raw values of the detector, not what a viewer shows")
    return header


def _tell_of_text(header: Dataset) -> None:
    """Tell where the header says, or leaves open of a screenshot, that pixels name the patient."""
    states = text(header, "BurnedInAnnotation")
    if states == "YES":
        notice(f"BurnedInAnnotation is YES: {_TEXT}")
    elif states != "NO" and f"{text(header, 'SOPClassUID')}.".startswith(_SECONDARY_CAPTURE):
        notice(f"a secondary capture whose BurnedInAnnotation is not NO: {_TEXT}")
    # Scanners of ultrasound write the patient's name into the picture.
    elif states != "NO" and modality(header) == "US":
        notice(f"ultrasound whose BurnedInAnnotation is not NO: {_TEXT}")


def _is_transferred_as_text(path: Path, header: Dataset) -> bool:
    """Say whether every line feed of the pixels follows a carriage return.

    Where pixels are not compressed, which may hold little else, so many bytes are too many, too.
    """
    element = header.get_item("PixelData")
    if not isinstance(element, RawDataElement) or not element.value:
        return False
    after = path.stat().st_size - element.value_tell - element.length
    return ends_lines_as_text(element.value) and (
        _is_encapsulated(header) or after >= element.value.count(b"\n")
    )


def _stored(header: Dataset) -> bytes:
    """Return the beginning of the pixels as they lie in the file."""
    element = header.get_item("PixelData")
    value = element.value if isinstance(element, RawDataElement) else None
    return value[:SAMPLE] if isinstance(value, bytes) else b""


def frame_header(header: Dataset, number: int) -> Dataset | None:
    """Return the header that holds for a frame, by its functional groups; None without groups."""
    shared = items(header, "SharedFunctionalGroupsSequence")[:1]
    each = items(header, "PerFrameFunctionalGroupsSequence")
    groups = [*shared, *each[number : number + 1]]
    if not groups or number >= max(1, len(each)):
        return None
    frame = Dataset(dict(header.items()))
    for name in _NOT_OF_FRAMES:
        if name in frame:
            delattr(frame, name)
    frame.file_meta = header.file_meta
    for group in groups:
        for sequence, names in _GROUPS.items():
            for macro in items(group, sequence)[:1]:
                if not any(name in macro for name in names):
                    continue  # an empty item takes nothing back
                for name in names:
                    if name in frame:
                        delattr(frame, name)
                frame.update(
                    {e.tag: e for name in names if (e := macro.get_item(name)) is not None}
                )
    return frame


def split_frames(header: Dataset, stored: Values) -> list[Slice]:
    """Split a multi-frame image into frames, each with its own place, rescale and window.

    Raises
    ------
    UnreadableImage
        The frames state no place in space: they are a film, or a set of unrelated pictures.
    """
    if len(items(header, "PerFrameFunctionalGroupsSequence")) != len(stored):
        raise UnreadableImage(
            "a DICOM object of several frames that state no place in space; save each frame as a "
            "file of its own"
        )
    frames = [frame_header(header, number) for number in range(len(stored))]
    return [
        Slice(frame, pixels)
        for frame, pixels in zip(frames, stored, strict=True)
        if frame is not None
    ]


def single_slice(header: Dataset, stored: Values) -> Slice:
    """Return the one frame of an image, with its functional groups where it has any."""
    frame = frame_header(header, 0)
    if frame is not None:
        applied("functional groups of the frame")
    return Slice(header if frame is None else frame, stored)


def _is_encapsulated(header: Dataset) -> bool:
    syntax = transfer_syntax(header)
    return syntax is not None and syntax in uid.AllTransferSyntaxes and syntax.is_encapsulated


def no_image(header: Dataset) -> str:
    """Return why the object that ``header`` belongs to is no image, empty where it is one."""
    stated = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or ""
    kind = uid.UID(str(stated))
    names = (meaning for word, meaning in _NO_IMAGE.items() if word in kind.name)
    if meaning := next(names, "") or _by_uid(kind):
        return _IS_NO_IMAGE + meaning
    if kind == uid.VLWholeSlideMicroscopyImageStorage and "LABEL" in texts(header, "ImageType"):
        return _IS_NO_IMAGE + "a picture of the label of a slide, which may name the patient"
    if kind.name != str(kind):  # pydicom knows the class, and its name is no patient's
        is_image = any(word in kind.name for word in _IMAGES_BY_NAME)
        return "" if is_image or "Storage" not in kind.name else _IS_NO_IMAGE + kind.name
    meaning = _NO_IMAGE_MODALITY.get(text(header, "Modality"), "")
    if "SegmentationType" in header:
        meaning = "a segmentation"
    return _IS_NO_IMAGE + meaning if meaning else ""


def _by_uid(kind: str) -> str:
    number = kind.removeprefix(_STORAGE)
    if number == kind:
        return ""
    if number in _LABEL_MAPS:
        return "a segmentation"
    if number.startswith(_RADIOTHERAPY) and number not in _RADIOTHERAPY_IMAGES:
        return "an object of radiotherapy"
    matches = (meaning for start, meaning in _NO_IMAGE_UID.items() if number.startswith(start))
    return next(matches, "")
