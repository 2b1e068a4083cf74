"""Feature stores under other labels, and a probe's predictions by subgroup."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from medvq.storage.artifacts import Artifact, find
from medvq.storage.feature_store import (
    FEATURES,
    VERSIONS,
    StoreWriter,
    read_feature,
    read_keys,
    read_metadata,
)
from sklearn.metrics import recall_score, roc_auc_score

from benchmarks.other_labels import relabelled, shuffled, subtypes
from benchmarks.subgroups import FEATURES as COMPARED
from benchmarks.subgroups import judge, subgroups

SUBJECTS = 200
PATHS = ("test/NORMAL/IM-0001-0001.jpeg", "a/person2_virus_4.jpeg", "BACTERIA-9-0001.jpeg", "x.png")


@pytest.fixture
def keys() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    subject = rng.permutation(np.repeat(np.arange(SUBJECTS), rng.integers(1, 4, SUBJECTS)))
    label = pd.Series(np.arange(SUBJECTS) % 3 > 0).astype("Int64")
    label[:10] = pd.NA
    return pd.DataFrame(
        {
            "image_id": [f"image {number}" for number in range(len(subject))],
            "subject_id": [f"subject {number}" for number in subject],
            "split": np.where(subject % 4 > 0, "train", "test"),
            "label": label[subject].array,
        }
    )


def test_labels_are_dealt_over_subjects(keys: pd.DataFrame) -> None:
    dealt = shuffled(keys, seed=0)
    known = keys.dropna(subset="label").set_index("image_id")
    assert dealt.index.tolist() == known.index.tolist()
    by_subject = dealt.groupby(known["subject_id"])
    assert (by_subject.nunique() == 1).all()
    before = known.groupby("subject_id")["label"].first()
    assert by_subject.first().value_counts().to_dict() == before.value_counts().to_dict()
    # Of two thirds positives two dealings agree on 5 of 9 subjects; 190 deviate by 0.036.
    agree = (by_subject.first() == before).mean()
    assert agree == pytest.approx(5 / 9, abs=0.11)
    pd.testing.assert_series_equal(dealt, shuffled(keys, seed=0))
    assert not dealt.equals(shuffled(keys, seed=1))


def test_subtypes_are_in_the_file_names() -> None:
    manifest = pd.DataFrame({"image_id": list("abcd"), "path": PATHS})
    assert subtypes(manifest).to_dict() == {"b": 1, "c": 0}


def test_a_relabelled_store_differs_in_its_labels_alone(keys: pd.DataFrame, tmp_path: Path) -> None:
    folder = tmp_path / "artifacts" / "tiny" / "extract" / "first"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    made = {
        "codes_0": rng.integers(0, 9, (len(keys), 4)).astype(np.uint16),
        "embedding": rng.normal(size=(len(keys), 3)).astype(np.float32),
    }
    for name in (FEATURES, VERSIONS):
        with StoreWriter(folder / name, {"classes": ["no", "yes"], "grid": 4}) as writer:
            for rows in np.array_split(np.arange(len(keys)), 3):
                writer.write(keys.iloc[rows], {k: v[rows] for k, v in made.items()})
    first = Artifact(folder, {"fingerprint": "first", "inputs": {"ingest": "of ingest"}})
    labels = pd.Series([1, 0, 1], index=["image 5", "image 2", "image 7"])
    other = relabelled(first, labels, ("a", "b"), tmp_path / "artifacts" / "tiny-other")
    assert relabelled(first, labels, ("a", "b"), tmp_path / "artifacts" / "tiny-other") == other
    assert other.record["inputs"] == {"ingest": "of ingest", "extract": "first"}
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "artifacts", moved)
    store = moved / "tiny-other" / "extract" / other.folder.name
    assert find(store) is not None
    found = read_keys(store / FEATURES)
    known = found.dropna(subset="label").set_index("image_id")["label"]
    assert known.to_dict() == {"image 2": 0, "image 5": 1, "image 7": 1}
    assert found["subject_id"].tolist() == keys["subject_id"].tolist()
    assert read_metadata(store / FEATURES) == {"classes": ["a", "b"], "grid": 4}
    for table in (FEATURES, VERSIONS):
        for name, values in made.items():
            read = read_feature(store / table, name)
            assert read.dtype == values.dtype
            np.testing.assert_array_equal(read, values)


@pytest.fixture
def predictions() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    label = np.arange(80) % 2
    parts = [
        pd.DataFrame(
            {
                "features": features,
                "draw": draw,
                "image_id": [f"image {n}" for n in range(80)],
                "subject_id": [f"subject {n // 2}" for n in range(80)],
                "label": label,
                "probability": 0.2 * label + 0.8 * rng.random(80),
                "threshold": 0.6,
            }
        )
        for features in COMPARED
        for draw in range(2)
    ]
    return pd.concat(parts, ignore_index=True)


def test_subgroups_are_kinds_of_illness_and_clusters(predictions: pd.DataFrame) -> None:
    test = predictions.query("features == 'medvq' and draw == 0")
    positive = (test["label"] == 1).to_numpy()
    kinds = np.where(np.arange(80) % 4 == 1, "person1_virus_1.jpeg", "person1_bacteria_1.jpeg")
    manifest = test[["image_id"]].assign(path=np.where(positive, kinds, "IM-0001-0001.jpeg"))
    # The last cluster has images of one class only.
    cluster = np.where(np.arange(80) < 60, np.arange(80) // 30, 2 + positive)
    clusters = test[["image_id"]].assign(cluster=cluster)[::-1]
    found = subgroups(test, manifest[::-1], clusters)
    assert {name: chosen.sum() for name, chosen in found.items()} == {
        "bacteria, and all normal": 60,
        "virus, and all normal": 60,
        "acquisition cluster 0": 30,
        "acquisition cluster 1": 30,
    }
    assert np.flatnonzero(found["acquisition cluster 1"]).tolist() == list(range(30, 60))
    virus = found["virus, and all normal"] & positive
    assert np.flatnonzero(virus).tolist() == list(range(1, 80, 4))


def test_a_subgroup_is_judged_by_its_own_images(predictions: pd.DataFrame) -> None:
    chosen = np.arange(80) < 50
    (found,) = judge(predictions, {"first": chosen}, 100, 0).values()
    assert found["images"] == 50
    for features in COMPARED:
        own = predictions[predictions["features"] == features]
        parts = [draw[chosen] for _, draw in own.groupby("draw")]
        aurocs = [roc_auc_score(p["label"], p["probability"]) for p in parts]
        assert found[features]["auroc"]["mean"] == pytest.approx(np.mean(aurocs))
        recalls = [recall_score(p["label"], p["probability"] >= 0.6) for p in parts]
        assert found[features]["sensitivity"]["mean"] == pytest.approx(np.mean(recalls))
