"""A user's own folder of pictures, DICOM files or NIfTI volumes, and the labels that go with it."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from medvq.config import DicomFolderSource, FolderSource, Labels
from medvq.datasets.classes import Label, is_no_patient, plain, unify
from medvq.datasets.columns import ATTRIBUTES
from medvq.datasets.companions import warn_of_folders, warn_of_names, warn_of_unused_tables
from medvq.datasets.dataset import Listing, SourceImage
from medvq.datasets.folder_files import (
    ARCHIVE,
    CONTRADICTION,
    OTHER_FOLDER,
    RENAMED,
    UNREAD,
    FolderFile,
    identify_files,
    kinds,
    may_show,
    why_no_image,
)
from medvq.datasets.folder_labels import labels_of_folders
from medvq.datasets.labels import labels_file, read_labels
from medvq.datasets.pseudonyms import pseudonym, subject_key
from medvq.datasets.walk import (
    CLOSED,
    HIDDEN,
    NOT_FETCHED,
    REPEATED_LINK,
    SYSTEM,
    Walk,
    shown,
    walk,
)
from medvq.errors import Notice, UserError
from medvq.images.formats import is_dicom
from medvq.images.formats.identity import SEVERAL_PATIENTS
from medvq.wording import counted

TABLE = "the table of labels"
NOT_NAMED = "not named by the labels (labels.only)"
# In the reasons of files that may be missed.
_NAMED = (ARCHIVE, UNREAD, OTHER_FOLDER, RENAMED, "symbolic link", CLOSED, NOT_FETCHED)
# A patient of so many images, and of so many times those of others, may be a placeholder.
_MANY_IMAGES = 20
FURTHER_SLICES = "a further slice of a volume, which counts once"


def list_images(folder: Path, source: FolderSource, key: bytes | None = None) -> Listing:
    """List the images of ``folder``, sorted by path; subjects under keyed pseudonyms.

    Images that the labels do not name have no label. What the source excludes is listed with the
    reason; files that are no images are counted.

    Parameters
    ----------
    folder : holds the images.
    source : of which kind, and where the labels are.
    key : that subjects are named with; None takes this machine's secret.

    Raises
    ------
    UserError
        No image is found, or the labels cannot be followed; see :mod:`medvq.datasets.labels`.
    """
    labels = source.labels or Labels(join="folders")
    file = labels_file(folder, labels, source.beside) if labels.file else None
    found = walk(folder, lambda path: _why_skipped(path, source, file))
    table = read_labels(file, folder, labels, found.files) if file else {}
    if labels.join == "path":
        _take_named(folder, found, table, source, file)
        if labels.only:
            found.skipped[NOT_NAMED] += len(found.files) - len(table)
            found.files = sorted(table)
    if not found.files:
        seen = f"; {_reasons(found.skipped)}" if found.skipped else ""
        raise UserError(f"no image ({kinds(source)}) is listed in {folder}{seen}")
    if labels.join == "folders" and not _has_no_labels(source):
        _check_links(folder, found)
    files = identify_files(folder, found.files, source)
    groups = _volumes(files) if _has_volumes(source) else [[file] for file in files]
    groups, rows = _settle_copies(groups, _rows(groups, source, labels, table, folder))
    if labels.only and labels.join != "folders":
        groups, rows = _only_named(groups, rows, found.skipped)
    found.skipped[FURTHER_SLICES] += sum(len(group) - 1 for group in groups)
    key = key or subject_key()
    images = _follow_subjects(
        [_image(folder, group, row, source, key) for group, row in zip(groups, rows, strict=True)]
    )
    if labels.join == "folders":
        warn_of_unused_tables(images, found.skipped)
    elif file:
        warn_of_folders([group[0].path for group in groups], rows)
    _warn(folder, source, images, rows, found.skipped)
    warn_of_names(folder, found.files, images)
    _warn_of_patients([group[0] for group in groups], images, rows)
    return Listing(images, {reason: n for reason, n in sorted(found.skipped.items()) if n})


def _settle_copies(
    groups: Sequence[list[FolderFile]], rows: Sequence[Label]
) -> tuple[list[list[FolderFile]], list[Label]]:
    """Let an image without a label have that of its copy; set aside copies that contradict it."""
    labelled: dict[str, list[Label]] = {}
    for group, row in zip(groups, rows, strict=True):
        for file in group if row.label is not None or row.target is not None else []:
            labelled.setdefault(file.original or file.path, []).append(row)
    settled, settled_rows = [], []
    for group, row in zip(groups, rows, strict=True):
        stated = [one for file in group for one in labelled.get(file.original or file.path, [])]
        if len({(one.label, one.target) for one in stated}) > 1:
            group = [replace(file, set_aside=CONTRADICTION) for file in group]
        elif stated and row.label is None and row.target is None:
            subject, split = row.subject or stated[0].subject, row.split or stated[0].split
            row = replace(stated[0], subject=subject, split=split)
        settled.append(group)
        settled_rows.append(row)
    return settled, settled_rows


def _only_named(
    groups: list[list[FolderFile]], rows: Sequence[Label], skipped: Counter[str]
) -> tuple[list[list[FolderFile]], list[Label]]:
    """Leave out the images that the labels do not name; count their files as skipped."""
    pairs = list(zip(groups, rows, strict=True))
    skipped[NOT_NAMED] += sum(len(group) for group, row in pairs if not row.where)
    named = [(group, row) for group, row in pairs if row.where]
    return [group for group, _ in named], [row for _, row in named]


def _image(
    folder: Path, parts: Sequence[FolderFile], row: Label, source: FolderSource, key: bytes
) -> SourceImage:
    first = parts[0]
    # The name of a NIfTI file says nothing of its subject.
    known = row.subject or _patient(first)
    subject = known or first.subject or first.path
    digest = hashlib.sha256(f"subject:{subject}".encode("utf-8", "surrogateescape"))
    return SourceImage(
        path=folder / first.path,
        shown_path=shown(first.path) if may_show(first) else "",
        subject=pseudonym(subject, key),
        split=row.split or "train",
        label=row.label,
        target=row.target,
        target_name=(source.labels.target or "") if source.labels else "",
        parts=tuple(folder / part.path for part in parts) if len(parts) > 1 else (),
        window=getattr(source, "window", None),
        set_aside=first.set_aside,
        has_known_subject=bool(known),
        has_stated_split=row.split is not None,
        order=digest.hexdigest()[:16],
    )


def _patient(file: FolderFile) -> str:
    """Return whom a file shows by its header, by its study where it names nobody; else nothing."""
    return (file.subject or file.study) if file.dicom else ""


def _follow_subjects(images: Sequence[SourceImage]) -> list[SourceImage]:
    """Put images of which no split is stated into that of the other images of their subject."""
    splits = {image.subject: image.split for image in images if image.has_stated_split}
    return [
        replace(image, split=splits[image.subject], has_stated_split=True)
        if not image.has_stated_split and image.subject in splits
        else image
        for image in images
    ]


def _why_skipped(path: Path, source: FolderSource, table: Path | None) -> str:
    if table is not None and path.name == table.name and path.samefile(table):
        return TABLE
    return why_no_image(path, source)


def _take_named(
    folder: Path, found: Walk, table: dict[str, Label], source: FolderSource, file: Path | None
) -> None:
    """List what the table names although the walk has skipped it; a link stands for its file."""
    named = table.keys() - set(found.files)
    listed = {(folder / path).resolve(): path for path in found.files} if named else {}
    links = {link for link, _ in found.repeats}
    own_places = set()
    for path in named:
        own = listed.get((folder / path).resolve())
        if own is not None and not (own in table or own in own_places):
            own_places.add(own)
            continue
        is_link = path in links
        reason = REPEATED_LINK if is_link else _why_skipped(folder / path, source, file) or HIDDEN
        found.skipped[reason] = max(0, found.skipped[reason] - 1)
    found.files = sorted({*found.files, *named} - own_places)


def _check_links(folder: Path, found: Walk) -> None:
    """Refuse links that give a file another class or split than its own place does."""
    listed = set(found.files)
    pairs = [pair for pair in found.repeats if pair[1] in listed]
    if not pairs:
        return
    paths = [*found.files, *(path for pair in pairs for path in pair)]
    may_name = all(may_show(FolderFile(path, is_dicom(folder / path))) for path in paths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is to be told of folders is told with the patients
        rows = labels_of_folders(paths, may_name=may_name)[len(found.files) :]
    for (link, _), row, own in zip(pairs, rows[::2], rows[1::2], strict=True):
        if row.label not in {None, own.label} or row.split not in {None, own.split}:
            named = f" {shown(link)}" if may_show(FolderFile(link, is_dicom(folder / link))) else ""
            raise UserError(
                f"the symbolic link{named} leads to a file of the set that lies under another "
                "class or split: remove one of the two"
            )


def _has_no_labels(source: FolderSource) -> bool:
    return isinstance(source, DicomFolderSource) and source.labels is None


def _has_volumes(source: FolderSource) -> bool:
    return isinstance(source, DicomFolderSource) and source.series_as_volumes


def _volumes(files: list[FolderFile]) -> list[list[FolderFile]]:
    groups: dict[str, list[FolderFile]] = {}
    lone = sum(file.dicom and not (file.series or file.set_aside) for file in files)
    if lone > 1:
        _notice(
            f"{lone} files name no series (SeriesInstanceUID), and count as volumes of one slice "
            "each: export them with it, or leave series_as_volumes off"
        )
    for file in files:
        alone = file.set_aside or not file.series
        groups.setdefault(f"file {file.path}" if alone else file.series, []).append(file)
    return [_of_one_patient(group) for group in groups.values()]


def _of_one_patient(series: list[FolderFile]) -> list[FolderFile]:
    """Set a series aside whose files name several patients; files that name none follow it."""
    patients = {file.subject for file in series} - {""}
    if len(patients) > 1:
        return [replace(file, set_aside=SEVERAL_PATIENTS) for file in series]
    return [replace(file, subject=next(iter(patients), "")) for file in series]


def _rows(
    groups: Sequence[Sequence[FolderFile]],
    source: FolderSource,
    labels: Labels,
    table: dict[str, Label],
    folder: Path,
) -> list[Label]:
    """Return what the labels say of the files of each image."""
    if labels.join == "folders":
        if _has_no_labels(source):
            return [Label()] * len(groups)
        firsts = [group[0] for group in groups]
        may_name = all(map(may_show, firsts))
        patients = [None if one.set_aside else _patient(one) for one in firsts]
        paths = [file.path for file in firsts]
        rows = labels_of_folders(paths, may_name=may_name, patients=patients)
        return unify(rows, str(folder), labels.classes)
    if labels.join != "path":
        known = {getattr(file, labels.join) for group in groups for file in group}
        _report_unknown(table, known, labels.join)
    return [_row(group, table, labels.join) for group in groups]


def _row(parts: Sequence[FolderFile], table: dict[str, Label], join: str) -> Label:
    rows = {table[key] for part in parts if (key := _key(part, join)) in table}
    if len(rows) > 1 and not parts[0].set_aside:
        raise UserError(
            "the labels give the files of one series different rows; join them on 'study', or give "
            "each series one row"
        )
    return rows.pop() if len(rows) == 1 else Label()


def _key(file: FolderFile, join: str) -> str:
    return str(getattr(file, join))


def _report_unknown(table: dict[str, Label], known: set[str], join: str) -> None:
    names = table.keys() - known
    unknown = len(names)
    alike = {plain(name) for name in known}
    near = sum(plain(name) in alike for name in names)
    hint = f"; {near} of them would if zeros, capitals or .0 were as in the files" if near else ""
    if unknown == len(table):
        raise UserError(
            f"the labels name no {join}{ATTRIBUTES.get(join, '')} of any image in the folder "
            f"({counted(unknown, 'row')}){hint}; check the column that labels.key "
            "names, and labels.join"
        )
    if unknown:
        text = f"{unknown} of {len(table)} rows of the labels name no {join} of any image{hint}"
        warnings.warn(Notice(text), stacklevel=3)


def _warn(
    folder: Path,
    source: FolderSource,
    images: Sequence[SourceImage],
    rows: Sequence[Label],
    skipped: Counter[str],
) -> None:
    """Say what may be missing: subjects, a test split, files that were not looked at."""
    unknown = sum(not image.has_known_subject for image in images if not image.set_aside)
    if unknown:
        whole = "" if unknown == len(images) else f" of {unknown} of {len(images)} images"
        _notice(
            f"no subject is known{whole}: each counts as a patient of its own, and where a patient "
            "has several images, these may stand on both sides of a split and results look too "
            "good. A column 'subject' in the CSV names the patients (source.labels)"
        )
    of_one, others = _largest_subject(images)
    if of_one >= max(_MANY_IMAGES, _MANY_IMAGES * others):
        _notice(
            f"one patient has {of_one} of {len(images)} images: if that is a placeholder such as "
            "ANONYMOUS, and no patient, name the patients in a column 'subject' of the CSV "
            "(source.labels)"
        )
    splits = {row.split for row in rows if row.split}
    if splits and "test" not in splits and source.test_fraction:
        _notice(
            f"no split is called test: {source.test_fraction:.0%} of the training subjects with a "
            "label are drawn for it (source.test_fraction)"
        )
    usual = {HIDDEN, SYSTEM, TABLE, NOT_NAMED, FURTHER_SLICES}
    passed_over = Counter({reason: n for reason, n in skipped.items() if reason not in usual})
    named = any(word in reason for reason in passed_over for word in _NAMED)
    if named or passed_over.total() > len(images):
        _notice(f"{folder}: {_reasons(passed_over)}")


def _warn_of_patients(
    files: Sequence[FolderFile], images: Sequence[SourceImage], rows: Sequence[Label]
) -> None:
    """Say which patients may be several or count as such, by the first file of each image."""
    _warn_of_no_patients(files, rows)
    patients = [file.subject if file.dicom else "" for file in files]
    _warn_of_patients_apart(patients, images)
    _warn_of_patients_alike(patients, images)
    studies: dict[str, set[str]] = {}
    issuers: dict[str, set[str]] = {}
    for file, image in zip(files, images, strict=True):
        if file.subject and not image.set_aside:
            studies.setdefault(file.study, set()).add(image.subject)
            issuers.setdefault(file.subject, set()).add(file.issuer)
    if shared := sum(len(names - {""}) > 1 for names in issuers.values()):
        _notice(
            f"{counted(shared, 'PatientID')} came from several issuers (IssuerOfPatientID): each "
            "counts as one patient, and labels that are joined on 'subject' hold for all its "
            "images; where they are several, name the subject and the label of each image in a CSV "
            "that is joined on 'instance' (source.labels)"
        )
    studies.pop("", None)
    if several := sum(len(subjects) > 1 for subjects in studies.values()):
        _notice(
            f"the images of {several} {'study' if several == 1 else 'studies'} have several "
            "patients (StudyInstanceUID, PatientID): each counts as one of its own, and may stand "
            "on another side of a split; where they are one, name the subject of each image alike "
            "in a CSV (source.labels)"
        )


def _warn_of_no_patients(files: Sequence[FolderFile], rows: Sequence[Label]) -> None:
    """Say how many images share a subject that may stand for no patient, such as 'unknown'."""
    names = Counter(
        plain(row.subject or (file.subject if file.dicom else ""))
        for file, row in zip(files, rows, strict=True)
        if not file.set_aside
    )
    shared = [number for name, number in names.items() if number > 1 and is_no_patient(name)]
    if shared:
        _notice(
            f"{sum(shared)} images have a subject or PatientID such as 'unknown' or 'anonymous', "
            "and count as those of one patient: name the patients in a column 'subject' of the CSV "
            "(source.labels), and leave it empty where one is not known"
        )


def _warn_of_patients_apart(patients: Sequence[str], images: Sequence[SourceImage]) -> None:
    """Say where images of one PatientID count as those of several subjects."""
    subjects: dict[str, set[str]] = {}
    for patient, image in zip(patients, images, strict=True):
        if patient and not image.set_aside:
            subjects.setdefault(patient, set()).add(image.subject)
    if apart := sum(len(names) > 1 for names in subjects.values()):
        _notice(
            f"the images of {counted(apart, 'PatientID')} have several subjects, or some of them "
            "none, in the labels: each counts as a patient of its own, and may stand on another "
            "side of a split; where PatientID is no placeholder, name the subject of each "
            "image alike"
        )


def _warn_of_patients_alike(patients: Sequence[str], images: Sequence[SourceImage]) -> None:
    """Say how many PatientIDs may be one of a patient who counts as several; name none of them."""
    subjects: dict[str, set[str]] = {}
    spellings: dict[str, set[str]] = {}
    for patient, image in zip(patients, images, strict=True):
        if patient and not image.set_aside:
            subjects.setdefault(plain(patient), set()).add(image.subject)
            spellings.setdefault(plain(patient), set()).add(patient)
    if alike := sum(len(names) > 1 < len(subjects[key]) for key, names in spellings.items()):
        _notice(
            f"{counted(alike, 'PatientID')} written in several ways (capitals, spaces, 01 for "
            "1): each way counts as a patient of its own, and may stand on another side of a "
            "split; where they are one, name the subject of each image alike in a CSV "
            "(source.labels)"
        )


def _largest_subject(images: Sequence[SourceImage]) -> tuple[int, float]:
    """Return how many images the known subject of most has, and the median of the others."""
    known = (image.subject for image in images if image.has_known_subject and not image.set_aside)
    first, *others = sorted(Counter(known).values(), reverse=True) or [0]
    return first, median(others) if others else 0


def _reasons(skipped: Counter[str]) -> str:
    reasons = "; ".join(f"{number} x {reason}" for reason, number in skipped.most_common())
    return f"{counted(skipped.total(), 'file')} not read as images: {reasons}"


def _notice(text: str) -> None:
    warnings.warn(Notice(text), stacklevel=3)
