"""Values of DICOM headers, whatever a file makes of them: numbers, or none, but no exception."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian

from medvq.errors import UnreadableImage
from medvq.images.formats.display import LARGEST

WITHOUT_PIXELS = "a DICOM object without pixel data, or cut off before them"
"""Why a header that tells of no pixels is refused."""


def numbers(header: Dataset, name: str) -> list[float | None]:
    """Return the values of an attribute, in order, with None for what is no usable number.

    The list is empty where the attribute is missing or empty. Decimal text is read here and not by
    pydicom, which fails on the whole of it where one part is no number.
    """
    element = header.get_item(name)
    if element is None or element.value is None:
        return []
    value: object = element.value
    if isinstance(element, RawDataElement):
        value = _convert(header, name, element)
    parts = [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    if all(part is None or str(part).strip(" \0") == "" for part in parts):
        return []
    return [_number(part) for part in parts]


def number(header: Dataset, name: str) -> float | None:
    """Return the first value of an attribute, None where it is missing or no usable number."""
    values = numbers(header, name)
    return values[0] if values else None


def whole_number(header: Dataset, name: str, default: int | None = None) -> int:
    """Return the one value of an attribute that counts something.

    Parameters
    ----------
    default : stands for a missing or empty value; None if there must be one.

    Raises
    ------
    UnreadableImage
        There is none, or it is no whole number.
    """
    values = numbers(header, name)
    if not values:
        if default is None:
            raise UnreadableImage(f"{name} is {'empty' if name in header else 'missing'}")
        return default
    value = values[0]
    if value is None or len(values) > 1 or value != math.floor(value):
        raise UnreadableImage(f"{name} is no whole number")
    return int(value)


def text(header: Dataset, name: str) -> str:
    """Return the first value of an attribute as upper-case text, empty where there is none."""
    return next(iter(texts(header, name)), "")


def texts(header: Dataset, name: str) -> list[str]:
    """Return the values of an attribute as upper-case text; none where it is missing or damaged."""
    try:
        value = header.get(name)
    except Exception:  # a value that its own type does not allow
        return []
    parts = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return [str(part or "").strip(" \0").upper() for part in parts]


def items(header: Dataset, name: str) -> list[Dataset]:
    """Return the items of a sequence; none where it is missing or no sequence."""
    try:
        value = header.get(name)
    except Exception:  # as above
        return []
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return [item for item in value if isinstance(item, Dataset)] if is_sequence else []


def transfer_syntax(header: Dataset) -> UID | None:
    """Return the transfer syntax that the file states."""
    syntax = getattr(header, "file_meta", Dataset()).get("TransferSyntaxUID")
    return syntax if isinstance(syntax, UID) else None


def is_little_endian(header: Dataset) -> bool:
    """Say whether the lowest byte of a word comes first."""
    return bool(transfer_syntax(header) != ExplicitVRBigEndian)


def modality(header: Dataset) -> str:
    """Return the modality, in upper case."""
    return text(header, "Modality")


def _convert(header: Dataset, name: str, element: RawDataElement) -> object:
    """Return the value of an element that pydicom has not converted yet."""
    representation = element.VR
    if representation in {None, "UN"}:
        representation = dictionary_VR(element.tag)
    if representation in {"DS", "IS"}:
        return bytes(element.value or b"").decode("latin-1").split("\\")
    try:
        return header[name].value
    except Exception:  # a value that its own type does not allow
        return "not a number"


def _number(value: object) -> float | None:
    written = str(value).strip(" \0")
    try:
        found = math.nan if "_" in written else float(written)  # Python's own way to group digits
    except ValueError:
        return None
    return found if abs(found) <= LARGEST else None  # which NaN is not either
