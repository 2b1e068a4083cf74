"""Run the studies that a data set allows; write their page."""

from __future__ import annotations

import argparse

from benchmarks.page import Section, demand, table
from benchmarks.prior import anomalies, samples
from benchmarks.prior.inputs import Inputs, likelihood
from benchmarks.prior.untypical import typicality
from benchmarks.study import Study, run_study

PIXELCNN = (
    "prior.model=pixelcnn",
    "prior.channels=64",
    "prior.depth=5",
    "prior.dropout=0.2",
    "prior.learning_rate=0.002",
    "prior.epochs=5",
)
"""A Gated PixelCNN that trains about as long as the Transformer, chosen on validation images."""
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
    if inputs.config.prior.model != "pixelcnn":
        trainings.append(inputs.train(*PIXELCNN))
    groups = {"Likelihood": likelihood(inputs, trainings)}
    if len(inputs.maps.classes) > 1:
        groups["Samples"] = samples.judge_samples(inputs, priors.levels)
    if anomalies.NORMAL in inputs.maps.classes:
        groups["Anomalies"] = anomalies.anomalies(inputs)
    if inputs.config.ingest.alignment.enabled:
        groups["Typicality"] = typicality(inputs, priors.levels[0])
    sections = [
        Section(
            name,
            table(
                ("figure", "value", "to reach"),
                (
                    (row.figure, f"{row.value:.4g}", demand(row.must_reach, row.lower_is_better))
                    for row in rows
                ),
            ),
            ABOUT[name],
        )
        for name, rows in groups.items()
    ]
    figures = [row for rows in groups.values() for row in rows]
    introduction = "Scores, sizes and epochs were chosen on validation images."
    study.publish("The model of the codes", introduction, sections, figures)


if __name__ == "__main__":
    run_study("prior", "evaluate-prior", main)
