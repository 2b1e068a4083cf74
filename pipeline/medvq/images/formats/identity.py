"""Whom and what DICOM files show, by their headers.

A process that has others read headers imports this module, and so not pydicom, which takes a third
of a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


SEVERAL_PATIENTS = "a series whose files name several patients, or whose UID two series share"
"""Why a series is refused."""


class Identity(NamedTuple):
    """Whom and what a DICOM object shows, from its header. For comparing, never to be shown.

    ``no_image`` is why the object is no image, and empty where it is one.
    """

    subject: str
    study: str
    series: str
    instance: str
    issuer: str
    modality: str
    body_part: str
    view: str
    presentation_intent: str
    is_localizer: bool
    no_image: str


_IDENTITY = {
    "subject": "PatientID",
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "instance": "SOPInstanceUID",
    "issuer": "IssuerOfPatientID",
    "modality": "Modality",
    "body_part": "BodyPartExamined",
    "view": "ViewPosition",
    "presentation_intent": "PresentationIntentType",
}


def identify(path: Path) -> Identity | None:
    """Read the header of ``path`` only; None where it cannot be read.

    An attribute that is damaged is empty, and takes no other with it.
    """
    from medvq.images.formats.dicom import no_image
    from medvq.images.formats.parsing import parse

    tags = ["SOPClassUID", "ImageType", "SegmentationType", *_IDENTITY.values()]
    try:
        header = parse(path, stop_before_pixels=True, specific_tags=tags)
        values = {field: _text(header, name) for field, name in _IDENTITY.items()}
        localizer = "LOCALIZER" in _text(header, "ImageType")
        reason = no_image(header)
    except MemoryError:
        raise
    except Exception:  # whatever pydicom raises, reading the image says why
        return None
    return Identity(**values, is_localizer=localizer, no_image=reason)


def _text(header: Dataset, name: str) -> str:
    from pydicom.multival import MultiValue

    try:
        value = header.get(name) or ""
        # A backslash separates values: in PatientID, which has one, it is a part of it.
        return ("\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)).strip()
    except MemoryError:
        raise
    except Exception:  # a value that its own type does not allow
        return ""
