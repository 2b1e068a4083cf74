"""A ResNet-18 trained from scratch on the very labels that the probe is fitted on.

The label subsets, aligned images, test images, metrics and bootstrap are those of the probe; the
lead of MedVQ is paired over label subsets and subjects. How the network is trained is said in
:mod:`benchmarks.resnet`. Writes ``docs/results/supervised-<data set>.md`` and the curve beside it.
The predictions of every label subset are kept, so that an interrupted study goes on with the next.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from medvq.config import Config
from medvq.datasets.manifest import read_manifest
from medvq.device import choose_device
from medvq.errors import UserError
from medvq.evaluation.label_subsets import draw_subsets
from medvq.report.probe_figures import draw_label_efficiency
from medvq.report.tables import metric_name
from medvq.storage.artifacts import fingerprint, source
from medvq.summaries import ProbeRow, ProbeSummary
from medvq.training.batches import epoch_seed

from benchmarks.label_efficiency import FRACTIONS, counted_labels, percent
from benchmarks.page import Figure, Section, interval, table
from benchmarks.paired import Judged, judge
from benchmarks.resnet import Classifier, LabelledImages, Recipe, Rows, Training
from benchmarks.study import Probed, Study, run_study

ROW = "resnet18_scratch"
SHOWN = ("medvq", "untrained_encoder", "raw_pixels")
"""Rows of the probe that stand beside the network's."""
METRICS = (
    "auroc", "balanced_accuracy", "sensitivity", "specificity", "sensitivity_at_90_specificity",
    "brier", "ece",
)  # fmt: skip


@dataclass(frozen=True)
class Cache:
    """The images of an ingest artifact, read as they are needed, and who they are of."""

    folder: Path
    manifest: pd.DataFrame
    swaps: bool

    def rows(self, split: str) -> Rows:
        """Return the labelled images of a split."""
        chosen = (self.manifest["split"] == split) & self.manifest["label"].notna()
        return np.flatnonzero(chosen)

    def labelled(self, rows: Rows) -> LabelledImages:
        """Return training images with all that a network may see of them."""
        images, split = np.load(self.folder / "images.npy", mmap_mode="r"), self.manifest["split"]
        copies, swapped = images[:0, None], None
        if self.swaps:
            stored = np.load(self.folder / "swapped_training.npy", mmap_mode="r")
            copies = stored[:, np.flatnonzero(split == "train").searchsorted(rows)]
            # Of the kind that no training sees there are copies of all but test images.
            stored = np.load(self.folder / "swapped_validation.npy", mmap_mode="r")
            swapped = np.asarray(stored[np.flatnonzero(split != "test").searchsorted(rows)])
        truth = self.manifest["label"].iloc[rows].to_numpy(np.int64)
        subjects = self.manifest["subject_id"].iloc[rows].to_numpy(str)
        return LabelledImages(
            np.asarray(images[rows]), np.asarray(copies), swapped, truth, subjects
        )

    def label_subsets(self, config: Config) -> list[Rows]:
        """Return the rows of the probe's label subsets."""
        rows, probe = self.rows("train"), config.probe
        subjects = self.manifest["subject_id"].iloc[rows].to_numpy(str)
        labels = self.manifest["label"].iloc[rows].to_numpy(np.int64)
        subsets = draw_subsets(subjects, labels, probe.label_fraction, probe.repeats, config.seed)
        return [rows[subset] for subset in subsets]

    def predictions(self, classifier: Classifier) -> pd.DataFrame:
        """Return the predictions of the test images."""
        rows = self.rows("test")
        images = np.load(self.folder / "images.npy", mmap_mode="r")[rows]
        keys = self.manifest.iloc[rows][["image_id", "subject_id", "label"]]
        return keys.astype({"label": np.int64}).assign(
            probability=classifier.predict(images), threshold=classifier.threshold
        )


def predict_all(
    cache: Cache, config: Config, recipe: Recipe, folder: Path, device: str
) -> list[pd.DataFrame]:
    """Return the predictions of the networks of all label subsets, kept in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = []
    for number, subset in enumerate(cache.label_subsets(config)):
        file = folder / f"subset-{number:02d}.parquet"
        if not file.exists():
            started = time.perf_counter()
            seed, aside = epoch_seed(config.seed, number), file.with_name(f".{file.name}")
            views, labelled = config.pretrain, cache.labelled(subset)
            classifier = Training(labelled, recipe, views, seed, device).fit()
            cache.predictions(classifier).to_parquet(aside, index=False)
            aside.replace(file)
            print(
                f"label subset {number}: {len(subset)} images, epoch {classifier.best} of "
                f"{classifier.epochs} kept, {time.perf_counter() - started:.0f} s",
                file=sys.stderr,
            )
        tables.append(pd.read_parquet(file).sort_values("image_id"))
    return tables


def main(study: Study, _: argparse.Namespace) -> None:
    """Train a ResNet-18 from scratch on the label subsets of the probe."""
    recipe, summaries, networks, leads = Recipe(), [], [], []
    for share in FRACTIONS:
        probe = study.probe(study.config(f"probe.label_fraction={share}"))
        network = judge(_predictions(study, probe, recipe), probe.config)
        medvq, label = judge(probe.label_subsets("medvq"), probe.config), percent(probe.summary)
        summaries.append(beside(probe.summary, network))
        networks.append([label, *(interval(network.interval(m)) for m in METRICS)])
        leads.append([label, *(interval(medvq.minus(network, m), "+") for m in METRICS)])
    draw_label_efficiency({s.label_fraction: s for s in summaries}, study.file(".png"))
    study.publish(
        "A ResNet-18 from scratch on the same labels",
        _introduction(recipe),
        [
            Section("AUROC", by_fraction(summaries, [lead[1] for lead in leads])),
            Section(
                f"All metrics of {ROW}", table(["labels", *map(metric_name, METRICS)], networks)
            ),
            Section(
                f"All metrics of medvq less {ROW}",
                table(["labels", *map(metric_name, METRICS)], leads),
            ),
        ],
        [Figure(f"auroc at {percent(s)}", s.rows[-1].metrics["auroc"].mean) for s in summaries],
    )


def _predictions(study: Study, probe: Probed, recipe: Recipe) -> list[pd.DataFrame]:
    """Return the predictions of the networks of all label subsets of a probe."""
    config = probe.config
    if probe.summary.headline != "auroc" or config.probe.label_subsets == "official":
        raise UserError("benchmark-supervised needs two classes and label subsets drawn at random")
    ingest = source(source(probe.artifact, "extract"), "ingest")
    manifest = read_manifest(ingest.folder / "manifest.csv")
    cache = Cache(ingest.folder, manifest, config.ingest.swap.enabled)
    settings = {
        "seed": config.seed,
        "recipe": recipe.model_dump(mode="json"),
        "views": config.pretrain.model_dump(mode="json", include={"augment", "photometric"}),
        "swapped_share": config.pretrain.contrast.swapped_share,
        "label_fraction": config.probe.label_fraction,
    }
    name = fingerprint("supervised", settings, {"ingest": ingest.fingerprint}, {})
    device = choose_device(study.options.device)
    return predict_all(cache, config, recipe, study.folder / name, device)


def beside(summary: ProbeSummary, network: Judged) -> ProbeSummary:
    """Return the probe's rows that are shown, and the network's row beside them."""
    row = ProbeRow(ROW, {metric: network.interval(metric) for metric in METRICS})
    return replace(summary, rows=[*(r for r in summary.rows if r.features in SHOWN), row])


def by_fraction(summaries: Sequence[ProbeSummary], leads: Sequence[str]) -> pd.DataFrame:
    """Return the AUROC of every row, and MedVQ's lead, one column per share of labels."""
    counted = [counted_labels(summary) for summary in summaries]
    columns = [[row.features for row in summaries[0].rows]]
    columns += [[interval(row.metrics["auroc"]) for row in s.rows] for s in summaries]
    lead = [f"medvq less {ROW}", *leads]
    return table(["features", *counted], [*zip(*columns, strict=True), lead])


def _introduction(recipe: Recipe) -> str:
    return (
        "The same label subsets for all rows; test split, mean and 95% interval over test subjects "
        "crossed with label subsets, given one training of MedVQ.\n\n"
        f"The network: MONAI's `resnet18` (stem of stride 2) on images averaged to {recipe.size} "
        f"pixels, AdamW at {recipe.learning_rate:g} (weight decay {recipe.weight_decay:g}), "
        f"batches of {recipe.batch_size}, a cosine after {recipe.warmup_steps} steps of warm-up, "
        f"at least 600 steps, the best epoch by one in {recipe.folds} labelled subjects held out; "
        "the same aligned images, augmented as pretraining's views at strength "
        f"{recipe.augment_strength:g}, and acquisition-swapped copies among them."
    )


if __name__ == "__main__":
    run_study("supervised", "benchmark-supervised", main)
