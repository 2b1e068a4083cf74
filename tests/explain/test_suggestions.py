"""Patients to label: the densest of every cluster, each once, and none that is labelled."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from factories.stores import store_keys, write_store
from medvq.cli import main
from medvq.config import Config, PhantomSource, ProbeConfig
from medvq.config.source import ImageFolderSource, Labels
from medvq.errors import UserError
from medvq.explain.suggestions import Patients, settings_to_cluster, suggest, suggest_patients
from medvq.storage.artifacts import Artifact
from medvq.storage.encoded_features import FeatureStore

CENTRES = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
SIZES = (40, 30, 20, 10)


def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Return patients around four centres, the first of each exactly there, and the centres."""
    rng = np.random.default_rng(0)
    parts = [
        np.concatenate([[centre], centre + rng.normal(size=(size - 1, 2))])
        for centre, size in zip(CENTRES, SIZES, strict=True)
    ]
    return np.concatenate(parts), np.repeat(np.arange(4), SIZES)


def test_one_patient_of_the_middle_of_each_cluster_the_largest_first() -> None:
    vectors, cluster = blobs()
    chosen = suggest(vectors, np.zeros(len(vectors), bool), 4, seed=0)
    assert cluster[chosen].tolist() == [0, 1, 2, 3]
    distances = np.linalg.norm(vectors[chosen] - CENTRES, axis=1)
    typical = [np.linalg.norm(vectors[cluster == c] - CENTRES[c], axis=1) for c in range(4)]
    assert all(one < np.quantile(all_, 0.35) for one, all_ in zip(distances, typical, strict=True))


def test_clusters_with_a_labelled_patient_come_last() -> None:
    vectors, cluster = blobs()
    is_labelled = np.zeros(len(vectors), bool)
    is_labelled[[1, 45]] = True
    chosen = suggest(vectors, is_labelled, 2, seed=0)
    assert sorted(cluster[chosen]) == [2, 3]
    everybody = suggest(vectors, is_labelled, len(vectors) - 2, seed=0)
    assert sorted(everybody) == sorted(set(range(len(vectors))) - {1, 45})
    with pytest.raises(ValueError, match="99 of 98 patients"):
        suggest(vectors, is_labelled, 99, seed=0)


def test_patients_are_clustered_as_the_probe_reads_them_where_enough_have_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(write_store(tmp_path, store_keys()).folder)
    probe = ProbeConfig(features=("embedding", "latent"), components=6, whitening=1.0)
    config = Config(name="tiny", source=PhantomSource(kind="phantom"), probe=probe)
    train = np.flatnonzero(store.keys["split"] == "train")
    assert settings_to_cluster(store, config, train) == probe
    few = store.count_versioned(train) + 1
    monkeypatch.setattr("medvq.explain.suggestions._ENOUGH", few)
    assert settings_to_cluster(store, config, train).whitening is None


def test_patients_whose_number_is_known_are_not_suggested(tmp_path: Path) -> None:
    keys = store_keys(target=np.arange(232.0))
    train = keys["split"] == "train"
    unknown = keys["subject_id"].isin(sorted(keys.loc[train, "subject_id"].unique())[:6])
    keys["target"] = keys["target"].mask(unknown)
    extract = write_store(tmp_path, keys.assign(label=np.nan))
    probe = ProbeConfig(features=("embedding",), components=6)
    config = Config(name="tiny", source=PhantomSource(kind="phantom"), probe=probe)
    chosen = suggest_patients(extract.folder, config, 6, among_all=False)
    assert set(chosen["subject_id"]) == set(keys.loc[unknown, "subject_id"])


def test_where_nobody_says_how_many_there_are_as_many_as_are_without_a_label(
    tmp_path: Path,
) -> None:
    keys = store_keys()
    train = keys["split"] == "train"
    unknown = keys["subject_id"].isin(sorted(keys.loc[train, "subject_id"].unique())[:6])
    extract = write_store(tmp_path, keys.assign(label=keys["label"].mask(unknown)))
    probe = ProbeConfig(features=("embedding",), components=6)
    config = Config(name="tiny", source=PhantomSource(kind="phantom"), probe=probe)
    assert len(suggest_patients(extract.folder, config)) == 6
    assert len(suggest_patients(extract.folder, config, among_all=True)) == 40
    with pytest.raises(UserError, match="7 training patients without a label are asked for, and"):
        suggest_patients(extract.folder, config, 7)


def test_each_patient_is_shown_by_the_image_nearest_to_its_mean() -> None:
    subjects = np.array(["b", "a", "b", "b", "a"])
    patients = Patients(subjects, np.array([[0.0], [4.0], [1.0], [5.0], [4.5]]))
    assert patients.names.tolist() == ["a", "b"]
    assert patients.vectors.ravel().tolist() == [4.25, 2.0]
    assert patients.images_of(np.array([1, 0])).tolist() == [2, 1]


def test_the_same_seed_gives_the_same_patients() -> None:
    vectors, _ = blobs()
    nobody = np.zeros(len(vectors), bool)
    first, again = (suggest(vectors, nobody, 12, seed=3) for _ in range(2))
    assert first.tolist() == again.tolist()


def command(folder: Path, out: Path, *more: str) -> list[str]:
    artifacts = str(folder / "artifacts")
    return [
        "suggest-labels",
        "--dataset",
        "tiny",
        "--artifacts",
        artifacts,
        "--out",
        str(out),
        *more,
    ]


def test_the_command_writes_a_table_to_fill_in_and_a_sheet(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folder, tmp_path, "--number", "7", "--all", "--json")) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    table = pd.read_csv(told["table"])
    assert table.columns.tolist() == ["rank", "file", "image_id", "subject_id", "label"]
    assert table["rank"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert table["label"].isna().all()
    assert table["subject_id"].nunique() == 7
    with (folder / "artifacts/tiny/ingest/latest/manifest.csv").open() as stream:
        manifest = {row["image_id"]: row for row in csv.DictReader(stream)}
    chosen = [manifest[image_id] for image_id in table["image_id"]]
    assert {row["split"] for row in chosen} == {"train"}
    assert [row["subject_id"] for row in chosen] == table["subject_id"].tolist()
    assert Path(told["sheet"]).stat().st_size > 10_000


def test_files_are_in_the_column_that_the_labels_have(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = Labels(file="labels.csv", key="name")
    source = ImageFolderSource(kind="image_folder", folder=".", labels=labels)
    config = Artifact.config
    monkeypatch.setattr(
        Artifact, "config", lambda self: config(self).model_copy(update={"source": source})
    )
    for number in ("2", "3"):  # of which the second replaces the first
        assert main(command(folder, tmp_path, "--number", number, "--all")) == 0
    table = pd.read_csv(tmp_path / "to-label.csv")
    assert table.columns.tolist() == ["rank", "name", "image_id", "subject_id", "label"]
    assert len(table) == 3


def test_labels_that_were_filled_in_are_not_overwritten(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folder, tmp_path, "--number", "2", "--all")) == 0
    assert main(command(folder, tmp_path, "--number", "3", "--all")) == 0
    file = tmp_path / "to-label.csv"
    table = pd.read_csv(file)
    assert len(table) == 3
    table.assign(label=["ill", "", ""]).to_csv(file, index=False)
    before = file.read_bytes()
    assert main(command(folder, tmp_path, "--number", "2", "--all")) == 2
    assert file.read_bytes() == before
    assert "has been filled in and is not overwritten: move it" in capsys.readouterr().err


def test_a_command_that_is_ended_leaves_no_table_to_fill_in(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medvq.report.suggestions_figure.draw_suggestions", interrupted)
    assert main(command(folder, tmp_path, "--number", "2", "--all")) == 130
    assert not list(tmp_path.iterdir())


def test_labels_beside_a_column_of_the_users_own_are_not_overwritten(
    folder: Path, tmp_path: Path
) -> None:
    assert main(command(folder, tmp_path, "--number", "2", "--all")) == 0
    file = tmp_path / "to-label.csv"
    pd.read_csv(file).assign(label="ill", note="").to_csv(file, index=False)
    before = file.read_bytes()
    assert main(command(folder, tmp_path, "--number", "2", "--all")) == 2
    assert file.read_bytes() == before


def test_images_that_were_read_to_judge_a_probe_are_none_to_suggest(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    read = FeatureStore.__init__

    def judged(store: FeatureStore, folder: Path) -> None:
        read(store, folder)
        store.keys["split"] = "test"

    monkeypatch.setattr(FeatureStore, "__init__", judged)
    assert main(command(folder, tmp_path, "--number", "2", "--all")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has no training images, as of a set that a probe was judged on: run" in line


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--number", "0"), "N=0 patients cannot be suggested"),
        (("--number", "5000", "--all"), "5000 training patients are asked for, and there are"),
        (
            ("--number", "5"),
            "without a label are asked for, and there are 0; ask for fewer, or for any",
        ),
        (("--dataset", "none"), "is no feature store; run 'make extract-features"),
    ],
)
def test_what_cannot_be_suggested_is_one_line(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    complaint: str,
) -> None:
    assert main(command(folder, tmp_path, *more)) == 2
    err = capsys.readouterr().err
    assert re.search(complaint, err)
    assert "Traceback" not in err
