"""A user's own folder of images, with labels from a CSV or from the names of its folders."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

from pipeline.data.formats import DICOM_SUFFIXES, IMAGE_SUFFIXES, PICTURE_SUFFIXES, is_dicom
from pipeline.data.manifest import SourceImage
from pipeline.data.privacy import pseudonym, subject_key
from pipeline.errors import UserError

_SPLIT_NAMES: dict[str, Literal["train", "test"]] = {
    "train": "train",
    "training": "train",
    "val": "train",
    "validation": "train",
    "test": "test",
    "testing": "test",
}


def list_images(
    folder: Path, labels: str | None, key: bytes | None = None
) -> Iterator[SourceImage]:
    """The images of ``folder``, sorted by path; subjects under keyed pseudonyms.

    Parameters
    ----------
    folder : holds the images.
    labels : a CSV in ``folder`` with the columns ``file`` (relative to ``folder``), and where known
        ``label``, ``subject`` and ``split``; or None for ``<split>/<label>/<image>``.
    key : that subjects are named with; None takes this machine's secret.

    Raises
    ------
    UserError
        No image is found, the CSV lacks a column, names a missing file, or names one twice.
    """
    rows = _rows_of_csv(folder, folder / labels) if labels else _rows_of_folders(folder)
    if not rows:
        raise UserError(f"no image ({', '.join(sorted(IMAGE_SUFFIXES))}) is listed in {folder}")
    key = key or subject_key()
    for name in sorted(rows):
        row, path = rows[name], folder / name
        dicom = is_dicom(path)
        subject = row.get("subject") or (_patient_of(path) if dicom else "") or name
        split = _SPLIT_NAMES.get((row.get("split") or "train").strip().lower())
        if split is None:
            raise UserError(f"{folder / (labels or '')}: a split is neither train nor test")
        yield SourceImage(
            path=path,
            # An empty or broken file may have been DICOM, and so may one with another suffix.
            shown_path=name if path.suffix.lower() in PICTURE_SUFFIXES and not dicom else "",
            subject=pseudonym(subject, key),
            split=split,
            label=(row.get("label") or "").strip() or None,
        )


def _rows_of_csv(folder: Path, file: Path) -> dict[str, dict[str, str]]:
    if not file.is_file():
        raise UserError(f"no labels file {file}; the source's 'labels' is relative to {folder}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text; save it as 'CSV UTF-8'") from error
    with io.StringIO(text, newline="") as stream:
        reader = csv.DictReader(stream)
        if "file" not in (reader.fieldnames or ()):
            # Not shown: without a header line they would be the values of the first row.
            count = len(reader.fieldnames or ())
            raise UserError(f"{file} must have a column 'file'; none of its {count} is called so")
        rows: dict[str, dict[str, str]] = {}
        for number, row in enumerate(reader, start=2):
            name = row["file"] or ""
            if name in rows:
                raise UserError(f"{file}, line {number}: a file that an earlier line names already")
            if Path(name).is_absolute() or not (folder / name).is_file():
                raise UserError(f"{file}, line {number}: the file it names is not in {folder}")
            rows[name] = cast("dict[str, str]", row)
    return rows


def _rows_of_folders(folder: Path) -> dict[str, dict[str, str]]:
    rows = {}
    for base, _, names in os.walk(folder):
        for name in names:
            path = Path(base, name)
            if path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                parts = path.relative_to(folder).parts
                row = {"label": parts[-2]} if len(parts) > 1 else {}
                if len(parts) > 2 and parts[-3].lower() in _SPLIT_NAMES:
                    row["split"] = parts[-3]
                rows[path.relative_to(folder).as_posix()] = row
    return rows


def _patient_of(path: Path) -> str:
    if path.suffix.lower() not in DICOM_SUFFIXES and not is_dicom(path):
        return ""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
    except (InvalidDicomError, OSError, ValueError):
        return ""  # ingest sets it aside with the reason
    return str(header.get("PatientID", ""))
