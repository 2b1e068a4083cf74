"""Variants of one training, probed with the same draws of labels and judged on the same images."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from medvq.config import Config
from medvq.flow import Options, run
from medvq.method.probe import ProbeFeatures, fit_probe
from medvq.stages.probe import ProbeData, Store, images_of, label_draws

from benchmarks.command_line import configuration
from benchmarks.pairing import Floats, aurocs, gain
from benchmarks.tables import interval, table_row

FRACTIONS = (0.01, 0.05)
FEATURES = {
    "embedding": "the encoder's last level",
    "quantized": "codes alone, each as its vector, pooled to the 4x4 grid",
    "histogram": "codes alone, one histogram of them",
}
PAIRED = (
    "AUROC on the test split, mean over the same draws of labels. In brackets what the first row "
    "gains over the row, paired over draws and test subjects, with its 95% interval: where that "
    "holds zero, nothing was gained that could be told from chance. One training of each, so that "
    "chance in the training itself is in no interval."
)
Found = dict[str, list[tuple[Floats, Floats]]]
"""By feature set, what :func:`aurocs` found at each of :data:`FRACTIONS`."""


def judged(parsed: argparse.Namespace, options: Options, *settings: str) -> Found:
    """Train and extract with ``settings``, unless that was done; probe and judge."""
    config, variant = configuration(parsed), configuration(parsed, *settings)
    store = Store(Path(run("extract", variant, options)["artifact"]))
    images = images_of(store)
    found: Found = {}
    for name in FEATURES:
        _, encoded = store.encode((name,), config.probe, config.seed, images.unlabelled_train)
        found[name] = [
            aurocs(predictions(store.keys, images, encoded, config, fraction), config)
            for fraction in FRACTIONS
        ]
    return found


def predictions(
    keys: pd.DataFrame, images: ProbeData, encoded: ProbeFeatures, config: Config, fraction: float
) -> pd.DataFrame:
    """What a probe says of each test image, one after another for each draw."""
    probe = config.probe.model_copy(update={"label_fraction": fraction})
    told_of = keys.iloc[images.test][["image_id", "subject_id", "label"]]
    parts = []
    for number, drawn in enumerate(label_draws(images, probe, config.seed)):
        model = fit_probe(
            encoded, images.truth, images.subjects, drawn, probe, images.task
        ).classifier
        said = images.task.predict(model, encoded.images[images.test])
        parts.append(told_of.assign(draw=number, probability=said))
    return pd.concat(parts)


def tables(head: str, variants: dict[str, Found], config: Config) -> list[str]:
    """A table for each feature set, a row for each variant, paired with the first."""
    lines = []
    for key, told_as in FEATURES.items():
        lines += [
            "",
            f"{told_as[0].upper()}{told_as[1:]}:",
            "",
            table_row(head, [f"{fraction:.0%} of the labels" for fraction in FRACTIONS]),
            table_row("---", ["---"] * len(FRACTIONS)),
        ]
        first = next(iter(variants.values()))[key]
        for name, found in variants.items():
            cells = []
            for whole, one in zip(first, found[key], strict=True):
                lead = "" if one is whole else f" ({interval(gain(whole, one, config), '+')})"
                cells.append(f"{one[0].mean():.3f}{lead}")
            lines.append(table_row(name, cells))
    return lines
