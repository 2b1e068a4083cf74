"""What the study found: points, how far MedVQ is below the others, tables and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from medvq.report import plots
from medvq.stages.probe import MEDVQ
from medvq.summaries import Interval

from benchmarks.page import Figure, Section, interval, table, write_page

FRACTIONS = (0.01, 0.05, 1.0)
MINUTES = range(1, 61)
_CHANCE = 0.5
LARGEST_SHORTFALL = 0.005
"""What MedVQ may be below the best of the others, at any minute."""


@dataclass(frozen=True)
class Point:
    """What a method reached, by share of the labels, in so many minutes."""

    dataset: str
    method: str
    minutes: float
    auroc: dict[float, Interval]

    @property
    def is_medvq(self) -> bool:
        return self.method.startswith(MEDVQ)


def shortfall(points: Sequence[Point], fraction: float) -> float | None:
    """Return how far the best of MedVQ is below the best of the others, at the worst minute.

    Negative where MedVQ is above at every minute. Until its first point MedVQ counts as chance.
    None where the others have nothing within the hour.
    """

    def best(minute: float, medvq: bool) -> float | None:
        reached = [
            point.auroc[fraction].mean
            for point in points
            if point.is_medvq == medvq and point.minutes <= minute and fraction in point.auroc
        ]
        return max(reached, default=None)

    others = [(minute, other) for minute in MINUTES if (other := best(minute, False)) is not None]
    return max((other - (best(minute, True) or _CHANCE) for minute, other in others), default=None)


def points_table(points: Sequence[Point]) -> pd.DataFrame:
    """Return the points as a table of the page."""
    shares = [f"AUROC, {fraction:.0%} of the labels" for fraction in FRACTIONS]
    cells = (
        [
            point.method,
            f"{point.minutes:.1f}",
            *(interval(point.auroc[f]) if f in point.auroc else "" for f in FRACTIONS),
        ]
        for point in points
    )
    return table(["method", "minutes", *shares], cells)


def figures(points: Sequence[Point]) -> list[Figure]:
    """Return how far MedVQ is below the best of the others, for each set and share of labels."""
    found = []
    for dataset in dict.fromkeys(point.dataset for point in points):
        of_set = [point for point in points if point.dataset == dataset]
        for fraction in FRACTIONS:
            if (value := shortfall(of_set, fraction)) is not None:
                figure = f"{dataset}, {fraction:.0%} of the labels: most below the best, by minute"
                found.append(Figure(figure, value, LARGEST_SHORTFALL, lower_is_better=True))
    return found


def draw(points: Sequence[Point], file: Path) -> None:
    """Draw AUROC against minutes: a panel for each data set and share of the labels."""
    sets = list(dict.fromkeys(point.dataset for point in points))
    wanted = [(dataset, fraction) for dataset in sets for fraction in FRACTIONS]
    across = len(FRACTIONS)
    with plots.panels(file, len(wanted), width=5, height=4, across=across) as axes:
        for axis, (dataset, fraction) in zip(axes, wanted, strict=True):
            _draw_curves(axis, [point for point in points if point.dataset == dataset], fraction)
            title = f"{dataset}, {fraction:.0%} of the labels"
            axis.set(xscale="log", xlabel="minutes", ylabel="AUROC on test", title=title)


def _draw_curves(axis: Axes, points: Sequence[Point], fraction: float) -> None:
    """Draw a curve for each method, those of MedVQ thicker."""
    for number, method in enumerate(dict.fromkeys(point.method for point in points)):
        of_method = [p for p in points if p.method == method and fraction in p.auroc]
        curve = sorted((point.minutes, point.auroc[fraction].mean) for point in of_method)
        minutes, aurocs = [x for x, _ in curve], [y for _, y in curve]
        width = 2.5 if method.startswith(MEDVQ) else 1.0
        axis.plot(minutes, aurocs, color=f"C{number}", marker="o", ms=4, lw=width, label=method)


def write(
    results: Path,
    points: Sequence[Point],
    introduction: str,
    command: str,
    commit: str | None,
    only: Sequence[str],
) -> Path:
    """Write the page and its picture; return the page."""
    page = results / f"{'-'.join(['peers', *only])}.md"
    draw(points, page.with_suffix(".png"))
    shortfalls = table(
        ["figure", "value", "must reach"],
        ([f.figure, f"{f.value:+.3f}", f"at most {f.must_reach:g}"] for f in figures(points)),
    )
    sections = [
        Section(name, points_table([point for point in points if point.dataset == name]))
        for name in dict.fromkeys(point.dataset for point in points)
    ]
    write_page(
        page,
        title="Time to an answer",
        command=command,
        commit=commit,
        introduction=introduction,
        sections=[Section("Upper envelope", shortfalls), *sections],
        picture=page.with_suffix(".png").name,
    )
    return page
