"""What the names of files say: masks and versions of images beside these, folders that are none."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medvq.datasets.dataset import SourceImage
from medvq.datasets.folder_files import count_masks
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
# At the end of why a file is no image.
_TABLES = ("(.csv)", "(.tsv)", "(.xlsx)")


def warn_of_masks(folder: Path, paths: Sequence[str]) -> None:
    """Say that masks count as images; no name of a file is shown."""
    if masks := count_masks(paths):
        text = (
            f"{folder}: {counted(masks, 'file')} read as images although named as masks of others "
            "(x_mask.png beside x.png, or in a folder 'masks'): take them out, or name the images "
            "in a CSV with source.labels.only"
        )
        warnings.warn(Notice(text), stacklevel=3)


def warn_of_altered(images: Iterable[SourceImage]) -> None:
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
        warnings.warn(Notice(text), stacklevel=3)


def warn_of_unused_tables(images: Iterable[SourceImage], skipped: Mapping[str, int]) -> None:
    """Say that a table lies among images of which no folder says the class."""
    tables = sum(number for reason, number in skipped.items() if reason.endswith(_TABLES))
    if tables and not any(image.label for image in images):
        text = (
            f"no image has a label, and {counted(tables, 'table')} in the folder (.csv, .tsv, "
            f".xlsx) {'is' if tables == 1 else 'are'} not read: if labels are in one, name it "
            "(source.labels)"
        )
        warnings.warn(Notice(text), stacklevel=3)


def warn_of_backslashes(paths: Iterable[str]) -> None:
    """Say that names hold what were folders in an archive: such a path is one name here."""
    if held := sum("\\" in path for path in paths):
        text = (
            f"{counted(held, 'file')} with a backslash in the name, as where an archive of Windows "
            "is unpacked without its folders, which may be classes, splits or patients: unpack it "
            "by a program that makes folders of them (7z, bsdtar)"
        )
        warnings.warn(Notice(text), stacklevel=3)


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
