"""How many more labels a higher score needs, as the report says and draws it."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from medvq.evaluation.label_curve import LabelCurve, fit_label_curve
from medvq.evaluation.metrics import range_of
from medvq.report.tables import METRIC_NAMES
from medvq.summaries import ProbeSummary

_TARGETS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995)
"""Scores that the page asks for; the lowest that is not reached yet."""
_BEYOND = 4.0
"""Times the labels at hand that the curve is drawn to; of a part of the labels to all of them."""


def fit_curve(probe: ProbeSummary) -> LabelCurve | None:
    """Fit the curve to the scores of parts of the labels; None where there are none."""
    if (found := probe.label_scores) is None:
        return None
    lowest, highest = range_of(probe.headline)
    # R^2 has no lowest value; a plateau below what is measured is none.
    bounds = (max(lowest, float(np.min(found.scores))), highest)
    return fit_label_curve(found.labels, found.scores, seed=0, bounds=bounds)


def say_needs(probe: ProbeSummary, curve: LabelCurve | None) -> str:
    """Say how many more labels the next higher score needs, or why that is not known."""
    if curve is None:
        why = {
            "cross_validation": "labels are judged in every fold, so that no curve is fitted",
            "test": "there are too few labels for a curve through parts of them, they are in "
            "official label subsets, or the probe was fitted before MedVQ measured it",
        }[probe.evaluate]
        return f"How many labels a higher score needs is not known: {why}."
    reached = probe.rows[0].metrics[probe.headline].mean
    target = next((score for score in _TARGETS if score > reached + 0.002), None)
    if target is None:
        return f"{METRIC_NAMES[probe.headline]} is so high that more labels are hardly worth it."
    text = f"{curve.sentence(target)}"
    notes = "an extrapolation by an inverse power law through parts of the labels at hand"
    if probe.label_fraction < 1:
        everything = curve.score(probe.labels / probe.label_fraction)
        notes += (
            f"; with all labels of the training split it gives {everything.value:.3f} "
            f"[{everything.low:.3f}, {everything.high:.3f}]"
        )
    poor = " The law fits these scores poorly, so that this is a guess." if curve.is_poor else ""
    return f"{text[:1].upper()}{text[1:]}: {notes}.{poor}"


def plot_curve(probe: ProbeSummary, curve: LabelCurve, axis: Axes, colour: str) -> None:
    """Plot the curve against the share of the labels (%), dashed beyond the labels at hand."""
    assert probe.label_scores is not None
    labels = np.asarray(probe.label_scores.labels, float)
    percent = 100 * probe.label_fraction / labels[-1]
    end = max(labels[-1] * _BEYOND, labels[-1] / probe.label_fraction)
    inside, beyond = (
        (number, np.array([curve.score(one) for one in number]))
        for number in (np.geomspace(labels[0], labels[-1], 60), np.geomspace(labels[-1], end, 60))
    )
    for (number, values), line, label in (
        (inside, "-", None),
        (beyond, "--", "MedVQ, extrapolated"),
    ):
        axis.plot(percent * number, values[:, 0], color=colour, lw=1.2, ls=line, label=label)
    number, values = beyond
    axis.fill_between(percent * number, *values[:, 1:].T, color=colour, alpha=0.12, lw=0)
    means = np.mean(probe.label_scores.scores, axis=0)
    axis.plot(percent * labels, means, ".", color=colour, ms=5, label="MedVQ, parts of the labels")
    axis.set_xscale("log")
