"""The page, the picture and the table of validation figures of the suite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from medvq.evaluation.intervals import interval as summarise
from medvq.report import plots
from medvq.report.tables import METRIC_NAMES

from benchmarks.page import Section, interval, table, write_page
from benchmarks.suite.cells import Cell, Row, by_data_set, mean_lead
from benchmarks.suite.validation import ENOUGH, FOLDS, REPEATS

_STYLES = ((plots.ORANGE, "s"), (plots.GREEN, "^"), (plots.PINK, "D"), (plots.BLUE, "o"))
"""Colour and marker of each share of the labels."""
_COLUMNS = 4

INTRODUCTION = f"""\
Test split of each data set: mean over label subsets and trainings, with the 95% interval over test
subjects, label subsets and trainings, crossed; at 100% of the labels there is one subset, and the
interval is given this training set. All rows have the same label subsets, random versions, search
of C (larger values, too, for all but MedVQ's) and test subjects.

- `medvq`: the configuration of the data set, trained anew from each seed.
- `raw_pixels`, `hog`, `untrained_encoder`, `border_only`, `images_per_subject`: what needs no
  training. `border_only` has no look at what the image is of, and says how far a shortcut leads.
- `frozen_imagenet`: EfficientNet-Lite0 as trained on ImageNet, its eighth, eleventh and last block,
  averaged over 4x4 cells, at 224 pixels, on images that are prepared as MedVQ's;
  `frozen_imagenet_whole`: on images as they are, where the frame that alignment cuts away may tell
  the label, too.
- `resnet18_scratch`, `efficientnet_imagenet`: networks trained on the very labels, at 128 pixels,
  one for each label subset (`make benchmark-supervised` says how), without a validation score.

`kermany-patients` is the mean over five folds of all Kermany images by patient, each the test of
models that were trained on the others. The photographs of `stl10` are ImageNet's: the frozen
network, and MedVQ, which starts from it, have been trained on such images with labels.

`validation` is what defaults are chosen by, and reads no test image: the score on the validation
split, 3/4 on images as they are and 1/4 on acquisition-swapped copies where there are any. Where
that split has fewer than {ENOUGH} images it is cross-validation inside the training split ({FOLDS}
parts by subject, {REPEATS} times; the encoder has seen the images held out, without labels).
"""


def write(
    results: Path, cells: Sequence[Cell], command: str, commit: str | None, only: Sequence[str]
) -> Path:
    """Write the page and its picture; return the page."""
    results.mkdir(parents=True, exist_ok=True)
    page = results / f"{'-'.join(['suite', *only])}.md"
    picture = page.with_suffix(".png")
    draw(cells, picture)
    write_page(
        page,
        title="The suite: MedVQ and what a user would use instead",
        command=command,
        commit=commit,
        introduction=INTRODUCTION,
        sections=[*_leads(cells), *(_data_set(name, part) for name, part in by_data_set(cells))],
        picture=picture.name,
    )
    return page


def show_validation(cells: Sequence[Cell]) -> str:
    """Return a table of the validation scores, which are all that choices are made by."""
    lines = [
        {"data set": cell.dataset, "labels": f"{cell.label_fraction:.0%}"}
        | {row.features: row.validation.score for row in cell.rows if row.validation}
        for cell in cells
    ]
    scores = pd.DataFrame(lines).set_index(["data set", "labels"])
    scores.loc[("mean over data sets", ""), :] = scores.groupby("data set").mean().mean()
    return scores.to_string(float_format="{:.3f}".format, na_rep="", sparsify=False)


def _leads(cells: Sequence[Cell]) -> Iterator[Section]:
    """Yield how far MedVQ is above the best baseline of each cell, and on average."""
    judged, mean = [(cell, lead) for cell in cells if (lead := cell.lead)], mean_lead(cells)
    if mean is None:
        return
    rows = [
        [
            cell.dataset,
            f"{cell.label_fraction:.0%} ({cell.labels})",
            METRIC_NAMES[cell.headline],
            cell.best_baseline.features if cell.best_baseline else "",
            interval(summarise(lead), "+"),
        ]
        for cell, lead in judged
    ]
    rows.append(["mean over data sets", "", "", "", interval(mean, "+")])
    yield Section(
        "MedVQ less the best baseline",
        table(["data set", "labels (images)", "metric", "best baseline", "difference"], rows),
        "Paired. The best baseline of a cell is chosen on the test split, which flatters it. In "
        "the mean each data set counts once, by the mean over its shares of labels.",
    )


def _data_set(name: str, cells: Sequence[Cell]) -> Section:
    """Return the rows of a data set, with a column for each share of the labels."""
    names = list(dict.fromkeys(row.features for cell in cells for row in cell.rows))
    columns = [f"{cell.label_fraction:.0%} ({cell.labels} images)" for cell in cells]
    validation = [f"validation {cell.label_fraction:.0%}" for cell in cells]
    rows = []
    for features in names:
        found = [next((r for r in cell.rows if r.features == features), None) for cell in cells]
        trainings = max(row.trainings for row in found if row)
        headline = cells[0].headline
        scores = [interval(row.interval(headline)) if row else "" for row in found]
        rows.append([features, trainings, *scores, *map(_validation, found)])
    title = f"{name}: {METRIC_NAMES[cells[0].headline]}"
    return Section(title, table(["features", "seeds", *columns, *validation], rows))


def _validation(row: Row | None) -> str:
    return f"{row.validation.score:.3f}" if row and row.validation else ""


def draw(cells: Sequence[Cell], file: Path) -> None:
    """Draw the rows of each data set as dots with their intervals, a panel for each."""
    sets = by_data_set(cells)
    names = list(dict.fromkeys(row.features for cell in cells for row in cell.rows))
    shares = sorted({cell.label_fraction for cell in cells})
    columns = min(_COLUMNS, len(sets))
    lines = -(-len(sets) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(1.6 + 2.9 * columns, 0.4 + lines * (1.0 + 0.34 * len(names))),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    legend: dict[str, Artist] = {}
    for axis, (name, part) in zip(axes.flat, sets, strict=False):
        for cell in part:
            legend[f"{cell.label_fraction:.0%} of the labels"] = _draw_cell(
                axis, cell, names, shares.index(cell.label_fraction), len(shares)
            )
        axis.set_yticks(range(len(names)), [text.replace("_", " ") for text in names])
        axis.set(title=name, xlabel=f"{METRIC_NAMES[part[0].headline]} on test")
        axis.grid(axis="x", color="0.9")
    for axis in axes.flat[len(sets) :]:
        axis.set_visible(False)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)  # the first row on top, with room for its shares
    figure.legend(
        list(legend.values()),
        list(legend),
        loc="outside lower center",
        ncols=2 * columns,
        frameon=False,
    )
    plots.save(figure, file)


def _draw_cell(axis: Axes, cell: Cell, names: Sequence[str], number: int, of: int) -> Artist:
    """Draw the rows of a cell, the ``number``-th of so many shares of the labels."""
    found = [(names.index(row.features), row.interval(cell.headline)) for row in cell.rows]
    means = [value.mean for _, value in found]
    low = [max(value.mean - value.ci95[0], 0) for _, value in found]
    high = [max(value.ci95[1] - value.mean, 0) for _, value in found]
    places = [place + (number - (of - 1) / 2) * 0.7 / of for place, _ in found]
    colour, marker = _STYLES[number % len(_STYLES)]
    spread = [low, high]
    bars = axis.errorbar(means, places, xerr=spread, ls="", marker=marker, ms=4, color=colour)
    return bars.lines[0]
