"""The header of an image as DICOM results take it over: every attribute valid, or empty.

Objects of a patient and a study must have these attributes (PS3.3, type 2: they may be empty), and
highdicom refuses values that the standard does not allow. Anonymised exports lack some of them;
scanners write others, such as a sex of ``U``, a date of ``00000000`` or several character sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.tag import BaseTag
from pydicom.valuerep import DA, STR_VR, TM

from medvq.errors import UnreadableImage
from medvq.images.formats.parsing import parse

_TYPE_2 = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
# Without these an object cannot say which image it is of.
REFERENCE = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_NAMING = ("PatientID", "PatientName", *REFERENCE)
_SINGLE = ("StudyID", "AccessionNumber", "ReferringPhysicianName")
_TEXT = STR_VR - {"PN"}
_SEXES = frozenset({"M", "F", "O"})


def header_to_copy(path: Path) -> Dataset:
    """Read a header; an attribute of the patient or the study that is not valid is empty.

    Raises
    ------
    UnreadableImage
        What names the patient or the image is damaged.
    """
    header = parse(path, stop_before_pixels=True)
    _drop_damaged(header)
    # Texts are decoded as the file says, now or when they are read, and written in UTF-8.
    header.SpecificCharacterSet = "ISO_IR 192"
    for name in _TYPE_2:
        header.setdefault(name, None)
    for name, is_valid in _CHECKS.items():
        value = header[name].value
        if value and not (isinstance(value, str) and is_valid(value)):
            header[name].value = None
    for name in _SINGLE:
        if header[name].VM > 1:
            header[name].value = None
    return header


def _drop_damaged(header: Dataset) -> None:
    """Drop attributes that are of no value of their type.

    They would end a run when highdicom copies them, in a message that quotes them.
    """
    for tag in list(header.keys()):
        if not _is_sound(header, tag):
            if (name := keyword_for_tag(tag)) in _NAMING:
                raise UnreadableImage(f"the image states a {name} that is damaged")
            del header[tag]


def _is_sound(header: Dataset, tag: BaseTag) -> bool:
    """Say whether an attribute can be read and written, and is text where it should be."""
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    try:
        write_data_element(stream, header[tag], "utf8")
    except Exception:  # of dozens of types
        return False
    stated, expected = header[tag].VR, dictionary_VR(tag) if dictionary_has_tag(tag) else ""
    return stated == expected or expected not in STR_VR or {stated, expected} <= _TEXT


def ambiguous(header: Dataset) -> str:
    """Return the attribute that names several patients or objects, in words; empty if none does."""
    several = (name for name in _NAMING if name in header and header[name].VM > 1)
    return next((f"several values of {name}" for name in several), "")


def _is_sex(value: str) -> bool:
    return value in _SEXES


def _is_date(value: str) -> bool:
    return len(value) == 8 and _converts(DA, value)  # 2020.01.31 is of before DICOM


def _is_time(value: str) -> bool:
    return _converts(TM, value)


def _converts(kind: Callable[[str], object], value: str) -> bool:
    try:
        return kind(value) is not None
    except ValueError:
        return False


_CHECKS: Mapping[str, Callable[[str], bool]] = {
    "PatientSex": _is_sex,
    "PatientBirthDate": _is_date,
    "StudyDate": _is_date,
    "StudyTime": _is_time,
}
