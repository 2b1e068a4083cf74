"""What the names of files say: masks and versions of images beside these, folders that are none."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from medvq.datasets.classes import Label, plain
from medvq.datasets.dataset import SourceImage, Split
from medvq.datasets.folder_files import count_masks
from medvq.datasets.split_names import named_splits
from medvq.errors import Notice
from medvq.wording import counted

_ALTERATION = (
    r"(aug|augment(ed|ation)|[hv]?_?flip(ped)?|rot(at(ed?|ion))?|mirror(ed)?|noisy?|blur(red)?"
    r"|bright(ness|er)?|dark(er)?|shift(ed)?|zoom(ed)?|crop(ped)?|elastic|resized?|copy|thumb(nail)?"
    r"|preview|overlay|annotated|marked|bbox|heatmap|(grad)?cam)"
)
_ALTERED = re.compile(rf"(?<![\s_.-])[\s_.-]+{_ALTERATION}[\s_\d-]*$", re.IGNORECASE)
# As Roboflow names the versions of a picture.
_VERSION = re.compile(r"\.rf\.[0-9a-f]{16,}$", re.IGNORECASE)
_SUFFIX = re.compile(r"\.[^./]+$")
# Classes that folders of something else may be called, too.
_DIGITS = frozenset(map(str, range(100)))
# At the end of why a file is no image.
_TABLES = ("(.csv)", "(.tsv)", "(.xlsx)")


def warn_of_names(folder: Path, paths: Sequence[str], images: Iterable[SourceImage]) -> None:
    """Say which files of a folder may be no images of their own; no name of one is shown."""
    _warn_of_masks(folder, paths)
    _warn_of_altered(images)
    _warn_of_backslashes(paths)


def _warn_of_masks(folder: Path, paths: Sequence[str]) -> None:
    if masks := count_masks(paths):
        text = (
            f"{folder}: {counted(masks, 'file')} read as images although named as masks of others "
            "(x_mask.png beside x.png, or in a folder 'masks'): take them out, or name the images "
            "in a CSV with source.labels.only"
        )
        _notice(text)


def _warn_of_altered(images: Iterable[SourceImage]) -> None:
    """Say that versions of images, as for augmentation, may be parted by a split."""
    parted = [
        image.shown_path
        for image in images
        if not (image.has_known_subject or image.has_stated_split or image.set_aside)
    ]
    if altered := count_altered(parted):
        text = (
            f"{counted(altered, 'file')} named as altered versions of others (x_flip.png beside "
            "x.png): each counts as a patient of its own, and may stand on another side of a split "
            "than its original; take them out, or name the subject of each alike in a CSV "
            "(source.labels)"
        )
        _notice(text)


def warn_of_unused_tables(images: Iterable[SourceImage], skipped: Mapping[str, int]) -> None:
    """Say that a table lies among images of which no folder says the class."""
    tables = sum(number for reason, number in skipped.items() if reason.endswith(_TABLES))
    if tables and not any(image.label for image in images):
        text = (
            f"no image has a label, and {counted(tables, 'table')} in the folder (.csv, .tsv, "
            f".xlsx) {'is' if tables == 1 else 'are'} not read: if labels are in one, name it "
            "(source.labels)"
        )
        _notice(text)


def _warn_of_backslashes(paths: Iterable[str]) -> None:
    """Say that names hold what were folders in an archive: such a path is one name here."""
    if held := sum("\\" in path for path in paths):
        text = (
            f"{counted(held, 'file')} with a backslash in the name, as where an archive of Windows "
            "is unpacked without its folders, which may be classes, splits or patients: unpack it "
            "by a program that makes folders of them (7z, bsdtar)"
        )
        _notice(text)


def warn_of_folders(paths: Sequence[str], rows: Sequence[Label]) -> None:
    """Say where folders are called splits or classes, and the table of labels says otherwise.

    Parameters
    ----------
    paths, rows : of each image its first file, and what the table says of it.
    """
    folders = [PurePosixPath(path).parts[:-1] for path in paths]
    names = dict.fromkeys(name for parts in folders for name in parts)
    splits = named_splits(names)
    labels = {row.label: plain(row.label) for row in rows if row.label}
    classes = set(labels.values()) - _DIGITS
    classes_of = {name: plain(name) for name in names if plain(name) in classes}
    found: set[Split] = set()
    of_split = of_class = 0
    for parts, row in zip(folders, rows, strict=True):
        split = next((splits[name] for name in parts if name in splits), None)
        found |= {split} if split else set()
        of_split += bool(split and row.split and split != row.split)
        named = {classes_of[name] for name in parts if name in classes_of}
        of_class += bool(row.label and len(named) == 1 and labels[row.label] not in named)
    if len(found) > 1 and not any(row.split for row in rows):
        _notice(
            f"folders are called {' and '.join(sorted(found))}, and the table of labels has no "
            "split: these are drawn anew, over all folders; a column 'split' in the table keeps "
            "them"
        )
    if of_split:
        _notice(
            f"{_in_folders(of_split)} split than the table of labels gives: the table's is used"
        )
    if of_class:
        _notice(
            f"{_in_folders(of_class)} class than the table of labels gives: the table's is used"
        )


def _in_folders(number: int) -> str:
    return f"{counted(number, 'image')} {'lies' if number == 1 else 'lie'} in folders of another"


def _notice(text: str) -> None:
    warnings.warn(Notice(text), stacklevel=4)


def count_altered(paths: Iterable[str]) -> int:
    """Count the files that are named as altered versions of others, wherever those lie.

    >>> count_altered(["a/1.png", "b/1_rot90.png", "2_png.rf.0123456789abcdef.jpg", "flip.png"])
    1
    """
    names = [_SUFFIX.sub("", path.lower()).rpartition("/")[2] for path in paths]
    known = set(names)
    versions = Counter(name[: found.start()] for name in names if (found := _VERSION.search(name)))
    altered = (found for name in names if (found := _ALTERED.search(name)) and found.start())
    named = sum(found.string[: found.start()] in known for found in altered)
    return named + sum(number - 1 for number in versions.values())
