"""What samples of a prior are worth beside real images.

All have gone through the decoder, whose blur alone would tell them from images; so real images go
through it too, wherever samples stand beside them.

References
----------
.. [1] Kynkäänniemi, Karras, Laine, Lehtinen, Aila: Improved Precision and Recall Metric for
   Assessing Generative Models. NeurIPS 2019, arXiv 1904.06991.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from medvq.config import SampleConfig
from medvq.method.features import pool_to_grid
from medvq.method.scaling import to_network, to_unit
from medvq.prior.code_prior import CodePrior
from medvq.prior.samples import decode_codes, independent_codes, sample_codes
from medvq.storage.feature_store import FEATURES, read_feature
from medvq.training.batches import epoch_seed
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.page import Figure
from benchmarks.prior.inputs import Inputs

Codes = NDArray[np.uint16]
Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
SETTINGS = {
    "samples as learnt": SampleConfig(),
    "samples with guidance 1.5": SampleConfig(guidance=1.5),
}
"""Of several guidances and temperatures, 1.5 and 1 gave the most varied samples of Kermany that a
probe of the training images tells apart as well as it does validation images."""
PER_CLASS = 256
"""Images of every class that are judged."""
NEIGHBOURS = 5
"""The rank of the neighbour that says how far a point reaches; 3 of far more images in [1]_."""
ABOUT = (
    f"Of every class {PER_CLASS} images, decoded from codes. Independent codes are drawn at each "
    "place from those of the class's training images. The distance of two images is the share of "
    "codes that differ. Precision is the share of images that lie among as many test images of "
    "each class in MedVQ's embedding, recall the share of test images that lie among them "
    f"(Kynkäänniemi et al. 2019, {NEIGHBOURS} neighbours)."
)


@dataclass(frozen=True)
class Decoded:
    """Images of known classes, decoded from codes.

    Attributes
    ----------
    codes : of all levels, (N, places).
    labels : (N,), with as many images of each class.
    features : (N, width), MedVQ's own: the deepest feature map, pooled.
    """

    codes: Codes
    labels: Labels
    features: Floats

    def by_class(self) -> list[NDArray[np.intp]]:
        """Return the rows of the images of every class."""
        return [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]


def judge_samples(inputs: Inputs, priors: Sequence[CodePrior]) -> list[Figure]:
    """Return how samples are recognised, how they vary, and how they resemble real images."""
    maps, names = inputs.maps, inputs.maps.classes
    sets = {name: _sample(inputs, priors, config) for name, config in SETTINGS.items()}
    rng = np.random.default_rng(inputs.config.seed)
    train = [maps.rows("train", name) for name in names]
    independent = [
        torch.cat([independent_codes(codes[rows], PER_CLASS, rng) for rows in train])
        for codes in maps.levels
    ]
    sets["independent codes"] = _decode(inputs, independent, _labels(inputs))
    sets["validation images"] = _real(inputs, "validation")
    test = _real(inputs, "test")
    known = _flatten([codes[maps.rows("train")] for codes in maps.levels])
    embedding = read_feature(inputs.extract.folder / FEATURES, "embedding")
    rows = np.concatenate(train)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=300))
    probe = classifier.fit(embedding[rows], maps.labels.numpy()[rows])
    near = np.percentile(distance_to_nearest(test.codes, known), 1)
    figures = []
    for name, one in sets.items():
        distance = distance_to_nearest(one.codes, known)
        precision, recall = precision_and_recall(*_as_many(test, one))
        must = 0.95 if name == "samples with guidance 1.5" else None
        figures += [
            Figure(f"{name}: recognised", recognition(probe, one.features, one.labels), must),
            Figure(f"{name}: codes that differ between two of a class", variety(one)),
            Figure(f"{name}: median distance to the nearest training image", np.median(distance)),
            Figure(f"{name}: as near as 1% of test images", (distance <= near).mean(), None, True),
            Figure(f"{name}: precision", precision),
            Figure(f"{name}: recall", recall),
        ]
    return figures


def _labels(inputs: Inputs) -> Labels:
    return np.repeat(np.arange(len(inputs.maps.classes)), PER_CLASS)


def _sample(inputs: Inputs, priors: Sequence[CodePrior], config: SampleConfig) -> Decoded:
    config = config.model_copy(update={"number": PER_CLASS})
    seeds = [epoch_seed(inputs.config.seed, 0, k) for k in range(len(inputs.maps.classes))]
    parts = [sample_codes(priors, config, seed, label) for label, seed in enumerate(seeds)]
    levels = [torch.cat(level) for level in zip(*parts, strict=True)]
    return _decode(inputs, levels, _labels(inputs))


def _real(inputs: Inputs, split: str) -> Decoded:
    rng, maps = np.random.default_rng(inputs.config.seed), inputs.maps
    by_class = [rng.permutation(maps.rows(split, name))[:PER_CLASS] for name in maps.classes]
    rows = np.concatenate(by_class)
    return _decode(inputs, [codes[rows] for codes in maps.levels], maps.labels.numpy()[rows])


@torch.inference_mode()
def _decode(inputs: Inputs, levels: Sequence[Tensor], labels: Labels, batch: int = 64) -> Decoded:
    images, grid = decode_codes(inputs.model, *levels), inputs.config.extract.grid
    features = [
        pool_to_grid(inputs.model.features(to_network(to_unit(part))).levels[-1], grid)
        for part in np.array_split(images, -(-len(images) // batch))
    ]
    return Decoded(_flatten(levels), labels, np.concatenate(features))


def _flatten(levels: Sequence[Tensor]) -> Codes:
    return torch.cat([codes.flatten(1) for codes in levels], 1).numpy().astype(np.uint16)


def _as_many(one: Decoded, other: Decoded) -> tuple[Floats, Floats]:
    """Return the features of as many images of each class of both."""
    number = min(len(rows) for images in (one, other) for rows in images.by_class())
    rows = [np.concatenate([r[:number] for r in images.by_class()]) for images in (one, other)]
    return one.features[rows[0]], other.features[rows[1]]


def recognition(probe: Any, features: Floats, labels: Labels) -> float:
    """Return the AUROC of a probe of two classes, the accuracy of one of more."""
    if len(probe.classes_) == 2:
        return float(roc_auc_score(labels, probe.predict_proba(features)[:, 1]))
    return float(accuracy_score(labels, probe.predict(features)))


def variety(images: Decoded) -> float:
    """Return the share of codes that differ between two images of a class, over all pairs."""
    shares = []
    for rows in images.by_class():
        pairs = len(rows) * (len(rows) - 1)
        counts = [np.unique(place, return_counts=True)[1] for place in images.codes[rows].T]
        shares.append(1 - np.mean([(count * (count - 1)).sum() / pairs for count in counts]))
    return float(np.mean(shares))


def distance_to_nearest(codes: Codes, known: Codes) -> Floats:
    """Return the share of codes (N, places) that the nearest of ``known`` does not have, (N,)."""
    return np.array([(known != one).mean(1).min() for one in codes])


def precision_and_recall(
    real: Floats, generated: Floats, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Return the share of generated points among real ones, and of real among generated [1]_.

    A point lies among others where it is no farther from one of them than that one's neighbour of
    the given rank is.
    """

    def share(points: Floats, others: Floats) -> float:
        reach = np.sort(euclidean_distances(others), 1)[:, neighbours]
        return float((euclidean_distances(points, others) <= reach).any(1).mean())

    return share(generated, real), share(real, generated)
