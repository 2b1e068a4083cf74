"""What a data set says to generic code: its images as its source names them, and its rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class SourceImage:
    """An image as its source names it, before it is read.

    Attributes
    ----------
    path : the file.
    shown_path : what tables may show of the path; empty where it could name a patient.
    subject : the person it was taken of, as far as the source says; where that leaves a doubt,
        images that may be of one person share it, so that splits are safe.
    split : as the source has it; where it has no validation or no test split, ingest draws one from
        train.
    label : the class by name, None where the source has none.
    index : of the image, where the file holds many.
    target : a number to be predicted instead of a class, None where there is none.
    target_name : what that number is, with its unit.
    folds : the official label subsets that the image is in.
    parts : the files of a series that make up one volume; empty where ``path`` is all.
    window : centre and width to show the values with; None leaves it to the header.
    set_aside : why the source wants the image set aside unread; empty where it does not.
    certain_subject : images that are of one person beyond doubt share it, so that one may be taken
        for another view of that person; empty where ``subject`` leaves no doubt.
    has_known_subject : whether the source says of whom the image is; otherwise images that are
        equal, or nearly so, count as one subject.
    has_stated_split : whether the source says in which split the image is; otherwise it follows an
        equal image that is held back, where its subject is not known.
    order : by which subjects are drawn for splits, the same on every machine; empty: ``subject``.
    """

    path: Path
    shown_path: str
    subject: str
    split: Split
    label: str | None
    index: int | None = None
    target: float | None = None
    target_name: str = ""
    folds: tuple[int, ...] = ()
    parts: tuple[Path, ...] = ()
    window: tuple[float, float] | None = None
    set_aside: str = ""
    certain_subject: str = ""
    has_known_subject: bool = True
    has_stated_split: bool = True
    order: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the image is read from."""
        return self.parts or (self.path,)


@dataclass(frozen=True)
class Listing:
    """The images of a data set, and the files of its folder that are none.

    Attributes
    ----------
    skipped : how many files were not looked at as images, by reason.
    """

    images: list[SourceImage]
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """What generic code asks of a data set.

    Attributes
    ----------
    list_images : from the folder with the data set to its images, in an order that does not depend
        on the file system; or a :class:`Listing` of them. Raises UserError where the folder does
        not hold the data set.
    folds : the table of the folds of all images, see :mod:`medvq.datasets.folds`; None: there is
        none.
    test_fraction : share of the labelled subjects that is drawn for the test, where the source has
        no test split.
    """

    list_images: Callable[[Path], Iterable[SourceImage] | Listing]
    folds: Path | None = None
    test_fraction: float = 0.0
