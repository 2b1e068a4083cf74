"""The CSV that labels a user's own images.

A header line, then a row for each file, subject, study or instance (``labels.join``). Columns: what
is joined on (``file``, ``subject``, ``study`` or ``instance``, or ``labels.key``), and where known
``label`` (or ``labels.column``), the number to predict (``labels.target``), ``subject`` and
``split`` (train, validation or test). For other names that these may have see
:mod:`medvq.datasets.columns`. Cells such as ``NA`` or ``-`` are empty. Fields are separated by
commas, semicolons, tabs or ``|`` (or what a first line ``sep=`` says); the text is UTF-8, with or
without a byte-order mark, or UTF-16 with one.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medvq.config import Labels
from medvq.datasets.classes import Label, is_missing, plain, unify, warn_of_missing
from medvq.datasets.columns import KEYS, Columns, find_columns, purpose_of
from medvq.datasets.file_names import FileNames, is_file
from medvq.datasets.split_names import named_splits
from medvq.errors import Notice, UserError
from medvq.images.formats.magic import HEAD, foreign
from medvq.wording import counted

# What Excel writes and reads to say how fields are separated.
_SEPARATOR = re.compile(r'"?sep=([,;\t|])"?(?=\r?\n)', re.IGNORECASE)


# The beginning of xlsx and ods, and that of xls.
_WORKBOOKS = (b"PK\3\4", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
_END_OF_LINE = re.compile(r"[\r\n]")
# A number as a spreadsheet shows and saves one of more than eleven digits.
_ROUNDED = re.compile(r"\d([.,]\d+)?[Ee]\+\d+")
# And the same with all digits shown: it keeps fifteen. Most made-up numbers end in other digits.
_LONG_NUMBER, _ZEROS_AFTER_15 = re.compile(r"\d{16,}"), re.compile(r"\d{15}0+")
# A number from a thousand on with its digits grouped by points, and one below a thousand.
_GROUPED, _SHORT = re.compile(r"-?[1-9]\d{0,2}\.\d{3}"), re.compile(r"-?\d{1,3}")
# A number that stands for no value in many tables.
_NINES = re.compile(r"9{2,}")
# What a spreadsheet shows, and may save, of a number in a column that is too narrow.
_TOO_NARROW = re.compile(r"##+")
# What keeps a spreadsheet from making a number of 001.
_FORMULA = re.compile(r'="([^"]*)"')


@dataclass(frozen=True)
class _Row:
    """A row of the table, as text."""

    line: int
    key: str
    label: str
    target: str
    subject: str
    split: str


def labels_file(folder: Path, labels: Labels, beside: str | None) -> Path:
    """Return the table of a folder: in it, or beside the configuration.

    Parameters
    ----------
    beside : the folder of the configuration; None where there is none.

    Raises
    ------
    UserError
        It is in neither, or in both and not the same.
    """
    places = [folder, *([Path(beside)] if beside else [])]
    name = Path(str(labels.file))
    with suppress(RuntimeError):  # a user that is not known
        name = name.expanduser()
    files = [place / name for place in places]
    found = list({file.resolve(): file for file in files if is_file(file)}.values())
    if not found:
        raise UserError(f"no labels file {' or '.join(map(str, dict.fromkeys(files)))}")
    if len(found) == 2 and _bytes(found[0]) != _bytes(found[1]):
        raise UserError(
            f"two tables of labels: {found[0]} and {found[1]}; remove one of them, or give "
            "source.labels.file as a full path"
        )
    return found[0]


def read_labels(file: Path, folder: Path, labels: Labels, paths: Iterable[str]) -> dict[str, Label]:
    """Read the rows of a table, by what they are joined on.

    Parameters
    ----------
    folder : holds the images.
    paths : those in the folder, which rows may name.

    Raises
    ------
    UserError
        The file is no such text, lacks a column, or contradicts itself; the message names the file
        and the line.
    """
    key = labels.key or KEYS[labels.join]
    rows = list(_rows(file, labels))
    splits = named_splits(dict.fromkeys(row.split for row in rows))
    names = FileNames(folder, paths)
    keys: list[str] = []
    parsed: list[Label] = []
    missing: list[_Row] = []
    for row in rows:
        where = f"{file}, line {row.line}"
        if not row.key:
            raise UserError(f"{where}: the column '{key}' is empty")
        if row.split and row.split not in splits:
            raise UserError(f"{where}: its split is none of train, validation and test")
        if _ROUNDED.fullmatch(row.subject):
            raise UserError(
                f"{where}: its subject is a number that a spreadsheet has rounded, as 1.2E+11: "
                "several patients may be one; give that column the format 'text' and save it anew"
            )
        path = names.find(row.key) if labels.join == "path" else row.key
        if path is None:
            missing.append(row)
            continue
        keys.append(path)
        target = _number(row.target, str(labels.target), where)
        parsed.append(Label(row.label or None, target, row.subject, splits.get(row.split), where))
    if not rows:
        raise UserError(f"{file} has a header line and no rows")
    if missing:
        raise UserError(
            _missing_files(missing, file, folder, names.hint(missing[0].key, set(keys)))
        )
    names.warn_of_guesses(file.name)
    _warn_of_subjects(rows, file.name)
    _warn_of_no_value(parsed, file.name, str(labels.target))
    _warn_of_thousands([row.target for row in rows], file.name, str(labels.target))
    table = _by_key(keys, unify(parsed, file.name, labels.classes), key)
    _check_subjects(table.values())
    _warn_of_no_label(table.values(), file, labels)
    return table


def _missing_files(rows: Sequence[_Row], file: Path, folder: Path, hint: str) -> str:
    """Return the message for rows that name no file, which deleted files leave behind."""
    which = f" (the first of {len(rows)} such lines)" if len(rows) > 1 else ""
    way_out = hint or "; put it back, or remove the line"
    return f"{file}, line {rows[0].line}{which}: the file it names is not in {folder}{way_out}"


def _by_key(keys: Sequence[str], parsed: Sequence[Label], column: str) -> dict[str, Label]:
    rows: dict[str, Label] = {}
    for name, label in zip(keys, parsed, strict=True):
        first = rows.setdefault(name, label)
        if first != label:
            line = first.where.rpartition(" ")[2]
            raise UserError(
                f"{label.where}: contradicts line {line}, which has the same '{column}'"
            )
    return rows


def _check_subjects(rows: Iterable[Label]) -> None:
    """Refuse rows of one subject in two splits, by their lines: its name may be a patient's."""
    first: dict[str, Label] = {}
    for row in rows:
        other = first.setdefault(row.subject, row) if row.subject and row.split else row
        if other.split != row.split:
            line = other.where.rpartition(" ")[2]
            raise UserError(
                f"{row.where}: its subject is in the split {row.split}, and in {other.split} on "
                f"line {line}; every subject's images must all be in one"
            )


def _warn_of_subjects(rows: Sequence[_Row], table: str) -> None:
    _warn_of_rounded(rows, table)
    _warn_of_subjects_alike(rows, table)


def _warn_of_no_label(rows: Iterable[Label], file: Path, labels: Labels) -> None:
    if not any(row.label or row.target is not None for row in rows):
        columns = f"'{labels.column}'" + (f" or '{labels.target}'" if labels.target else "")
        way_out = "source.labels.column names the one with the classes"
        text = f"{file} labels no image: no row has a {columns}; {way_out}"
        warnings.warn(Notice(text), stacklevel=3)


def _warn_of_subjects_alike(rows: Iterable[_Row], table: str) -> None:
    """Say by their lines which subjects may be one: their names may be patients'."""
    spellings: dict[str, dict[str, int]] = {}
    for row in rows:
        if row.subject:
            spellings.setdefault(plain(row.subject), {}).setdefault(row.subject, row.line)
    if alike := [list(lines.values()) for lines in spellings.values() if len(lines) > 1]:
        text = (
            f"{table}: {counted(len(alike), 'subject')} written in several ways (capitals, spaces, "
            f"01 or 1.0 for 1), first on lines {alike[0][0]} and {alike[0][1]}; each counts as a "
            "patient of its own"
        )
        warnings.warn(Notice(text), stacklevel=3)


def _warn_of_no_value(rows: Iterable[Label], table: str, column: str) -> None:
    """Say that a number to predict may stand for no value, as -1 and 999 do in many tables.

    That is the only negative one, and nines that are more than twice all others.
    """
    counts = Counter(row.target for row in rows if row.target is not None)
    negative = [number for number in counts if number < 0]
    if len(negative) == 1 and len(counts) > 1:
        text = (
            f"{table}: the only negative '{column}' is {negative[0]:g}, on {counts[negative[0]]} "
            "rows; if it stands for no value, leave it empty"
        )
        warnings.warn(Notice(text), stacklevel=3)
    second, largest = sorted(counts)[-2:] if len(counts) > 1 else (0.0, 0.0)
    if _NINES.fullmatch(f"{largest:g}") and largest > 2 * second:
        text = (
            f"{table}: the largest '{column}' is {largest:g}, more than twice all others, on "
            f"{counted(counts[largest], 'row')}; if it stands for no value, leave it empty"
        )
        warnings.warn(Notice(text), stacklevel=3)


def _warn_of_rounded(rows: Sequence[_Row], table: str) -> None:
    """Say that a spreadsheet may have rounded subjects: their names may be patients'."""
    long = [row for row in rows if _LONG_NUMBER.fullmatch(row.subject)]
    if long and all(_ZEROS_AFTER_15.fullmatch(row.subject) for row in long):
        text = (
            f"{table}: all {len(long)} subjects of more than 15 digits, first on line "
            f"{long[0].line}, end in zeros: a spreadsheet keeps 15, and several patients may be "
            "one; where it does, give that column the format 'text' and enter them anew"
        )
        warnings.warn(Notice(text), stacklevel=3)


def _warn_of_thousands(numbers: Sequence[str], table: str, column: str) -> None:
    """Say that a point may group digits: 1.234 beside 987 may be more than a thousand."""
    with_point = [text for text in numbers if "." in text]
    whole = [text for text in numbers if text and "." not in text]
    is_grouped = all(map(_GROUPED.fullmatch, with_point)) and all(map(_SHORT.fullmatch, whole))
    if with_point and whole and is_grouped:
        text = (
            f"{table}: {len(with_point)} of '{column}' have a point and three digits, first "
            f"'{with_point[0]}', and the others none; if it groups thousands, leave it out"
        )
        warnings.warn(Notice(text), stacklevel=3)


def _number(text: str, column: str, where: str) -> float | None:
    if not text:
        return None
    try:
        # Python groups digits by underscores, which no other program does.
        number = math.nan if "_" in text else float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: '{column}' is not a number (with a point, if any)")
    return number


def _rows(file: Path, labels: Labels) -> Iterator[_Row]:
    columns: Columns | None = None
    classes = {plain(name) for name in labels.classes}
    missing: Counter[str] = Counter()
    for line, cells in _records(file):
        if columns is None:
            columns = find_columns(file, cells, labels)
            width = len(cells)
            continue
        if any(cell.strip() for cell in cells[width:]):
            raise UserError(
                f"{file}, line {line}: more fields than columns; a field that holds a separator "
                "stands in quotes (and R writes a table without the names of rows by "
                "row.names=FALSE)"
            )
        row = dict(enumerate(cells))
        positions = (columns.key, columns.label, columns.target, columns.subject, columns.split)
        key, *values = [row.get(-1 if position is None else position, "") for position in positions]
        if any(_END_OF_LINE.search(value.rstrip()) for value in (key, *values)):
            raise UserError(
                f"{file}, line {line}: a field of several lines; is a quote not closed?"
            )
        if any(_TOO_NARROW.fullmatch(value.strip()) for value in (key, *values)):
            raise UserError(
                f"{file}, line {line}: '###' is what a spreadsheet shows of a value in a column "
                "that is too narrow: widen it and save the table anew"
            )
        label, target, subject, split = (
            "" if is_missing(value) else value.strip() for value in values
        )
        if (stated := values[0].strip()) and not label:
            if plain(stated) in classes:
                label = stated
            else:
                missing[stated] += 1
        yield _Row(line, key.strip(), label, target, subject, split)
    if columns is None:
        raise UserError(f"{file} is empty")
    warn_of_missing(missing, file.name)


def _records(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each line that is not empty, with its number."""
    text = _text(file)
    stated = _SEPARATOR.match(text)
    # The line stays, empty, so that others keep their numbers.
    text = text[stated.end() :] if stated else text
    header, *_ = _END_OF_LINE.split(text.lstrip("\r\n"), maxsplit=1)
    separator = stated[1] if stated else _separator(header)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True
    )
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [_FORMULA.sub(r"\1", cell) for cell in cells]
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: not plain CSV ({error})") from error


def _separator(header: str) -> str:
    """Return what separates the columns: by it most of their names are known, or else there are."""

    def columns(separator: str) -> tuple[int, int]:
        try:
            cells = next(csv.reader([header], delimiter=separator, skipinitialspace=True), [])
        except csv.Error:  # which reading the rows says, with the line
            return 0, 0
        return sum(purpose_of(cell) is not None for cell in cells), len(cells)

    return max(",;\t|", key=columns)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from error


def _text(file: Path) -> str:
    stored = _bytes(file)
    if stored.startswith(_WORKBOOKS):
        raise UserError(
            f"{file} is a workbook of a spreadsheet program, whatever its name says; open it there "
            "and save it as 'CSV UTF-8'"
        )
    if kind := foreign(stored[:HEAD], "table"):
        raise UserError(f"{file} is no table: it is {kind}")
    wide = stored.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = stored.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    # Any other encoding would have to be guessed, and a wrong guess is silent.
    if "\0" in text:
        raise UserError(f"{file} is not UTF-8 text; save it as 'CSV UTF-8'")
    return text
