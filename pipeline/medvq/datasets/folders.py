"""A user's own folder of pictures, DICOM files or NIfTI volumes, and the labels that go with it."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from medvq.config import DicomFolderSource, FolderSource, NiftiFolderSource
from medvq.datasets.dataset import SourceImage
from medvq.datasets.labels import Label, named_split, read_labels
from medvq.datasets.pseudonyms import pseudonym, subject_key
from medvq.errors import Notice, UserError
from medvq.images.formats import (
    IMAGE_SUFFIXES,
    NIFTI_SUFFIXES,
    PICTURE_SUFFIXES,
    is_dicom,
    is_nifti,
)


class _File(NamedTuple):
    """A file by its name in the folder, and what its header says; none of it is ever shown."""

    path: str
    dicom: bool = False
    subject: str = ""
    study: str = ""
    series: str = ""
    instance: str = ""
    set_aside: str = ""


def list_images(
    folder: Path, source: FolderSource, key: bytes | None = None
) -> Iterator[SourceImage]:
    """List the images of ``folder``, sorted by path; subjects under keyed pseudonyms.

    With a CSV joined on ``path``, those that it names; else all, of which those that a CSV does
    not name have no label. What the source excludes is listed with the reason. Where neither CSV
    nor folders say any split, ``source.test_fraction`` of the subjects are for the test.

    Parameters
    ----------
    folder : holds the images.
    source : of which kind, and where the labels are.
    key : that subjects are named with; None takes this machine's secret.

    Raises
    ------
    UserError
        No image is found, or the CSV cannot be followed; see :mod:`medvq.datasets.labels`.
    """
    labels = source.labels
    table = read_labels(folder, labels) if labels and labels.file else {}
    join = labels.join if labels and labels.file else "folders"
    paths = sorted(table if join == "path" else _walk(folder, source))
    if not paths:
        raise UserError(f"no image ({_kinds(source)}) is listed in {folder}")
    files = _exclude_copies([_identify(folder, path, source) for path in paths])
    if join in {"subject", "study", "instance"}:
        _report_unknown(table, {getattr(file, join) for file in files}, join)
    key = key or subject_key()
    groups = _volumes(files) if _has_volumes(source) else [[file] for file in files]
    rows = [_label(group, source, table, join) for group in groups]
    fraction = 0.0 if any(row.split for row in rows) else source.test_fraction
    for parts, row in zip(groups, rows, strict=True):
        first = parts[0]
        subject = pseudonym(row.subject or first.subject or first.study or first.path, key)
        yield SourceImage(
            path=folder / first.path,
            shown_path=_shown_path(first),
            subject=subject,
            split=row.split or ("test" if _share(subject) < fraction else "train"),
            label=row.label,
            target=row.target,
            target_name=(labels.target or "") if labels else "",
            parts=tuple(folder / part.path for part in parts) if len(parts) > 1 else (),
            window=getattr(source, "window", None),
            set_aside=first.set_aside,
        )


def _share(subject: str) -> float:
    """Map a subject to a number in [0, 1) that no other image changes."""
    digest = hashlib.sha256(f"test:{subject}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _shown_path(file: _File) -> str:
    """Return the path, but none of a DICOM file: an empty or broken file may have been one."""
    known = file.path.lower().endswith((*PICTURE_SUFFIXES, *NIFTI_SUFFIXES))
    return file.path if known and not file.dicom else ""


def _walk(folder: Path, source: FolderSource) -> Iterator[str]:
    for base, _, names in os.walk(folder):
        for name in names:
            path = Path(base, name)
            if not name.startswith(".") and path.is_file() and _is_wanted(path, source):
                yield path.relative_to(folder).as_posix()


def _is_wanted(path: Path, source: FolderSource) -> bool:
    if isinstance(source, DicomFolderSource):
        return is_dicom(path)
    if isinstance(source, NiftiFolderSource):
        return is_nifti(path)
    return path.suffix.lower() in IMAGE_SUFFIXES


def _kinds(source: FolderSource) -> str:
    if isinstance(source, DicomFolderSource):
        return "DICOM"
    suffixes = NIFTI_SUFFIXES if isinstance(source, NiftiFolderSource) else IMAGE_SUFFIXES
    return ", ".join(sorted(suffixes))


def _identify(folder: Path, path: str, source: FolderSource) -> _File:
    if not is_dicom(folder / path):
        suffix = next((s for s in NIFTI_SUFFIXES if path.lower().endswith(s)), "")
        return _File(path, subject=path[: -len(suffix)] if suffix else "")
    from medvq.images.formats.dicom import identify

    identity = identify(folder / path)
    if identity is None:
        return _File(path, dicom=True)  # ingest sets it aside with the reason
    reason = identity.no_image
    if isinstance(source, DicomFolderSource):
        reason = reason or _mismatch("modality", identity.modality, source.modality)
        reason = reason or _mismatch("body part", identity.body_part, source.body_part)
        reason = reason or _mismatch("view", identity.view, source.view)
        if source.series_as_volumes and identity.is_localizer:
            reason = reason or "a localizer, no slice of the volume"
    return _File(path, True, *identity[:4], set_aside=reason)


def _mismatch(what: str, stated: str, demanded: tuple[str, ...]) -> str:
    if not demanded or stated.upper() in {value.upper() for value in demanded}:
        return ""
    is_not = f"is not {' or '.join(demanded)}" if stated else "is not stated"
    return f"the {what} {is_not}, as the configuration demands"


def _exclude_copies(files: list[_File]) -> list[_File]:
    first = {file.instance: file for file in reversed(files) if file.instance}
    copy = "a second file of the same instance"
    return [
        file._replace(set_aside=file.set_aside or copy)
        if first.get(file.instance, file) is not file
        else file
        for file in files
    ]


def _has_volumes(source: FolderSource) -> bool:
    return isinstance(source, DicomFolderSource) and source.series_as_volumes


def _volumes(files: list[_File]) -> list[list[_File]]:
    groups: dict[str, list[_File]] = {}
    for file in files:
        alone = file.set_aside or not file.series
        groups.setdefault(f"file {file.path}" if alone else file.series, []).append(file)
    return list(groups.values())


def _label(parts: list[_File], source: FolderSource, table: dict[str, Label], join: str) -> Label:
    """Return what the labels say of the files of one image."""
    if join == "folders":
        return _label_of_folders(source, parts[0])
    rows = {table[key] for part in parts if (key := getattr(part, join)) in table}
    if len(rows) > 1:
        raise UserError(
            "the labels give the files of one series different rows; join them on 'study', or give "
            "each series one row"
        )
    return rows.pop() if rows else Label()


def _label_of_folders(source: FolderSource, file: _File) -> Label:
    """Read ``<split>/<label>/...`` or ``<label>/...``; of DICOM only where that is asked for."""
    if isinstance(source, DicomFolderSource) and source.labels is None:
        return Label()
    folders = PurePosixPath(file.path).parts[:-1]
    splits = [named_split(name) for name in folders]
    level, split = next(((i, one) for i, one in enumerate(splits) if one), (-1, None))
    return Label(label=next(iter(folders[level + 1 :]), None), split=split)


def _report_unknown(table: dict[str, Label], known: set[str], join: str) -> None:
    unknown = len(table.keys() - known)
    if unknown == len(table):
        raise UserError(
            f"the labels name no {join} of any image in the folder ({unknown} rows); check the "
            "column that labels.key names, and labels.join"
        )
    if unknown:
        warnings.warn(
            Notice(f"{unknown} of {len(table)} rows of the labels name no {join} of any image"),
            stacklevel=3,
        )
