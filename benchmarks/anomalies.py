"""``make benchmark-anomalies``: images with a finding told from normal ones, by normal ones alone.

The score is chosen on validation images and their acquisition-swapped copies, which count a
quarter; the test split is read here.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from medvq.errors import UserError
from medvq.evaluation.intervals import resample, subject_weights
from medvq.evaluation.metrics import auroc
from medvq.prior.code_prior import CodePrior, negative_log_likelihood
from medvq.prior.weights import load_prior
from medvq.storage.artifacts import finished
from medvq.storage.feature_store import (
    FEATURES,
    SWAPPED,
    VERSIONS,
    read_feature,
    read_keys,
    read_metadata,
)
from numpy.typing import NDArray

from benchmarks.normal_memory import NormalMemory
from benchmarks.page import Figure, Section, table
from benchmarks.prior.anomalies import NORMAL, NORMAL_PRIOR, distance_to_neighbours
from benchmarks.study import Study, run_study

Floats = NDArray[np.float64]
_RESAMPLES = 1000
_PARTS = ("validation", "swapped", "test")
_BASELINE, _MEMORY = "embedding, nearest neighbours", "latent, each place among normal ones"
_BITS, _BOTH = "codes, bits of a prior", "embedding's neighbours and the codes' bits"
_ABOUT = (
    "AUROC of all other images against normal ones, by scores that have seen nothing but normal "
    "training images. *Nearest neighbours*: the mean distance to the 5 nearest in 64 principal "
    "components of the standardised vectors. *Each place among normal ones*: of each cell's "
    "standardised channels, the mean distance to the 5 nearest of normal images at that cell, and "
    "the mean over cells (`benchmarks.normal_memory`). *Bits of a prior*: the negative "
    "log-likelihood of the codes by a Transformer that is trained on those of normal images; with "
    "the *embedding's neighbours* it is added in standard deviations of normal validation images. "
    "The score is chosen by validation images, as they are and acquisition-swapped, three to one."
)


def main(study: Study, parsed: argparse.Namespace) -> None:
    """Compare distances of whole images and of single places to normal training images."""
    folders = parsed.stores or [study.run("extract", study.config()).folder]
    rows, figures = [], []
    for number, folder in enumerate(folders, 1):
        parts = read_parts(folder)
        scores = scores_of(folder, parts)
        if read_metadata(folder / FEATURES).levels:
            scores[_BITS] = bits_of_codes(train_prior(study, folder), folder, parts)
            scores[_BOTH] = both(scores[_BASELINE], scores[_BITS], parts)
        aurocs = {name: _aurocs(parts, values) for name, values in scores.items()}
        for name, measured in aurocs.items():
            values = [measured[part] for part in _PARTS]
            gain = "" if name == _BASELINE else _shown(values[2] - aurocs[_BASELINE]["test"], "+")
            clean, swapped = (f"{value[0]:.3f}" for value in values[:2])
            rows.append([str(number), name, clean, swapped, _shown(values[2]), gain])
            figures.append(Figure(f"{name}, training {number}: AUROC, test", float(values[2][0])))
    columns = ["training", "score", "validation", "swapped", "test", "less the first, test"]
    models = ", ".join(read_metadata(folder / FEATURES).model for folder in folders)
    lay = ", read as they lay" if parsed.stores else ""
    study.publish(
        "Anomalies by normal images alone",
        f"{_ABOUT} Features are of the models {models}{lay}.",
        [Section("AUROC", table(columns, rows), "95% intervals over test subjects.")],
        figures,
    )


@dataclass(frozen=True)
class Part:
    """Images of a split or their swapped copies: rows of a table of the store."""

    table: Path
    rows: NDArray[np.intp]
    is_ill: NDArray[np.bool_]
    subjects: NDArray[np.str_]


def read_parts(folder: Path) -> dict[str, Part]:
    """Return the normal training images, ``train``, and all images of the other parts.

    Raises
    ------
    UserError
        The data set has no class of normal images, or no swapped copies.
    """
    classes = list(read_metadata(folder / FEATURES).classes)
    if NORMAL not in classes:
        raise UserError(f"{folder}: no class is named {NORMAL}")
    parts = {}
    for name in ("train", *_PARTS):
        file = folder / (VERSIONS if name == "swapped" else FEATURES)
        keys = read_keys(file, *(["version"] if name == "swapped" else []))
        chosen = (keys["split"] == ("validation" if name == "swapped" else name)).to_numpy()
        is_ill = (keys["label"] != classes.index(NORMAL)).to_numpy()
        if name == "swapped":
            chosen = chosen & (keys["version"] == SWAPPED).to_numpy()
        if name == "train":
            chosen = chosen & ~is_ill
        rows = np.flatnonzero(chosen)
        if not len(rows):
            raise UserError(f"{folder}: it has no {name} images; see ingest.swap")
        parts[name] = Part(file, rows, is_ill[rows], keys["subject_id"].to_numpy(str)[rows])
    return parts


def scores_of(folder: Path, parts: Mapping[str, Part]) -> dict[str, dict[str, Floats]]:
    """Return every score of the images of each part."""
    grid = read_metadata(folder / FEATURES).grid
    vectors = {
        feature: {name: read_feature(p.table, feature)[p.rows] for name, p in parts.items()}
        for feature in ("embedding", "latent")
    }
    scores = {
        f"{feature}, nearest neighbours": {
            name: distance_to_neighbours(of["train"], of[name]) for name in _PARTS
        }
        for feature, of in vectors.items()
    }
    maps = {name: of.reshape(len(of), -1, grid, grid) for name, of in vectors["latent"].items()}
    memory = NormalMemory(maps["train"])
    scores[_MEMORY] = {name: memory.anomaly_maps(maps[name]).mean((1, 2)) for name in _PARTS}
    return scores


def train_prior(study: Study, folder: Path) -> CodePrior:
    """Return a prior of the codes of the normal training images of a feature store."""
    extract = finished(folder, "extract")
    prior = study.run("prior", study.config(*NORMAL_PRIOR), {"prior": {"extract": extract}})
    return load_prior(prior.folder, read_metadata(folder / FEATURES).model)


def bits_of_codes(prior: CodePrior, folder: Path, parts: Mapping[str, Part]) -> dict[str, Floats]:
    """Return the mean bits of each image's coarsest codes, by part."""
    shape = read_metadata(folder / FEATURES).levels[0].latent_shape
    bits = {}
    for name in _PARTS:
        codes = read_feature(parts[name].table, "codes_0")[parts[name].rows].astype(np.int64)
        of_places = negative_log_likelihood(prior, torch.from_numpy(codes).unflatten(1, shape))
        bits[name] = of_places.reshape(len(codes), -1).mean(1)
    return bits


def both(
    one: Mapping[str, Floats], other: Mapping[str, Floats], parts: Mapping[str, Part]
) -> dict[str, Floats]:
    """Return the sum of two scores, each in standard deviations of normal validation images."""
    normal = ~parts["validation"].is_ill
    deviations = [scores["validation"][normal].std() for scores in (one, other)]
    return {name: one[name] / deviations[0] + other[name] / deviations[1] for name in _PARTS}


def _aurocs(parts: Mapping[str, Part], scores: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return the AUROC of each part, and after it those of resampled subjects."""
    found = {}
    for name, values in scores.items():
        part = parts[name]
        resamples = _RESAMPLES if name == "test" else 0
        weights = subject_weights(part.subjects, resamples, seed=0)
        found[name] = _auroc(part, values, weights)
    return found


def _auroc(part: Part, values: Floats, weights: Floats) -> Floats:
    """Return the AUROC of a part, and after it those under image weights (B, N)."""
    is_ill = part.is_ill.astype(np.int64)
    judged = resample(lambda _, drawn: {"auroc": auroc(is_ill, values, drawn)}, 1, weights)["auroc"]
    return np.concatenate([judged.cells[0], judged.resampled])


def _shown(values: Floats, sign: str = "") -> str:
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return f"{values[0]:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add feature stores that lie there already."""
    parser.add_argument(
        "--stores",
        type=lambda text: [Path(folder) for folder in text.split(",")],
        help="artifacts of extract, of a training each, read as they are, whatever code made them",
    )


if __name__ == "__main__":
    run_study("anomalies", "benchmark-anomalies", main, add_more=add_options)
