"""The CSV that labels a user's own images.

A header line, then a row for each file, subject, study or instance (``labels.join``). Columns: what
is joined on (``file``, ``subject``, ``study`` or ``instance``, or ``labels.key``), and where known
``label`` (or ``labels.column``), the number to predict (``labels.target``), ``subject`` and
``split`` (train or test). Others are ignored. Fields are separated by commas, semicolons or tabs;
the text is UTF-8, with or without a byte-order mark, or UTF-16 with one.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import warnings
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from medvq.config import Labels
from medvq.errors import Notice, UserError

_COLUMNS = {"path": "file", "subject": "subject", "study": "study", "instance": "instance"}
_SPLIT_NAMES: dict[str, Literal["train", "test"]] = {
    "train": "train",
    "training": "train",
    "val": "train",
    "validation": "train",
    "test": "test",
    "testing": "test",
}


class Label(NamedTuple):
    """Class, number to predict, subject and split that a row states; empty where it does not."""

    label: str | None = None
    target: float | None = None
    subject: str = ""
    split: Literal["train", "test"] | None = None


def named_split(name: str) -> Literal["train", "test"] | None:
    """Return the split that a folder or a cell named ``name`` stands for, None for no split.

    >>> named_split("Validation"), named_split("holdout")
    ('train', None)
    """
    return _SPLIT_NAMES.get(name.strip().lower())


def read_labels(folder: Path, labels: Labels) -> dict[str, Label]:
    """Read the rows of ``labels.file`` in ``folder``, by what they are joined on.

    Raises
    ------
    UserError
        The file is missing, is no such text, lacks a column, or contradicts itself; the message
        names the file and the line.
    """
    file = folder / str(labels.file)
    if not file.is_file():
        raise UserError(f"no labels file {file}; the source's 'labels' is relative to {folder}")
    key = labels.key or _COLUMNS[labels.join]
    required = [key, *([labels.target] if labels.target else [])]
    required += [labels.column] if labels.column != "label" else []
    rows: dict[str, Label] = {}
    first_line: dict[str, int] = {}
    for number, row in _records(file, required):
        name = row[key].strip()
        try:
            if not name:
                raise ValueError(f"the column '{key}' is empty")
            if labels.join == "path":
                name = _path_in(folder, name)
            label = _label(row, labels)
        except ValueError as error:
            raise UserError(f"{file}, line {number}: {error}") from error
        if rows.setdefault(name, label) != label:
            raise UserError(
                f"{file}, line {number}: contradicts line {first_line[name]}, "
                f"which has the same '{key}'"
            )
        first_line.setdefault(name, number)
    if not rows:
        raise UserError(f"{file} has a header line and no rows")
    if not any(row.label or row.target is not None for row in rows.values()):
        columns = f"'{labels.column}'" + (f" or '{labels.target}'" if labels.target else "")
        warnings.warn(Notice(f"{file} labels no image: no row has a {columns}"), stacklevel=2)
    return rows


def _path_in(folder: Path, name: str) -> str:
    """Return ``name`` as this system writes it, of a file below ``folder``."""
    for path in (PurePosixPath(name), PurePosixPath(name.replace("\\", "/"))):
        inside = not path.is_absolute() and ".." not in path.parts
        if inside and (folder / path).is_file():
            return path.as_posix()
    raise ValueError(f"the file it names is not in {folder}")


def _label(row: dict[str, str], labels: Labels) -> Label:
    target = None
    if labels.target and (text := row[labels.target].strip()):
        try:
            target = float(text)
        except ValueError:
            target = math.nan
        if not math.isfinite(target):
            raise ValueError(f"'{labels.target}' is not a number (with a point, if any)")
    split = named_split(row.get("split", ""))
    if split is None and row.get("split", "").strip():
        raise ValueError("its split is neither train nor test")
    return Label(
        label=row.get(labels.column, "").strip() or None,
        target=target,
        subject=row.get("subject", "").strip(),
        split=split,
    )


def _records(file: Path, required: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield rows as column to text, each with its line; cells that are missing are empty."""
    text = _text(file)
    header = text.lstrip("\r\n").partition("\n")[0]
    separator = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    columns: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = _columns(file, cells, required)
                continue
            if len(cells) > len(columns):
                raise UserError(f"{file}, line {reader.line_num}: more fields than columns")
            yield reader.line_num, dict(zip_longest(columns, cells, fillvalue=""))
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: not plain CSV ({error})") from error
    if not columns:
        raise UserError(f"{file} is empty")


def _columns(file: Path, header: list[str], required: list[str]) -> list[str]:
    columns = [cell.strip() for cell in header]
    if missing := [name for name in required if name not in columns]:
        # Its columns are not shown: without a header line they are the values of the first row.
        raise UserError(
            f"{file} must have a column '{missing[0]}'; none of its {len(columns)} is called so"
        )
    for name in (*required, "label", "subject", "split"):
        if columns.count(name) > 1:
            raise UserError(f"{file} has the column '{name}' more than once; rename one of them")
    return columns


def _text(file: Path) -> str:
    stored = file.read_bytes()
    wide = stored.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = stored.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    # Any other encoding would have to be guessed, and a wrong guess is silent.
    if "\0" in text:
        raise UserError(f"{file} is not UTF-8 text; save it as 'CSV UTF-8'")
    return text
