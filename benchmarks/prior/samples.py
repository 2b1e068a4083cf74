"""How likely codes are to a prior, and what its samples are worth beside real images.

Samples are judged as they are drawn from what was learnt, and at the guidance and temperature that
:func:`choose` takes by training and validation images. All have gone through the decoder, whose
blur alone would tell them from images; so real images go through it too, wherever samples stand
beside them.

References
----------
.. [1] Kynkäänniemi, Karras, Laine, Lehtinen, Aila: Improved Precision and Recall Metric for
   Assessing Generative Models. NeurIPS 2019, arXiv 1904.06991.
.. [2] Lopez-Paz, Oquab: Revisiting Classifier Two-Sample Tests. ICLR 2017, arXiv 1610.06545.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from medvq.config import SampleConfig
from medvq.method.features import pool_to_grid
from medvq.method.scaling import to_network, to_unit
from medvq.method.vqvae import VQVAE
from medvq.prior.code_prior import UNKNOWN, CodePrior
from medvq.prior.codes import bits_per_code, simple_codings
from medvq.stages.sample import decoded, draw, independent
from medvq.storage.feature_store import FEATURES, read_feature
from medvq.training.batches import epoch_seed
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.prior.study import Row, Study

Floats = NDArray[np.float64]
Codes = NDArray[np.uint16]
SPLITS = ("train", "validation", "test")
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0)
TEMPERATURE = (1.0, 0.85, 0.7)
NEIGHBOURS = 5
_PER_CLASS = 256
ABOUT = {
    "Likelihood": "Bits per pixel are those of all codes of an image over its pixels.",
    "Samples of a class": f"Of every class {_PER_CLASS} samples: as learnt, with guidance and "
    "temperature 1; and as chosen, with those, of several, whose samples vary most among those "
    "that a probe of the training images tells apart as well as it does validation images (where "
    "none do, that it tells apart best). What is judged is decoded from codes, the real images "
    "too. Independent codes are drawn at each place from those of the class's training images.",
    "Samples learnt by heart": "The distance of two images is the share of codes that differ.",
    "Samples beside test images": "Of every class as many, in MedVQ's embedding. Precision is the "
    "share of these images that lie among test images, recall the share of test images that lie "
    f"among these (Kynkäänniemi et al. 2019, {NEIGHBOURS} neighbours).",
}
_PER_CLASS_TO_CHOOSE_BY = 128
_JUDGED_BY = 10_000
_SHOWN = 8


def likelihood(study: Study, *trainings: tuple[Sequence[CodePrior], dict[str, Any]]) -> list[Row]:
    """Bits of every level of codes, and of all per pixel, beside those of simple codings.

    ``trainings``: the priors of all levels, with the result of the stage that trained them.
    """
    maps, pixels = study.maps, int(np.prod(study.config.ingest.image_shape))
    tested = [codes[maps.rows("test")] for codes in maps.levels]
    named = [f" of level {level}" * (len(tested) > 1) for level in range(len(tested))]
    rows, coded = [], dict[str, list[float]]()
    for priors, trained in trainings:
        model = trained["model"]
        coded[model] = bits_per_code(priors, tested)
        for name, level in zip(named, [trained, *trained["finer"]], strict=True):
            found, simple = level["val_bits_per_code"], level["val_bits_of_simple_codings"]
            rows.append(Row(f"{model}: bits per code{name}, validation", found, None, True))
            for coding, must in (("global_frequency", 0.75), ("position_frequency", 0.92)):
                share = f"{model}: share of {coding.replace('_', ' ')}{name}, validation"
                rows.append(Row(share, found / simple[coding], must, True))
        rows.append(Row(f"{model}: minutes of training", trained["seconds"] / 60, 40, True))
    for codes, size in zip(maps.levels, maps.sizes, strict=True):
        train, validation, test = (codes[maps.rows(split)].flatten(1).numpy() for split in SPLITS)
        for coding, bits in simple_codings(train, validation, test, size).items():
            coded.setdefault(coding.replace("_", " "), []).append(bits)
    for coding, levels in coded.items():
        for name, bits in zip(named, levels, strict=True):
            rows.append(Row(f"{coding}: bits per code{name}, test", bits, None, True))
    for coding, levels in coded.items():
        taken = sum(bits * codes[0].numel() for bits, codes in zip(levels, tested, strict=True))
        rows.append(Row(f"{coding}: bits per pixel, test", taken / pixels, None, True))
    return rows


@dataclass(frozen=True)
class Pictures:
    """Images of known classes, made of codes.

    Attributes
    ----------
    name : what they are.
    codes : of all levels, (N, places).
    labels : (N,).
    images : bytes, see :func:`decoded`.
    features : (N, width), MedVQ's own: the deepest feature map, pooled.
    """

    name: str
    codes: Codes
    labels: NDArray[np.int64]
    images: NDArray[np.uint8]
    features: Floats

    def of_each_class(self) -> list[NDArray[np.intp]]:
        """Rows of the images of every class."""
        return [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]


class Samples:
    """Draws samples of every class of a data set, and judges them.

    Attributes
    ----------
    judge : a probe of the training images and their labels.
    """

    def __init__(self, study: Study, priors: Sequence[CodePrior]) -> None:
        self.study, self.priors = study, priors
        self.maps, self.model = study.maps, study.model
        self.truth = self.maps.labels.numpy()
        self.embedding = read_feature(study.extract / FEATURES, "embedding")
        train = self._labelled("train")
        few = train[:: max(1, len(train) // _JUDGED_BY)]
        self.judge = _probe().fit(self.embedding[few], self.truth[few])

    def groups(self) -> dict[str, list[Row]]:
        """All figures by what they are about; writes a sheet of pictures beside the artifacts."""
        train, validation, test = (self.real(split) for split in SPLITS)
        bar = self.of_real(self.judge, "validation")
        chosen = choose(self.tried, bar)
        learnt = self.drawn("samples as learnt", SampleConfig(), _PER_CLASS)
        best = self.drawn("samples as chosen", chosen, _PER_CLASS)
        loose = self.independent()
        sheet = self.study.options.artifacts / self.study.config.name / "prior_samples.png"
        draw_sheet([train, learnt, best, loose], self.maps.classes, sheet)
        known = _flat([codes[self.maps.rows("train")] for codes in self.maps.levels])
        every = [learnt, best, loose, validation]
        told = {p.name: recognised(self.judge, p.features, p.labels) for p in every}
        alone = {p.name: self.of_real(_probe().fit(p.features, p.labels), "test") for p in every}
        what = "AUROC" if len(self.maps.classes) == 2 else "accuracy"
        return {
            "Samples of a class": [
                Row("samples as chosen: guidance", chosen.guidance),
                Row("samples as chosen: temperature", chosen.temperature),
                *_rows(
                    f"{what} of a probe of real images",
                    {**told, "validation images, not decoded": bar},
                    must_reach={best.name: 0.95},
                ),
                *_rows(f"{what} on test images of a probe of these alone", alone),
                *_rows(
                    "codes that differ between two of a class",
                    {p.name: variety(p) for p in [*every, train]},
                ),
            ],
            "Samples learnt by heart": memorised([*every, test], test, known),
            "Samples beside test images": lifelike(every, test),
        }

    def tried(self, settings: SampleConfig) -> tuple[float, float]:
        """How well samples are recognised, and how they vary; none of them is judged again."""
        made = self.drawn("tried", settings, _PER_CLASS_TO_CHOOSE_BY, seed=1)
        return recognised(self.judge, made.features, made.labels), variety(made)

    def of_real(self, probe: Any, split: str) -> float:
        """How well a probe recognises the images of a split, as they are."""
        rows = self._labelled(split)
        return recognised(probe, self.embedding[rows], self.truth[rows])

    def drawn(self, name: str, settings: SampleConfig, number: int, seed: int = 0) -> Pictures:
        """So many samples of every class; those of another ``seed`` are others."""
        settings = settings.model_copy(update={"number": number})
        labels = range(len(self.maps.classes))
        seeds = [epoch_seed(self.study.config.seed, seed, label) for label in labels]
        parts = [draw(self.priors, settings, s, of) for s, of in zip(seeds, labels, strict=True)]
        levels = [torch.cat(level) for level in zip(*parts, strict=True)]
        return self._pictures(name, levels, np.repeat(labels, number))

    def independent(self) -> Pictures:
        """Codes drawn at each place from those of the class's training images there."""
        rng = np.random.default_rng(self.study.config.seed)
        known = [self.maps.rows("train", name) for name in self.maps.classes]
        levels = [
            torch.cat([independent(codes[rows], _PER_CLASS, rng) for rows in known])
            for codes in self.maps.levels
        ]
        labels = np.repeat(range(len(known)), _PER_CLASS)
        return self._pictures("independent codes", levels, labels)

    def real(self, split: str) -> Pictures:
        """Some images of every class of a split."""
        rng = np.random.default_rng(self.study.config.seed)
        every = [rng.permutation(self.maps.rows(split, name)) for name in self.maps.classes]
        rows = np.concatenate([of[:_PER_CLASS] for of in every])
        name = {"train": "training images"}.get(split, f"{split} images")
        return self._pictures(name, [codes[rows] for codes in self.maps.levels], self.truth[rows])

    def _pictures(self, name: str, levels: list[Tensor], labels: NDArray[np.int64]) -> Pictures:
        images = decoded(self.model, *levels)
        features = embedded(self.model, images, self.study.config.extract.grid)
        return Pictures(name, _flat(levels), labels, images, features)

    def _labelled(self, split: str) -> NDArray[np.intp]:
        rows = self.maps.rows(split)
        return rows[self.truth[rows] != UNKNOWN]


def choose(tried: Callable[[SampleConfig], tuple[float, float]], bar: float) -> SampleConfig:
    """The most varied samples of those that are recognised as well as real images are.

    Where none are, those that are recognised best.

    Parameters
    ----------
    tried : what samples at a guidance and a temperature reach: recognition, variety.
    bar : recognition of real images.
    """
    settings = [
        SampleConfig(guidance=guidance, temperature=temperature)
        for guidance, temperature in product(GUIDANCE, TEMPERATURE)
    ]
    reached = [tried(one) for one in settings]
    ranks = [(min(recognition, bar), varied) for recognition, varied in reached]
    return settings[ranks.index(max(ranks))]


@torch.inference_mode()
def embedded(model: VQVAE, images: NDArray[np.uint8], grid: int, batch: int = 64) -> Floats:
    """MedVQ's features of images, bytes (N, ...)."""
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(images), batch):
        seen = to_network(to_unit(images[start : start + batch])).to(device)
        parts.append(pool_to_grid(model.features(seen).levels[-1], grid))
    return np.concatenate(parts)


def recognised(probe: Any, features: Floats, labels: NDArray[np.int64]) -> float:
    """AUROC of a probe of two classes, accuracy of one of more."""
    if len(probe.classes_) == 2:
        return float(roc_auc_score(labels, probe.predict_proba(features)[:, 1]))
    return float(accuracy_score(labels, probe.predict(features)))


def variety(given: Pictures) -> float:
    """The share of codes that differ between two images of a class, the mean over all pairs."""
    shares = []
    for rows in given.of_each_class():
        pairs = len(rows) * (len(rows) - 1)
        counts = [np.unique(register, return_counts=True)[1] for register in given.codes[rows].T]
        shares.append(1 - np.mean([(count * (count - 1)).sum() / pairs for count in counts]))
    return float(np.mean(shares))


def to_nearest(codes: Codes, known: Codes) -> Floats:
    """The share of ``codes`` (N, places) unlike those of the nearest of ``known``, (N,)."""
    return np.array([(known != one).mean(1).min() for one in codes])


def memorised(sets: Sequence[Pictures], test: Pictures, known: Codes) -> list[Row]:
    """How far images are from the nearest training image, and how many are as near as few test
    images are.

    ``known``: codes of the training images.
    """
    usual = np.percentile(to_nearest(test.codes, known), 1)
    away = {given.name: to_nearest(given.codes, known) for given in sets}
    what = "distance to the nearest training image"
    nearest = {name: float(np.percentile(far, 5)) for name, far in away.items()}
    median = {name: float(np.median(far)) for name, far in away.items()}
    nearer = {name: float((far <= usual).mean()) for name, far in away.items()}
    return [
        *_rows(f"{what}, 5th percentile", nearest),
        *_rows(f"{what}, median", median),
        *_rows("as near to one as the nearest 1% of test images", nearer, lower_is_better=True),
    ]


def precision_and_recall(real: Floats, made: Floats, k: int = NEIGHBOURS) -> tuple[float, float]:
    """How many of ``made`` lie among ``real``, and how many of ``real`` among ``made`` [1]_.

    A point lies among others where it is no farther from one of them than the ``k``-th neighbour of
    that one is.
    """

    def share(points: Floats, others: Floats) -> float:
        reach = np.sort(euclidean_distances(others), 1)[:, k]
        return float((euclidean_distances(points, others) <= reach).any(1).mean())

    return share(made, real), share(real, made)


def lifelike(sets: Sequence[Pictures], test: Pictures) -> list[Row]:
    """How images resemble test images, of every class as many."""
    number = min(len(rows) for given in (*sets, test) for rows in given.of_each_class())

    def some(given: Pictures) -> Floats:
        return given.features[np.concatenate([rows[:number] for rows in given.of_each_class()])]

    real = some(test)
    near = {given.name: precision_and_recall(real, some(given)) for given in sets}
    told = {given.name: two_samples(real, some(given)) for given in sets}
    return [
        *_rows("precision", {name: precision for name, (precision, _) in near.items()}),
        *_rows("recall", {name: recall for name, (_, recall) in near.items()}),
        *_rows("told from test images, AUROC", told, lower_is_better=True),
    ]


def two_samples(real: Floats, made: Floats) -> float:
    """AUROC of a classifier of which images are real, on images that it was not fitted on [2]_."""
    features = np.concatenate([real, made])
    truth = np.repeat([0, 1], [len(real), len(made)])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    told = cross_val_predict(_probe(), features, truth, cv=folds, method="predict_proba")
    return float(roc_auc_score(truth, told[:, 1]))


def draw_sheet(sets: Sequence[Pictures], classes: Sequence[str], file: Path) -> None:
    """The first images of each class, a row for each of ``sets``; volumes by their middle slice."""
    rows = {
        f"{name}\n{given.name}": given.images[given.of_each_class()[label][:_SHOWN]]
        for label, name in enumerate(classes)
        for given in sets
    }
    figure, axes = plt.subplots(
        len(rows), _SHOWN, figsize=(_SHOWN, len(rows)), layout="constrained"
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
        for axis, image in zip(line, images, strict=False):
            axis.imshow(_picture(image), cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _picture(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    while image.ndim > 3:
        image = image[:, image.shape[1] // 2]
    return image if image.ndim == 2 else np.moveaxis(image, 0, -1)


def _flat(levels: Sequence[Tensor]) -> Codes:
    return torch.cat([codes.flatten(1) for codes in levels], 1).numpy().astype(np.uint16)


def _rows(
    what: str,
    found: Mapping[str, float],
    *,
    must_reach: Mapping[str, float] = MappingProxyType({}),
    lower_is_better: bool = False,
) -> list[Row]:
    """One measure of several sets of images, by their names."""
    return [
        Row(f"{what}: {name}", value, must_reach.get(name), lower_is_better)
        for name, value in found.items()
    ]


def _probe() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=300))
