"""The table of predictions: its columns, and one row of text per image.

======================================  ============================================================
``file``                                the path, or of DICOM a keyed hash of it
``sha256``                              of the file, by which its owner finds it
``status``, ``reason``                  ``read``, or ``refused`` and why
``size``                                of the image before it was resized
``class``                               that is called, by the probe's threshold
``probability_<CLASS>``                 one column for each class
``predicted``                           instead of these, where the probe predicts a number
``out_of_distribution_score``           bits per code, higher is less typical
``untypical``                           ``true`` where the score is beyond the threshold
``other_kind``                          in what the image is of another kind than those of training
``applied``                             what was done to show it
======================================  ============================================================
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from medvq.prediction.inputs import NewImage
from medvq.prediction.reading import NewImageResult

READ, REFUSED = "read", "refused"
DICOM_RESULT = "dicom_result"
_FIRST = ("file", "sha256", "status", "reason", "size")
_LAST = ("out_of_distribution_score", "untypical", "other_kind", "applied")
Row = dict[str, str]


def columns(classes: Sequence[str], *, dicom_output: bool) -> tuple[str, ...]:
    """Return the names of the columns; ``classes`` are empty where a number is predicted."""
    probabilities = [probability_column(name) for name in classes]
    predicted = ("class", *probabilities) if classes else ("predicted",)
    return (*_FIRST, *predicted, *_LAST, *((DICOM_RESULT,) if dicom_output else ()))


def probability_column(name: str) -> str:
    """Return the column of the probability of a class."""
    return f"probability_{name}"


def refused(image: NewImage, result: NewImageResult) -> Row:
    """Return the row of an image that could not be read."""
    return {
        "file": image.name,
        "sha256": result.sha256,
        "status": REFUSED,
        "reason": result.reason,
        "applied": "; ".join(result.notices),
    }


def read(image: NewImage, result: NewImageResult, other_kind: str) -> Row:
    """Return the row of an image that was read, without what is predicted."""
    return {
        "file": image.name,
        "sha256": result.sha256,
        "status": READ,
        "size": "x".join(map(str, result.size[::-1])),
        "other_kind": other_kind,
        "applied": "; ".join((*result.applied, *result.notices)),
    }


def number(value: float) -> str:
    """Write a predicted number with seven digits: more is rounding."""
    return f"{value:.7g}"


def probability(value: float) -> str:
    """Write a probability or a score with six decimals: more is rounding."""
    return f"{value:.6f}"


def as_text(names: Sequence[str], rows: Sequence[Row]) -> str:
    """Return rows as lines of CSV, a column that a row lacks empty."""
    stream = io.StringIO()
    csv.DictWriter(stream, names, restval="", lineterminator="\n").writerows(rows)
    return stream.getvalue()
