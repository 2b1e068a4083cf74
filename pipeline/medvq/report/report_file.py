"""Where the report of a data set lies, and what it was made of; light to import."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from medvq.storage.artifacts import Artifact

_HEAD = 1000  # characters of the page that say what it was made of
_PACKAGE = Path(__file__).parents[1]
_MADE_BY = ("report", "explain", "evaluation/label_curve.py")
_SHOWN = ("probe", "prior", "sample")


def report_file(folder: Path) -> Path:
    """Return the file of the report; ``folder`` is that of the data set's artifacts."""
    return folder / "report" / "report.html"


def mark(folder: Path, main: Artifact) -> str:
    """Return what the page about an artifact has in its head.

    It is another one when the probe was fitted anew, when there are other artifacts to show
    beside it, and when the code that makes the page has changed.
    """
    shown = [
        f"{stage} {path.name}"
        for stage in _SHOWN
        for path in sorted((folder / stage).glob("*"))
        if path.name.isalnum() and not path.is_symlink()
    ]
    beside = hashlib.sha256("\n".join(shown).encode()).hexdigest()[:16]
    made = f"{main.fingerprint} {main.record.finished} {beside} {_code()}"
    return f'<meta name="made-of" content="{made}">'


def is_of(file: Path, main: Artifact) -> bool:
    """Return whether a page is there, about an artifact, and as it would be made now."""
    if not file.is_file():
        return False
    with file.open(encoding="utf-8") as stream:
        return mark(file.parents[1], main) in stream.read(_HEAD)


@cache
def _code() -> str:
    """Return a hash of the template and of the code that fills it."""
    hashed = hashlib.sha256()
    for name in _MADE_BY:
        place = _PACKAGE / name
        files = [*place.glob("*.py"), *place.glob("*.html")] if place.is_dir() else [place]
        for file in sorted(files):
            hashed.update(file.read_bytes())
    return hashed.hexdigest()[:16]
