"""The files of a user's own folder: which are images, of whom, and which are copies of others."""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medvq.config import DicomFolderSource, FolderSource, NiftiFolderSource
from medvq.errors import Notice
from medvq.images.formats import (
    IMAGE_SUFFIXES,
    NIFTI_SUFFIXES,
    PICTURE_SUFFIXES,
    is_dicom,
    is_nifti,
)
from medvq.images.formats.magic import begins_as_dicom, begins_as_picture

COPY = "a second file of the same instance"
_FOR_PROCESSING = (
    "for processing, and its study holds images for presentation "
    "(source.presentation_intent chooses)"
)
_ARCHIVES = frozenset({".zip", ".gz", ".tgz", ".tar", ".bz2", ".xz", ".7z", ".rar"})
_JPEG_SUFFIXES = frozenset({".jfif", ".jpe", ".jif"})
# Of files that are no images. No other suffix is shown: it may be a part of a name.
_OTHER_SUFFIXES = frozenset(
    {
        ".avi", ".bin", ".csv", ".dat", ".db", ".dll", ".doc", ".docx", ".exe", ".gif", ".h5",
        ".hdf5", ".heic", ".hdr", ".htm", ".html", ".img", ".inf", ".ini", ".ipynb", ".jar", ".js",
        ".json", ".log", ".mat", ".md", ".mha", ".mhd", ".mov", ".mp4", ".npy", ".npz", ".nrrd",
        ".parquet", ".pdf", ".pickle", ".pkl", ".ppt", ".pptx", ".ps", ".py", ".raw", ".rtf",
        ".svg", ".svs", ".ndpi", ".sqlite", ".tsv", ".txt", ".wmv", ".xls", ".xlsx", ".xml",
        ".yaml", ".yml",
    }
)  # fmt: skip


@dataclass(frozen=True)
class FolderFile:
    """A file by its name in the folder, and what its header says; none of it is ever shown."""

    path: str
    dicom: bool = False
    subject: str = ""
    study: str = ""
    series: str = ""
    instance: str = ""
    intent: str = ""
    set_aside: str = ""


def why_no_image(path: Path, source: FolderSource) -> str:
    """Say why a file is not looked at as an image of the source; empty for one that is."""
    suffix = path.suffix.lower()
    if isinstance(source, DicomFolderSource):
        return "" if is_dicom(path) else _other_kind(suffix, "no DICOM file")
    if isinstance(source, NiftiFolderSource):
        return "" if is_nifti(path) else _other_kind(suffix, "no NIfTI file")
    if suffix in IMAGE_SUFFIXES or (suffix not in _OTHER_SUFFIXES and _begins_as_image(path)):
        return ""
    if is_nifti(path):
        return "a NIfTI file, which 'kind: nifti_folder' reads"
    return _other_kind(suffix, "no image")


def kinds(source: FolderSource) -> str:
    """Return what files of a source are looked for, for messages."""
    if isinstance(source, DicomFolderSource):
        return "DICOM"
    suffixes = NIFTI_SUFFIXES if isinstance(source, NiftiFolderSource) else IMAGE_SUFFIXES
    return ", ".join(sorted(suffixes))


def identify_files(folder: Path, paths: Sequence[str], source: FolderSource) -> list[FolderFile]:
    """Read whose each file is, and set aside what the source does not want, and copies."""
    files = [_identify(folder, path, source) for path in paths]
    if isinstance(source, DicomFolderSource) and not source.presentation_intent:
        files = _prefer_presentation(files)
    return _exclude_copies(folder, files)


def may_show(file: FolderFile) -> bool:
    """Say whether tables may show the path: not of DICOM, and an empty file may have been one."""
    return not file.dicom and file.path.lower().endswith((*PICTURE_SUFFIXES, *NIFTI_SUFFIXES))


def _begins_as_image(path: Path) -> bool:
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
    except OSError:
        return False
    # A suffix of digits is the end of a UID, by which archives name DICOM files.
    is_bare = suffix[1:].isdigit() or not suffix
    return begins_as_dicom(head) or (
        (is_bare or suffix in _JPEG_SUFFIXES) and begins_as_picture(head)
    )


def _other_kind(suffix: str, what: str) -> str:
    if suffix in _ARCHIVES:
        return f"an archive that is not unpacked ({suffix})"
    known = suffix in _OTHER_SUFFIXES | IMAGE_SUFFIXES
    return f"{what} ({suffix})" if known else f"{what} (no suffix that is known)"


def _identify(folder: Path, path: str, source: FolderSource) -> FolderFile:
    if not is_dicom(folder / path):
        suffix = next((s for s in NIFTI_SUFFIXES if path.lower().endswith(s)), "")
        return FolderFile(path, subject=path[: -len(suffix)] if suffix else "")
    from medvq.images.formats.dicom import identify

    identity = identify(folder / path)
    if identity is None:
        return FolderFile(path, dicom=True)  # ingest sets it aside with the reason
    reason = identity.no_image
    intent = identity.presentation_intent.upper()
    if isinstance(source, DicomFolderSource):
        reason = reason or _mismatch("modality", identity.modality, source.modality)
        reason = reason or _mismatch("body part", identity.body_part, source.body_part)
        reason = reason or _mismatch("view", identity.view, source.view)
        reason = reason or _mismatch("presentation intent", intent, source.presentation_intent)
        if source.series_as_volumes and identity.is_localizer:
            reason = reason or "a localizer, no slice of the volume"
    return FolderFile(path, True, *identity[:4], intent=intent, set_aside=reason)


def _mismatch(what: str, stated: str, demanded: Sequence[str]) -> str:
    if not demanded or stated.upper() in {value.upper() for value in demanded}:
        return ""
    is_not = f"is not {' or '.join(demanded)}" if stated else "is not stated"
    return f"the {what} {is_not}, as the configuration demands"


def _prefer_presentation(files: Sequence[FolderFile]) -> list[FolderFile]:
    """Set aside what is for processing in studies that hold images for presentation, too."""
    usable = [file for file in files if not file.set_aside]
    studies = {file.study for file in usable if file.intent == "FOR PRESENTATION"} - {""}
    return [
        replace(file, set_aside=file.set_aside or _FOR_PROCESSING)
        if file.intent == "FOR PROCESSING" and file.study in studies
        else file
        for file in files
    ]


def _exclude_copies(folder: Path, files: Sequence[FolderFile]) -> list[FolderFile]:
    """Set aside all but the first file of an instance that show the same pixels."""
    by_instance: dict[str, list[int]] = defaultdict(list)
    for number, file in enumerate(files):
        if file.instance and not file.set_aside:
            by_instance[file.instance].append(number)
    checked = list(files)
    shared = 0
    for numbers in by_instance.values():
        if len(numbers) == 1:
            continue
        contents = _contents([folder / files[number].path for number in numbers])
        first = {
            content: number
            for number, content in reversed(list(zip(numbers, contents, strict=True)))
        }
        shared += len(numbers) if len(first) > 1 else 0
        for number, content in zip(numbers, contents, strict=True):
            if first[content] != number:
                checked[number] = replace(files[number], set_aside=COPY)
    if shared:
        warnings.warn(
            Notice(
                f"{shared} files share a SOPInstanceUID with others that show other pixels: all "
                "are kept; the UIDs are not to be trusted"
            ),
            stacklevel=2,
        )
    return checked


def _contents(paths: Sequence[Path]) -> list[str]:
    """Return a checksum of the pixels of each file; of the file where all files are equal."""
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    if len(set(sums)) == 1:
        return sums
    return [_pixel_sum(path) or known for path, known in zip(paths, sums, strict=True)]


def _pixel_sum(path: Path) -> str:
    """Return a checksum of the decoded pixels; empty where they cannot be decoded."""
    from medvq.images.formats.decoding import decode
    from medvq.images.formats.dicom import read_header

    try:
        stored = decode(read_header(path, pixels=True))
    except Exception:  # of dozens of types; such files are compared as files
        return ""
    return hashlib.sha256(repr(stored.shape).encode() + stored.tobytes()).hexdigest()
