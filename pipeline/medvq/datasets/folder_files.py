"""The files of a user's own folder: which are images, of whom, and which are copies of others."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medvq.config import DicomFolderSource, FolderSource, ImageFolderSource, NiftiFolderSource
from medvq.errors import Notice
from medvq.images import formats
from medvq.images.formats import (
    IMAGE_SUFFIXES,
    NIFTI_SUFFIXES,
    is_dicom,
    is_nifti,
)
from medvq.images.formats.identity import Identity, identify
from medvq.images.formats.magic import DICM, begins_as_dicom, begins_as_picture
from medvq.images.workers import WorkerFailure, map_in_processes, processors, read_headers

PICTURES = ImageFolderSource(kind="image_folder", folder=".")
"""A folder of any pictures and DICOM files."""
COPY = "a second file of the same instance"
CONTRADICTION = "identical to a file with another label"
ARCHIVE = "an archive that is not unpacked"
UNREAD = "a format that is not read"
_NO_IMAGE = "no image"
RENAMED = "a picture under a suffix that is not known: rename it"
OTHER_FOLDER = "a NIfTI file, which 'kind: nifti_folder' reads"
_FOR_PROCESSING = (
    "for processing, and its study holds images for presentation "
    "(source.presentation_intent chooses)"
)
# Seconds after which decoding a copy counts as hung.
_TIMEOUT = 300.0
_ZIP = b"PK\3\4"
_ARCHIVES = frozenset(
    {
        ".zip", ".gz", ".tgz", ".tar", ".bz2", ".tbz2", ".xz", ".txz", ".7z", ".rar", ".zst",
        ".lz4", ".lzma", ".iso",
    }
)  # fmt: skip
# Pictures and volumes of formats that are not read.
_UNREAD = frozenset(
    {
        ".avif", ".czi", ".dng", ".gif", ".hdr", ".heic", ".heif", ".img", ".j2k", ".jp2", ".jpx",
        ".jxl", ".lsm", ".mgh", ".mgz", ".mha", ".mhd", ".mrxs", ".nd2", ".ndpi", ".nrrd", ".pbm",
        ".pcx", ".pgm", ".pnm", ".ppm", ".psd", ".svs", ".tga", ".vsi",
    }
)  # fmt: skip
_JPEG_SUFFIXES = frozenset({".jfif", ".jpe", ".jif"})
# Of files that are no images. No other suffix is shown: it may be a part of a name.
_OTHER_SUFFIXES = frozenset(
    {
        ".avi", ".bin", ".csv", ".dat", ".db", ".dll", ".doc", ".docx", ".exe", ".h5", ".hdf5",
        ".htm", ".html", ".inf", ".ini", ".ipynb", ".jar", ".js", ".json", ".log", ".mat", ".md",
        ".mov", ".mp4", ".npy", ".npz", ".parquet", ".pdf", ".pickle", ".pkl", ".ppt", ".pptx",
        ".ps", ".py", ".raw", ".rtf", ".svg", ".sqlite", ".tsv", ".txt", ".wmv", ".xls", ".xlsx",
        ".xml", ".yaml", ".yml",
    }
)  # fmt: skip
# By which masks are told from the images that they are of.
_MASK = r"(masks?|seg|segmentations?|annotations?|contours?|roi|gt|ground_?truths?)"
_NAMED_MASK = re.compile(rf"[\s_.-]+{_MASK}[\s_-]*\d*$", re.IGNORECASE)
_SUFFIX = re.compile(r"(\.nii)?\.[^./]+$")
_MASK_FOLDER = re.compile(rf"{_MASK}|labels(t[rs])?", re.IGNORECASE)


@dataclass(frozen=True)
class FolderFile:
    """A file by its name in the folder, and what its header says; none of it is ever shown.

    ``original`` is the path of the file that it is a copy of, empty where it is none.
    """

    path: str
    dicom: bool = False
    subject: str = ""
    study: str = ""
    series: str = ""
    instance: str = ""
    issuer: str = ""
    intent: str = ""
    set_aside: str = ""
    original: str = ""


def why_no_image(path: Path, source: FolderSource) -> str:
    """Say why a file is not looked at as an image of the source; empty for one that is."""
    suffix = path.suffix.lower()
    if isinstance(source, DicomFolderSource):
        return "" if is_dicom(path) else _other_kind(path, "no DICOM file")
    if isinstance(source, NiftiFolderSource):
        return "" if is_nifti(path) else _other_kind(path, "no NIfTI file")
    if suffix in IMAGE_SUFFIXES or _begins_as_image(path):
        return ""
    if is_nifti(path):
        return OTHER_FOLDER
    return _other_kind(path, _NO_IMAGE)


def count_masks(paths: Iterable[str]) -> int:
    """Count the files that are named as masks of others.

    >>> count_masks(["a/1.png", "a/1_mask.png", "b/images/2.png", "b/masks/2.png", "gt.png"])
    2
    """
    wholes = [_SUFFIX.sub("", path.lower()) for path in paths]
    known = set(wholes)
    # The names of files that lie in no folder of masks.
    images = {
        whole.rpartition("/")[2]
        for whole in wholes
        if not any(map(_MASK_FOLDER.fullmatch, whole.split("/")[:-1]))
    }

    def is_mask(whole: str) -> bool:
        named = _NAMED_MASK.search(whole)
        if named and whole[: named.start()] in known:
            return True
        *above, name = whole.split("/")
        return name in images and any(map(_MASK_FOLDER.fullmatch, above))

    return sum(map(is_mask, wholes))


def why_no_kind_of_image(path: Path) -> str:
    """Say why a file is neither picture, DICOM nor NIfTI; empty for one that is."""
    return "" if is_nifti(path) else why_no_image(path, PICTURES)


def kinds(source: FolderSource) -> str:
    """Return what files of a source are looked for, for messages."""
    if isinstance(source, DicomFolderSource):
        return "DICOM"
    suffixes = NIFTI_SUFFIXES if isinstance(source, NiftiFolderSource) else IMAGE_SUFFIXES
    return ", ".join(sorted(suffixes))


def identify_files(folder: Path, paths: Sequence[str], source: FolderSource) -> list[FolderFile]:
    """Read whose each file is, and set aside what the source does not want, and copies.

    Headers are read in worker processes: one that crashes, hangs or needs too much memory sets its
    file aside.
    """
    are_dicom = [is_dicom(folder / path) for path in paths]
    headers = [folder / path for path, dicom in zip(paths, are_dicom, strict=True) if dicom]
    identities = read_headers(identify, headers)
    files = [
        _identified(path, next(identities), source) if dicom else _file_without_header(path)
        for path, dicom in zip(paths, are_dicom, strict=True)
    ]
    files = _follow_studies(files)
    if isinstance(source, DicomFolderSource) and not source.presentation_intent:
        files = _prefer_presentation(files)
    return _exclude_copies(folder, files)


def may_show(file: FolderFile) -> bool:
    """Say whether tables may show the path: not of DICOM, and an empty file may have been one."""
    return formats.may_show(file.path, dicom=file.dicom)


def _begins(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(132)
    except OSError:
        return b""


def _begins_as_image(path: Path) -> bool:
    suffix, head = path.suffix.lower(), _begins(path)
    if suffix in _OTHER_SUFFIXES:  # which are of other files; this mark is of no other
        return head[128:] == DICM
    # A suffix of digits is the end of a UID, by which archives name DICOM files.
    is_bare = suffix[1:].isdigit() or not suffix
    return begins_as_dicom(head) or (
        (is_bare or suffix in _JPEG_SUFFIXES) and begins_as_picture(head)
    )


def _other_kind(path: Path, what: str) -> str:
    suffix = path.suffix.lower()
    if suffix in _ARCHIVES:
        return f"{ARCHIVE} ({suffix})"
    if suffix in _UNREAD:
        return f"{UNREAD} ({suffix})"
    known = suffix in _OTHER_SUFFIXES | IMAGE_SUFFIXES
    if not known and _begins(path).startswith(_ZIP):
        return f"{ARCHIVE} (zip)"
    if what == _NO_IMAGE and not known and begins_as_picture(_begins(path)):
        return RENAMED
    return f"{what} ({suffix})" if known else f"{what} (no suffix that is known)"


def _file_without_header(path: str) -> FolderFile:
    suffix = next((s for s in NIFTI_SUFFIXES if path.lower().endswith(s)), "")
    return FolderFile(path, subject=path[: -len(suffix)] if suffix else "")


def _identified(
    path: str, identity: Identity | WorkerFailure | None, source: FolderSource
) -> FolderFile:
    if identity is None:
        return FolderFile(path, dicom=True)  # ingest sets it aside with the reason
    if isinstance(identity, WorkerFailure):
        return FolderFile(path, dicom=True, set_aside=f"its header: {identity.reason}")
    reason = identity.no_image
    intent = identity.presentation_intent.upper()
    if isinstance(source, DicomFolderSource):
        reason = reason or _mismatch("modality", identity.modality, source.modality)
        reason = reason or _mismatch("body part", identity.body_part, source.body_part)
        reason = reason or _mismatch("view", identity.view, source.view)
        reason = reason or _mismatch("presentation intent", intent, source.presentation_intent)
        if source.series_as_volumes and identity.is_localizer:
            reason = reason or "a localizer, no slice of the volume"
    return FolderFile(path, True, *identity[:5], intent=intent, set_aside=reason)


def _mismatch(what: str, stated: str, demanded: Sequence[str]) -> str:
    if not demanded or stated.upper() in {value.upper() for value in demanded}:
        return ""
    is_not = f"is not {' or '.join(demanded)}" if stated else "is not stated"
    return f"the {what} {is_not}, as the configuration demands"


def _follow_studies(files: Sequence[FolderFile]) -> list[FolderFile]:
    """Give files without a PatientID that of their study, where there is one."""
    patients: dict[str, set[str]] = defaultdict(set)
    for file in files:
        if file.study and file.subject:
            patients[file.study].add(file.subject)
    only = {study: next(iter(names)) for study, names in patients.items() if len(names) == 1}
    return [replace(file, subject=file.subject or only.get(file.study, "")) for file in files]


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
    by_instance = {key: numbers for key, numbers in by_instance.items() if len(numbers) > 1}
    paths = {n: folder / files[n].path for numbers in by_instance.values() for n in numbers}
    contents = _contents(paths, by_instance.values())
    checked = list(files)
    shared = 0
    for numbers in by_instance.values():
        first = {contents[number]: number for number in reversed(numbers)}
        shared += len(numbers) if len(first) > 1 else 0
        for number in numbers:
            if (original := first[contents[number]]) != number:
                path = files[original].path
                checked[number] = replace(files[number], set_aside=COPY, original=path)
    if shared:
        warnings.warn(
            Notice(
                f"{shared} files share a SOPInstanceUID with others that show other pixels, or "
                "another place: all are kept; the UIDs are not to be trusted"
            ),
            stacklevel=2,
        )
    return checked


def _contents(paths: dict[int, Path], groups: Iterable[Sequence[int]]) -> dict[int, str]:
    """Return a checksum of each file, of its pixels where the files of its group differ."""
    sums = {number: _file_sum(path) for number, path in paths.items()}
    differing = [n for group in groups if len({sums[n] for n in group}) > 1 for n in group]
    copies = [paths[number] for number in differing]
    decoded = map_in_processes(pixel_sum, copies, processes=processors(), timeout=_TIMEOUT)
    for number, pixels in zip(differing, decoded, strict=True):
        # What cannot be decoded is compared as a file.
        sums[number] = sums[number] if isinstance(pixels, WorkerFailure) else pixels or sums[number]
    return sums


def _file_sum(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:  # reading the image says why
        return str(path)


def pixel_sum(path: Path) -> str:
    """Return a checksum of decoded pixels and their place; empty where they cannot be decoded."""
    from medvq.images.formats.decoding import decode
    from medvq.images.formats.dicom import read_header, single_slice
    from medvq.images.formats.series import place

    try:
        header = read_header(path, pixels=True)
        stored = decode(header)
        described = repr((stored.shape, place(single_slice(header, stored))))
    except MemoryError:
        raise
    except Exception:  # of dozens of types
        return ""
    return hashlib.sha256(described.encode() + stored.tobytes()).hexdigest()
