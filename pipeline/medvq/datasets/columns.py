"""The columns of a table of labels, by the names that people give them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from medvq.config import Labels
from medvq.errors import Notice, UserError

KEYS = {"path": "file", "subject": "subject", "study": "study", "instance": "instance"}
"""The name of the column that rows are joined on, by ``labels.join``."""
ATTRIBUTES = {"study": " (StudyInstanceUID)", "instance": " (SOPInstanceUID)"}
"""What a column holds by its name, for messages: no accession or other number, say."""

# Names that are read as the column, and names that only look like it, both as `_plain` has them.
_VARIANTS = {
    "file": (
        "filename", "filepath", "path", "image", "images", "imagename", "imagefile", "imagepath",
        "imageindex", "imagefilename", "img", "imgname", "imgpath",
    ),
    "subject": (
        "subjectid", "patient", "patientid", "patientnumber", "participant", "participantid",
    ),
    "study": ("studyuid", "studyinstanceuid"),
    "instance": ("instanceuid", "sopinstanceuid", "sopuid"),
    "label": ("labels", "class", "classlabel", "classname"),
    "split": ("splits", "splitname"),
}  # fmt: skip
_LOOKALIKES = {
    "file": (
        "id", "imageid", "imgid", "name", "uid", "slide", "scan", "idcode", "fileid", "photo",
        "picture", "scanid", "slideid", "imageno", "imagenumber",
    ),
    "subject": (
        "case", "caseid", "person", "personid", "individual", "pid", "mrn", "id", "subj", "subjid",
        "subjects", "subjectname", "subjectnumber", "subjectno", "subjectcode", "patients", "pat",
        "patid", "ptid", "patientname", "patientno", "patientnr", "patientcode", "patientkey",
        "lesionid", "donor", "donorid", "animal", "animalid", "proband", "probandid", "volunteer",
    ),
    "study": ("studyid",),
    "instance": ("uid", "instanceid"),
    "label": (
        "diagnosis", "target", "category", "finding", "findings", "findinglabels", "disease",
        "pathology", "outcome", "grade", "dx", "y", "classes", "classid", "labelid", "labelname",
        "findinglabel", "groundtruth", "gt", "condition", "severity", "truth", "ytrue",
        "classindex", "labelindex", "diagnostic", "histology", "stage", "birads", "grading",
    ),
    "split": (
        "set", "subset", "partition", "fold", "dataset", "datasettype", "phase", "usage", "kfold",
        "traintest", "trainvaltest", "istrain", "istest", "isval", "isvalid", "isvalidation",
        "train", "test", "validation", "datasplit", "traintestsplit", "splittype",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Positions of columns; None where a table has none for that."""

    key: int
    label: int | None
    target: int | None
    subject: int | None
    split: int | None


def find_columns(file: Path, header: Sequence[str], labels: Labels) -> Columns:
    """Find the columns of a table; what looks like one of them and is not used is named.

    Names are compared without regard to capitals, spaces, underscores and hyphens.

    Raises
    ------
    UserError
        A column that is needed is missing, or there are two for one purpose.
    """
    header = [cell.strip() for cell in header]
    key_name = KEYS[labels.join]
    key = _stated(file, header, labels.key) if labels.key else _known(file, header, key_name)
    if key is None:
        raise UserError(_missing(file, header, key_name))
    has_column = labels.column != "label"
    label = _stated(file, header, labels.column) if has_column else _known(file, header, "label")
    target = _stated(file, header, labels.target) if labels.target else None
    subject, split = (_known(file, header, name) for name in ("subject", "split"))
    found = {"subject": subject, "split": split}
    if not has_column and target is None:
        found["label"] = label
    used = {key, label, target, subject, split}
    for name, position in found.items():
        # Beside a column for that, one called ID may be of anything.
        lookalikes = {*_LOOKALIKES[name]} - ({"id"} if position is not None else set())
        unused = [
            f"'{cell}'"
            for number, cell in enumerate(header)
            if number not in used and (_plain(cell) in lookalikes or _is_called(cell, name))
        ]
        if unused:
            way_out = "source.labels.column names it" if name == "label" else "rename it"
            warnings.warn(
                Notice(
                    f"{file.name}: {', '.join(unused)} is not used; if it is the {name}, {way_out}"
                ),
                stacklevel=2,
            )
    _warn_of_further_keys(file, header, key_name, used)
    return Columns(key, label, target, subject, split)


def _warn_of_further_keys(
    file: Path, header: Sequence[str], name: str, used: Collection[int | None]
) -> None:
    """Name columns such as ``file2``, which may hold a second image of each row."""
    further = [
        f"'{cell}'"
        for number, cell in enumerate(header)
        if number not in used and cell[-1:].isdigit() and _is_called(cell, name)
    ]
    if further:
        text = f"{file.name}: {', '.join(further)} is not used; give each {name} a row of its own"
        warnings.warn(Notice(text), stacklevel=3)


def purpose_of(name: str) -> str | None:
    """Return what the name of a column says that it is for, such as ``label``; None for nothing."""
    for purpose, variants in _VARIANTS.items():
        if _plain(name) in {purpose, *variants, *_LOOKALIKES[purpose]}:
            return purpose
    return None


def _is_called(cell: str, name: str) -> bool:
    """Say whether a column is called so, or by a variant, with a number or without: ``label.1``."""
    return _plain(cell).rstrip("0123456789") in {name, *_VARIANTS[name]}


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _stated(file: Path, header: Sequence[str], name: str) -> int:
    """Return the position of a column that the configuration names."""
    for found in (
        [number for number, cell in enumerate(header) if cell == name],
        [number for number, cell in enumerate(header) if _plain(cell) == _plain(name)],
    ):
        if len(found) > 1:
            raise UserError(f"{file} has the column '{name}' more than once; rename one of them")
        if found:
            return found[0]
    raise UserError(_missing(file, header, name))


def _known(file: Path, header: Sequence[str], name: str) -> int | None:
    """Return the position of a column by its own name, else by a variant of it."""
    found = [number for number, cell in enumerate(header) if _plain(cell) == name]
    if len(found) > 1:
        raise UserError(f"{file} has the column '{name}' more than once; rename one of them")
    if not found:
        found = [number for number, cell in enumerate(header) if _plain(cell) in _VARIANTS[name]]
    if len(found) > 1:
        names = " and ".join(f"'{header[number]}'" for number in found)
        raise UserError(f"{file}: {names} may each be the {name}; name the right one '{name}'")
    return found[0] if found else None


def _missing(file: Path, header: Sequence[str], name: str) -> str:
    # Its columns are not shown: without a header line they are the values of the first row.
    what = f"'{name}'{ATTRIBUTES.get(name, '')}"
    message = f"{file} must have a column {what}; none of its {len(header)} is called so"
    if len(header) == 1:
        message += " (columns are separated by commas, semicolons, tabs or '|')"
    if not any(map(purpose_of, header)):
        message += "; the first line must name the columns"
    alike = [cell for cell in header if _plain(cell) in _LOOKALIKES.get(name, ())]
    return f"{message}; if it is '{alike[0]}', source.labels.key names it" if alike else message
