"""The ResNet-18 on labels: it learns, on the images that it may, and starts where it stopped."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from medvq.config import Config, PhantomSource, PretrainConfig, ProbeConfig
from medvq.evaluation.label_subsets import draw_subset
from medvq.evaluation.tasks import Binary
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

import benchmarks.supervised as module
from benchmarks.supervised import METRICS, Cache, Labelled, Recipe, compared, draws_of, study, train

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


def labelled(number: int, seed: int = 0) -> Labelled:
    truth = np.arange(number) % 2
    images = pictures(truth, seed)
    subjects = (np.arange(number) // 2 * 2 + truth).astype(str)
    return Labelled(images, images[None], images, truth, subjects)


def test_it_learns_what_tells_the_classes_and_is_calibrated() -> None:
    classifier = train(labelled(80), SMALL, VIEWS, seed=0)
    unseen = np.arange(100) % 2
    said = classifier.predict(pictures(unseen, seed=1))
    assert roc_auc_score(unseen, said) > 0.9
    assert said.mean() == pytest.approx(0.5, abs=0.15)
    assert classifier.threshold == 0.5
    assert 1 <= classifier.best <= classifier.epochs == 5


def test_the_same_seed_gives_the_same_network() -> None:
    recipe = Recipe(size=16, epochs=1, batch_size=16)
    given = labelled(32)
    said = [train(given, recipe, VIEWS, seed).predict(given.images) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(said[0], said[1])
    assert not np.array_equal(said[0], said[2])


def test_the_best_epoch_by_held_out_images_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    merits = iter([0.1, 0.5, 0.3, 0.2, 0.4, 0.9, 0.9])
    networks: list[torch.Tensor] = []

    held_out = module._held_out

    def looked_at(network: torch.nn.Module, *more: Any) -> Any:
        networks.append(network.fc.weight.detach().clone())
        return held_out(network, *more)

    monkeypatch.setattr(module, "_held_out", looked_at)
    monkeypatch.setattr(module, "merit", lambda *_: next(merits))
    recipe = Recipe(size=16, epochs=6, batch_size=16, patience=3)
    classifier = train(labelled(32), recipe, VIEWS, seed=0)
    assert (classifier.best, classifier.epochs) == (2, 5)
    assert torch.equal(classifier.network.fc.weight, networks[1])
    assert not torch.equal(networks[1], networks[4])


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [module._rate(step, 3, 13) for step in range(14)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert rates[8] == pytest.approx(0.5)
    assert rates[13] == pytest.approx(0, abs=1e-12)
    assert np.all(np.diff(rates[3:]) < 0)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """An ingest artifact whose images hold their own row number, copies 100 more and 200 more."""
    subjects = np.arange(40)
    split = np.array(["train", "train", "train", "validation", "test"])[subjects % 5]
    manifest = pd.DataFrame(
        {
            "image_id": [f"image {n}" for n in range(80)],
            "subject_id": np.repeat([f"subject {n}" for n in subjects], 2),
            "split": np.repeat(split, 2),
            "label": pd.array(np.repeat(subjects // 5 % 2, 2), "Int64"),
        }
    )
    manifest.loc[0, "label"] = pd.NA
    rows = np.arange(80, dtype=np.uint8)[:, None, None] * np.ones((32, 32), np.uint8)
    train = np.flatnonzero(manifest["split"] == "train")
    kept = np.flatnonzero(manifest["split"] != "test")
    np.save(tmp_path / "images.npy", rows)
    np.save(tmp_path / "swapped_training.npy", np.stack([rows[train] + 100] * 2))
    np.save(tmp_path / "swapped_validation.npy", rows[kept] + 150)
    return Cache(tmp_path, manifest, swaps=True)


def test_images_and_copies_are_of_the_rows_that_were_drawn(cache: Cache) -> None:
    drawn = draws_of(cache, CONFIG)[1]
    known = np.flatnonzero((cache.manifest["split"] == "train") & cache.manifest["label"].notna())
    own = cache.manifest.iloc[known]
    expected = draw_subset(own["subject_id"].to_numpy(str), own["label"].to_numpy(int), 0.5, 1)
    np.testing.assert_array_equal(drawn, known[expected])
    given = cache.labelled(drawn)
    assert given.images[:, 0, 0].tolist() == drawn.tolist()
    assert given.copies[:, :, 0, 0].tolist() == [(drawn + 100).tolist()] * 2
    assert given.swapped is not None
    assert given.swapped[:, 0, 0].tolist() == (drawn + 150).tolist()
    assert given.truth.tolist() == cache.manifest["label"].iloc[drawn].tolist()
    alone = Cache(cache.folder, cache.manifest, swaps=False).labelled(drawn)
    assert alone.swapped is None
    assert len(alone.copies) == 0


def test_a_study_goes_on_with_the_next_draw(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(size=16, epochs=1, batch_size=8, folds=2)
    first = study(cache, CONFIG, recipe, tmp_path / "kept", "cpu")
    (tmp_path / "kept" / "draw-01.parquet").unlink()
    trained: list[int] = []

    def count(given: Labelled, *more: object) -> module.Classifier:
        trained.append(len(given.truth))
        return train(given, *more)

    monkeypatch.setattr(module, "train", count)
    again = study(cache, CONFIG, recipe, tmp_path / "kept", "cpu")
    assert trained == [len(draws_of(cache, CONFIG)[1])]
    for one, other in zip(first, again, strict=True):
        changing = ["seconds"]
        pd.testing.assert_frame_equal(one.drop(columns=changing), other.drop(columns=changing))
    assert set(first[0]["split"]) == {"test", "validation", "validation_swapped"}
    test = first[0].query("split == 'test'")
    of_test = cache.manifest[cache.manifest["split"] == "test"]
    assert test["image_id"].tolist() == of_test["image_id"].tolist()
    assert test["label"].tolist() == of_test["label"].tolist()


def test_the_lead_is_paired() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(60) % 2
    tables = [
        pd.DataFrame(
            {
                "split": "test",
                "image_id": np.arange(60),
                "subject_id": (np.arange(60) // 2).astype(str),
                "label": label,
                "probability": 0.3 * label + 0.7 * rng.random(60),
                "threshold": 0.5,
            }
        )
        for _ in range(2)
    ]
    ours = pd.concat(t.assign(features="medvq", draw=n) for n, t in enumerate(tables))
    own, lead = compared(ours, tables, CONFIG)
    for metric in METRICS:
        assert lead[metric] == {"mean": 0, "std": 0, "ci95": [0, 0]}
    expected = [
        Binary().evaluate(label, t["probability"].to_numpy(), 0.5, np.ones((1, 60))) for t in tables
    ]
    for metric in METRICS:
        mean = np.mean([values[metric][0] for values in expected])
        assert own[metric]["mean"] == pytest.approx(mean)
    worse = [t.assign(probability=1 - t["probability"]) for t in tables]
    _, lead = compared(ours, worse, CONFIG)
    assert lead["auroc"]["mean"] == pytest.approx(2 * own["auroc"]["mean"] - 1)
    assert lead["auroc"]["ci95"][0] > 0


def test_the_network_stands_beside_the_rows_of_its_own_share() -> None:
    def told(mean: float) -> dict[str, Any]:
        return {"mean": mean, "std": 0.0, "ci95": [mean - 0.01, mean + 0.01]}

    results, leads = [], []
    for share, ours, theirs in ((0.01, 0.9, 0.8), (1.0, 0.95, 0.93)):
        row = {"features": "medvq", "auroc": told(ours)}
        left_out = {"features": "hog", "auroc": told(0.5)}
        found = {"label_fraction": share, "labels": 7, "rows": [row, left_out]}
        results.append(module._beside(found, {"auroc": told(theirs)}))
        leads.append({"auroc": told(ours - theirs)})
    lines = module._by_fraction(results, leads)
    assert lines[-5] == "| features | 1% (7 images) | 100% (7 images) |"
    assert lines[-3:] == [
        "| medvq | 0.900 [0.890, 0.910] | 0.950 [0.940, 0.960] |",
        "| resnet18_scratch | 0.800 [0.790, 0.810] | 0.930 [0.920, 0.940] |",
        "| medvq less resnet18_scratch | +0.100 [+0.090, +0.110] | +0.020 [+0.010, +0.030] |",
    ]
