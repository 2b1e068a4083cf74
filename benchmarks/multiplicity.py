"""Whether pretraining learns how many images a patient has, and what that is worth.

Second views of another image of the same patient, or of a stranger who also has several images,
tell who has several at all. Negatives of patients with as many images are to hide that: then
second views of strangers are worth no more than views of the image itself. Every kind of second
view is trained with several seeds on the same prepared images, and judged by the same probe on the
same label subsets. Writes ``docs/results/multiplicity-<data set>.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from medvq.config import Config
from medvq.datasets.manifest import images_per_subject, read_manifest
from medvq.errors import UserError
from medvq.evaluation.probe_data import ProbeData
from medvq.evaluation.probing import ProbeJudge
from medvq.storage.artifacts import Artifact
from medvq.storage.encoded_features import FeatureStore
from medvq.summaries import Interval
from numpy.typing import NDArray
from scipy.stats import ttest_1samp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from benchmarks.page import Figure, Section, interval, table
from benchmarks.study import Study, run_study

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SEEDS = 5
"""Trainings of each kind."""
FRACTIONS = (0.01, 0.05, 1.0)
"""Shares of the training subjects whose labels the probe may see."""
SELF = "the image itself"
MASKED = "a stranger's image, negatives of as many images"
ARMS = {
    SELF: ("pretrain.contrast.same_subject_share=0",),
    "a stranger's image, all negatives": (
        "pretrain.contrast.strangers=true",
        "pretrain.contrast.negatives=all",
    ),
    MASKED: ("pretrain.contrast.strangers=true",),
    "another image of the patient, negatives of as many images": (),
}
"""By what the second view shows, the settings of the training."""
EQUAL = 0.003
"""AUROC by which strangers under the mask and views of the image itself may differ."""
_LABELS, _DRAWS = 40, 50  # of the probe of multiplicity
_C = 1e-4  # as MedVQ's probe on such features; standardised components would be mostly noise
_INTRODUCTION = """\
Does pretraining learn how many images a patient has? Where that number goes with the label, an
encoder that knows it looks better than it is. The rows say what the second view of the contrastive
loss shows, and which images of the batch are its negatives: all, or those of patients with about as
many images. All kinds are trained on the same prepared images with the same {seeds} seeds, and
judged by the same probe on the same label subsets. Brackets hold the difference to second views of
the image itself, paired by seed, with its 95% interval over the seeds (Student's t)."""


def variance_explained(features: Floats, groups: Bools) -> float:
    """Return the share of the variance of features that two groups explain.

    The share that groups drawn at random would explain is taken off (epsilon squared), so that it
    is zero on average where the groups do not differ, and may be a little below.

    Parameters
    ----------
    features : (N, D).
    groups : (N,), with members on both sides.

    Examples
    --------
    >>> round(variance_explained(np.array([[0.0], [2.0], [10.0], [12.0]]), np.arange(4) > 1), 3)
    0.942
    """
    total = float(((features - features.mean(0)) ** 2).sum())
    within = sum(
        float(((part - part.mean(0)) ** 2).sum()) for part in (features[groups], features[~groups])
    )
    number = len(features)
    return 1 - (within / (number - 2)) / (total / (number - 1))


def few_label_auroc(features: Floats, groups: Bools, labels: int, draws: int) -> float:
    """Return how well a linear probe fitted on a few labels tells two groups, as AUROC.

    Parameters
    ----------
    features : (N, D).
    groups : (N,), with more than ``labels / 2`` members on both sides.
    labels : images that the probe is fitted on, half of them of each group; it is judged on all
        others. Features are taken as they are scaled.
    draws : random draws of them, over which the mean is taken.
    """
    rng = np.random.default_rng(0)
    sides = [np.flatnonzero(groups), np.flatnonzero(~groups)]
    aurocs = []
    for _ in range(draws):
        fitted = np.concatenate([rng.permutation(side)[: labels // 2] for side in sides])
        judged = np.setdiff1d(np.arange(len(groups)), fitted)
        probe = LogisticRegression(C=_C, max_iter=1000).fit(features[fitted], groups[fitted])
        scores = probe.decision_function(features[judged])
        aurocs.append(roc_auc_score(groups[judged], scores))
    return float(np.mean(aurocs))


def over_seeds(values: Floats) -> Interval:
    """Return the mean over trainings with its 95% interval by Student's t."""
    low, high = ttest_1samp(values, 0.0).confidence_interval(0.95)
    return Interval(float(values.mean()), float(values.std(ddof=1)), (float(low), float(high)))


@dataclass(frozen=True)
class Columns:
    """What is measured of a training, by name: of AUROC the share of labels in words."""

    aurocs: tuple[str, ...]
    multiplicity: tuple[str, ...] = ("variance explained, %", f"{_LABELS}-label AUROC")


COLUMNS = Columns(tuple(f"{share:.0%} of the labels" for share in FRACTIONS))


def check(manifest: pd.DataFrame) -> None:
    """Refuse a data set whose multiplicity cannot be measured, before anything is trained.

    Raises
    ------
    UserError
        It is not one of two classes, or too few subjects of a class have several images, or one.
    """
    if manifest["label"].nunique() != 2:
        raise UserError("benchmark-multiplicity is for data sets of two classes")
    for label, several in _training_subjects(manifest).groupby("label")["several"]:
        if min(several.sum(), (~several).sum()) <= _LABELS // 2:
            raise UserError(
                f"benchmark-multiplicity: {several.sum()} of {len(several)} training subjects of "
                f"label {label} have several images; more than {_LABELS // 2} with several and "
                "with one are needed"
            )


def measure(extracted: Artifact, config: Config) -> dict[str, float]:
    """Judge the features of a training, and how much they know of multiplicity."""
    store, seed = FeatureStore(extracted.folder), config.seed
    train = ProbeData.from_keys(store.keys).unlabelled_train
    _, encoded = store.encode(config.probe.features, config.probe, seed, train)
    values: dict[str, float] = {}
    for share, name in zip(FRACTIONS, COLUMNS.aurocs, strict=True):
        # No interval over test subjects is asked for, so hardly any resample.
        probe = config.probe.model_copy(update={"label_fraction": share, "bootstrap": 100})
        judge = ProbeJudge(store.keys, store.metadata.classes, probe, seed)
        result = judge.judge("medvq", encoded, probe)
        values[name] = float(np.mean(result.metrics["auroc"].cells))
    return values | _multiplicity(store.keys, np.asarray(encoded.images, np.float64))


def _multiplicity(keys: pd.DataFrame, features: Floats) -> dict[str, float]:
    """Measure what features know of multiplicity within each label, and return the means."""
    measured = []
    for _, several in _training_subjects(keys).groupby("label")["several"]:
        part, groups = features[several.index], several.to_numpy(bool)
        few = few_label_auroc(part, groups, _LABELS, _DRAWS)
        measured.append((100 * variance_explained(part, groups), few))
    return dict(zip(COLUMNS.multiplicity, np.mean(measured, axis=0).tolist(), strict=True))


def _training_subjects(keys: pd.DataFrame) -> pd.DataFrame:
    """Return the first image of each labelled subject that is not of the test split.

    The index is the row of the image; ``several`` says whether the subject has several.
    """
    table = keys.reset_index(drop=True).assign(several=images_per_subject(keys).to_numpy() > 0)
    known = table["label"].notna() & (table["split"] != "test")
    return table[known].drop_duplicates("subject_id")


def train(study: Study, settings: tuple[str, ...], seed: int, ingest: Artifact) -> Artifact:
    """Return the features of a training with ``seed`` on images that are prepared already."""
    given = {stage: {"ingest": ingest} for stage in ("pretrain", "extract")}
    return study.run("extract", study.config(*settings, f"seed={seed}"), given)


def main(study: Study, parsed: argparse.Namespace) -> None:
    """Train every kind of second view with every seed, and compare them."""
    config = study.config()
    ingest = study.run("ingest", config)
    check(read_manifest(ingest.folder / "manifest.csv"))
    rows = [
        {"second view": arm, "seed": seed, **measure(train(study, own, seed, ingest), config)}
        for seed in range(SEEDS)
        for arm, own in ARMS.items()
    ]
    runs = pd.DataFrame(rows)
    sections = [
        Section("AUROC on the test split", compare(runs, COLUMNS.aurocs)),
        Section(
            "What the features know of multiplicity within a label",
            compare(runs, COLUMNS.multiplicity),
            "Whether a patient has several images, mean over the labels, on one image of each "
            "patient of the training and validation splits: the share of the variance that it "
            "explains, less what chance explains, and the AUROC of a linear probe of it that is "
            f"fitted on {_LABELS} patients, mean over {_DRAWS} draws.",
        ),
        Section("Every training", runs.round(4)),
    ]
    study.publish(
        "Who has several images", _INTRODUCTION.format(seeds=SEEDS), sections, figures(runs)
    )


def differences(runs: pd.DataFrame, arm: str, column: str) -> Floats:
    """Return a measure of a kind of second view less that of self-views, seed by seed."""
    of_seed = runs.pivot_table(index="seed", columns="second view", values=column)
    return (of_seed[arm] - of_seed[SELF]).to_numpy(np.float64)


def compare(runs: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    """Return a table of means, each with its difference to self-views."""
    rows = []
    for arm, part in runs.groupby("second view", sort=False):
        cells = []
        for column in columns:
            lead = over_seeds(differences(runs, str(arm), column))
            own = "" if arm == SELF else f" ({interval(lead, '+')})"
            cells.append(f"{part[column].mean():.3f}{own}")
        rows.append([arm, *cells])
    return table(["second view", *columns], rows)


def figures(runs: pd.DataFrame) -> list[Figure]:
    """Return what strangers under the mask gain over self-views, and what multiplicity explains."""
    gains: Mapping[str, float] = {
        column: float(differences(runs, MASKED, column).mean())
        for column in (*COLUMNS.aurocs, *COLUMNS.multiplicity)
    }
    return [
        Figure(
            f"strangers under the mask less self-views, {column}",
            gain,
            EQUAL if column in COLUMNS.aurocs else None,
            lower_is_better=True,
        )
        for column, gain in gains.items()
    ]


if __name__ == "__main__":
    run_study("multiplicity", "benchmark-multiplicity", main)
