"""Every feature set at 1 to 100% of the labels, and how far the probe can be trusted.

Writes ``docs/results/label-efficiency-<data set>.md`` and the curve beside it. On data sets with
official label subsets these alone are judged. Of two classes the page also says, see
:mod:`benchmarks.trust`, how probabilities are calibrated, and what is found where labels mean
nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from medvq.report.probe_figures import draw_label_efficiency
from medvq.report.tables import metric_name
from medvq.storage.artifacts import source
from medvq.summaries import ProbeRow, ProbeSummary

from benchmarks.page import Figure, Section, interval, table
from benchmarks.study import Study, run_study
from benchmarks.trust import calibration, permutation_check

FRACTIONS = (0.01, 0.02, 0.05, 0.10, 0.25, 0.50, 1.0)
"""Shares of the training subjects whose labels the probe may see."""
FEW_LABELS = 0.05
"""The share at which labels are shuffled."""
NAMES = {"auroc": "AUROC", "accuracy": "Accuracy", "r2": "R^2"}
METRICS = {
    "auroc": (
        "balanced_accuracy", "sensitivity", "specificity", "sensitivity_at_90_specificity",
        "sensitivity_at_95_specificity", "brier", "ece",
    ),
    "accuracy": ("balanced_accuracy", "auroc", "auprc", "brier", "ece"),
    "r2": ("mae",),
}  # fmt: skip
"""By headline metric, the others that a page shows."""


def main(study: Study, _: argparse.Namespace) -> None:
    """Judge every feature set at 1 to 100% of the labels."""
    config = study.config()
    official = config.probe.label_subsets == "official"
    fractions = (config.probe.label_fraction,) if official else FRACTIONS
    probes = [study.probe(study.config(f"probe.label_fraction={share}")) for share in fractions]
    summaries = [probe.summary for probe in probes]
    if len(probes) > 1:
        draw_label_efficiency({s.label_fraction: s for s in summaries}, study.file(".png"))
    headline = summaries[0].headline
    sections = [*by_fraction(summaries), *(_at_fraction(summary) for summary in summaries)]
    if headline == "auroc" and not official:
        few = min(probes, key=lambda probe: abs(probe.summary.label_fraction - FEW_LABELS))
        sections += [calibration(summaries), permutation_check(study, few)]
    trained = source(source(probes[0].artifact, "extract"), "pretrain").record
    study.publish(
        "Label efficiency",
        f"The model was trained in {trained.seconds / 60:.1f} min on {trained.device} "
        f"({trained.machine}), commit `{trained.commit}`.\n\nTest split, read once per row; mean "
        f"over label subsets ({summaries[0].repeats}) with the 95% interval over test subjects "
        "crossed with label subsets, given this training. At 100% of the labels there is one "
        "subset: the interval is then given this training set, too.",
        sections,
        [
            Figure(f"{headline} at {percent(s)}", s.rows[0].metrics[headline].mean)
            for s in summaries
        ],
    )


def percent(summary: ProbeSummary) -> str:
    """Return the share of labels in words."""
    return f"{100 * summary.label_fraction:g}%"


def counted_labels(summary: ProbeSummary) -> str:
    """Return the share of labels, how many images have them, and what intervals are given."""
    note = ", given this training set" if "this training set" in summary.intervals_given else ""
    return f"{percent(summary)} ({summary.labels} images{note})"


def row_of(summary: ProbeSummary, features: str) -> ProbeRow:
    """Return the row of a feature set."""
    return next(row for row in summary.rows if row.features == features)


def by_fraction(summaries: Sequence[ProbeSummary]) -> list[Section]:
    """Return the headline metric of every feature set, and MedVQ's lead, by share of labels."""
    headline, first = summaries[0].headline, summaries[0]
    counted = [counted_labels(summary) for summary in summaries]
    names = [row.features for row in first.rows]
    values = [
        [name, *(interval(row_of(s, name).metrics[headline]) for s in summaries)] for name in names
    ]
    baselines = [name for name in names if name in first.medvq_minus]
    leads = [[name, *(interval(s.medvq_minus[name], "+") for s in summaries)] for name in baselines]
    return [
        Section(NAMES[headline], table(["features", *counted], values)),
        Section(
            f"{NAMES[headline]} of MedVQ less that of a baseline",
            table(["against", *map(percent, summaries)], leads),
            "On the same label subsets and test subjects.",
        ),
    ]


def _at_fraction(summary: ProbeSummary) -> Section:
    """Return the other metrics at one share of labels, and the scores on validation images."""
    metrics = METRICS[summary.headline]
    rows = []
    for row in summary.rows:
        scores = row.validation
        known = (scores.clean, scores.swapped, scores.score) if scores else (None,) * 3
        validation = ["" if score is None else f"{score:.3f}" for score in known]
        rows.append([row.features, *(interval(row.metrics[m]) for m in metrics), *validation])
    columns = ["features", *map(metric_name, metrics), "validation clean", "swapped", "score"]
    return Section(f"At {percent(summary)} of the labels", table(columns, rows))


if __name__ == "__main__":
    run_study("label-efficiency", "benchmark", main)
