"""How well images with a finding are told from normal ones by the labels of normal images.

There are two settings, whose figures are not to be compared with each other. Scores of *normals
alone* have seen nothing but normal training images. *Positive-unlabelled* scores [1]_ have seen all
training images as well, without labels. Where most of these are ill, that is nearly supervision.

References
----------
.. [1] Elkan, Noto: Learning Classifiers from Only Positive and Unlabeled Data. KDD 2008.
"""

from __future__ import annotations

import numpy as np
from medvq.method.encodings import NormScaler
from medvq.prior.code_prior import CodePrior, negative_log_likelihood
from medvq.prior.outliers import score_images
from medvq.prior.restoration import anomaly_maps
from medvq.storage.feature_store import FEATURES, read_feature
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.page import Figure
from benchmarks.prior.inputs import Inputs

NORMAL = "NORMAL"
"""The class that is no anomaly; a data set without it has none."""
ABOUT = (
    "AUROC of all other images against normal ones. *Normals alone*: scores that have seen nothing "
    "but normal training images. *Positive-unlabelled*: scores that have also seen all training "
    "images, without labels; where most of these are ill, the figure says what their labels, which "
    "are nearly known, are worth, and nothing of anomalies that are rare. Scores were chosen on "
    "validation images."
)
NORMAL_PRIOR = (f"prior.only_class={NORMAL}", "prior.epochs=12", "prior.dropout=0.2")
"""A prior of normal images alone, chosen on validation images."""
_ALONE, _UNLABELLED = "normals alone, ", "positive-unlabelled, "
_NEIGHBOURS = 5
_IMPROBABLE = 0.005
"""A code is drawn anew where it is less likely than all but this share of the codes at its place in
normal validation images: chosen on all validation images."""
Floats = NDArray[np.float64]


def anomalies(inputs: Inputs) -> list[Figure]:
    """Return how well each score tells normal images from all others."""
    maps = inputs.maps
    normal = inputs.train(*NORMAL_PRIOR)
    unlabelled = inputs.train("prior.withheld_labels=1.0").levels[0]
    is_ill = maps.labels.numpy() != maps.label_of(NORMAL)
    share = float(is_ill[maps.rows("train")].mean())
    rows = [Figure("share of the unlabelled training images that is not normal", share)]
    for split in ("validation", "test"):
        chosen = maps.rows(split)
        scores = _scores_of_codes(inputs, normal.levels[0], unlabelled, chosen)
        scores |= _scores_of_embedding(inputs, chosen)
        aurocs = {name: float(roc_auc_score(is_ill[chosen], scores[name])) for name in scores}
        rows += [Figure(f"{name}: AUROC, {split}", aurocs[name]) for name in sorted(aurocs)]
    gain = aurocs[f"{_ALONE}bits"] - aurocs[f"{_ALONE}nearest neighbours"]
    return [*rows, Figure(f"{_ALONE}bits above nearest neighbours, test", gain, 0.0)]


def _scores_of_codes(
    inputs: Inputs, normal: CodePrior, unlabelled: CodePrior, rows: NDArray[np.intp]
) -> dict[str, Floats]:
    """Return scores of images by priors of normal images and of all."""
    maps, model = inputs.maps, inputs.model
    images = np.load(inputs.ingest / "images.npy", mmap_mode="r")[rows]
    scored = score_images(model, normal, images)
    bits = _mean(scored.negative_log_likelihood)
    background = _mean(negative_log_likelihood(unlabelled, maps.codes[rows]))
    scores = {
        f"{_ALONE}bits": bits,
        f"{_ALONE}reconstruction error": scored.reconstruction,
        f"{_UNLABELLED}bits less those of a prior of all images": bits - background,
    }
    # Of several levels, the images would need finer codes that go with the restored ones.
    if len(model.quantizers) == 1:
        validation = maps.codes[maps.rows("validation", NORMAL)]
        bits_of_normal = negative_log_likelihood(normal, validation)
        highest = np.quantile(bits_of_normal, 1 - _IMPROBABLE, axis=0)
        improbable = scored.negative_log_likelihood > highest
        maps_of_anomalies = anomaly_maps(model, normal, scored.codes, improbable)
        scores[f"{_ALONE}restoration"] = maps_of_anomalies.mean((1, 2))
    return scores


def _mean(bits: Floats) -> Floats:
    return np.asarray(bits.reshape(len(bits), -1).mean(1))


def _scores_of_embedding(inputs: Inputs, rows: NDArray[np.intp]) -> dict[str, Floats]:
    """Return scores of images by their embedding, beside those of normal images and of all."""
    embedding = read_feature(inputs.extract.folder / FEATURES, "embedding")
    normal, unlabelled = (embedding[inputs.maps.rows("train", name)] for name in (NORMAL, None))
    images = embedding[rows]
    distance = distance_to_neighbours(normal, images)
    ratio = distance / distance_to_neighbours(unlabelled, images)
    return {
        f"{_ALONE}nearest neighbours": distance,
        f"{_ALONE}Mahalanobis distance": mahalanobis_distance(normal, images),
        f"{_UNLABELLED}nearest neighbours, ratio to those among all images": ratio,
        f"{_UNLABELLED}logistic regression": unlabelled_logit(normal, unlabelled, images),
    }


def _components(reference: Floats, number: int) -> Pipeline:
    pca = PCA(min(number, *reference.shape), random_state=0)
    return make_pipeline(StandardScaler(), pca).fit(reference)


def distance_to_neighbours(reference: Floats, features: Floats, components: int = 64) -> Floats:
    """Return mean distances (N,) of features to the 5 nearest of the reference, both (N, D).

    Distances are between the principal components of the standardised reference.
    """
    reduce = _components(reference, components)
    neighbours = NearestNeighbors(n_neighbors=_NEIGHBOURS).fit(reduce.transform(reference))
    distance, _ = neighbours.kneighbors(reduce.transform(features))
    return np.asarray(distance.mean(1), np.float64)


def mahalanobis_distance(reference: Floats, features: Floats, components: int = 64) -> Floats:
    """Return squared Mahalanobis distances (N,) of features to the mean of the reference."""
    reduce = _components(reference, components)
    covariance = LedoitWolf().fit(reduce.transform(reference))
    return np.asarray(covariance.mahalanobis(reduce.transform(features)), np.float64)


def unlabelled_logit(normal: Floats, unlabelled: Floats, features: Floats) -> Floats:
    """Return logits (N,) of being unlabelled, from a regression of unlabelled against normal [1]_.

    They rank images as the probability of not being normal does, if normal images are labelled at
    random. ``C`` is the probe's largest.
    """
    encoding = make_pipeline(_components(unlabelled, 256), NormScaler()).fit(unlabelled)
    table = np.concatenate([normal, unlabelled])
    is_unlabelled = np.repeat([0, 1], [len(normal), len(unlabelled)])
    classifier = LogisticRegression(C=1e-3, max_iter=500)
    classifier.fit(encoding.transform(table), is_unlabelled)
    return np.asarray(classifier.decision_function(encoding.transform(features)))
