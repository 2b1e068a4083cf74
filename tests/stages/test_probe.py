"""The stage on a synthetic store, where one feature set tells the class and the others nothing."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from factories.stores import (
    SUBJECTS,
    random_features,
    rewrite,
    store_keys,
    write_features,
    write_store,
)
from medvq.config import Config, PhantomSource, ProbeConfig
from medvq.errors import UserError
from medvq.method.probe import fit_probe
from medvq.report.probe_figures import draw_probe
from medvq.stages.probe import BASELINES, MEDVQ, PROBE
from medvq.storage.artifacts import Artifact, StageContext
from medvq.storage.feature_store import FEATURES, SWAPPED, VERSIONS, StoreWriter, read_metadata
from medvq.storage.mlflow_model import ServedProbe
from medvq.storage.probe_file import FILE, load_probe
from medvq.summaries import ProbeRow, ProbeSummary
from medvq.tracked_runs import tracked_name
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

ORDER = [MEDVQ, *BASELINES, "histogram", "pyramid", "quantized", "latent", "embedding"]
METRICS = (
    "auroc", "auprc", "balanced_accuracy", "accuracy", "sensitivity", "specificity", "brier", "ece",
    "sensitivity_at_90_specificity", "sensitivity_at_95_specificity", "prevalence_prior_shift",
    "brier_prior_shift", "ece_prior_shift",
)  # fmt: skip
SETTINGS: dict[str, Any] = {
    "label_fraction": 0.4, "repeats": 3, "folds": 2, "regularisation": (1e-4, 1e-2),
    "components": 6, "bootstrap": 200,
}  # fmt: skip


@dataclass(frozen=True)
class Probed:
    """What a run returned, wrote and reported."""

    summary: ProbeSummary
    folder: Path
    predictions: pd.DataFrame
    reported: list[tuple[int, dict[str, float]]]

    def row(self, name: str = MEDVQ) -> ProbeRow:
        (row,) = (row for row in self.summary.rows if row.features == name)
        return row

    def mean(self, metric: str, name: str = MEDVQ) -> float:
        return self.row(name).metrics[metric].mean

    def of(self, name: str = MEDVQ) -> pd.DataFrame:
        return self.predictions[self.predictions["features"] == name]

    def counts(self) -> tuple[int, int, int]:
        return self.summary.labels, self.summary.subjects, self.summary.repeats


def run(store: Artifact, folder: Path, **changes: Any) -> Probed:
    reported: list[tuple[int, dict[str, float]]] = []
    config = Config(
        name="tiny", source=PhantomSource(kind="phantom"), probe=ProbeConfig(**SETTINGS | changes)
    )
    context = StageContext(
        config,
        folder,
        {"extract": store},
        Path("none"),
        None,
        report=lambda values, step: reported.append((step, values)),
    )
    summary = PROBE.run(context)
    return Probed(summary, folder, pd.read_parquet(folder / "predictions.parquet"), reported)


@pytest.fixture(scope="module")
def keys() -> pd.DataFrame:
    return store_keys()


@pytest.fixture(scope="module")
def store(keys: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_store(tmp_path_factory.mktemp("store"), keys)


@pytest.fixture(scope="module")
def probed(store: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Probed:
    return run(store, tmp_path_factory.mktemp("probe"))


def test_rows_are_in_the_order_of_the_contract(probed: Probed) -> None:
    values = probed.summary.to_json()
    assert json.loads((probed.folder / "metrics.json").read_text()) == json.loads(
        json.dumps(values)
    )
    assert ProbeSummary.from_json(values) == probed.summary
    assert (values["task"], values["headline"]) == ("binary", "auroc")
    assert [row["features"] for row in values["rows"]] == ORDER
    for row in values["rows"]:
        assert set(row) == {"features", "validation", *METRICS}
        for metric in METRICS:
            assert set(row[metric]) == {"mean", "std", "ci95"}


def test_counts_are_those_of_the_label_subsets(
    probed: Probed, store: Artifact, tmp_path: Path
) -> None:
    # 40% of 20 and of 40 subjects, two images each.
    assert probed.counts() == (48, 24, 3)
    everything = run(store, tmp_path, label_fraction=1.0)
    assert everything.counts() == (120, 60, 1)
    assert set(everything.predictions["label_subset"]) == {0}
    assert {row.metrics["auroc"].std for row in everything.summary.rows} == {0}


def test_parts_of_the_labels_end_with_the_label_subsets(probed: Probed) -> None:
    found = probed.summary.label_scores
    assert found is not None
    assert found.labels == sorted(found.labels)
    assert found.labels[-1] == probed.summary.labels
    assert np.shape(found.scores) == (probed.summary.repeats, len(found.labels))
    assert np.mean(found.scores, 0)[-1] == pytest.approx(probed.mean("auroc"))


def test_what_tells_the_class_wins_and_noise_is_chance(probed: Probed) -> None:
    assert probed.mean("auroc") > 0.95
    assert probed.row().metrics == probed.row("embedding").metrics
    for name in (*BASELINES, "histogram", "pyramid", "quantized", "latent"):
        # An AUROC of noise on 80 images deviates by 0.07.
        assert probed.mean("auroc", name) == pytest.approx(0.5, abs=0.2)
        highest = probed.row(name).metrics["auroc"].ci95[1]
        assert highest < probed.row().metrics["auroc"].ci95[0]


def test_a_saved_probe_of_one_answer_is_told(
    keys: pd.DataFrame, probed: Probed, tmp_path: Path
) -> None:
    features = random_features(np.zeros((len(keys), 1)), np.random.default_rng(1))
    (tmp_path / "store").mkdir()
    blind = run(write_features(tmp_path / "store", keys, features), tmp_path, repeats=1)
    assert np.ptp(blind.of()["probability"]) < 1e-3
    assert (blind.summary.constant, probed.summary.constant) == (True, False)
    for one, told in ((blind, 1), (probed, 0)):
        assert str(PROBE.table(one.summary)).count("hardly tells images apart") == told


def test_baselines_choose_from_larger_c_besides(
    store: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[tuple[float, ...]] = []

    def fit(*arguments: Any) -> Any:
        offered.append(arguments[4].regularisation)
        return fit_probe(*arguments)

    monkeypatch.setattr("medvq.evaluation.probing.fit_probe", fit)
    # It fits more probes of one feature set, on parts of the labels.
    monkeypatch.setattr("medvq.evaluation.probing.ProbeJudge.label_scores", lambda *_: None)
    rows = run(store, tmp_path, repeats=1, larger_for_baselines=(2.0, 50.0)).summary.rows
    fitted = [row.features for row in rows if row.features != "embedding"]
    for name, values in zip(fitted, offered, strict=True):
        larger = (0.02, 0.5) if name in BASELINES else ()
        assert values == pytest.approx((1e-4, 1e-2, *larger))
    assert {MEDVQ, *BASELINES, "quantized"} <= set(fitted)


def test_paired_differences_bracket_their_mean(probed: Probed) -> None:
    assert list(probed.summary.medvq_minus) == list(BASELINES)
    for name, gap in probed.summary.medvq_minus.items():
        assert gap.mean == pytest.approx(probed.mean("auroc") - probed.mean("auroc", name))
        assert 0 < gap.ci95[0] < gap.mean < gap.ci95[1]


def test_predictions_reproduce_the_metrics(probed: Probed, keys: pd.DataFrame) -> None:
    scores = {
        "auroc": roc_auc_score,
        "auprc": average_precision_score,
        "brier": brier_score_loss,
    }
    test = keys[keys["split"] == "test"]
    for name in ORDER:
        subsets = [subset for _, subset in probed.of(name).groupby("label_subset")]
        assert len(subsets) == 3
        for subset in subsets:
            for column in ("image_id", "subject_id", "label"):
                assert subset[column].tolist() == test[column].tolist()
        for metric, compute in scores.items():
            values = [compute(subset["label"], subset["probability"]) for subset in subsets]
            assert probed.mean(metric, name) == pytest.approx(np.mean(values))
            deviation = probed.row(name).metrics[metric].std
            assert deviation == pytest.approx(np.std(values, ddof=1))


def test_thresholds_are_the_prevalence_of_the_labels(probed: Probed) -> None:
    # 40% of 20 and of 40 subjects of two images each: every subset has as many of either.
    assert set(probed.predictions["threshold"]) == {32 / 48} == {probed.summary.threshold}
    medvq = probed.of()
    correct = (medvq["probability"] >= medvq["threshold"]) == (medvq["label"] == 1)
    assert correct.mean() == pytest.approx(probed.mean("accuracy"))


def test_validation_scores_weigh_clean_and_swapped(probed: Probed) -> None:
    for row in probed.summary.rows:
        assert row.validation is not None
        assert row.validation.swapped is not None
        mixed = 0.75 * row.validation.clean + 0.25 * row.validation.swapped
        assert row.validation.score == pytest.approx(mixed)
        if row.features == MEDVQ:
            assert min(row.validation.clean, row.validation.swapped) > 0.95


def test_each_label_subset_is_reported(probed: Probed) -> None:
    assert [step for step, _ in probed.reported] == [0, 1, 2]
    for metric in METRICS:
        name = tracked_name(metric, probed.summary.headline)
        mean = np.mean([values[name] for _, values in probed.reported])
        assert probed.mean(metric) == pytest.approx(mean)


@pytest.mark.parametrize("features", [("embedding", "latent"), ("pyramid",)])
def test_the_saved_probe_goes_from_the_table_of_features_to_probabilities(
    store: Artifact, tmp_path: Path, keys: pd.DataFrame, features: tuple[str, ...]
) -> None:
    probed = run(store, tmp_path, features=features)
    table = pd.read_parquet(store.folder / FEATURES)[keys["split"] == "test"]
    probability = load_probe(tmp_path).predict_proba(table)[:, 1]
    first = probed.of().query("label_subset == 0")["probability"]
    np.testing.assert_allclose(probability, first, rtol=1e-6)


@pytest.mark.parametrize("name", ["latent", "raw_pixels"])
def test_a_feature_set_has_the_same_row_whether_it_is_medvqs_or_not(
    store: Artifact, probed: Probed, tmp_path: Path, name: str
) -> None:
    """A feature set that is all of MedVQ's is judged once, and has its row all the same."""
    assert probed.row().metrics != probed.row(name).metrics
    again = run(store, tmp_path, features=(name,))
    assert again.row(name) == probed.row(name)
    assert again.row().metrics == probed.row(name).metrics
    pd.testing.assert_series_equal(
        again.of()["probability"],
        again.of(name)["probability"],
        check_index=False,
        check_exact=True,
    )
    if name in BASELINES:
        assert again.summary.medvq_minus[name].mean == 0.0


def test_labels_of_test_images_change_no_prediction(
    probed: Probed, keys: pd.DataFrame, tmp_path: Path, store: Artifact
) -> None:
    flipped = keys["label"].where(keys["split"] != "test", 1 - keys["label"])
    for table in (FEATURES, VERSIONS):
        rewrite(store.folder / table, tmp_path / table, label=flipped.set_axis(keys["image_id"]))
    again = run(Artifact(tmp_path, store.record), tmp_path)
    assert again.predictions["label"].tolist() == (1 - probed.predictions["label"]).tolist()
    pd.testing.assert_series_equal(
        again.predictions["probability"], probed.predictions["probability"], check_exact=True
    )
    assert again.mean("auroc") == pytest.approx(1 - probed.mean("auroc"))


def test_the_same_again_is_the_same(store: Artifact, probed: Probed, tmp_path: Path) -> None:
    again = run(store, tmp_path)
    assert again.summary == probed.summary
    pd.testing.assert_frame_equal(again.predictions, probed.predictions, check_exact=True)
    assert (again.folder / FILE).read_bytes() == (probed.folder / FILE).read_bytes()


def test_components_are_no_more_than_the_training_images_can_have(tmp_path: Path) -> None:
    keys = store_keys()
    few = set(keys.loc[keys["split"] == "train", "subject_id"].drop_duplicates()[:12])
    keys = keys[(keys["split"] != "train") | keys["subject_id"].isin(few)].reset_index(drop=True)
    rng = np.random.default_rng(0)
    signal = np.zeros((len(keys), 1))
    store = write_features(tmp_path, keys, random_features(signal, rng))
    rows = np.flatnonzero(keys["split"] != "test")
    with StoreWriter(tmp_path / VERSIONS, read_metadata(tmp_path / FEATURES)) as writer:
        writer.write(keys.iloc[rows].assign(version=SWAPPED), random_features(signal[rows], rng))
    stored = tuple(name for name in BASELINES if name not in {"frozen_imagenet", "external"})
    probed = run(store, tmp_path, label_fraction=1.0, components=256, features=stored)
    assert probed.summary.labels == 24


def test_whitening_is_of_medvqs_features_and_not_of_baselines(
    store: Artifact, probed: Probed, tmp_path: Path
) -> None:
    whitened = run(store, tmp_path, whitening=1.0)
    for name in BASELINES:
        assert whitened.row(name) == probed.row(name)
    for name in (MEDVQ, "embedding", "pyramid"):
        assert whitened.row(name).metrics["brier"] != probed.row(name).metrics["brier"]
    # What the classes differ in stays; the versions of this store are noise in all directions.
    assert whitened.mean("auroc") == pytest.approx(probed.mean("auroc"), abs=0.03)


def test_whitening_needs_random_versions(tmp_path: Path) -> None:
    keys = store_keys()
    signal = np.zeros((len(keys), 1))
    store = write_features(tmp_path, keys, random_features(signal, np.random.default_rng(0)))
    with pytest.raises(UserError, match=r"set extract\.versions above 0"):
        run(store, tmp_path, whitening=1.0)


def test_features_that_are_not_there_are_refused(store: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it holds: codes_0, "):
        run(store, tmp_path, features=("latent_9",))


@pytest.mark.parametrize(
    ("chosen", "label", "message"),
    [
        ("test", 1, "the test split has images of one class only"),
        (None, None, "neither labels nor a number to predict"),
        (None, 0, "needs two classes; this data set has 1"),
    ],
)
def test_truth_that_cannot_be_predicted_is_refused(
    tmp_path: Path, chosen: str | None, label: int | None, message: str
) -> None:
    keys = store_keys()
    keys["label"] = keys["label"].astype("Int64")
    keys.loc[(keys["split"] == chosen) | (chosen is None), "label"] = label
    with pytest.raises(UserError, match=message):
        run(simple_store(tmp_path, keys), tmp_path)


def simple_store(folder: Path, keys: pd.DataFrame) -> Artifact:
    """A store without versions and borders, whose ``embedding`` tells the truth."""
    truth = np.asarray(keys["target"] if "target" in keys else keys["label"].fillna(0), float)
    signal = np.zeros((len(keys), 8))
    if keys["label"].nunique() > 2:
        signal[:, :3] = 4 * np.eye(3)[truth.astype(int)]
    else:
        signal[:, 0] = 5 * (truth - truth.mean())
    features = random_features(signal, np.random.default_rng(0))
    del features["border_only"]
    return write_features(folder, keys, features, classes=["a", "b", "c"], target="age")


def test_three_classes_have_rows_by_accuracy_and_the_recall_of_each(tmp_path: Path) -> None:
    label = np.random.default_rng(3).integers(0, 3, 2 * sum(SUBJECTS.values()))
    probed = run(simple_store(tmp_path, store_keys(label=label)), tmp_path)
    assert [row.features for row in probed.summary.rows] == [
        name for name in ORDER if name != "border_only"
    ]
    assert (probed.summary.headline, probed.summary.task) == ("accuracy", "multiclass")
    row = probed.row()
    assert set(row.metrics) == {"auroc", "auprc", "balanced_accuracy", "accuracy", "brier", "ece"}
    assert probed.mean("accuracy") > 0.8 > 0.55 > probed.mean("accuracy", "raw_pixels")
    assert row.validation is not None
    assert (row.validation.swapped, row.validation.score) == (None, row.validation.clean)
    correct = probed.of()["label"] == probed.of()["predicted"]
    assert correct.mean() == pytest.approx(probed.mean("accuracy"))
    assert row.recall is not None
    for number, name in enumerate("abc"):
        share = correct[probed.of()["label"] == number].mean()
        assert share == pytest.approx(row.recall[name])


def test_a_number_has_rows_by_the_explained_share_of_the_variance(tmp_path: Path) -> None:
    target = np.random.default_rng(4).normal(60, 10, 2 * sum(SUBJECTS.values()))
    store = simple_store(tmp_path, store_keys(label=None, target=target))
    probed = run(store, tmp_path, regularisation=(1.0,), components=8)
    assert (probed.summary.headline, probed.summary.task) == ("r2", "age")
    # The data set has classes, too, which the probe knows nothing of.
    assert probed.summary.classes == []
    served = ServedProbe(tmp_path, ["a", "b", "c"])
    table = served.predict(pd.read_parquet(store.folder / FEATURES))
    assert served.outputs == ["prediction"] == list(table)
    assert set(probed.row().metrics) == {"r2", "mae"}
    assert probed.mean("r2") > 0.95 > 0.3 > probed.mean("r2", "hog")
    error = (probed.of()["target"] - probed.of()["predicted"]).abs().mean()
    assert probed.mean("mae") == pytest.approx(error)


def test_official_folds_are_the_label_subsets(tmp_path: Path) -> None:
    keys = store_keys()
    train, validation = (np.flatnonzero(keys["split"] == s) for s in ("train", "validation"))
    folds = np.full(len(keys), "", dtype=object)
    # Published folds know nothing of our validation part: ten of its images are in one.
    folds[train[:30]], folds[train[20:30]], folds[train[30:60]] = "0", "0 1", "1"
    folds[validation[:10]] = "0"
    store = simple_store(tmp_path, keys.assign(folds=folds))
    share = 40 / (2 * (SUBJECTS["train"] + SUBJECTS["validation"]))
    probed = run(store, tmp_path, label_subsets="official", label_fraction=share)
    assert (probed.summary.labels, probed.summary.repeats) == (40, 2)
    with pytest.raises(UserError, match=r"hold 26% of the labels; LABEL_FRACTION=0\.5 needs"):
        run(store, tmp_path, label_subsets="official", label_fraction=0.5)


def test_unlabelled_images_take_no_part_in_the_probe(tmp_path: Path) -> None:
    keys = store_keys()
    keys["label"] = keys["label"].astype("Int64")
    keys.loc[keys["subject_id"].isin([f"subject {n}" for n in range(10)]), "label"] = pd.NA
    probed = run(simple_store(tmp_path, keys), tmp_path, label_fraction=1.0)
    assert probed.summary.subjects == SUBJECTS["train"] - 10


def test_cross_validation_judges_every_labelled_image(
    store: Artifact, keys: pd.DataFrame, tmp_path: Path
) -> None:
    probed = run(store, tmp_path, evaluate="cross_validation", outer_folds=4, repeats=2)
    summary = probed.summary
    assert (summary.evaluate, summary.outer_folds, summary.repeats) == ("cross_validation", 4, 2)
    assert ProbeSummary.from_json(summary.to_json()) == summary
    older = {k: v for k, v in summary.to_json().items() if k not in ("evaluate", "outer_folds")}
    assert ProbeSummary.from_json(older).evaluate == "test"
    assert [row.features for row in summary.rows] == ORDER
    assert {row.validation for row in summary.rows} == {None}
    assert [step for step, _ in probed.reported] == [0, 1]
    for name in ORDER:
        for _, subset in probed.of(name).groupby("label_subset"):
            assert subset["image_id"].tolist() == keys["image_id"].tolist()
    assert probed.mean("auroc") > 0.95
    for gap in summary.medvq_minus.values():
        assert gap.ci95[0] > 0
    figures = tmp_path / "figures"
    figures.mkdir()
    draw_probe(tmp_path, summary, figures)
    assert {file.name for file in figures.iterdir()} == {
        "roc_and_calibration.png",
        "decisions_and_abstention.png",
    }


def test_the_probe_saved_by_cross_validation_is_fitted_on_all_labelled_images(
    store: Artifact, keys: pd.DataFrame, tmp_path: Path
) -> None:
    probed = run(store, tmp_path, evaluate="cross_validation", label_fraction=1.0, repeats=1)
    probability = load_probe(tmp_path).predict_proba(pd.read_parquet(store.folder / FEATURES))
    assert roc_auc_score(keys["label"], probability[:, 1]) > 0.95
    assert probed.summary.threshold == pytest.approx(keys["label"].mean())


@pytest.mark.parametrize("kind", ["classes", "number"])
def test_more_classes_and_numbers_are_cross_validated(tmp_path: Path, kind: str) -> None:
    rng, images = np.random.default_rng(3), 2 * sum(SUBJECTS.values())
    columns: dict[str, Any] = {"label": rng.integers(0, 3, images)}
    if kind == "number":
        columns = {"label": None, "target": rng.normal(60, 10, images)}
    store = simple_store(tmp_path, store_keys(**columns))
    changes = {"regularisation": (1.0,), "components": 8, "repeats": 2}
    probed = run(store, tmp_path, evaluate="cross_validation", **changes)
    assert len(probed.of()) == 2 * images
    assert probed.mean(probed.summary.headline) > 0.8
    if kind == "number":
        error = (probed.of()["target"] - probed.of()["predicted"]).abs().mean()
        assert probed.mean("mae") == pytest.approx(error)
