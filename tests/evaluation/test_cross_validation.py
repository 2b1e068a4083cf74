"""Cross-validation by subject: who is fitted on, who is judged, and what comes out."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from medvq.config import ProbeConfig
from medvq.errors import UserError
from medvq.evaluation.cross_validation import CrossValidationJudge
from medvq.evaluation.label_subsets import partition_subjects
from medvq.evaluation.probing import FeatureSetResult
from medvq.method.probe import ProbeFeatures
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

SETTINGS: dict[str, Any] = {
    "evaluate": "cross_validation", "label_fraction": 0.6, "repeats": 3, "outer_folds": 4,
    "folds": 2, "regularisation": (1e-2,), "bootstrap": 200,
}  # fmt: skip


def labelled_keys(subjects: int = 60) -> pd.DataFrame:
    """Return keys of one to three images of each subject, a third of class 1, some unlabelled."""
    rng = np.random.default_rng(0)
    owner = rng.permutation(np.repeat(np.arange(subjects), rng.integers(1, 4, subjects)))
    label = pd.array(owner % 3 == 0, dtype="Int64")
    label[owner % 20 == 7] = pd.NA
    return pd.DataFrame(
        {
            "image_id": [f"image {number}" for number in range(len(owner))],
            "subject_id": [f"subject {number}" for number in owner],
            "split": np.array(["train", "train", "validation", "test"])[owner % 4],
            "label": label,
        }
    )


def judge_of(keys: pd.DataFrame, seed: int = 0, **changes: Any) -> CrossValidationJudge:
    return CrossValidationJudge(keys, ["well", "ill"], ProbeConfig(**SETTINGS | changes), seed)


def judged(keys: pd.DataFrame, images: NDArray[Any], **changes: Any) -> FeatureSetResult:
    config = ProbeConfig(**SETTINGS | changes)
    return judge_of(keys, **changes).judge("set", ProbeFeatures(images, [], None), config)


def noise(keys: pd.DataFrame, signal: float) -> NDArray[np.float64]:
    rng = np.random.default_rng(1)
    truth = np.where(keys["label"].fillna(0) == 1, 1.0, -1.0)
    return rng.normal(size=(len(keys), 4)) + signal * truth[:, None]


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_no_subject_is_on_both_sides_and_every_labelled_image_is_judged(fraction: float) -> None:
    keys = labelled_keys()
    judge = judge_of(keys, label_fraction=fraction)
    labelled = np.flatnonzero(keys["label"].notna())
    subjects = keys["subject_id"].to_numpy()
    assert len(judge.partitions) == 3
    for folds in judge.partitions:
        assert sorted(np.concatenate([fold.judged for fold in folds])) == labelled.tolist()
        for fold in folds:
            assert not set(subjects[fold.fitted]) & set(subjects[fold.judged])
            assert set(fold.fitted) <= set(labelled)
            if fraction == 1:
                assert len(fold.fitted) + len(fold.judged) == len(labelled)
    first = [judge.partitions[repeat][0].judged.tolist() for repeat in range(3)]
    assert first[0] != first[1] != first[2]


def test_a_fold_has_its_share_of_the_subjects_of_each_class() -> None:
    rng = np.random.default_rng(2)
    for folds in range(2, 8):
        owner = rng.permutation(np.repeat(np.arange(31), 2))
        labels, names = (owner % 4 == 0).astype(np.int64), owner.astype(str)
        parts = partition_subjects(names, labels, folds, (0, 1))
        assert sorted(np.concatenate(parts)) == list(range(len(owner)))
        for label in (0, 1):
            counts = [len({owner[row] for row in part if labels[row] == label}) for part in parts]
            assert max(counts) - min(counts) <= 1
        sizes = [len(set(owner[part])) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_folds_do_not_depend_on_the_names_of_subjects() -> None:
    keys = labelled_keys()
    renamed = keys.assign(subject_id=[name[::-1] for name in keys["subject_id"]])
    for own, other in zip(judge_of(keys).subsets, judge_of(renamed).subsets, strict=True):
        assert own.tolist() == other.tolist()


def test_what_tells_the_class_is_right_and_noise_is_chance() -> None:
    keys = labelled_keys()
    best = judged(keys, noise(keys, 8.0)).row.metrics["auroc"]
    assert (best.mean, best.ci95) == (1.0, (1.0, 1.0))
    low, high = judged(keys, noise(keys, 0.0)).row.metrics["auroc"].ci95
    assert low < 0.5 < high


def test_metrics_are_those_of_scikit_learn() -> None:
    keys = labelled_keys()
    judge = judge_of(keys)
    result = judged(keys, noise(keys, 0.3))
    tables = [table for _, table in result.predictions.groupby("label_subset")]
    rank: dict[str, list[float]] = {"auroc": [], "auprc": []}
    balanced = []
    for table, folds in zip(tables, judge.partitions, strict=True):
        assert table["image_id"].tolist() == keys["image_id"][keys["label"].notna()].tolist()
        assert table["threshold"].nunique() > 1
        called = table["probability"] >= table["threshold"]
        balanced.append(balanced_accuracy_score(table["label"].astype(int), called))
        parts = [table[table["image_id"].isin(keys["image_id"].iloc[f.judged])] for f in folds]
        for name, score in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
            of_folds = [score(part["label"].astype(int), part["probability"]) for part in parts]
            rank[name].append(float(np.mean(of_folds)))
    for name, values in (*rank.items(), ("balanced_accuracy", balanced)):
        assert result.metrics[name].cells[0] == pytest.approx(values)
        assert result.row.metrics[name].mean == pytest.approx(np.mean(values))


def test_a_resample_without_a_class_in_a_fold_counts_the_other_folds() -> None:
    keys = labelled_keys(24)
    auroc = judged(keys, noise(keys, 0.3), outer_folds=3).metrics["auroc"]
    assert np.isfinite(auroc.resampled).mean() > 0.99


def test_features_of_other_versions_take_no_part() -> None:
    keys = labelled_keys()
    images = noise(keys, 0.3)
    config = ProbeConfig(**SETTINGS)
    broken = ProbeFeatures(images, [np.full_like(images, np.nan)], np.full_like(images, np.nan))
    own = judge_of(keys).judge("set", broken, config)
    pd.testing.assert_frame_equal(own.predictions, judged(keys, images).predictions)
    assert own.row.validation is None


def test_a_label_changes_no_prediction_of_its_subject() -> None:
    keys = labelled_keys()
    images = noise(keys, 0.3)
    judge, changed = judge_of(keys), judge_of(keys)
    fold = judge.partitions[0][0]
    changed.data.truth[fold.judged] = 1 - changed.data.truth[fold.judged]
    config, features = ProbeConfig(**SETTINGS), ProbeFeatures(images, [], None)
    before, after = (j.judge("set", features, config).predictions for j in (judge, changed))
    first = [
        table.query("label_subset == 0")["probability"].to_numpy() for table in (before, after)
    ]
    assert first[0][fold.positions].tolist() == first[1][fold.positions].tolist()
    assert first[0].tolist() != first[1].tolist()


def test_the_same_seed_gives_the_same_bits_and_another_one_others() -> None:
    keys = labelled_keys()
    images = noise(keys, 0.3)
    one, two = judged(keys, images), judged(keys, images)
    assert one.row == two.row
    pd.testing.assert_frame_equal(one.predictions, two.predictions, check_exact=True)
    assert judge_of(keys, 1).subsets[0].tolist() != judge_of(keys).subsets[0].tolist()


def test_differences_are_paired() -> None:
    keys = labelled_keys()
    judge, config = judge_of(keys), ProbeConfig(**SETTINGS)
    good, bad = (
        judge.judge("set", ProbeFeatures(noise(keys, s), [], None), config) for s in (1.0, 0.0)
    )
    assert judge.difference(good, good).ci95 == (0.0, 0.0)
    gap = judge.difference(good, bad)
    assert gap.mean == pytest.approx(good.row.metrics["auroc"].mean - bad.row.metrics["auroc"].mean)
    assert 0 < gap.ci95[0] < gap.mean < gap.ci95[1]


def test_a_class_may_be_missing_from_the_test_split() -> None:
    keys = labelled_keys()
    keys.loc[(keys["split"] == "test") & (keys["label"] == 1), "split"] = "train"
    assert judged(keys, noise(keys, 8.0)).row.metrics["auroc"].mean == 1.0


def test_a_class_with_fewer_subjects_than_folds_is_refused() -> None:
    keys = labelled_keys()
    ill = keys.loc[keys["label"] == 1, "subject_id"].unique()
    few = keys[(keys["label"] != 1) | keys["subject_id"].isin(ill[:3])]
    message = (
        r"class 'ill' has 3 labelled subjects .*, fewer than probe\.outer_folds=4: set "
        r"probe\.outer_folds=3 or fewer, label more"
    )
    with pytest.raises(UserError, match=message):
        judge_of(few.reset_index(drop=True))
