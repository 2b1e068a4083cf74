"""The stage on a synthetic store, where one feature set tells the class and the others nothing."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from medvq.config import Config, PhantomSource, ProbeConfig
from medvq.errors import UserError
from medvq.evaluation.metrics import MANY_CLASSES
from medvq.evaluation.tasks import Binary
from medvq.method.encodings import CodeHistogram
from medvq.method.probe import fit_probe
from medvq.stages.extract import SWAPPED, augmented
from medvq.stages.probe import BASELINES, MEDVQ, probe
from medvq.storage.artifacts import Artifact, StageContext
from medvq.storage.feature_store import FEATURES, VERSIONS, StoreWriter, read_feature
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

ORDER = [MEDVQ, *BASELINES, "histogram", "pyramid", "quantized", "latent", "embedding"]
SUBJECTS = {"train": 60, "validation": 16, "test": 40}
SIZE = 6
METADATA = {"codebook_size": SIZE, "latent_shape": [4, 4], "grid": 2, "classes": ["0", "1"]}
Features = dict[str, NDArray[Any]]


def keys_of(seed: int = 0) -> pd.DataFrame:
    """Two images of each subject, classes 2 : 1, splits mixed."""
    rng = np.random.default_rng(seed)
    split = np.repeat(list(SUBJECTS), list(SUBJECTS.values()))
    label = np.concatenate([rng.permutation(np.arange(n) % 3 > 0) for n in SUBJECTS.values()])
    order = rng.permutation(2 * len(split))
    return pd.DataFrame(
        {
            "image_id": [f"image {number:03d}" for number in order],
            "subject_id": np.repeat([f"subject {n}" for n in range(len(split))], 2)[order],
            "split": np.repeat(split, 2)[order],
            "label": np.repeat(label, 2)[order].astype(np.int64),
        }
    )


def noise(rows: int, rng: np.random.Generator) -> Features:
    widths = dict.fromkeys(("embedding", "embedding_fine", *BASELINES), 8)
    widths |= {"latent": 4, "quantized": 4}
    features: Features = {
        name: rng.normal(size=(rows, width)).astype(np.float32) for name, width in widths.items()
    }
    return {"codes_0": rng.integers(0, SIZE, (rows, 16)).astype(np.uint16)} | features


def write_store(folder: Path, keys: pd.DataFrame, seed: int = 0) -> Artifact:
    rng = np.random.default_rng(seed)
    signal = np.where(keys["label"] == 1, 1.0, -1.0)[:, None]

    def features(rows: NDArray[np.intp]) -> Features:
        made = noise(len(rows), rng)
        made["embedding"] += signal[rows]
        return made

    with StoreWriter(folder / FEATURES, METADATA) as store:
        everything = features(np.arange(len(keys)))
        for name, grids in (("histogram", (1,)), ("pyramid", (1, 2))):
            histogram = CodeHistogram(SIZE, (4, 4), grids)
            everything[name] = histogram.fit_transform(everything["codes_0"]).toarray()
        store.write(keys, everything)
    train, kept = (
        np.flatnonzero(keys["split"].isin(splits))
        for splits in (["train"], ["train", "validation"])
    )
    with StoreWriter(folder / VERSIONS, METADATA) as store:
        for name, rows in ((augmented(0), train), (augmented(1), train), (SWAPPED, kept)):
            store.write(keys.iloc[rows].assign(version=name), features(rows))
    return Artifact(folder, {"fingerprint": "of extract"})


def configuration(**changes: Any) -> Config:
    settings: dict[str, Any] = {
        "label_fraction": 0.4,
        "repeats": 3,
        "folds": 2,
        "regularisation": (1e-4, 1e-2),
        "components": 6,
        "bootstrap": 200,
    }
    return Config(
        name="tiny",
        source=PhantomSource(kind="phantom"),
        probe=ProbeConfig(**(settings | changes)),
    )


@dataclass(frozen=True)
class Probed:
    """What a run returned, wrote and reported."""

    summary: dict[str, Any]
    folder: Path
    predictions: pd.DataFrame
    reported: list[tuple[int, dict[str, float]]]

    def row(self, name: str) -> dict[str, Any]:
        (row,) = (row for row in self.summary["rows"] if row["features"] == name)
        return dict(row)


def run(store: Artifact, folder: Path, **changes: Any) -> Probed:
    reported: list[tuple[int, dict[str, float]]] = []
    context = StageContext(
        configuration(**changes),
        folder,
        {"extract": store},
        Path("none"),
        None,
        report=lambda values, step: reported.append((step, values)),
    )
    summary = probe(context)
    return Probed(summary, folder, pd.read_parquet(folder / "predictions.parquet"), reported)


@pytest.fixture(scope="module")
def keys() -> pd.DataFrame:
    return keys_of()


@pytest.fixture(scope="module")
def store(keys: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_store(tmp_path_factory.mktemp("store"), keys)


@pytest.fixture(scope="module")
def probed(store: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Probed:
    return run(store, tmp_path_factory.mktemp("probe"))


def test_rows_are_in_the_order_of_the_contract(probed: Probed) -> None:
    assert [row["features"] for row in probed.summary["rows"]] == ORDER
    for row in probed.summary["rows"]:
        assert set(row) == {"features", "validation", *Binary.metrics}
        for metric in Binary.metrics:
            assert set(row[metric]) == {"mean", "std", "ci95"}


def test_counts_are_those_of_the_draw(probed: Probed) -> None:
    # 40% of 20 and of 40 subjects, two images each.
    found = {key: probed.summary[key] for key in ("labels", "subjects", "repeats")}
    assert found == {"labels": 48, "subjects": 24, "repeats": 3}
    assert json.loads((probed.folder / "metrics.json").read_text()) == probed.summary


def test_what_tells_the_class_wins_and_noise_is_chance(probed: Probed) -> None:
    assert probed.row(MEDVQ)["auroc"]["mean"] > 0.95
    assert probed.row(MEDVQ)["auroc"] == probed.row("embedding")["auroc"]
    for name in (*BASELINES, "histogram", "pyramid", "quantized", "latent"):
        # An AUROC of noise on 80 images deviates by 0.07.
        assert probed.row(name)["auroc"]["mean"] == pytest.approx(0.5, abs=0.2)
        assert probed.row(name)["auroc"]["ci95"][1] < probed.row(MEDVQ)["auroc"]["ci95"][0]


def test_baselines_choose_from_larger_c_besides(
    store: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[tuple[float, ...]] = []

    def fit(*arguments: Any) -> Any:
        offered.append(arguments[4].regularisation)
        return fit_probe(*arguments)

    monkeypatch.setattr("medvq.stages.probe.fit_probe", fit)
    found = run(store, tmp_path, repeats=1, larger_for_baselines=(2.0, 50.0)).summary["rows"]
    computed = [row["features"] for row in found if row["features"] != "embedding"]
    of = dict(zip(computed, offered, strict=True))
    for name, values in of.items():
        larger = (0.02, 0.5) if name in BASELINES else ()
        assert values == pytest.approx((1e-4, 1e-2, *larger))
    assert {MEDVQ, *BASELINES, "quantized"} <= set(of)


def test_paired_differences_bracket_their_mean(probed: Probed) -> None:
    differences = probed.summary["medvq_minus"]
    assert list(differences) == list(BASELINES)
    for name, gap in differences.items():
        expected = probed.row(MEDVQ)["auroc"]["mean"] - probed.row(name)["auroc"]["mean"]
        assert gap["mean"] == pytest.approx(expected)
        low, high = gap["ci95"]
        assert 0 < low < gap["mean"] < high


def test_predictions_reproduce_the_metrics(probed: Probed) -> None:
    scores = {
        "auroc": roc_auc_score,
        "auprc": average_precision_score,
        "brier": brier_score_loss,
    }
    for name, part in probed.predictions.groupby("features"):
        for metric, compute in scores.items():
            each = [compute(d["label"], d["probability"]) for _, d in part.groupby("draw")]
            assert len(each) == 3
            assert probed.row(str(name))[metric]["mean"] == pytest.approx(np.mean(each))
            assert probed.row(str(name))[metric]["std"] == pytest.approx(np.std(each, ddof=1))


def test_thresholds_are_the_drawn_prevalence(probed: Probed) -> None:
    # 40% of 20 and of 40 subjects of two images each: every draw has as many of either.
    assert set(probed.predictions["threshold"]) == {32 / 48} == {probed.summary["threshold"]}
    called = probed.predictions["probability"] >= probed.predictions["threshold"]
    right = called == (probed.predictions["label"] == 1)
    accuracy = right[probed.predictions["features"] == MEDVQ].mean()
    assert accuracy == pytest.approx(probed.row(MEDVQ)["accuracy"]["mean"])


def test_predictions_are_of_the_test_images_alone(probed: Probed, keys: pd.DataFrame) -> None:
    test = keys[keys["split"] == "test"]
    for _, part in probed.predictions.groupby(["features", "draw"]):
        for column in ("image_id", "subject_id", "label"):
            assert part[column].tolist() == test[column].tolist()


def test_validation_scores_weigh_clean_and_swapped(probed: Probed) -> None:
    for row in probed.summary["rows"]:
        told = row["validation"]
        assert told["score"] == pytest.approx(0.75 * told["clean"] + 0.25 * told["swapped"])
    assert probed.row(MEDVQ)["validation"]["clean"] > 0.95
    assert probed.row(MEDVQ)["validation"]["swapped"] > 0.95


def test_each_draw_is_reported(probed: Probed) -> None:
    assert [step for step, _ in probed.reported] == [0, 1, 2]
    for metric in Binary.metrics:
        mean = np.mean([values[metric] for _, values in probed.reported])
        assert probed.row(MEDVQ)[metric]["mean"] == pytest.approx(mean)


@pytest.mark.parametrize("features", [("embedding", "latent"), ("pyramid",)])
def test_the_saved_probe_goes_from_features_to_probability(
    store: Artifact, tmp_path: Path, keys: pd.DataFrame, features: tuple[str, ...]
) -> None:
    probed = run(store, tmp_path, features=features)
    file = probed.folder / "probe.skops"
    model = skops.io.load(file, trusted=skops.io.get_untrusted_types(file=file))
    stored = ["codes_0" if name == "pyramid" else name for name in features]
    raw = np.concatenate([read_feature(store.folder / FEATURES, name) for name in stored], axis=1)
    said = model.predict_proba(raw[keys["split"] == "test"])[:, 1]
    first = probed.predictions.query("features == @MEDVQ and draw == 0")
    np.testing.assert_allclose(said, first["probability"], rtol=1e-6)


@pytest.mark.parametrize("name", ["latent", "raw_pixels"])
def test_a_row_is_the_same_whether_it_is_medvqs_or_not(
    store: Artifact, probed: Probed, tmp_path: Path, name: str
) -> None:
    """A feature set that is all of MedVQ's is judged once, and has its row all the same."""
    assert probed.row(MEDVQ) != probed.row(name) | {"features": MEDVQ}
    again = run(store, tmp_path, features=(name,))
    assert again.row(name) == probed.row(name) == again.row(MEDVQ) | {"features": name}
    ours, theirs = (
        again.predictions.query("features == @of")["probability"].to_numpy() for of in (MEDVQ, name)
    )
    np.testing.assert_array_equal(ours, theirs)
    assert again.summary["medvq_minus"].get(name, {"mean": 0.0})["mean"] == 0.0


def test_labels_of_test_images_change_no_prediction(
    probed: Probed, keys: pd.DataFrame, tmp_path: Path, store: Artifact
) -> None:
    changed = tmp_path / "store"
    changed.mkdir()
    flipped = keys.assign(label=keys["label"].where(keys["split"] != "test", 1 - keys["label"]))
    for table in (FEATURES, VERSIONS):
        read = pd.read_parquet(store.folder / table)
        lists = [name for name in read if isinstance(read[name].iloc[0], np.ndarray)]
        labels = read["image_id"].map(flipped.set_index("image_id")["label"])
        with StoreWriter(changed / table, METADATA) as writer:
            arrays = {name: np.stack(list(read[name])) for name in lists}
            writer.write(read.drop(columns=lists).assign(label=labels), arrays)
    again = run(Artifact(changed, store.record), tmp_path)
    assert again.predictions["label"].tolist() == (1 - probed.predictions["label"]).tolist()
    pd.testing.assert_series_equal(
        again.predictions["probability"], probed.predictions["probability"], check_exact=True
    )
    assert again.row(MEDVQ)["auroc"]["mean"] == pytest.approx(
        1 - probed.row(MEDVQ)["auroc"]["mean"]
    )


def test_all_labels_are_one_draw(store: Artifact, tmp_path: Path) -> None:
    probed = run(store, tmp_path, label_fraction=1.0)
    found = {key: probed.summary[key] for key in ("labels", "subjects", "repeats")}
    assert found == {"labels": 120, "subjects": 60, "repeats": 1}
    assert set(probed.predictions["draw"]) == {0}
    assert {row["auroc"]["std"] for row in probed.summary["rows"]} == {0}


def test_the_same_again_is_the_same(store: Artifact, probed: Probed, tmp_path: Path) -> None:
    again = run(store, tmp_path)
    assert again.summary == probed.summary
    pd.testing.assert_frame_equal(again.predictions, probed.predictions, check_exact=True)


def test_a_store_of_mostly_test_images_is_probed(tmp_path: Path) -> None:
    keys = keys_of()
    few = set(keys.loc[keys["split"] == "train", "subject_id"].drop_duplicates()[:12])
    keys = keys[(keys["split"] != "train") | keys["subject_id"].isin(few)].reset_index(drop=True)
    wide = write_store(tmp_path, keys)
    read = pd.read_parquet(wide.folder / VERSIONS)
    lists = [name for name in read if isinstance(read[name].iloc[0], np.ndarray)]
    swapped = read[read["version"] == SWAPPED]
    with StoreWriter(wide.folder / VERSIONS, METADATA) as writer:
        writer.write(
            swapped.drop(columns=lists), {name: np.stack(list(swapped[name])) for name in lists}
        )
    probed = run(wide, tmp_path, label_fraction=1.0, components=256, features=BASELINES)
    assert probed.summary["labels"] == 24


@pytest.mark.parametrize(
    ("features", "told"),
    [(("nothing",), "it holds: codes_0, embedding"), (("pyramid", "latent"), "cannot be joined")],
)
def test_features_that_cannot_be_probed_are_refused(
    store: Artifact, tmp_path: Path, features: tuple[str, ...], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        run(store, tmp_path, features=features)


def test_a_class_must_stand_in_every_split(tmp_path: Path) -> None:
    keys = keys_of()
    keys.loc[keys["split"] == "test", "label"] = 1
    with pytest.raises(UserError, match="the test split has images of one class only"):
        run(write_store(tmp_path, keys), tmp_path)


def other_store(folder: Path, **columns: Any) -> Artifact:
    """A store without versions, whose ``embedding`` tells the truth in ``label`` or ``target``."""
    rng = np.random.default_rng(0)
    keys = keys_of().assign(**columns)
    truth = keys["target"] if "target" in keys else keys["label"].fillna(0)
    signal = np.asarray(truth, float)
    made = noise(len(keys), rng)
    if keys["label"].nunique() > 2:
        made["embedding"][:, :3] += 4 * np.eye(3)[signal.astype(int)]
    else:
        made["embedding"][:, 0] = 5 * (signal - signal.mean())
    del made["border_only"]
    with StoreWriter(
        folder / FEATURES, METADATA | {"classes": ["a", "b", "c"], "target": "age"}
    ) as w:
        w.write(keys, made | dict.fromkeys(("histogram", "pyramid"), made["embedding"]))
    return Artifact(folder, {"fingerprint": "of extract"})


def test_three_classes_have_rows_by_accuracy_and_the_recall_of_each(tmp_path: Path) -> None:
    label = np.random.default_rng(3).integers(0, 3, len(keys_of()))
    probed = run(other_store(tmp_path, label=label), tmp_path, features=("embedding",))
    assert [row["features"] for row in probed.summary["rows"]] == [
        name for name in ORDER if name != "border_only"
    ]
    assert (probed.summary["headline"], probed.summary["task"]) == ("accuracy", "classes")
    row = probed.row(MEDVQ)
    assert set(row) == {"features", "validation", "recall", *MANY_CLASSES}
    assert row["accuracy"]["mean"] > 0.8
    assert probed.row("raw_pixels")["accuracy"]["mean"] < 0.55
    assert row["validation"]["swapped"] is None
    assert row["validation"]["score"] == row["validation"]["clean"]
    ours = probed.predictions.query("features == @MEDVQ")
    right = ours["label"] == ours["predicted"]
    assert right.mean() == pytest.approx(row["accuracy"]["mean"])
    for number, name in enumerate("abc"):
        assert right[ours["label"] == number].mean() == pytest.approx(row["recall"][name])


def test_a_number_has_rows_by_the_share_explained(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    columns = {"label": None, "target": rng.normal(60, 10, len(keys_of()))}
    probed = run(other_store(tmp_path, **columns), tmp_path, regularisation=(1.0,), components=8)
    assert (probed.summary["headline"], probed.summary["task"]) == ("r2", "age")
    row = probed.row("embedding")
    assert set(row) == {"features", "validation", "r2", "mae"}
    assert row["r2"]["mean"] > 0.95 > 0.3 > probed.row("hog")["r2"]["mean"]
    ours = probed.predictions.query("features == 'embedding'")
    error = (ours["target"] - ours["predicted"]).abs().mean()
    assert row["mae"]["mean"] == pytest.approx(error)


def test_official_folds_are_the_draws(tmp_path: Path) -> None:
    keys = keys_of()
    train, validation = (np.flatnonzero(keys["split"] == s) for s in ("train", "validation"))
    folds = np.full(len(keys), "", dtype=object)
    # Published draws know nothing of our validation part: ten of its images are in one.
    folds[train[:30]], folds[train[20:30]], folds[train[30:60]] = "0", "0 1", "1"
    folds[validation[:10]] = "0"
    store = other_store(tmp_path, folds=folds)
    share = 40 / (2 * (SUBJECTS["train"] + SUBJECTS["validation"]))
    probed = run(store, tmp_path, label_subsets="official", label_fraction=share)
    assert (probed.summary["labels"], probed.summary["repeats"]) == (40, 2)
    with pytest.raises(UserError, match=r"hold 26% of the labels; LABEL_FRACTION=0\.5 needs"):
        run(store, tmp_path, label_subsets="official", label_fraction=0.5)


def test_unlabelled_images_take_no_part_in_the_probe(tmp_path: Path) -> None:
    label = keys_of()["label"].astype("Int64")
    label[keys_of()["subject_id"].isin([f"subject {n}" for n in range(10)])] = pd.NA
    probed = run(other_store(tmp_path, label=label), tmp_path, label_fraction=1.0)
    assert probed.summary["subjects"] == SUBJECTS["train"] - 10


def test_without_labels_and_numbers_there_is_no_probe_and_one_line_says_so(tmp_path: Path) -> None:
    label = pd.array([pd.NA] * len(keys_of()), "Int64")
    with pytest.raises(UserError, match="neither labels nor a number to predict"):
        run(other_store(tmp_path, label=label), tmp_path)
