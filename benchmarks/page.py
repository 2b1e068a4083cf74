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
_TEMPLATE = "page.md.j2"


@dataclass(frozen=True)
class Section:
    """A table of a page, with its heading and the text between the two."""

    title: str
    table: pd.DataFrame
    text: str = ""


@dataclass(frozen=True)
class Page:
    """What a page says.

    Attributes
    ----------
    command : what made it.
    commit : of the code, before the page itself was written.
    data : one sentence on the data set; empty where there is none.
    picture : name of a picture beside the page; empty for none.
    """

    title: str
    command: str
    commit: str | None
    introduction: str
    sections: Sequence[Section]
    data: str = ""
    picture: str = ""

    def write(self, file: Path) -> None:
        """Write the page as Markdown."""
        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        # Markdown, not HTML: nothing is escaped, and all of it is our own.
        environment = jinja2.Environment(loader=loader, autoescape=False)  # noqa: S701
        text = environment.get_template(_TEMPLATE).render(vars(self), machine=machine())
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.rstrip() + "\n", encoding="utf-8")


def machine() -> str:
    """Return one phrase on the machine."""
    return f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"


def interval(value: Interval, sign: str = "") -> str:
    """Return a figure with its 95% interval; ``sign="+"`` for a difference.

    >>> interval(Interval(0.95, 0.01, (0.9, 0.98)))
    '0.950 [0.900, 0.980]'
    """
    low, high = value.ci95
    return f"{value.mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> pd.DataFrame:
    """Return a table of a section."""
    return pd.DataFrame(list(rows), columns=list(columns))


def figures(rows: Iterable[Figure]) -> pd.DataFrame:
    """Return a table of figures and what they are to reach."""
    return table(
        ("figure", "value", "to reach"),
        ((row.figure, f"{row.value:.4g}", row.demand) for row in rows),
    )


@dataclass(frozen=True)
class Figure:
    """One figure of a study, and what it is to reach, where anything."""

    figure: str
    value: float
    must_reach: float | None = None
    lower_is_better: bool = False

    @property
    def demand(self) -> str:
        """What it is to reach, in words."""
        return demand(self.must_reach, self.lower_is_better)

    def to_json(self) -> dict[str, Any]:
        """Return the row as ``--json`` prints it."""
        return {**vars(self), "value": round(self.value, 4)}


def demand(must_reach: float | None, lower_is_better: bool) -> str:
    """Return what a figure is to reach in words, nothing where it is to reach nothing."""
    if must_reach is None:
        return ""
    return f"{'at most' if lower_is_better else 'at least'} {must_reach:g}"
