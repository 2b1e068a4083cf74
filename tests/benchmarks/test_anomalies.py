"""Scores of anomalies by the embedding: textbook values, and what each setting may see."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from medvq.errors import UserError
from medvq.stages.stage import RunOptions
from medvq.storage.feature_store import (
    FEATURES,
    SWAPPED,
    VERSIONS,
    FeatureStoreMetadata,
    StoreWriter,
)
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from benchmarks import anomalies
from benchmarks.prior.anomalies import (
    distance_to_neighbours,
    mahalanobis_distance,
    unlabelled_logit,
)
from benchmarks.study import Study


def test_distances_are_the_textbooks_of_the_standardised_reference() -> None:
    rng = np.random.default_rng(0)
    deviations = np.array([1.0, 2.0, 3.0])
    reference = rng.normal(size=(4000, 3)) * deviations
    point = np.array([[2.0, 2.0, 3.0]])
    assert mahalanobis_distance(reference, point)[0] == pytest.approx(6.0, rel=0.1)
    apart = (reference - point) / reference.std(0)
    expected = np.sort(np.linalg.norm(apart, axis=1))[:5].mean()
    assert distance_to_neighbours(reference, point)[0] == pytest.approx(expected)


def test_unlabelled_images_that_are_mostly_ill_are_nearly_labels() -> None:
    rng = np.random.default_rng(0)

    def draw(number: int, shift: float) -> np.ndarray:
        """The classes differ along one of twenty axes, so that distances hardly tell them."""
        return rng.normal(size=(number, 20)) + np.r_[shift, np.zeros(19)]

    normal, ill = draw(400, 0.0), draw(1200, 3.0)
    images, truth = np.concatenate([draw(300, 0.0), draw(300, 3.0)]), np.repeat([0, 1], 300)
    alone = roc_auc_score(truth, distance_to_neighbours(normal, images))
    logit = unlabelled_logit(normal, np.concatenate([normal, ill]), images)
    supervised = LogisticRegression().fit(
        np.concatenate([normal, ill]), np.repeat([0, 1], [len(normal), len(ill)])
    )
    assert alone < 0.85
    assert roc_auc_score(truth, logit) > 0.95
    assert roc_auc_score(truth, logit) == pytest.approx(
        roc_auc_score(truth, supervised.decision_function(images)), abs=0.03
    )
    # Without anything but normal images there is nothing to learn.
    nothing = roc_auc_score(truth, unlabelled_logit(normal, normal, images))
    assert nothing == pytest.approx(0.5, abs=0.1)


def write_store(folder: Path, classes: Sequence[str] = ("NORMAL", "PNEUMONIA")) -> None:
    """Write a store in which a finding moves the latent of one place, in as many ways as images."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    split = np.repeat(["train", "validation", "test"], 80)
    label = np.tile([0, 1], 120)
    latent = rng.normal(size=(240, 3, 2, 2))
    latent[label == 1, :, 0, 1] *= 6
    names = np.array([f"{image:03}" for image in range(240)])
    keys = pd.DataFrame({"image_id": names, "subject_id": names, "split": split, "label": label})
    columns = {"latent": latent.reshape(240, -1), "embedding": rng.normal(size=(240, 9))}
    arrays = {name: values.astype(np.float32) for name, values in columns.items()}
    metadata = FeatureStoreMetadata("m1", "data", [], 2, [*classes], "")
    with StoreWriter(folder / FEATURES, metadata) as writer:
        writer.write(keys, arrays)
    kept = split != "test"
    with StoreWriter(folder / VERSIONS, metadata) as writer:
        writer.write(
            keys[kept].assign(version=SWAPPED), {name: v[kept] for name, v in arrays.items()}
        )


def test_the_page_compares_places_with_whole_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = tmp_path / "store"
    write_store(store)
    options = RunOptions(tmp_path / "data", None, tmp_path / "artifacts", "cpu")
    study = Study("anomalies", "benchmark", "phantom", (), options, tmp_path / "results", True)
    anomalies.main(study, argparse.Namespace(stores=[store, store]))
    page, line = capsys.readouterr().out.splitlines()[-2:]
    figures = {row["figure"]: row["value"] for row in json.loads(line)["rows"]}
    places = figures["latent, each place among normal ones, training 2: AUROC, test"]
    assert places > 0.95
    assert 0.3 < figures["embedding, nearest neighbours, training 2: AUROC, test"] < 0.7
    assert f"| {places:.3f} [" in Path(page).read_text()


def test_two_scores_count_by_their_spread_among_normal_validation_images() -> None:
    is_ill = np.array([False, False, True])
    rows, subjects = np.arange(3), np.array(["a", "b", "c"])
    parts = {"validation": anomalies.Part(Path(), rows, is_ill, subjects)}
    one, other = np.array([0.0, 2.0, 9.0]), np.array([10.0, 30.0, 0.0])
    names = ("validation", "swapped", "test")
    found = anomalies.both(dict.fromkeys(names, one), dict.fromkeys(names, other), parts)
    # Of the two normal ones the deviations are 1 and 10.
    for name in names:
        assert found[name] == pytest.approx([0 + 1, 2 + 3, 9 + 0])


def test_a_set_without_normal_images_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path)
    parts = anomalies.read_parts(tmp_path)
    assert not parts["train"].is_ill.any()
    assert [len(parts[name].rows) for name in ("train", "validation", "swapped")] == [40, 80, 80]
    write_store(tmp_path / "other", ["A", "B"])
    with pytest.raises(UserError, match="no class is named NORMAL"):
        anomalies.read_parts(tmp_path / "other")
