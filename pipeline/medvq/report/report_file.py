"""Where the report of a data set lies, and which probe it is of; light to import."""

from __future__ import annotations

from pathlib import Path

from medvq.storage.artifacts import Artifact

_HEAD = 1000  # characters of the page that say which probe it is of


def report_file(folder: Path) -> Path:
    """Return the file of the report; ``folder`` is that of the data set's artifacts."""
    return folder / "report" / "report.html"


def mark(probe: Artifact) -> str:
    """Return what the page of a probe has in its head."""
    return f'<meta name="probe" content="{probe.fingerprint} {probe.record.finished}">'


def is_of(file: Path, probe: Artifact) -> bool:
    """Return whether a page is there and is that of a probe."""
    if not file.is_file():
        return False
    with file.open(encoding="utf-8") as stream:
        return mark(probe) in stream.read(_HEAD)
