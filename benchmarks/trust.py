"""How far a probe can be trusted: its calibration, and labels that mean nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from medvq.storage import artifacts
from medvq.storage.artifacts import Artifact, source
from medvq.storage.feature_store import FEATURES, VERSIONS, parts_of, read_keys
from medvq.storage.publication import writing
from medvq.summaries import Interval, ProbeSummary

from benchmarks.page import Section, interval, table
from benchmarks.study import Probed, Study

_CALIBRATION = ("ece", "ece_prior_shift", "brier", "brier_prior_shift", "prevalence_prior_shift")


def calibration(summaries: Sequence[ProbeSummary]) -> Section:
    """Return MedVQ's calibration, and what correcting for the prevalence does to it."""
    rows = [
        [f"{100 * s.label_fraction:g}%", *(interval(s.rows[0].metrics[m]) for m in _CALIBRATION)]
        for s in summaries
    ]
    return Section(
        "MedVQ's calibration, and what correcting for the prevalence does to it",
        table(["labels", *_CALIBRATION], rows),
        "`prior_shift`: the prevalence of the test images is estimated from all of them together, "
        "without their labels, and the probabilities are carried to it (Saerens et al. 2002). That "
        "is transductive: a single image cannot be corrected so, and no other figure here is.",
    )


def permutation_check(study: Study, probe: Probed) -> Section:
    """Return what the probe finds after the labels of all subjects were shuffled."""
    config = probe.config.model_copy(update={"name": f"{probe.config.name}-shuffled"})
    store = shuffled_store(
        source(probe.artifact, "extract"), study.options.artifacts / config.name, config.seed
    )
    shuffled = study.probe(config, {"probe": {"extract": store}}).summary
    rows = [
        [row.features, interval(row.metrics["auroc"]), _holds(row.metrics["auroc"])]
        for row in shuffled.rows
    ]
    return Section(
        "Permutation check",
        table(["features", "AUROC", "holds .50"], rows),
        "The same probe after the label of every subject, of all splits, was given to another: "
        f"AUROC at {100 * shuffled.label_fraction:g}% of the labels. There is nothing to find, so "
        "an interval without .50 would tell of a leak (a subject of two splits has one label in "
        "both), or of chance once in twenty rows.",
    )


def _holds(value: Interval) -> str:
    low, high = value.ci95
    return "yes" if low <= 0.5 <= high else "**no**"


def shuffle_labels(keys: pd.DataFrame, seed: int) -> pd.Series:
    """Return labels by ``image_id``, shuffled over the subjects of all splits.

    All images of a subject get the label of one other subject (of its first image), so that there
    is as much to learn by heart as before, and nothing to find.
    """
    known = keys[keys["label"].notna()]
    first = known.drop_duplicates("subject_id").set_index("subject_id")["label"]
    shuffled = pd.Series(np.random.default_rng(seed).permutation(first), index=first.index)
    return pd.Series(known["subject_id"].map(shuffled).to_numpy(), index=known["image_id"])


def shuffled_store(extract: Artifact, dataset: Path, seed: int) -> Artifact:
    """Return a feature store, below ``dataset``, that differs from ``extract`` in its labels."""
    labels = shuffle_labels(read_keys(extract.folder / FEATURES), seed)
    inputs = {**extract.record.inputs, "extract": extract.fingerprint}
    settings = {"shuffled": seed}
    fingerprint = artifacts.fingerprint("extract", settings, inputs, {})
    folder = dataset / "extract" / fingerprint
    if (known := artifacts.find(folder)) is not None:
        return known
    with writing(folder) as aside:
        for part in parts_of(extract.folder / FEATURES):
            stored = pq.read_table(part)
            images = stored.column("image_id").to_pylist()
            column = pa.array(labels.reindex(images).astype("Int64"))
            place = stored.schema.get_field_index("label")
            (aside / FEATURES).mkdir(exist_ok=True)
            pq.write_table(
                stored.set_column(place, "label", column), aside / FEATURES / f"{part.stem}.parquet"
            )
        # Of the versions only the features are read, and these are the same.
        versions = aside / VERSIONS
        versions.unlink(missing_ok=True)
        if (extract.folder / VERSIONS).exists():
            versions.symlink_to(os.path.relpath(extract.folder / VERSIONS, aside))
        record = replace(
            extract.record,
            dataset=dataset.name,
            fingerprint=fingerprint,
            inputs=inputs,
            settings=settings,
        )
        return artifacts.publish(aside, folder, record)
