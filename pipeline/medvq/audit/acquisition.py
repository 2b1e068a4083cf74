"""How an image was acquired, as far as its file says: numbers and hashes, for the audit alone.

Only the attributes named here are read from a DICOM header. Equipment is hashed as it is read,
dates become days since the set's first, and none of it is written anywhere: the audit keeps only
how well each group predicts the label. Headers are read in worker processes, which import this
module: pandas is imported for the table alone.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvq.images.formats import is_dicom
from medvq.images.workers import WorkerFailure, read_headers

if TYPE_CHECKING:
    import pandas as pd

EQUIPMENT = (
    "Manufacturer", "ManufacturerModelName", "StationName", "DeviceSerialNumber",
    "SoftwareVersions", "DetectorType", "DetectorID", "InstitutionName",
    "InstitutionalDepartmentName",
)  # fmt: skip
SETTINGS = (
    "BitsAllocated", "BitsStored", "ImagerPixelSpacing", "PixelSpacing", "SliceThickness", "KVP",
    "Exposure", "ExposureTime", "XRayTubeCurrent", "DistanceSourceToDetector",
    "DistanceSourceToPatient", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth",
    "RepetitionTime", "EchoTime", "MagneticFieldStrength",
)  # fmt: skip
KINDS = ("PhotometricInterpretation", "LossyImageCompression", "ViewPosition", "BodyPartExamined")
_MOMENT = ("StudyDate", "StudyTime")
_PERSON = ("PatientAge", "PatientSex")
READ = (*EQUIPMENT, *SETTINGS, *KINDS, *_MOMENT, *_PERSON)

# By the unit of an age (PS3.5, AS).
_PER_YEAR = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}
# No setting of a scanner comes near; the squares of larger numbers overflow in the audit.
_LARGEST = 1e12

GROUPS = ("file_size", "equipment", "settings", "moment", "person")
"""First parts of the columns of :func:`describe`; ``file_size`` has no second part."""


def describe(paths: Sequence[Path]) -> pd.DataFrame:
    """Return one row per file: its size in bytes and, of a DICOM file, what its header says.

    Columns are ``file_size`` and ``<group>.<attribute>``: numbers, NaN where there is none, or
    hashes (of type object) of what is no number. Empty columns are left out. A header that cannot
    be read says nothing.
    """
    import pandas as pd

    rows = [_size(path) for path in paths]
    headers = [(row, path) for row, path in zip(rows, paths, strict=True) if is_dicom(path)]
    described = read_headers(read_acquisition, [path for _, path in headers])
    for (row, _), values in zip(headers, described, strict=True):
        if not isinstance(values, WorkerFailure):
            row.update(values)
    table = pd.DataFrame(rows, index=range(len(paths)))
    if "moment.day" in table:
        table["moment.day"] -= table["moment.day"].min()
    return table.dropna(axis="columns", how="all")


def _size(path: Path) -> dict[str, Any]:
    try:
        return {"file_size": float(path.stat().st_size)}
    except OSError:
        return {}


def read_acquisition(path: Path) -> dict[str, Any]:
    """Return what the header of a DICOM file says by column; nothing where it cannot be read."""
    from medvq.images.formats.parsing import parse

    try:
        header = parse(path, stop_before_pixels=True, specific_tags=list(READ))
    except MemoryError:
        raise
    except Exception:  # of dozens of types; a broken header is a fact about the file
        return {}
    syntax = getattr(header.file_meta, "TransferSyntaxUID", None)
    values: dict[str, Any] = {"settings.TransferSyntax": _hash(syntax) if syntax else None}
    values |= {f"equipment.{name}": _hash(_value(header, name)) for name in EQUIPMENT}
    values |= {f"settings.{name}": _hash(_value(header, name)) for name in KINDS}
    values |= {f"settings.{name}": _number(_value(header, name)) for name in SETTINGS}
    values |= _moment(str(_value(header, "StudyDate")), str(_value(header, "StudyTime")))
    values["person.age"] = _years(str(_value(header, "PatientAge")).strip())
    values["person.sex"] = _hash(_value(header, "PatientSex"))
    return values


def _value(header: Any, name: str) -> Any:
    try:
        # A sequence in place of a value may hold anything.
        return None if header[name].VR == "SQ" else header[name].value
    except KeyError:
        return None
    except Exception:  # a value that its own type does not allow
        return None


def _hash(value: object) -> str | None:
    text = str(value or "").strip()
    return (
        hashlib.blake2b(text.encode(errors="backslashreplace"), digest_size=8).hexdigest()
        if text
        else None
    )


def _number(value: Any) -> float:
    """Return the first value as a number, NaN where it is none or too large to be meant."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        value = next(iter(value), None)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
    return number if abs(number) <= _LARGEST else float("nan")


def _years(age: str) -> float:
    """Return an age such as 018M in years; without a unit it is in years."""
    per_year = _PER_YEAR.get(age[-1:].upper())
    return _number(age[:-1]) / per_year if per_year else _number(age)


def _moment(date: str, time: str) -> dict[str, Any]:
    """Return the day as a running number, the day of the week, and the hour."""
    values: dict[str, Any] = {}
    try:
        day = dt.date(int(date[:4]), int(date[4:6]), int(date[6:8]))
        values = {"moment.day": float(day.toordinal()), "moment.weekday": str(day.weekday())}
        values["moment.hour"] = int(time[:2]) + int(time[2:4]) / 60
    except ValueError:
        pass  # no date, or none that is one
    return values
