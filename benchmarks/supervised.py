"""Networks trained on the very labels that the probe is fitted on.

One starts from nothing, one from the weights of ImageNet. The label subsets, aligned images, test
images, metrics and bootstrap are those of the probe; the lead of MedVQ is paired over label subsets
and subjects. How the networks are trained is said in :mod:`benchmarks.rivals`. Writes
``docs/results/supervised-<data set>.md`` and the curve beside it. The predictions of every label
subset are kept, so that an interrupted study goes on with the next.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

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
from medvq.summaries import Interval, ProbeRow, ProbeSummary
from medvq.training.batches import epoch_seed
from torch import nn

from benchmarks.label_efficiency import FRACTIONS, counted_labels, percent
from benchmarks.page import Figure, Section, interval, table
from benchmarks.paired import Judged, judge
from benchmarks.rivals import (
    Classifier,
    LabelledImages,
    Recipe,
    Rows,
    Training,
    efficientnet,
    resnet,
)
from benchmarks.study import Probed, Study, run_study


class Rival(NamedTuple):
    """A network that is trained on labels: what makes a new one, and how it is trained."""

    new_network: Callable[[], nn.Module]
    recipe: Recipe


RIVALS = {
    "resnet18_scratch": Rival(resnet, Recipe()),
    # Weights to start from are soon forgotten at the rate of a training from scratch.
    "efficientnet_imagenet": Rival(efficientnet, Recipe(learning_rate=3e-4)),
}
"""By name of its row."""
SHOWN = ("medvq", "untrained_encoder", "raw_pixels")
"""Rows of the probe that stand beside the networks'."""
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
    cache: Cache, config: Config, rival: Rival, folder: Path, device: str, training: int = 0
) -> list[pd.DataFrame]:
    """Return the predictions of the networks of all label subsets, kept in ``folder``.

    ``training`` is the number of the training, where there are several on the same subsets.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = []
    for number, subset in enumerate(cache.label_subsets(config)):
        file = folder / f"subset-{number:02d}.parquet"
        if not file.exists():
            started = time.perf_counter()
            seed = epoch_seed(config.seed + training, number)
            aside = file.with_name(f".{file.name}")
            labelled = cache.labelled(subset)
            how = (rival.new_network, labelled, rival.recipe, config.pretrain)
            classifier = Training(*how, seed, device).fit()
            cache.predictions(classifier).to_parquet(aside, index=False)
            aside.replace(file)
            print(
                f"label subset {number}: {len(subset)} images, {classifier.best} epochs, of "
                f"{classifier.epochs} tried, {time.perf_counter() - started:.0f} s",
                file=sys.stderr,
            )
        tables.append(pd.read_parquet(file).sort_values("image_id"))
    return tables


def main(study: Study, _: argparse.Namespace) -> None:
    """Train networks on the label subsets of the probe."""
    for rival in RIVALS.values():
        rival.new_network()  # What is missing is told of before hours of training.
    probes = [study.probe(study.config(f"probe.label_fraction={share}")) for share in FRACTIONS]
    medvq = [judge(probe.label_subsets("medvq"), probe.config) for probe in probes]
    judged = {
        name: [judge(network_predictions(study, probe, name), probe.config) for probe in probes]
        for name in RIVALS
    }
    summaries = [
        beside(probe.summary, {name: networks[number] for name, networks in judged.items()})
        for number, probe in enumerate(probes)
    ]
    labels = [percent(summary) for summary in summaries]
    tables, leads = [], []
    for name, networks in judged.items():
        rows = [[n.interval(m) for m in METRICS] for n in networks]
        of_medvq = zip(medvq, networks, strict=True)
        ahead = [[first.minus(n, m) for m in METRICS] for first, n in of_medvq]
        leads.append([f"medvq less {name}", *(interval(row[0], "+") for row in ahead)])
        tables += [
            Section(f"All metrics of {name}", _by_label(labels, rows)),
            Section(f"All metrics of medvq less {name}", _by_label(labels, ahead, "+")),
        ]
    draw_label_efficiency({s.label_fraction: s for s in summaries}, study.file(".png"))
    study.publish(
        "Networks trained on the same labels",
        _introduction(),
        [Section("AUROC", by_fraction(summaries, leads)), *tables],
        [
            Figure(f"auroc of {row.features} at {percent(summary)}", row.metrics["auroc"].mean)
            for summary in summaries
            for row in summary.rows[-len(RIVALS) :]
        ],
    )


def _by_label(
    labels: Sequence[str], rows: Sequence[Sequence[Interval]], sign: str = ""
) -> pd.DataFrame:
    """Return a table of all metrics, one row per share of labels."""
    cells = zip(labels, rows, strict=True)
    return table(
        ["labels", *map(metric_name, METRICS)],
        ([label, *(interval(v, sign) for v in row)] for label, row in cells),
    )


def network_predictions(
    study: Study, probe: Probed, name: str, training: int = 0
) -> list[pd.DataFrame]:
    """Return the predictions of the networks of all label subsets of a probe."""
    config, rival = probe.config, RIVALS[name]
    if probe.summary.headline != "auroc" or config.probe.label_subsets == "official":
        raise UserError("benchmark-supervised needs two classes and label subsets drawn at random")
    ingest = source(source(probe.artifact, "extract"), "ingest")
    manifest = read_manifest(ingest.folder / "manifest.csv")
    cache = Cache(ingest.folder, manifest, config.ingest.swap.enabled)
    settings = {
        "seed": config.seed + training,
        "network": name,
        "recipe": rival.recipe.model_dump(mode="json"),
        "views": config.pretrain.model_dump(mode="json", include={"augment", "photometric"}),
        "swapped_share": config.pretrain.contrast.swapped_share,
        "label_fraction": config.probe.label_fraction,
    }
    folder = study.folder / fingerprint("supervised", settings, {"ingest": ingest.fingerprint}, {})
    device = choose_device(study.options.device)
    return predict_all(cache, config, rival, folder, device, training)


def beside(summary: ProbeSummary, networks: Mapping[str, Judged]) -> ProbeSummary:
    """Return the probe's rows that are shown, and the networks' rows beside them."""
    rows = [
        ProbeRow(name, {metric: network.interval(metric) for metric in METRICS})
        for name, network in networks.items()
    ]
    return replace(summary, rows=[*(r for r in summary.rows if r.features in SHOWN), *rows])


def by_fraction(summaries: Sequence[ProbeSummary], leads: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Return the AUROC of every row, and MedVQ's leads, one column per share of labels."""
    counted = [counted_labels(summary) for summary in summaries]
    columns = [[row.features for row in summaries[0].rows]]
    columns += [[interval(row.metrics["auroc"]) for row in s.rows] for s in summaries]
    return table(["features", *counted], [*zip(*columns, strict=True), *leads])


def _introduction() -> str:
    recipe = RIVALS["resnet18_scratch"].recipe
    rates = " and ".join(f"{rival.recipe.learning_rate:g}" for rival in RIVALS.values())
    return (
        "The same label subsets for all rows; test split, mean and 95% interval over test subjects "
        "crossed with label subsets, given one training of MedVQ.\n\n"
        "The networks: MONAI's `resnet18` (stem of stride 2) from scratch, and the first half of "
        "EfficientNet-Lite0, as MedVQ's `encoder: efficientnet_lite0`, from the weights of "
        f"ImageNet. Both on images of {recipe.size} pixels, AdamW at {rates} (weight decay "
        f"{recipe.weight_decay:g}), batches of {recipe.batch_size}, a cosine after "
        f"{recipe.warmup_steps} steps of warm-up, at least 600 steps, as many epochs as are best "
        f"by one in {recipe.folds} labelled subjects held out, then trained as long on all "
        "labelled images; the same aligned images, augmented as pretraining's views at strength "
        f"{recipe.augment_strength:g}, and acquisition-swapped copies among them."
    )


if __name__ == "__main__":
    run_study("supervised", "benchmark-supervised", main)
