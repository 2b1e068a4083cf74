"""What the study found: points, how far MedVQ is below the others, tables and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from medvq.report import plots
from medvq.stages.probe import MEDVQ
from medvq.summaries import Interval

from benchmarks.page import Figure, Section, interval, table, write_page

FRACTIONS = (0.01, 0.05, 1.0)
MINUTES = range(1, 61)
_CHANCE = 0.5
_STYLES = {
    "medvq_fast": (plots.SKY, "s"),
    "medvq_scratch": (plots.SKY, "o"),
    "medvq_imagenet": (plots.BLUE, "D"),
    "medvq_base": (plots.GREEN, "^"),
    "monai_vqvae": (plots.RED, "o"),
    "contrastive_resnet18": (plots.PINK, "o"),
    "frozen_imagenet": (plots.BLACK, "o"),
    "resnet18_scratch": (plots.ORANGE, "o"),
    "pca": (plots.GREY, "s"),
    "hog": (plots.GREY, "v"),
}
"""Colour and marker of each method."""
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
    methods = list(dict.fromkeys(point.method for point in points))
    across = len(FRACTIONS)
    with plots.panels(file, len(wanted), width=5, height=4, across=across) as axes:
        for number, (axis, (dataset, fraction)) in enumerate(zip(axes, wanted, strict=True)):
            of_set = [point for point in points if point.dataset == dataset]
            is_last = number % across == across - 1
            for method in methods:
                of_method = [point for point in of_set if point.method == method]
                _draw_curve(axis, of_method, fraction, method, label=method if is_last else None)
            title = f"{dataset}, {fraction:.0%} of the labels"
            axis.set(xscale="log", xlabel="minutes", ylabel="AUROC on test, mean", title=title)
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.xaxis.set_minor_formatter(NullFormatter())
            if is_last:  # the legend of the row, beside it, where it hides nothing
                plots.add_legend(axis, loc="center left", bbox_to_anchor=(1.02, 0.5))


def _draw_curve(
    axis: Axes, points: Sequence[Point], fraction: float, method: str, label: str | None
) -> None:
    """Draw what a method reached, the larger where it is MedVQ."""
    curve = sorted((p.minutes, p.auroc[fraction].mean) for p in points if fraction in p.auroc)
    colour, marker = _STYLES[method]
    width, size = (2.5, 10) if method.startswith(MEDVQ) else (1.0, 6)
    minutes, aurocs = [x for x, _ in curve], [y for _, y in curve]
    axis.plot(minutes, aurocs, color=colour, marker=marker, ms=size, lw=width, label=label)


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
