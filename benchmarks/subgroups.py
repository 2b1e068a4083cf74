"""A probe's predictions judged by subgroup: each kind of illness, each cluster of acquisition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from medvq.evaluation import metrics
from numpy.typing import NDArray

from benchmarks.other_labels import SUBTYPES, subtypes

FEATURES = ("medvq", "raw_pixels", "untrained_encoder")
_FEWEST = 10


def subgroups(
    test: pd.DataFrame, manifest: pd.DataFrame, clusters: pd.DataFrame
) -> dict[str, NDArray[np.bool_]]:
    """Which test images are of each subgroup.

    Each kind of pneumonia against all normal images, where file names tell the kind; and the images
    of each cluster of acquisition alone. Groups with fewer than ten images of a class are left out.

    Parameters
    ----------
    test : one row per test image, with ``image_id`` and ``label``.
    clusters : ``image_id`` and ``cluster`` of every image, as ingest found them.
    """
    kind = subtypes(manifest).reindex(test["image_id"]).to_numpy()
    cluster = clusters.set_index("image_id")["cluster"].reindex(test["image_id"]).to_numpy()
    normal = (test["label"] == 0).to_numpy()
    groups = {f"{name}, and all normal": normal | (kind == n) for n, name in enumerate(SUBTYPES)}
    groups |= {f"acquisition cluster {number}": cluster == number for number in np.unique(cluster)}
    label = test["label"].to_numpy()
    return {
        name: chosen
        for name, chosen in groups.items()
        if min(label[chosen].sum(), (1 - label[chosen]).sum()) >= _FEWEST
    }


def judge(
    predictions: pd.DataFrame,
    groups: Mapping[str, NDArray[np.bool_]],
    resamples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """For each subgroup how many images it has, and by feature set the metrics of its images.

    Subjects of the whole test split are resampled, so that a subgroup's size varies as it would.

    Parameters
    ----------
    predictions : of the stage ``probe``; rows of every draw in one order.
    groups : which of a draw's rows each has, in that order.
    """
    found: dict[str, dict[str, Any]]
    found = {name: {"images": int(chosen.sum())} for name, chosen in groups.items()}
    for features in FEATURES:
        own = predictions[predictions["features"] == features]
        draws = [draw for _, draw in own.groupby("draw")]
        for name, chosen in groups.items():
            found[name][features] = _judged(draws, chosen, resamples, seed)
    return found


def _judged(
    draws: list[pd.DataFrame], chosen: NDArray[np.bool_], resamples: int, seed: int
) -> dict[str, metrics.Interval]:
    truth = draws[0]["label"].to_numpy(np.int64)[chosen]
    weights = metrics.subject_weights(draws[0]["subject_id"].to_numpy(str), resamples, seed)
    repeats = metrics.draw_weights(len(draws), resamples, seed)

    def compute(number: int, given: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        said, threshold = draws[number]["probability"].to_numpy(), draws[number]["threshold"]
        return metrics.evaluate(truth, said[chosen], threshold.iloc[0], given)

    over = metrics.over_draws(compute, len(draws), weights[:, chosen])
    return {metric: metrics.interval(*values, repeats) for metric, values in over.items()}
