"""Images that a prior finds unusual: another finding (anomalies), or no such image at all."""

from __future__ import annotations

import numpy as np
import torch
from medvq.images.preparation import Preparation
from medvq.method.alignment import Alignment
from medvq.prior.code_prior import CodePrior, negative_log_likelihood
from medvq.prior.outliers import CodeScores, FeatureDistance, score_images
from medvq.prior.restoration import anomaly_maps
from medvq.prior.typicality import TypicalityCheck
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.page import Figure
from benchmarks.prior.inputs import Inputs

NORMAL = "NORMAL"
"""The class that is no anomaly; a data set without it has none."""
_MOST = 300
"""Images of each kind that are shown to the typicality check."""
_IMPROBABLE = 0.005
"""A code is drawn anew where it is less likely than all but this share of the codes at its place in
normal validation images: chosen on all validation images."""
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]


def anomalies(inputs: Inputs) -> list[Figure]:
    """Return how well normal images are told from all others, without a label of the latter."""
    maps = inputs.maps
    normal = inputs.train(f"prior.only_class={NORMAL}", "prior.epochs=12", "prior.dropout=0.2")
    unlabelled = inputs.train("prior.withheld_labels=1.0").levels[0]
    rows = []
    for split in ("validation", "test"):
        chosen = maps.rows(split)
        ill = maps.labels.numpy()[chosen] != maps.label_of(NORMAL)
        scores = _anomaly_scores(inputs, normal.levels[0], unlabelled, chosen)
        aurocs = {name: float(roc_auc_score(ill, score)) for name, score in scores.items()}
        for number, (name, value) in enumerate(aurocs.items()):
            must = 0.80 if number == 0 and split == "test" else None
            rows.append(Figure(f"anomaly by {name}: AUROC, {split}", value, must))
    gain = next(iter(aurocs.values())) - aurocs["reconstruction error"]
    return [*rows, Figure("anomaly: above reconstruction error", gain, 0.05)]


def _anomaly_scores(
    inputs: Inputs, normal: CodePrior, unlabelled: CodePrior, rows: NDArray[np.intp]
) -> dict[str, Floats]:
    """Return several scores of images, of which the first was chosen on validation images."""
    maps, model, grid = inputs.maps, inputs.model, inputs.config.extract.grid
    images = np.load(inputs.ingest / "images.npy", mmap_mode="r")
    reference = score_images(model, normal, images[maps.rows("train", NORMAL)], grid)
    distance = FeatureDistance(reference.features)
    scored = score_images(model, normal, images[rows], grid)
    background = score_images(model, unlabelled, images[rows], grid)
    scores = {
        "bits less those of a prior of all images, unlabelled": _bits(scored) - _bits(background),
        "bits": _bits(scored),
        "reconstruction error": scored.reconstruction,
        "Mahalanobis distance": distance.mahalanobis(scored.features),
        "nearest neighbours": distance.to_neighbours(scored.features),
    }
    # Of several levels, the images would need finer codes that go with the restored ones.
    if len(model.quantizers) == 1:
        validation = maps.codes[maps.rows("validation", NORMAL)]
        bits = negative_log_likelihood(normal, validation)
        highest = np.quantile(bits, 1 - _IMPROBABLE, axis=0)
        improbable = scored.negative_log_likelihood > highest
        maps_of_anomalies = anomaly_maps(model, normal, scored.codes, improbable)
        scores["restoration"] = maps_of_anomalies.mean((1, 2))
    return scores


def _bits(scored: CodeScores) -> Floats:
    bits = scored.negative_log_likelihood
    return np.asarray(bits.reshape(len(bits), -1).mean(1))


def typicality(inputs: Inputs, prior: CodePrior) -> list[Figure]:
    """Return how well images of another kind are told from test images and flagged."""
    maps, model, grid = inputs.maps, inputs.model, inputs.config.extract.grid
    folder, config = inputs.ingest, inputs.config.ingest
    check = TypicalityCheck.calibrate(
        negative_log_likelihood(prior, maps.codes[maps.rows("validation")])
    )
    template = torch.from_numpy(np.load(folder / "template.npy"))[None, None]
    preparation = Preparation(config, Alignment(template, config.alignment))
    typical = check.score(negative_log_likelihood(prior, maps.codes[maps.rows("test")]))
    flagged = float((typical > check.threshold).mean())
    rows = [Figure("typicality: test images flagged", flagged, None, True)]
    originals = np.load(folder / "originals.npy", mmap_mode="r")
    test = maps.rows("test")
    some = originals[test[:: max(1, len(test) // _MOST)]]
    for name, images in {"inverted": 255 - some, "upside down": some[:, ::-1].copy()}.items():
        prepared = preparation(images).images
        scored = score_images(model, prior, prepared, grid)
        score = check.score(scored.negative_log_likelihood)
        truth = np.repeat([0, 1], [len(typical), len(score)])
        auroc = float(roc_auc_score(truth, np.concatenate([typical, score])))
        rows.append(Figure(f"typicality: {name}, AUROC", auroc, 0.99))
        share = float((score > check.threshold).mean())
        rows.append(Figure(f"typicality: {name}, flagged", share))
    return rows
