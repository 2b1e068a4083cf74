"""The pages in ``docs/results`` that studies write, from one template."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from medvq.summaries import Interval

RESULTS = Path(__file__).parent.parent / "docs" / "results"
"""Where pages are written unless the command line says otherwise."""


@dataclass(frozen=True)
class Section:
    """A table of a page, with its heading and the text between the two."""

    title: str
    table: pd.DataFrame
    text: str = ""


@dataclass(frozen=True)
class Figure:
    """One figure of a study, and what it is to reach, where anything."""

    figure: str
    value: float
    must_reach: float | None = None
    lower_is_better: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the row as ``--json`` prints it."""
        return {**vars(self), "value": round(self.value, 4)}


@dataclass(frozen=True)
class Page:
    """What a page says.

    Attributes
    ----------
    command : what made it.
    commit : of the code, before the page itself was written.
    picture : name of a picture beside the page; empty for none.
    """

    title: str
    command: str
    commit: str | None
    introduction: str
    sections: Sequence[Section]
    picture: str = ""

    def write(self, file: Path) -> None:
        """Write the page as Markdown."""
        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        # Markdown, not HTML: nothing is escaped, and all of it is our own.
        environment = jinja2.Environment(loader=loader, autoescape=False)  # noqa: S701
        machine = f"{platform.machine()}, {os.cpu_count()} processors"
        text = environment.get_template("page.md.j2").render(vars(self), machine=machine)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.rstrip() + "\n", encoding="utf-8")


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> pd.DataFrame:
    """Return a table of a section."""
    return pd.DataFrame([list(row) for row in rows], columns=list(columns))


def figures(rows: Iterable[Figure]) -> pd.DataFrame:
    """Return a table of figures and what they are to reach."""
    cells = ((r.figure, f"{r.value:.4g}", demand(r.must_reach, r.lower_is_better)) for r in rows)
    return table(("figure", "value", "to reach"), cells)


def demand(must_reach: float | None, lower_is_better: bool) -> str:
    """Return what a figure is to reach in words, nothing where it is to reach nothing."""
    if must_reach is None:
        return ""
    return f"{'at most' if lower_is_better else 'at least'} {must_reach:g}"


def interval(value: Interval, sign: str = "") -> str:
    """Return a figure with its 95% interval; ``sign="+"`` for a difference.

    >>> interval(Interval(0.95, 0.01, (0.9, 0.98)))
    '0.950 [0.900, 0.980]'
    """
    low, high = value.ci95
    return f"{value.mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
