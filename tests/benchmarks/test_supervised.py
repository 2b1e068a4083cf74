"""Networks on labels: they learn, on the images that they may, and start where they stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from medvq.config import Config, PhantomSource, PretrainConfig, ProbeConfig
from medvq.evaluation.label_subsets import draw_subset
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

import benchmarks.rivals as module
from benchmarks.rivals import (
    Classifier,
    LabelledImages,
    PretrainedClassifier,
    Recipe,
    Training,
    resnet,
)
from benchmarks.supervised import Cache, Rival, predict_all

SMALL = Recipe(size=16, epochs=5, batch_size=16, warmup_steps=2)
VIEWS = PretrainConfig()
CONFIG = Config(
    name="tiny",
    source=PhantomSource(kind="phantom"),
    probe=ProbeConfig(label_fraction=0.5, repeats=2, bootstrap=100),
)


def pictures(truth: NDArray[np.int64], seed: int) -> NDArray[np.uint8]:
    """Noise with a bright patch, in the upper half of images of class 1, else in the lower."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 90, (len(truth), 32, 32), np.uint8)
    for image, label in zip(images, truth, strict=True):
        row, column = rng.integers(2, 8), rng.integers(2, 22)
        row += 0 if label == 1 else 15
        image[row : row + 8, column : column + 8] = 230
    return images


def labelled(number: int, seed: int = 0) -> LabelledImages:
    truth = np.arange(number) % 2
    images = pictures(truth, seed)
    subjects = (np.arange(number) // 2 * 2 + truth).astype(str)
    return LabelledImages(images, images[None], images, truth, subjects)


def test_it_learns_what_tells_the_classes_and_is_calibrated() -> None:
    classifier = Training(resnet, labelled(80), SMALL, VIEWS, seed=0).fit()
    truth = np.arange(100) % 2
    predicted = classifier.predict(pictures(truth, seed=1))
    assert roc_auc_score(truth, predicted) > 0.9
    assert predicted.mean() == pytest.approx(0.5, abs=0.15)
    assert classifier.threshold == 0.5
    assert 1 <= classifier.best <= classifier.epochs == 5


def test_the_same_seed_gives_the_same_network() -> None:
    recipe, images = Recipe(size=16, epochs=1, batch_size=16), labelled(32)
    predicted = [
        Training(resnet, images, recipe, VIEWS, seed).fit().predict(images.images)
        for seed in (3, 3, 4)
    ]
    np.testing.assert_array_equal(predicted[0], predicted[1])
    assert not np.array_equal(predicted[0], predicted[2])


def test_a_new_network_is_trained_on_all_labels_for_the_best_number_of_epochs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = iter([0.1, 0.5, 0.3, 0.2, 0.4, 0.9, 0.9])
    monkeypatch.setattr(module, "selection_score", lambda *_: next(scores))
    recipe = Recipe(size=16, epochs=6, batch_size=16, patience=3)
    training = Training(resnet, labelled(32), recipe, VIEWS, seed=0)
    classifier = training.fit()
    assert (classifier.best, classifier.epochs) == (2, 5)
    for epoch, expected in training.epochs(np.arange(32), 6):
        network: Any = classifier.network
        same = torch.equal(network.fc.weight, expected.fc.weight)
        assert same == (epoch == 2)


def test_an_encoder_of_the_product_is_fine_tuned() -> None:
    config = PretrainConfig(encoder="efficientnet_lite0")

    def new_network() -> PretrainedClassifier:
        return PretrainedClassifier(config)

    recipe = Recipe(size=32, epochs=1, batch_size=16)
    training = Training(new_network, labelled(32), recipe, VIEWS, seed=0)
    torch.manual_seed(training.seed)
    before = new_network().state_dict()
    (_, trained), *_ = training.epochs(np.arange(32), 1)
    after = trained.state_dict()
    weights = [name for name in before if name.endswith("weight")]
    assert all(not torch.equal(before[name], after[name]) for name in weights)
    images = torch.rand(3, 1, 32, 32)
    with torch.inference_mode():
        network: Any = trained.eval()
        means = network.encoder(images).levels[-1].mean((2, 3))
        torch.testing.assert_close(network(images), network.head(means))


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [module.learning_rate_factor(step, 3, 13) for step in range(14)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert rates[8] == pytest.approx(0.5)
    assert rates[13] == pytest.approx(0, abs=1e-12)
    assert np.all(np.diff(rates[3:]) < 0)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """An ingest artifact whose images hold their own row number, copies 100 and 150 more."""
    subjects = np.arange(40)
    split = np.array(["train", "train", "train", "validation", "test"])[subjects % 5]
    manifest = pd.DataFrame(
        {
            "image_id": [f"image {n:02d}" for n in range(80)],
            "subject_id": np.repeat([f"subject {n}" for n in subjects], 2),
            "split": np.repeat(split, 2),
            "label": pd.array(np.repeat(subjects // 5 % 2, 2), "Int64"),
        }
    )
    manifest.loc[0, "label"] = pd.NA
    rows = np.arange(80, dtype=np.uint8)[:, None, None] * np.ones((32, 32), np.uint8)
    train = np.flatnonzero(manifest["split"] == "train")
    stored = np.flatnonzero(manifest["split"] != "test")
    np.save(tmp_path / "images.npy", rows)
    np.save(tmp_path / "swapped_training.npy", np.stack([rows[train] + 100] * 2))
    np.save(tmp_path / "swapped_validation.npy", rows[stored] + 150)
    return Cache(tmp_path, manifest, swaps=True)


def test_images_and_copies_are_of_the_rows_of_a_label_subset(cache: Cache) -> None:
    subset = cache.label_subsets(CONFIG)[1]
    known = np.flatnonzero((cache.manifest["split"] == "train") & cache.manifest["label"].notna())
    own = cache.manifest.iloc[known]
    expected = draw_subset(own["subject_id"].to_numpy(str), own["label"].to_numpy(int), 0.5, 1)
    np.testing.assert_array_equal(subset, known[expected])
    images = cache.labelled(subset)
    assert images.images[:, 0, 0].tolist() == subset.tolist()
    assert images.copies[:, :, 0, 0].tolist() == [(subset + 100).tolist()] * 2
    assert images.swapped is not None
    assert images.swapped[:, 0, 0].tolist() == (subset + 150).tolist()
    assert images.truth.tolist() == cache.manifest["label"].iloc[subset].tolist()
    alone = Cache(cache.folder, cache.manifest, swaps=False).labelled(subset)
    assert alone.swapped is None
    assert len(alone.copies) == 0


def test_a_study_goes_on_with_the_next_label_subset(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(size=16, epochs=1, batch_size=8, folds=2)
    rival = Rival(resnet, recipe)
    first = predict_all(cache, CONFIG, rival, tmp_path / "kept", "cpu")
    (tmp_path / "kept" / "subset-01.parquet").unlink()
    trained: list[int] = []
    fit = Training.fit

    def count(training: Training) -> Classifier:
        trained.append(len(training.labelled.truth))
        return fit(training)

    monkeypatch.setattr(Training, "fit", count)
    again = predict_all(cache, CONFIG, rival, tmp_path / "kept", "cpu")
    assert trained == [len(cache.label_subsets(CONFIG)[1])]
    for one, other in zip(first, again, strict=True):
        pd.testing.assert_frame_equal(one, other)
    test = cache.manifest[cache.manifest["split"] == "test"]
    assert first[0]["image_id"].tolist() == test["image_id"].tolist()
    assert first[0]["label"].tolist() == test["label"].tolist()
