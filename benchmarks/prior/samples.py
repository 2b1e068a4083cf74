"""What samples of priors are worth beside real images.

All have gone through the decoder, whose blur alone would tell them from images; so real images go
through it too, wherever samples stand beside them. What the blur costs has a row of its own.

References
----------
.. [1] Kynkäänniemi, Karras, Laine, Lehtinen, Aila: Improved Precision and Recall Metric for
   Assessing Generative Models. NeurIPS 2019, arXiv 1904.06991.
.. [2] Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter: GANs Trained by a Two Time-Scale Update
   Rule Converge to a Local Nash Equilibrium. NeurIPS 2017, arXiv 1706.08500.
.. [3] Lopez-Paz, Oquab: Revisiting Classifier Two-Sample Tests. ICLR 2017, arXiv 1610.06545.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from medvq.config import SampleConfig
from medvq.method.features import FeatureNetworks, pool_to_grid
from medvq.method.scaling import to_unit
from medvq.prior.samples import decode_codes, independent_codes, sample_codes
from medvq.report.plots import image_sheet
from medvq.storage.feature_store import FEATURES, read_feature
from medvq.storage.start import imagenet_encoder
from medvq.training.batches import epoch_seed
from numpy.typing import NDArray
from scipy.linalg import eigvals
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.page import Figure
from benchmarks.prior.inputs import Inputs, TrainedPriors

Codes = NDArray[np.uint16]
Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
GUIDANCE = (1.0, 1.5)
"""As learnt, and the guidance that, of several guidances and temperatures, gave the most varied
samples of Kermany that a probe of the training images tells apart as well as validation images."""
PER_CLASS = 256
"""Images of every class that are judged, or as many as the smallest set has."""
NEIGHBOURS = 5
"""The rank of the neighbour that says how far a point reaches; 3 of far more images in [1]_."""
SHOWN = 8
"""Images of each row of the sheet."""
ABOUT = (
    f"Of every class up to {PER_CLASS} images, as many in every row. All but the last row are "
    "decoded from codes. Independent codes are drawn at each place from those of the class's "
    "training images. *Recognised*: AUROC (of more than two classes accuracy) of a probe of the "
    "training images. *Variety*: the share of codes that differ between two images of a class. "
    "*Distance*: the share of codes that the nearest training image does not have, the median; "
    "*near*: the share of images that are as near to one as 1% of test images are. *Precision*: "
    "the share of images that lie among decoded test images in MedVQ's embedding, *recall*: the "
    f"share of these that lie among them (Kynkäänniemi et al. 2019, {NEIGHBOURS} neighbours). "
    "*Told from test*: AUROC of a logistic regression that tells them from decoded test images, "
    "cross-validated (.5: not at all). *FID*: the Fréchet distance to these, of features averaged "
    "over all places; few images make it large, so it is to be read against that of the validation "
    "images. The last two are of MedVQ's embedding and, for pictures, of the frozen ImageNet "
    "network."
)


@dataclass(frozen=True)
class Decoded:
    """Images of known classes, decoded from codes or as they are.

    Attributes
    ----------
    codes : of all levels, (N, places).
    labels : (N,), with as many images of each class.
    images : bytes as the cache has them, (N, ...).
    features : (N, width), MedVQ's embedding.
    averages : of each network's feature maps, averaged over all places, (N, width).
    """

    codes: Codes
    labels: Labels
    images: NDArray[np.uint8]
    features: Floats
    averages: Mapping[str, Floats]

    def by_class(self) -> list[NDArray[np.intp]]:
        """Return the rows of the images of every class."""
        return [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]


class Judge:
    """Draws samples of priors, and judges them beside real images.

    Parameters
    ----------
    trainings : of priors of the same codes.
    """

    def __init__(self, inputs: Inputs, trainings: Sequence[TrainedPriors]) -> None:
        self.inputs, self.trainings, self.maps = inputs, trainings, inputs.maps
        splits = [self.maps.rows(split, name).size for split in _REAL for name in self.maps.classes]
        self.number = min(PER_CLASS, *splits)
        is_picture = len(inputs.config.ingest.image_shape) == 2
        frozen = imagenet_encoder(inputs.config.ingest.channels) if is_picture else None
        self.networks = FeatureNetworks(inputs.model, frozen).eval()

    def sets(self) -> dict[str, Decoded]:
        """Return all that is judged, by the name of its row."""
        sets = {}
        for training in self.trainings:
            for guidance in GUIDANCE:
                name = training.summary.levels[0].model
                name += f", guidance {guidance:g}" * (guidance != 1)
                sets[name] = self._sampled(training, SampleConfig(guidance=guidance))
        sets["independent codes"] = self._independent()
        sets["validation images"] = self.real("validation")
        sets["validation images, not decoded"] = self.real("validation", is_decoded=False)
        return sets

    def real(self, split: str, *, is_decoded: bool = True) -> Decoded:
        """Return images of a split."""
        rng, maps = np.random.default_rng(self.inputs.config.seed), self.maps
        rows = np.concatenate(
            [rng.permutation(maps.rows(split, name))[: self.number] for name in maps.classes]
        )
        levels, images = [codes[rows] for codes in maps.levels], None
        if not is_decoded:
            images = np.load(self.inputs.ingest / "images.npy", mmap_mode="r")[rows]
        return self._decoded(levels, maps.labels.numpy()[rows], images)

    def _sampled(self, training: TrainedPriors, config: SampleConfig) -> Decoded:
        config = config.model_copy(update={"number": self.number})
        labels = range(len(self.maps.classes))
        seeds = [epoch_seed(self.inputs.config.seed, 0, label) for label in labels]
        parts = [sample_codes(training.levels, config, seeds[label], label) for label in labels]
        levels = [torch.cat(level) for level in zip(*parts, strict=True)]
        return self._decoded(levels, self._labels())

    def _independent(self) -> Decoded:
        rng = np.random.default_rng(self.inputs.config.seed)
        rows = [self.maps.rows("train", name) for name in self.maps.classes]
        levels = [
            torch.cat([independent_codes(codes[of], self.number, rng) for of in rows])
            for codes in self.maps.levels
        ]
        return self._decoded(levels, self._labels())

    def _labels(self) -> Labels:
        return np.repeat(np.arange(len(self.maps.classes)), self.number)

    @torch.inference_mode()
    def _decoded(
        self, levels: Sequence[Tensor], labels: Labels, images: NDArray[np.uint8] | None = None
    ) -> Decoded:
        if images is None:
            images = decode_codes(self.inputs.model, *levels)
        grid, features, averages = self.inputs.config.extract.grid, [], []
        for part in np.array_split(images, -(-len(images) // 64)):
            pooled = self.networks(to_unit(part), with_untrained=False).pooled
            maps = {name: pooled[of] for name, of in _NETWORKS.items() if of in pooled}
            features.append(_pool(maps["MedVQ"], grid))
            averages.append({name: _pool(of, 1) for name, of in maps.items()})
        return Decoded(
            _flatten(levels),
            labels,
            images,
            np.concatenate(features),
            {name: np.concatenate([part[name] for part in averages]) for name in averages[0]},
        )

    def figures(self, sets: Mapping[str, Decoded], test: Decoded) -> list[Figure]:
        """Return what is measured of each set beside decoded test images."""
        known = _flatten([codes[self.maps.rows("train")] for codes in self.maps.levels])
        near = np.percentile(distance_to_nearest(test.codes, known), 1)
        probe, product = self._probe(), self.trainings[0].summary.levels[0].model
        figures = []
        for name, one in sets.items():
            distance = distance_to_nearest(one.codes, known)
            precision, recall = precision_and_recall(test.features, one.features)
            least = 0.95 if name == f"{product}, guidance {GUIDANCE[-1]:g}" else None
            most = 0.7 if name == product else None
            found = [
                Figure("recognised", recognition(probe, one.features, one.labels), least),
                Figure("variety", variety(one)),
                Figure("distance", float(np.median(distance))),
                Figure("near", float((distance <= near).mean()), None, True),
                Figure("precision", precision),
                Figure("recall", recall),
                Figure("told from test", two_samples(test.features, one.features), most, True),
            ]
            for network, real in test.averages.items():
                if network != "MedVQ":
                    told = two_samples(real, one.averages[network])
                    found.append(Figure(f"told from test, {network}", told, None, True))
            for network, real in test.averages.items():
                far = frechet_distance(real, one.averages[network])
                found.append(Figure(f"FID, {network}", far, None, True))
            figures += [replace(figure, figure=f"{name}: {figure.figure}") for figure in found]
        return figures

    def _probe(self) -> Pipeline:
        embedding = read_feature(self.inputs.extract.folder / FEATURES, "embedding")
        rows = np.concatenate([self.maps.rows("train", name) for name in self.maps.classes])
        return _classifier().fit(embedding[rows], self.maps.labels.numpy()[rows])


_REAL = ("validation", "test")
_NETWORKS = {"MedVQ": "embedding", "ImageNet": "frozen_imagenet"}


def judge_samples(inputs: Inputs, trainings: Sequence[TrainedPriors]) -> list[Figure]:
    """Return how samples are recognised, how they vary, and how they resemble real images.

    The first of each row are drawn on a sheet in the study's folder: what is decoded from patients'
    images has no place among the documents.
    """
    judge = Judge(inputs, trainings)
    sets, test = judge.sets(), judge.real("test")
    draw_sheet(sets, inputs)
    return judge.figures(sets, test)


def draw_sheet(sets: Mapping[str, Decoded], inputs: Inputs) -> None:
    """Draw some images of each row, of every class as many; volumes by their middle slice."""
    shown = {
        name.replace(", ", ",\n"): [
            one.images[row]
            for rows in one.by_class()
            for row in rows[: SHOWN // len(one.by_class())]
        ]
        for name, one in sets.items()
    }
    sheet = inputs.study.folder / "samples.png"
    image_sheet(shown, sheet, "Samples and real images")
    print(sheet)


def _classifier() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=300))


def _pool(maps: Sequence[Tensor], grid: int) -> Floats:
    return np.concatenate([pool_to_grid(one, grid) for one in maps], 1).astype(np.float64)


def _flatten(levels: Sequence[Tensor]) -> Codes:
    return torch.cat([codes.flatten(1) for codes in levels], 1).numpy().astype(np.uint16)


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


def two_samples(real: Floats, generated: Floats) -> float:
    """Return the AUROC of a classifier of which images are real, fitted on others of them [3]_."""
    features = np.concatenate([real, generated])
    truth = np.repeat([0, 1], [len(real), len(generated)])
    folds = StratifiedKFold(min(5, len(real)), shuffle=True, random_state=0)
    found = cross_val_predict(_classifier(), features, truth, cv=folds, method="predict_proba")
    return float(roc_auc_score(truth, found[:, 1]))


def frechet_distance(real: Floats, generated: Floats) -> float:
    """Return the Fréchet distance of the normal distributions of two sets (N, width) [2]_."""
    difference = real.mean(0) - generated.mean(0)
    covariances = [np.cov(one, rowvar=False) for one in (real, generated)]
    # The trace of the square root of a product is the sum of the roots of its eigenvalues.
    roots = np.sqrt(np.maximum(eigvals(covariances[0] @ covariances[1]).real, 0))
    traces = sum(float(np.trace(one)) for one in covariances)
    return float(difference @ difference + traces - 2 * roots.sum())
