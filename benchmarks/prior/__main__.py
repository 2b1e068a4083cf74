"""Run the studies that a data set allows; write their page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pandas as pd

from benchmarks.page import Figure, Section, demand, table
from benchmarks.prior import anomalies, samples
from benchmarks.prior.inputs import Inputs, likelihood
from benchmarks.prior.untypical import typicality
from benchmarks.study import Study, run_study

PIXELCNN = (
    "prior.model=pixelcnn",
    "prior.finer_model=pixelcnn",
    "prior.with_versions=false",
    "prior.channels=64",
    "prior.depth=5",
    "prior.dropout=0.2",
    "prior.learning_rate=0.002",
    "prior.epochs=5",
)
"""A Gated PixelCNN that trains about as long as the Transformer, chosen on validation images."""
MASKED = (
    "prior.model=masked",
    "prior.with_versions=true",
    "prior.epochs=240",
    "prior.learning_rate=0.002",
)
"""A masked Transformer: it learns from a share of the codes of an image, so that it takes more
epochs. With random versions the bits of validation images fall to the end: of 100 epochs to 4.03,
of 160 to 3.84, of 240 to 3.73."""
ABOUT = {
    "Likelihood": "Bits per pixel are those of all codes of an image over its pixels. No label is "
    "used.",
    "Samples": samples.ABOUT,
    "Anomalies": anomalies.ABOUT,
    "Typicality": "Test images against the same images inverted and upside down.",
}


def main(study: Study, _: argparse.Namespace) -> None:
    """Judge the model of the codes: likelihood, samples, anomalies, typicality."""
    inputs = Inputs(study)
    priors = inputs.train()
    trainings = [priors]
    for model, settings in (("pixelcnn", PIXELCNN), ("masked", MASKED)):
        if inputs.config.prior.model != model:
            trainings.append(inputs.train(*settings))
    groups = {"Likelihood": likelihood(inputs, trainings)}
    if len(inputs.maps.classes) > 1:
        groups["Samples"] = samples.judge_samples(inputs, trainings)
    # Of several levels the coarsest alone would be judged, without the details.
    if anomalies.NORMAL in inputs.maps.classes and len(inputs.maps.levels) == 1:
        groups["Anomalies"] = anomalies.anomalies(inputs)
    if inputs.config.ingest.alignment.enabled:
        groups["Typicality"] = typicality(inputs, priors.levels[0])
    sections = [
        Section(
            name,
            crossed(rows) if name == "Samples" else listed(rows),
            ABOUT[name],
        )
        for name, rows in groups.items()
    ]
    figures = [row for rows in groups.values() for row in rows]
    introduction = "Scores, sizes and epochs were chosen on validation images."
    study.publish("The model of the codes", introduction, sections, figures)


def listed(figures: Sequence[Figure]) -> pd.DataFrame:
    """Return a table with a row for each figure."""
    rows = ((f.figure, f"{f.value:.4g}", demand(f.must_reach, f.lower_is_better)) for f in figures)
    return table(("figure", "value", "to reach"), rows)


def crossed(figures: Sequence[Figure]) -> pd.DataFrame:
    """Return a table with a row for each set, and a column for each measure of ``set: measure``."""
    cells = [(*figure.figure.split(": "), f"{figure.value:.3g}") for figure in figures]
    measures = list(dict.fromkeys(measure for _, measure, _ in cells))
    values = {(name, measure): value for name, measure, value in cells}
    names = dict.fromkeys(name for name, *_ in cells)
    return table(
        ("images", *measures),
        ((name, *(values[name, measure] for measure in measures)) for name in names),
    )


if __name__ == "__main__":
    run_study("prior", "evaluate-prior", main)
