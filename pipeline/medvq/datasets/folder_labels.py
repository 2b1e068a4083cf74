"""The splits and classes that folders are named after."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath

from medvq.datasets.classes import Label
from medvq.datasets.dataset import Split
from medvq.datasets.split_names import looks_like_split, named_splits, without_split
from medvq.datasets.walk import shown
from medvq.errors import Notice, UserError

# Names of folders that a message quotes.
_MOST_NAMED = 5
# Classes that are numbers: grades and digits. More are numbers of something else.
_MOST_NUMBERS = 10
_NUMBER = re.compile(r"\d+")
# So many classes may have one patient each, where patients are few; more of them are patients.
_FEW_CLASSES = 2
# Numbered folders that are called so are no classes, however few they are.
_OF_PATIENT = re.compile(
    r"(patient|pat|pt|subject|subj|sub|case|person|participant|volunteer|study|exam|visit|session"
    r"|scan|series)[\W_]*\d+",
    re.IGNORECASE,
)
# What systems append to the name of a folder that is copied to where one of its name is.
_COPIED = re.compile(
    r"((?<![\s_-])[\s_-]+(copy|kopie|copie|copia)( \d+)?)?( ?\(\d+\))?$", re.IGNORECASE
)
_WAY_OUT = (
    "is called neither train, validation nor test (or val, dev, holdout): rename it, or give "
    "splits and labels in a CSV (source.labels)"
)


def labels_of_folders(
    paths: Sequence[str], *, may_name: bool = True, patients: Sequence[str | None] = ()
) -> list[Label]:
    """Read ``<split>/<class>/...``, ``<class>/<split>/...`` or ``<class>/...``.

    Below folders named after splits, the first folder is the class; where there are none, or where
    none of them recurs under another split and there are several above, the one above the split is.

    Parameters
    ----------
    may_name : whether messages may name folders that are no class, which may be patients.
    patients : whom each file shows; empty where that is not known, None of one that does not count.

    Raises
    ------
    UserError
        A folder looks like a split but is called by no name of one, or folders are patients.
    """
    folders = [PurePosixPath(path).parts[:-1] for path in paths]
    splits = named_splits(dict.fromkeys(name for parts in folders for name in parts))
    _check_names(folders, splits, may_name=may_name)
    labels, others = _labels(folders, splits)
    _check_patients([one.label for one in labels], patients)
    _warn_of_other_folders(others, may_name=may_name)
    _warn_of_numbers({one.label for one in labels if one.label})
    _warn_of_copies({one.label for one in labels if one.label}, may_name=may_name)
    return labels


def _labels(
    folders: Sequence[tuple[str, ...]], splits: dict[str, Split]
) -> tuple[list[Label], list[tuple[str, list[str]]]]:
    """Return what the folders of each file say, and of each with a class its other folders."""
    levels = [next((i for i, n in enumerate(parts) if n in splits), None) for parts in folders]
    placed = [(p, level) for p, level in zip(folders, levels, strict=True) if level is not None]
    above = {parts[:level] for parts, level in placed}
    below = {
        (parts[: level + 1], parts[level + 1]) for parts, level in placed if parts[level + 1 :]
    }
    names = [name for _, name in below]
    by_class_above = len(above) > 1 and len(set(names)) == len(names)
    labels: list[Label] = []
    others: list[tuple[str, list[str]]] = []
    for parts, level in zip(folders, levels, strict=True):
        split = splits[parts[level]] if level is not None else None
        at = _class_level(parts, level, by_class_above)
        # Scripts with the ends of lines of Windows make folders whose names end in a return.
        label = None if at is None else shown(parts[at].strip())
        labels.append(Label(label, split=split, where=f"folder '{label}'"))
        if label is not None:
            others.append((label, [n for i, n in enumerate(parts) if i not in {level, at}]))
    return labels, others


def _check_patients(labels: Sequence[str | None], patients: Sequence[str | None]) -> None:
    """Refuse folders that hold one patient each, which are no classes, before any is named."""
    pairs = {
        (label, patient)
        for label, patient in zip(labels, patients, strict=False)
        if label is not None and patient is not None
    }
    classes = {label for label, _ in pairs}
    if all(patient for _, patient in pairs) and _FEW_CLASSES < len(classes) == len(pairs):
        raise UserError(
            f"the {len(classes)} folders that count as classes hold images of one patient each: "
            "they are patients, and no classes; give labels in a CSV (source.labels), or take "
            "'kind: dicom_folder', which without source.labels takes none from folders"
        )


def _class_level(parts: Sequence[str], level: int | None, above: bool) -> int | None:
    """Return which of the folders is the class; ``level`` is that of the split."""
    if above and level:
        return level - 1
    first = 0 if level is None else level + 1
    return first if first < len(parts) else None


def _check_names(
    folders: Sequence[Sequence[str]], splits: dict[str, Split], *, may_name: bool
) -> None:
    """Refuse folders that may be splits: of the first level, and of the next beside splits."""
    families: dict[Sequence[str], dict[str, None]] = {}
    for parts in folders:
        for level, name in enumerate(parts[:2]):
            families.setdefault(tuple(parts[:level]), {})[name] = None
    classes = {
        parts[level + 1] for parts in folders for level in range(len(parts) - 1)
        if parts[level] in splits
    }  # fmt: skip
    holders = {
        parts[:level] for parts in map(tuple, folders) for level in range(len(parts))
        if any(name in splits for name in parts[level:])
    }  # fmt: skip
    for parent, names in families.items():
        known = [name for name in names if name in splits]
        others = [name for name in names if name not in splits]
        asked = [n for n in others if looks_like_split(n, beside_splits=bool(known))]
        both = [name for name in others if _is_class_of_split(name, others)]
        asked = both + (asked if known or not parent else [])
        if asked:
            raise UserError(
                f"the folder {_quoted(asked, may_name or not both)} looks like a split, but "
                f"{_WAY_OUT}"
            )
        strange = [n for n in others if n not in classes and (*parent, n) not in holders]
        if known and strange and not any(name in splits for name in parent):
            raise UserError(
                f"the folder {_quoted(strange, may_name)} stands beside {_quoted(known)} and is no "
                f"class in there: if it is a split, it {_WAY_OUT}; images without a label may lie "
                "in the folder train itself"
            )
    first = families.get((), {})
    if not any(name in splits for name in first):
        _check_branches(first, holders, may_name=may_name)


def _check_branches(names: Iterable[str], holders: set[tuple[str, ...]], *, may_name: bool) -> None:
    """Refuse first folders of which one holds splits and another does not."""
    having = [name for name in names if (name,) in holders]
    lacking = [name for name in names if (name,) not in holders]
    if having and lacking:
        raise UserError(
            f"the folder {_quoted(having, may_name)} holds splits, and "
            f"{_quoted(lacking, may_name)} beside it holds none: make them alike, take out what is "
            "no class, or give splits and labels in a CSV (source.labels)"
        )


def _warn_of_other_folders(folders: Iterable[tuple[str, Sequence[str]]], *, may_name: bool) -> None:
    """Say that folders which recur in several classes are no labels.

    Parameters
    ----------
    folders : of each image its class, and its folders that are neither class nor split.
    """
    classes: set[str] = set()
    levels: dict[int, dict[str, set[str]]] = {}
    for label, others in folders:
        classes.add(label)
        for level, name in enumerate(others):
            levels.setdefault(level, {}).setdefault(name, set()).add(label)
    recurring: list[str] = []
    for names in levels.values():
        found = [name for name, above in names.items() if len(above) > 1]
        if len(found) > 1 or (found and 1 < len(names) <= _MOST_NAMED):
            recurring += found
    if recurring:
        of_class = f"the folders {_quoted(classes)}"
        if len(classes) > _MOST_NAMED:  # which may be patients
            of_class = f"{len(classes)} folders"
        others = f"other folders, {_quoted(recurring)},"
        if not may_name or len(set(recurring)) > _MOST_NAMED:
            others = f"{len(set(recurring))} other folders that recur"
        warnings.warn(
            Notice(
                f"the classes are {of_class}; {others} are no labels (if they are, give labels in "
                "a CSV)"
            ),
            stacklevel=3,
        )


def _warn_of_numbers(classes: Collection[str]) -> None:
    """Say that folders such as p001, p002, ... count as classes; their names may be patients'."""
    alike = {_NUMBER.sub("0", name) for name in classes}
    are_patients = len(classes) > 1 and all(map(_OF_PATIENT.fullmatch, classes))
    if len(alike) == 1 and (len(classes) > _MOST_NUMBERS or are_patients):
        text = (
            f"the folders are {len(classes)} classes whose names differ in numbers alone: if they "
            "are patients or studies, give labels and subjects in a CSV (source.labels)"
        )
        warnings.warn(Notice(text), stacklevel=3)


def _warn_of_copies(classes: Collection[str], *, may_name: bool) -> None:
    """Say that a folder named as the copy of another one counts as a class."""
    copies = [name for name in classes if _original(name) in classes]
    if copies:
        one = len(copies) == 1
        text = (
            f"the folder{'' if one else 's'} {_quoted(copies, may_name)} "
            f"{'is named as a copy' if one else 'are named as copies'} of another, and "
            f"{'counts' if one else 'count'} as a class: put the images where they belong, or take "
            "them out"
        )
        warnings.warn(Notice(text), stacklevel=3)


def _original(name: str) -> str:
    """Return the name without what marks a copy; empty where nothing does.

    >>> _original("ill - Copy (2)"), _original("ill (1)"), _original("ill copy 3"), _original("ill")
    ('ill', 'ill', 'ill', '')
    """
    found = _COPIED.search(name)
    return name[: found.start()] if found and found[0] else ""


def _is_class_of_split(name: str, names: Sequence[str]) -> bool:
    """Say whether a folder is named after a class and a split: normal_train beside normal_test."""
    rest, split = without_split(name)
    return bool(split) and any(
        rest == other and split != another
        for other, another in map(without_split, names)
        if another
    )


def _quoted(names: Iterable[str], may_name: bool = True) -> str:
    if not may_name:
        return "(not named: its files are DICOM)"
    return ", ".join(f"'{shown(name)}'" for name in sorted(set(names))[:_MOST_NAMED])
