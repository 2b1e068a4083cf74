"""The splits and classes that folders are named after."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from medvq.datasets.classes import Label
from medvq.datasets.dataset import Split
from medvq.datasets.split_names import looks_like_split, named_splits
from medvq.errors import UserError


def labels_of_folders(paths: Sequence[str]) -> list[Label]:
    """Read ``<split>/<class>/...``, ``<class>/<split>/...`` or ``<class>/...``.

    Below folders named after splits, the first folder is the class; where there are none, or where
    none of them recurs under another split and there are several above, the one above the split is.

    Raises
    ------
    UserError
        A folder looks like a split but is called by no name of one.
    """
    folders = [PurePosixPath(path).parts[:-1] for path in paths]
    splits = named_splits(dict.fromkeys(name for parts in folders for name in parts))
    _check_names(folders, splits)
    levels = [next((i for i, n in enumerate(parts) if n in splits), None) for parts in folders]
    placed = [(p, level) for p, level in zip(folders, levels, strict=True) if level is not None]
    above = {parts[:level] for parts, level in placed}
    below = {
        (parts[: level + 1], parts[level + 1]) for parts, level in placed if parts[level + 1 :]
    }
    names = [name for _, name in below]
    by_class_above = len(above) > 1 and len(set(names)) == len(names)
    return [
        _label(parts, level, splits[parts[level]] if level is not None else None, by_class_above)
        for parts, level in zip(folders, levels, strict=True)
    ]


def _label(parts: Sequence[str], level: int | None, split: Split | None, above: bool) -> Label:
    candidates = parts if level is None else parts[level + 1 :]
    if above and level:
        candidates = (parts[level - 1],)
    label = next(iter(candidates), None)
    return Label(label, split=split, where=f"folder '{label}'")


def _check_names(folders: Iterable[Sequence[str]], splits: dict[str, Split]) -> None:
    """Refuse folders that look like splits: of the first level, and of the next beside splits."""
    families: dict[Sequence[str], dict[str, None]] = {}
    for parts in folders:
        for level, name in enumerate(parts[:2]):
            families.setdefault(tuple(parts[:level]), {})[name] = None
    for parent, names in families.items():
        beside_splits = any(name in splits for name in names)
        asked = [
            f"'{name}'"
            for name in names
            if name not in splits and looks_like_split(name, beside_splits=beside_splits)
        ]
        if asked and (beside_splits or not parent):
            raise UserError(
                f"the folder {', '.join(sorted(asked))} looks like a split, but is called neither "
                "train, validation nor test (or val, dev, holdout): rename it, or give splits and "
                "labels in a CSV (source.labels)"
            )
