"""The classes that labels name: missing values, one class under several spellings, misspellings."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from medvq.datasets.dataset import Split
from medvq.errors import Notice, UserError
from medvq.wording import counted

_MISSING = frozenset(
    {
        "",
        "-",
        "--",
        "nan",
        "na",
        "n/a",
        "n.a.",
        "<na>",
        "nat",
        "null",
        "nil",
        "none",
        "#n/a",
        "#na",
        "#value!",
        "#ref!",
        "#div/0!",
        "#name?",
        "#num!",
        "#null!",
        "?",
        "??",
        ".",
        "\u2013",
        "\u2014",
        "_",
        "''",
        '""',
    }
)
# Words that may stand for no value, and may be a class.
_MAY_BE_MISSING = frozenset(
    {
        "unknown", "unlabeled", "unlabelled", "no label", "missing", "not available", "undefined",
        "not applicable", "n.d.", "empty", "blank", "inf", "tbd", "-1", "-9", "-99", "-999",
    }
)  # fmt: skip
# What stands for no patient in the place of a name.
_NO_PATIENT = _MAY_BE_MISSING | {"anonymous", "anonymized", "anonymised", "anon", "no id", "noid"}
# Of those that stand for no value, what may be a class: mild, severe, none; + and -.
_MAY_BE_CLASS = frozenset({"none", "nil", "-", "--", "\u2013", "\u2014"})
# Ways to write yes and no.
_TRUTHS = (
    {"true", "false"}, {"yes", "no"}, {"y", "n"}, {"t", "f"}, {"1", "0"}, {"pos", "neg"},
    {"positive", "negative"}, {"wahr", "falsch"}, {"vrai", "faux"}, {"ja", "nein"}, {"oui", "non"},
)  # fmt: skip
_WHOLE_NUMBER = re.compile(r"([+-]?\d+)(\.0*|,0{1,2})?")
# What spreadsheets make of 1-2: 02-Jan, Jan-02, 2. Jan, 2024-01-02, 1/2/2024.
_MONTH = (
    r"(jan|fe[bv]|f\u00e9v|m[a\u00e4]r|mrz|a[pv]r|ma[yi]|ju[nil]|aug|ao\u00fb|sep|o[ck]t|nov|"
    r"de[cz]|d\u00e9c)[a-z]?\.?"
)
_DATE = re.compile(
    rf"\d{{1,2}}[-. ]{{1,2}}{_MONTH}|{_MONTH}[- ]\d{{2}}|\d{{4}}-\d\d-\d\d( 00:00(:00)?)?"
    r"|\d{1,2}[./]\d{1,2}[./]\d{4}",
    re.IGNORECASE,
)
_BETWEEN_LABELS = re.compile(r"[|;,/+&]")
# A label is rare where it has one image, or at most one for so many of the other label.
_RARE = 20
# What people write for a space between letters: non-small, non_small.
_SPACE = re.compile(
    r"(?<=[^\W\d_])[\s_\u2010-\u2014-]+(?=[^\W_])|(?<=\d)[\s_\u2010-\u2014-]+(?=[^\W\d_])"
)
# Small letters of the Cyrillic alphabet that look as Latin ones do, in small or in capitals, and
# marks that programs for texts put for an apostrophe.
_LOOKS = str.maketrans(
    "\u0430\u0432\u0435\u0455\u0456\u0458\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0443\u0445"
    "\u2018\u2019\u02bc\u00b4`",
    "abesijkmhopctyx'''''",
)
_SHORTEST_MISSPELT = 4
# Names at least this long may differ by two letters and still be one.
_LONG = 6
_GRADES = re.compile(r"\d+|\b[ivx]+\b|\b[a-z]\b")


@dataclass(frozen=True)
class Label:
    """What a row of a table or the folders say of an image; empty where they do not.

    Attributes
    ----------
    label : the class.
    target : the number to predict.
    where : the line or folder that says so, for messages.
    """

    label: str | None = None
    target: float | None = None
    subject: str = ""
    split: Split | None = None
    where: str = field(default="", compare=False)


def is_missing(text: str) -> bool:
    """Say whether a cell stands for no value.

    >>> is_missing(" N/A "), is_missing("normal")
    (True, False)
    """
    return _visible(text).strip().casefold() in _MISSING


def is_no_patient(subject: str) -> bool:
    """Say whether a subject is called by a word that may stand for none, such as 'unknown'."""
    return plain(subject) in _NO_PATIENT


def warn_of_missing(cells: Mapping[str, int], source: str) -> None:
    """Say which cells are no label and may be meant as a class.

    Parameters
    ----------
    cells : those that stand for no value, and how many rows have each.
    source : names the table, for the notice.
    """
    doubtful = {text: n for text, n in cells.items() if plain(text) in _MAY_BE_CLASS}
    if doubtful:
        named = ", ".join(
            f"'{text}' ({counted(number, 'row')})" for text, number in doubtful.items()
        )
        text = (
            f"{source}: {named} is no label; if it is a class, list all classes in "
            "source.labels.classes"
        )
        warnings.warn(Notice(text), stacklevel=3)


def unify(labels: Iterable[Label], source: str, classes: Sequence[str] = ()) -> list[Label]:
    """Give one spelling to labels that differ in capitals, spaces or the form of a whole number.

    A hyphen or underscore between words counts as a space.

    That is the spelling in ``classes``, else the most frequent one; a notice says which are one.

    Parameters
    ----------
    source : names the table, for the notice.
    classes : those that there are; none allows all.

    Raises
    ------
    UserError
        A label is not in ``classes``; or without those, it is rare and differs from a frequent one
        by one or two letters.
    """
    labels = list(labels)
    counts = Counter(label.label for label in labels if label.label is not None)
    spellings: dict[str, list[str]] = {}
    for text in sorted(counts, key=lambda text: (-counts[text], len(text), text)):
        spellings.setdefault(plain(text), []).append(text)
    names = {key: texts[0] for key, texts in spellings.items()}
    names |= {plain(text): text for text in classes}
    if classes:
        _check_listed(labels, {plain(text) for text in classes})
    else:
        _check_spelling(labels, {k: sum(counts[t] for t in v) for k, v in spellings.items()})
        _check_truths(spellings)
        if doubtful := sorted(spellings[key][0] for key in spellings if key in _MAY_BE_MISSING):
            named = ", ".join(f"'{text}'" for text in doubtful)
            text = f"{source}: {named} counts as a class; if it stands for no label, leave it empty"
            warnings.warn(Notice(text), stacklevel=2)
    if not classes:
        _warn_of_several(spellings, source)
        _warn_of_dates(spellings, source)
    if several := [texts for texts in spellings.values() if len(texts) > 1]:
        same = "; ".join(
            " and ".join(f"'{_shown_spelling(text, texts[0])}' ({counts[text]})" for text in texts)
            for texts in several
        )
        warnings.warn(Notice(f"{source}: counted as one class each: {same}"), stacklevel=2)
    return [
        label if label.label is None else replace(label, label=names[plain(label.label)])
        for label in labels
    ]


def edit_distance(one: str, other: str) -> int:
    """Return how many letters to insert, drop, change or swap with the next make one of the other.

    >>> edit_distance("NORMLA", "NORMAL"), edit_distance("ill", "well")
    (1, 2)
    """
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a != b))
            if i > 1 and j > 1 and (a, b) == (other[j - 2], one[i - 2]):
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]


def plain(text: str) -> str:
    """Return what spellings share that differ in capitals, spaces or the form of a whole number.

    So do those that only look alike, by letters of another alphabet.

    >>> plain("Non-Small "), plain("01"), plain("1.0"), plain("1,0"), plain("\u0421ovid")
    ('non small', '1', '1', '1', 'covid')
    """
    seen = _SPACE.sub(" ", " ".join(unicodedata.normalize("NFKC", _visible(text)).split()))
    number = _WHOLE_NUMBER.fullmatch(seen)
    is_number = number and len(seen) < 20
    return str(int(number[1])) if number and is_number else seen.casefold().translate(_LOOKS)


def _shown_spelling(text: str, other: str) -> str:
    """Return a spelling as it is shown beside another one: by its codes where both look alike."""
    mark = _visible(text).casefold()
    looks_alike = mark != _visible(other).casefold() and mark.translate(_LOOKS) != mark
    is_marked = looks_alike or _visible(text) != text
    return text.encode("unicode_escape").decode() if is_marked else text


def _visible(text: str) -> str:
    """Return a text without marks that are not seen, such as a zero-width space from a web page."""
    return "".join(mark for mark in text if unicodedata.category(mark) != "Cf")


def _warn_of_several(spellings: Mapping[str, Sequence[str]], source: str) -> None:
    """Name labels that seem to be several classes at once: ``edema|mass``."""
    several = [
        texts[0]
        for texts in spellings.values()
        if len(parts := _BETWEEN_LABELS.split(texts[0])) > 1
        and all(plain(part) in spellings for part in parts)
    ]
    if several:
        text = (
            f"{source}: {counted(len(several), 'label')} may be several, first '{several[0]}': "
            "each counts as a class of its own; a column of yes and no for each keeps them apart"
        )
        warnings.warn(Notice(text), stacklevel=3)


def _warn_of_dates(spellings: Mapping[str, Sequence[str]], source: str) -> None:
    """Name labels that are dates, which a spreadsheet makes of 1-2."""
    dates = [texts[0] for texts in spellings.values() if _DATE.fullmatch(texts[0])]
    if dates:
        text = (
            f"{source}: {counted(len(dates), 'label')} in the form of a date, first '{dates[0]}', "
            "as a spreadsheet makes of 1-2: if they are none, give that column the format 'text' "
            "and enter them anew"
        )
        warnings.warn(Notice(text), stacklevel=3)


def _check_truths(spellings: Mapping[str, Sequence[str]]) -> None:
    """Refuse labels that say yes and no in several ways."""
    ways = [way for way in _TRUTHS if way & spellings.keys()]
    if len(ways) > 1 and len(spellings) > 2 and spellings.keys() <= set().union(*_TRUTHS):
        labels = ", ".join(f"'{texts[0]}'" for texts in spellings.values())
        raise UserError(
            f"the labels {labels} write yes and no in several ways: use one, or list all classes "
            "in source.labels.classes"
        )


def _check_listed(labels: Sequence[Label], classes: set[str]) -> None:
    for label in labels:
        if label.label is not None and plain(label.label) not in classes:
            raise UserError(
                f"{label.where}: label '{label.label}' is not in source.labels.classes; mend it, "
                "or add it there"
            )


def _check_spelling(labels: Sequence[Label], counts: dict[str, int]) -> None:
    repeated = {name: count for name, count in counts.items() if count > 1}
    for rare, count in counts.items():
        for common, others in repeated.items():
            if not (count <= max(1, others // _RARE) and count < others):
                continue
            if _is_misspelling(rare, common):
                first = next(one for one in labels if one.label and plain(one.label) == rare)
                meant = next(one for one in labels if one.label and plain(one.label) == common)
                times = "once" if count == 1 else f"{count} times"
                raise UserError(
                    f"{first.where}: label '{first.label}' occurs {times}; did you mean "
                    f"'{meant.label}'? Mend it, or list all classes in source.labels.classes"
                )


def _is_misspelling(rare: str, common: str) -> bool:
    shorter = min(len(rare), len(common))
    if shorter < _SHORTEST_MISSPELT or _GRADES.findall(rare) != _GRADES.findall(common):
        return False
    # Prefixes negate: normal and abnormal, typical and atypical.
    if rare.endswith(common) or common.endswith(rare) or abs(len(rare) - len(common)) > 2:
        return False
    return edit_distance(rare, common) <= (2 if shorter >= _LONG else 1)
