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
from medvq.storage.artifacts import Artifact, fingerprint, source
from medvq.summaries import ProbeRow, ProbeSummary
from medvq.training.batches import epoch_seed
from sklearn.metrics import roc_auc_score

from benchmarks.label_efficiency import FRACTIONS, percent
from benchmarks.page import Section, interval, table
from benchmarks.paired import Judged, judge
from benchmarks.resnet import Bytes, LabelledImages, Recipe, Rows, train
from benchmarks.study import Probed, Study, run_study

ROW = "resnet18_scratch"
SHOWN = ("medvq", "untrained_encoder", "raw_pixels")
"""Rows of the probe that stand beside the network's."""
METRICS = (
    "auroc",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "sensitivity_at_90_specificity",
    "brier",
    "ece",
)


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

    def images(self, rows: Rows) -> Bytes:
        """Return prepared images."""
        return np.asarray(np.load(self.folder / "images.npy", mmap_mode="r")[rows])

    def swapped(self, rows: Rows) -> Bytes | None:
        """Return copies, of images that are no test images, of the kind that no training sees."""
        if not self.swaps:
            return None
        stored = np.flatnonzero(self.manifest["split"] != "test")
        copies = np.load(self.folder / "swapped_validation.npy", mmap_mode="r")
        return np.asarray(copies[stored.searchsorted(rows)])

    def labelled(self, rows: Rows) -> LabelledImages:
        """Return training images with all that a network may see of them."""
        images, train_rows = self.images(rows), np.flatnonzero(self.manifest["split"] == "train")
        copies = images[None][:0]
        if self.swaps:
            stored = np.load(self.folder / "swapped_training.npy", mmap_mode="r")
            copies = np.asarray(stored[:, train_rows.searchsorted(rows)])
        truth = self.manifest["label"].iloc[rows].to_numpy(np.int64)
        subjects = self.manifest["subject_id"].iloc[rows].to_numpy(str)
        return LabelledImages(images, copies, self.swapped(rows), truth, subjects)

    def label_subsets(self, config: Config) -> list[Rows]:
        """Return the rows of the probe's label subsets."""
        rows, probe = self.rows("train"), config.probe
        subjects = self.manifest["subject_id"].iloc[rows].to_numpy(str)
        labels = self.manifest["label"].iloc[rows].to_numpy(np.int64)
        subsets = draw_subsets(
            subjects, labels, probe.label_fraction, probe.repeats, config.seed
        )
        return [rows[subset] for subset in subsets]


def predict_all(
    cache: Cache, config: Config, recipe: Recipe, folder: Path, device: str
) -> list[pd.DataFrame]:
    """Return the predictions by a network for each label subset, kept in ``folder``.

    Columns: ``split`` (``validation_swapped`` for swapped copies), ``image_id``, ``subject_id``,
    ``label``, ``probability``, ``threshold``, and the ``seconds`` that the subset took.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = []
    for number, rows in enumerate(cache.label_subsets(config)):
        file = folder / f"subset-{number:02d}.parquet"
        if not file.exists():
            aside = file.with_name(f".{file.name}")
            predictions = _predict(cache, rows, config, recipe, number, device)
            predictions.to_parquet(aside, index=False)
            aside.replace(file)
        tables.append(pd.read_parquet(file).sort_values("image_id"))
    return tables


def _predict(
    cache: Cache, subset: Rows, config: Config, recipe: Recipe, number: int, device: str
) -> pd.DataFrame:
    """Return the predictions of a network that is trained on one label subset."""
    started = time.perf_counter()
    seed = epoch_seed(config.seed, number)
    classifier = train(cache.labelled(subset), recipe, config.pretrain, seed, device)
    validation, test = cache.rows("validation"), cache.rows("test")
    judged = {
        "test": (test, cache.images(test)),
        "validation": (validation, cache.images(validation)),
        "validation_swapped": (validation, cache.swapped(validation)),
    }
    parts = [
        cache.manifest.iloc[rows][["image_id", "subject_id", "label"]].assign(
            split=split, probability=classifier.predict(images), threshold=classifier.threshold
        )
        for split, (rows, images) in judged.items()
        if images is not None
    ]
    seconds = time.perf_counter() - started
    epochs = f"epoch {classifier.best} of {classifier.epochs} kept, {seconds:.0f} s"
    print(f"label subset {number}: {len(subset)} images, {epochs}", file=sys.stderr)
    return pd.concat(parts).astype({"label": np.int64}).assign(seconds=seconds)


def main(study: Study, _: argparse.Namespace) -> None:
    """Train a ResNet-18 from scratch on the label subsets of the probe."""
    recipe, device = Recipe(), choose_device(study.options.device)
    config = study.config()
    summaries, sections, leads = [], [], []
    for share in FRACTIONS:
        probe = study.probe(study.config(f"probe.label_fraction={share}"))
        if probe.summary.headline != "auroc" or config.probe.label_subsets == "official":
            raise UserError(
                "benchmark-supervised is for two classes and label subsets drawn at random"
            )
        tables = _tables(study, probe, recipe, device)
        tested = [one[one["split"] == "test"] for one in tables]
        medvq = judge(probe.label_subsets("medvq"), probe.config)
        network = judge(tested, probe.config)
        summaries.append(beside(probe.summary, network))
        leads.append([interval(medvq.minus(network, metric), "+") for metric in METRICS])
        sections.append(_at_fraction(summaries[-1], leads[-1], tables))
    draw_label_efficiency({s.label_fraction: s for s in summaries}, study.file(".png"))
    study.publish(
        "A ResNet-18 from scratch on the same labels",
        _introduction(recipe),
        [by_fraction(summaries, [lead[0] for lead in leads]), *sections],
        {f"auroc at {percent(s)}": s.rows[-1].metrics["auroc"].mean for s in summaries},
        [probe.artifact],
    )


def _tables(study: Study, probe: Probed, recipe: Recipe, device: str) -> list[pd.DataFrame]:
    """Return the predictions of the networks of all label subsets."""
    ingest = source(source(probe.artifact, "extract"), "ingest")
    manifest = read_manifest(ingest.folder / "manifest.csv")
    cache = Cache(ingest.folder, manifest, probe.config.ingest.swap.enabled)
    folder = study.folder / _fingerprint(probe.config, recipe, ingest)
    return predict_all(cache, probe.config, recipe, folder, device)


def _fingerprint(config: Config, recipe: Recipe, ingest: Artifact) -> str:
    """Return a hash of all that the predictions depend on."""
    settings = {
        "seed": config.seed,
        "recipe": recipe.model_dump(mode="json"),
        "views": config.pretrain.model_dump(mode="json", include={"augment", "photometric"}),
        "swapped_share": config.pretrain.contrast.swapped_share,
        "label_fraction": config.probe.label_fraction,
    }
    return fingerprint("supervised", settings, {"ingest": ingest.fingerprint}, {})


def beside(summary: ProbeSummary, network: Judged) -> ProbeSummary:
    """Return the probe's rows that are shown, and the network's row beside them."""
    row = ProbeRow(ROW, {metric: network.interval(metric) for metric in METRICS})
    return replace(summary, rows=[*(r for r in summary.rows if r.features in SHOWN), row])


def _introduction(recipe: Recipe) -> str:
    return (
        "The same label subsets for all rows; test split, mean and 95% interval of a bootstrap "
        "over test subjects crossed with label subsets.\n\n"
        f"The network: MONAI's `resnet18` (stem of stride 2) on images averaged to {recipe.size} "
        f"pixels, AdamW at {recipe.learning_rate:g} (weight decay {recipe.weight_decay:g}), "
        f"batches of {recipe.batch_size}, a cosine after {recipe.warmup_steps} steps of warm-up, "
        f"at least 600 steps, the best epoch by one in {recipe.folds} labelled subjects held out; "
        "the same aligned images, augmented as pretraining's views at strength "
        f"{recipe.augment_strength:g}, and acquisition-swapped copies among them."
    )


def by_fraction(summaries: Sequence[ProbeSummary], leads: Sequence[str]) -> Section:
    """Return the AUROC of every row, and MedVQ's lead, one column per share of labels."""
    counted = [f"{percent(summary)} ({summary.labels} images)" for summary in summaries]
    rows = [[row.features for row in summaries[0].rows]]
    rows += [[interval(row.metrics["auroc"]) for row in summary.rows] for summary in summaries]
    lead = [f"medvq less {ROW}", *leads]
    return Section(
        "AUROC", table(["features", *counted], [*zip(*rows, strict=True), lead])
    )


def _at_fraction(
    summary: ProbeSummary, lead: Sequence[str], tables: Sequence[pd.DataFrame]
) -> Section:
    """Return all metrics at one share of labels."""
    seconds = np.mean([one["seconds"].iloc[0] for one in tables])
    splits = [split for split in tables[0]["split"].unique() if split != "test"]
    validation = ", ".join(
        f"{split.replace('_', ' ')} {_mean_auroc(tables, split):.3f}" for split in sorted(splits)
    )
    rows = [
        [row.features, *(interval(row.metrics[metric]) for metric in METRICS)]
        for row in summary.rows
    ]
    return Section(
        f"At {percent(summary)} of the labels",
        table(["features", *METRICS], [*rows, [f"medvq less {ROW}", *lead]]),
        f"{summary.labels} images, {summary.repeats} label subset(s), {seconds:.0f} s each. AUROC "
        f"of the network on validation images: {validation}.",
    )


def _mean_auroc(tables: Sequence[pd.DataFrame], split: str) -> float:
    parts = [one[one["split"] == split] for one in tables]
    return float(np.mean([roc_auc_score(part["label"], part["probability"]) for part in parts]))


if __name__ == "__main__":
    run_study("supervised", "benchmark-supervised", main)
