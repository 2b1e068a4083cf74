"""Which patients to label first: those that are typical of many others, and unlike one another.

Patients are clustered, and of each large cluster the one in its densest part is suggested, as
TypiClust does [1]_: where labels are very few, typical examples teach more than unusual ones.

References
----------
.. [1] Hacohen, Dekel, Weinshall: Active Learning on a Budget: Opposite Strategies Suit High and Low
   Budgets. ICML 2022, arXiv 2202.02794.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors

from medvq.config import Config, ProbeConfig
from medvq.errors import UserError
from medvq.storage.encoded_features import FeatureStore
from medvq.wording import counted

Floats = NDArray[np.float64]
_USUAL = 40
"""Patients that are suggested where nobody says how many."""
_NEIGHBOURS = 20
"""Of the same cluster, whose mean distance says how dense it is around a patient; as in [1]_."""
_ITERATIONS = 100
_ENOUGH = 50
"""Images with random versions that whitening is fitted on at least."""


class Patients:
    """The patients of some images, each by the mean of its images.

    Parameters
    ----------
    subjects : (N,), of each image.
    images : (N, D), their vectors.

    Attributes
    ----------
    names, vectors : (P,) and (P, D), of each patient.
    owner : (N,), the patient of each image.
    """

    def __init__(self, subjects: NDArray[np.str_], images: Floats) -> None:
        self.names, self.owner, number = np.unique(
            subjects, return_inverse=True, return_counts=True
        )
        sums = np.zeros((len(self.names), images.shape[1]))
        np.add.at(sums, self.owner, images)
        self.vectors = sums / number[:, None]
        distance = ((images - self.vectors[self.owner]) ** 2).sum(1)
        self._order = np.lexsort((distance, self.owner))

    def images_of(self, chosen: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the image of each chosen patient that is nearest to its mean."""
        first = np.searchsorted(self.owner[self._order], chosen)
        return np.asarray(self._order[first])


def suggest(
    vectors: Floats, is_labelled: NDArray[np.bool_], number: int, seed: int
) -> NDArray[np.intp]:
    """Return the patients to label, the most useful first.

    There are as many clusters as patients that are labelled or asked for. Clusters without a
    labelled patient come first, the largest before the others.

    Parameters
    ----------
    vectors : (P, D), one of each patient.
    is_labelled : (P,), whose labels are known already.
    number : of patients, at most those that are not labelled.

    Raises
    ------
    ValueError
        More are asked for than are not labelled.
    """
    if number > np.count_nonzero(~is_labelled):
        raise ValueError(f"{number} of {np.count_nonzero(~is_labelled)} patients")
    clusters = min(len(vectors), number + int(np.count_nonzero(is_labelled)))
    fitted = KMeans(clusters, n_init=1, max_iter=_ITERATIONS, random_state=seed).fit(vectors)
    members = [np.flatnonzero(fitted.labels_ == cluster) for cluster in range(clusters)]
    typicality = np.concatenate([_typicality(vectors[rows]) for rows in members])
    rank = pd.Series(typicality, np.concatenate(members))
    # Of each cluster the patients that are not labelled, the most typical first.
    queues = [
        [int(row) for row in rank[rows].sort_values(ascending=False).index if not is_labelled[row]]
        for rows in members
    ]
    taken = [int(is_labelled[rows].sum()) for rows in members]
    chosen: list[int] = []
    while len(chosen) < number:
        open_clusters = [cluster for cluster in range(clusters) if queues[cluster]]
        cluster = min(open_clusters, key=lambda c: (taken[c], -len(members[c]), c))
        chosen.append(queues[cluster].pop(0))
        taken[cluster] += 1
    return np.array(chosen, np.intp)


def _typicality(vectors: Floats) -> Floats:
    """Return the inverse mean distance of each of the vectors (N, D) to its nearest others."""
    number = min(_NEIGHBOURS, len(vectors) - 1)
    if number < 1:
        return np.ones(len(vectors))
    nearest = NearestNeighbors(n_neighbors=number + 1).fit(vectors)
    distances = nearest.kneighbors(vectors)[0][:, 1:]
    return np.asarray(1 / np.maximum(distances.mean(1), 1e-12))


def settings_to_cluster(
    store: FeatureStore, config: Config, train: NDArray[np.intp]
) -> ProbeConfig:
    """Return how the features are encoded that patients are clustered by: as the probe reads them.

    They are whitened as the probe's are where enough images have the random versions for it; images
    without a label have none.
    """
    if store.count_versioned(train) < _ENOUGH:
        return config.probe.model_copy(update={"whitening": None})
    return config.probe


def suggest_patients(
    extract: Path, config: Config, number: int | None = None, *, among_all: bool = False
) -> pd.DataFrame:
    """Return the patients of the training split to label: a row for each, one of its images.

    Parameters
    ----------
    extract : the artifact of the stage ``extract``.
    number : of patients; None: forty, or as many as there are.
    among_all : whether labels that are known are ignored.

    Returns
    -------
    Columns ``image_id``, ``subject_id`` and ``row``, that of the image in the store.

    Raises
    ------
    UserError
        Fewer training patients are without a label, or there is none.
    """
    store = FeatureStore(extract)
    store.check(config.probe.features)
    train = np.flatnonzero(store.keys["split"] == "train")
    if not len(train):
        raise UserError(
            f"{extract} has no training images, as of a set that a probe was judged on: run "
            f"'make extract-features DATASET=...' first"
        )
    settings = settings_to_cluster(store, config, train)
    _, encoded = store.encode(config.probe.features, settings, config.seed, train)
    keys = store.keys.iloc[train]
    patients = Patients(keys["subject_id"].to_numpy(str), encoded.images[train])
    is_labelled = np.zeros(len(patients.names), bool)
    if not among_all:
        known = keys.reindex(columns=["label", "target"]).notna().any(axis=1)
        is_labelled[patients.owner[known.to_numpy()]] = True
    free = int(np.count_nonzero(~is_labelled))
    if number is None:
        number = min(_USUAL, free) or 1
    if number > free:
        which = "" if among_all else " without a label"
        raise UserError(
            f"{counted(number, 'training patient')}{which} {'is' if number == 1 else 'are'} asked "
            f"for, and there are {free}; ask for fewer"
            + ("" if among_all else ", or for any (ALL=1, --all)")
        )
    chosen = suggest(patients.vectors, is_labelled, number, config.seed)
    first = patients.images_of(chosen)
    return pd.DataFrame(
        {
            "image_id": keys["image_id"].to_numpy()[first],
            "subject_id": patients.names[chosen],
            "row": train[first],
        }
    )
