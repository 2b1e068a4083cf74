"""The names that folders and tables give to splits."""

from __future__ import annotations

import re
from collections.abc import Iterable

from medvq.datasets.classes import edit_distance
from medvq.datasets.dataset import Split

_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "validation": "validation",
    "dev": "validation",
    "devel": "validation",
    "development": "validation",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "holdout": "test",
    "heldout": "test",
}
# Some call the test split so, others the validation split beside a test split.
_EITHER = frozenset({"eval", "evaluation"})
# Words and numbers beside which the name of a split still is one: train_1, test-images, fold2.
_BESIDE = re.compile(r"\d+|set|split|part|partition|subset|data|images?|files?|imgs?|[^a-z]+")
# Before the second word of trainNormal.
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_NUMBERED = re.compile(r"(fold|cv|split|part|partition|subset)[^a-z]*\d+")


def named_splits(names: Iterable[str]) -> dict[str, Split]:
    """Return which split each of the names stands for; other names are left out.

    ``eval`` is the test split, or beside a test split the validation split.

    >>> named_splits(["Train", "dev_set", "eval", "ward"])
    {'Train': 'train', 'dev_set': 'validation', 'eval': 'test'}
    >>> named_splits(["eval", "test"])
    {'eval': 'validation', 'test': 'test'}
    """
    plain = {name: _plain(name) for name in names}
    splits = {name: _NAMES[text] for name, text in plain.items() if text in _NAMES}
    either: Split = "validation" if "test" in splits.values() else "test"
    # In the order of the names, so that messages do not depend on which is known.
    return {
        name: splits.get(name, either) for name in plain if name in splits or plain[name] in _EITHER
    }


def looks_like_split(name: str, *, beside_splits: bool) -> bool:
    """Say whether a folder that names no split looks as if it should.

    Parameters
    ----------
    beside_splits : whether folders beside it are splits; then misspelt names count, too.

    >>> [looks_like_split(n, beside_splits=True) for n in ("train_2", "tset", "fold1", "ill")]
    [True, True, True, False]
    """
    text = name.strip().casefold()
    known = {*_NAMES, *_EITHER}
    if _NUMBERED.fullmatch(text) or _BESIDE.sub("", text) in known - {"dev", "trn", "tst"}:
        return True
    words = [word for word in known if len(word) > 3]
    return beside_splits and any(
        len(plain) > 3 and edit_distance(plain, word) == 1
        for plain in (_plain(name), re.sub(r"[\W_]+", "", text))
        for word in words
    )


def without_split(name: str) -> tuple[str, Split | None]:
    """Return what is left of a name without the word of a split at its end, and that split.

    >>> without_split("normal_train"), without_split("testIll"), without_split("ward")
    (('normal', 'train'), ('ill', 'test'), ('ward', None))
    """
    words = re.split(r"[\W_]+", _CAPITAL.sub("_", name.strip()).casefold())
    for at in (-1, 0):
        if len(words) > 1 and words[at] in _NAMES:
            rest = words[:-1] if at else words[1:]
            return " ".join(rest), _NAMES[words[at]]
    return name, None


def _plain(name: str) -> str:
    text = re.sub(r"[\W_]+", "", name.casefold())
    return text.removesuffix("set") if text != "set" else text
