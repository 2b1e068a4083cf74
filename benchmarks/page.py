"""The pages in ``docs/results`` that studies write, from one template."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from medvq.summaries import Interval

RESULTS = Path(__file__).parent.parent / "docs" / "results"
"""Where pages are written unless the command line says otherwise."""


class Section(NamedTuple):
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


def write_page(
    file: Path,
    title: str,
    command: str,
    commit: str | None,
    introduction: str,
    sections: Sequence[Section],
    picture: str = "",
) -> None:
    """Write a page as Markdown.

    Parameters
    ----------
    command, commit : what made it, and the code's commit before any page was written.
    picture : name of a picture beside the page; empty for none.
    """
    values = {"title": title, "command": command, "commit": commit, "introduction": introduction}
    values |= {"machine": f"{platform.machine()}, {os.cpu_count()} processors"}
    # Markdown, not HTML: nothing is escaped, and all of it is our own.
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=loader, autoescape=False).get_template("page.md.j2")  # noqa: S701  # Markdown, not HTML
    text = template.render(values, sections=sections, picture=picture)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.rstrip() + "\n", encoding="utf-8")


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> pd.DataFrame:
    """Return a table of a section."""
    return pd.DataFrame([list(row) for row in rows], columns=list(columns))


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
