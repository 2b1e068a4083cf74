"""Studies end to end on the smallest phantom set: their figures are those of the stages."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories.flow import SMALLEST, STAGES
from medvq.config_file import config_file, load_config
from medvq.datasets.manifest import read_manifest
from medvq.evaluation.probe_data import ProbeData
from medvq.method.scaling import to_bytes, to_network, to_unit
from medvq.prior.outliers import score_images
from medvq.stages.stage import RunOptions
from medvq.storage.artifacts import Artifact, source
from medvq.storage.encoded_features import FeatureStore
from medvq.storage.feature_store import FEATURES, read_feature, read_keys
from medvq.storage.weights import FILE, load_model
from sklearn.metrics import roc_auc_score

from benchmarks import (
    ablation,
    anomalies,
    codes,
    label_efficiency,
    reconstructions,
    supervised,
    trust,
)
from benchmarks.prior import __main__ as prior
from benchmarks.prior import samples
from benchmarks.prior.anomalies import NORMAL_PRIOR
from benchmarks.prior.inputs import Inputs, likelihood
from benchmarks.rivals import Recipe, resnet
from benchmarks.study import Study
from benchmarks.suite import __main__ as suite
from benchmarks.suite.arms import ARMS, DATA_SETS, DataSet, NetworkArm
from benchmarks.suite.validation import cross_validate

SMALL_PRIOR = ("extract.versions=0", "prior.channels=8", "prior.depth=1", "prior.epochs=1")
NOTHING = argparse.Namespace(only=None)


@pytest.fixture(scope="module")
def folder(flow_folder: Path) -> Path:
    """What a study finds where the stages have run, with the settings of the data set alone."""
    return flow_folder


pytestmark = pytest.mark.usefixtures("kept_workers")


@pytest.fixture(autouse=True)
def _own_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def study_of(folder: Path, name: str, *settings: str, json: bool = False) -> Study:
    options = RunOptions(folder / "data", None, folder / "artifacts", "cpu")
    overrides = (*SMALLEST, *settings)
    return Study(name, "benchmark", "phantom", overrides, options, folder / "results", json)


def headings(page: Path) -> list[str]:
    return [line[3:] for line in page.read_text().splitlines() if line.startswith("## ")]


def test_label_efficiency_shows_the_probes_and_finds_nothing_in_shuffled_labels(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(label_efficiency, "FRACTIONS", (0.5, 1.0))
    study = study_of(folder, "label-efficiency", json=True)
    label_efficiency.main(study, NOTHING)
    file = folder / "results" / "label-efficiency-tiny.md"
    first = ["AUROC", "AUROC of MedVQ less that of a baseline", "At 50% of the labels"]
    assert headings(file)[:3] == first
    assert headings(file)[-1] == "Permutation check"
    assert file.with_suffix(".png").exists()
    probe = study.probe(study.config("probe.label_fraction=0.5"))
    *_, line = capsys.readouterr().out.splitlines()
    medvq = probe.summary.rows[0].metrics["auroc"]
    figure = {"figure": "auroc at 50%", "value": medvq.mean, "must_reach": None}
    assert json.loads(line)["rows"][0] == figure | {"lower_is_better": False}
    low, high = medvq.ci95
    assert f"| medvq | {medvq.mean:.3f} [{low:.3f}, {high:.3f}] |" in file.read_text()
    artifacts = folder / "artifacts"
    made = json.loads((artifacts / "tiny-shuffled/probe/latest/stage.json").read_text())
    intervals = [row["auroc"]["ci95"] for row in made["summary"]["rows"]]
    # Of ten rows that each miss once in twenty, three miss in about one case of a hundred.
    assert sum(low <= 0.5 <= high for low, high in intervals) >= len(intervals) - 2
    for stage in STAGES:
        latest = json.loads((artifacts / "tiny" / stage / "latest/stage.json").read_text())
        assert latest["dataset"] == "tiny"


def test_shuffled_labels_are_those_of_other_subjects_and_nothing_else_differs(folder: Path) -> None:
    study = study_of(folder, "label-efficiency")
    extract = study.run("extract", study.config())
    store = trust.shuffled_store(extract, folder / "artifacts" / "tiny-shuffled", seed=0)
    assert trust.shuffled_store(extract, folder / "artifacts" / "tiny-shuffled", 0) == store
    before, after = (read_keys(one.folder / FEATURES) for one in (extract, store))
    assert before.drop(columns="label").equals(after.drop(columns="label"))
    assert (after.groupby("subject_id")["label"].nunique() == 1).all()
    first, shuffled = (keys.drop_duplicates("subject_id")["label"] for keys in (before, after))
    assert sorted(first) == sorted(shuffled)
    assert (first.to_numpy() == shuffled.to_numpy()).mean() == pytest.approx(0.5, abs=0.2)
    np.testing.assert_array_equal(
        read_feature(extract.folder / FEATURES, "embedding"),
        read_feature(store.folder / FEATURES, "embedding"),
    )


def test_an_ablation_compares_trainings_of_variants_with_those_of_the_full_method(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "FRACTIONS", (0.5,))
    part = {"no random versions": ("extract.versions=0",)}
    monkeypatch.setattr(ablation, "PARTS", part)
    study = study_of(folder, "ablation")
    ablation.main(study, argparse.Namespace(only="parts", seeds=2))
    file = folder / "results" / "ablation-parts-tiny.md"
    assert len(headings(file)) == len(ablation.FEATURES)
    full, variant = (
        [
            roc_auc_score(subset["label"], subset["probability"])
            for seed in (study.config().seed, study.config().seed + 1)
            for subset in study.probe_of_training(study.config(*own), seed).label_subsets("medvq")
        ]
        for own in ((), part["no random versions"])
    )
    cell = f"{np.mean(variant):.3f} ({np.mean(full) - np.mean(variant):+.3f} ["
    assert f"| no random versions | {cell}" in file.read_text()


def test_a_supervised_network_is_trained_on_the_label_subsets_of_the_probe(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "FRACTIONS", (0.5, 1.0))
    rival = supervised.Rival(resnet, Recipe(epochs=1, size=16))
    monkeypatch.setattr(supervised, "RIVALS", {"resnet18_scratch": rival})
    study = study_of(folder, "supervised")
    supervised.main(study, NOTHING)
    file = folder / "results" / "supervised-tiny.md"
    assert headings(file)[0] == "AUROC"
    assert file.read_text().count("resnet18_scratch") == 4
    config = study.config()
    ingest, extract = (study.run(stage, config).folder for stage in ("ingest", "extract"))
    cache = supervised.Cache(ingest, read_manifest(ingest / "manifest.csv"), swaps=True)
    expected = ProbeData.from_keys(read_keys(extract / FEATURES))
    subsets = expected.label_subsets(config.probe, config.seed)
    for own, other in zip(cache.label_subsets(config), subsets, strict=True):
        assert own.tolist() == other.tolist()


def test_the_study_of_priors_judges_all_that_the_data_set_allows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "PER_CLASS", 8)
    monkeypatch.setattr(prior, "PIXELCNN", ("prior.model=pixelcnn",))
    monkeypatch.setattr(prior, "MASKED", ("prior.model=masked",))
    study = study_of(folder, "prior", *SMALL_PRIOR)
    prior.main(study, NOTHING)
    page = folder / "results" / "prior-tiny.md"
    assert headings(page) == list(prior.ABOUT)
    assert (study.folder / "samples.png").exists()
    # A row for every model, with and without guidance.
    rows = [line.split(" | ") for line in page.read_text().splitlines() if line.count(" | ") > 9]
    models = ("transformer", "pixelcnn", "masked")
    sampled = [f"| {model}{more}" for model in models for more in ("", ", guidance 1.5")]
    assert [row[0] for row in rows[2:-3]] == sampled


def test_anomalies_are_scored_by_a_prior_of_normal_images(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_of(folder, "anomalies", *SMALL_PRIOR, json=True)
    anomalies.main(study, argparse.Namespace(stores=None))
    *_, line = capsys.readouterr().out.splitlines()
    figures = {row["figure"]: row["value"] for row in json.loads(line)["rows"]}
    # By the images themselves, not by the codes that were stored.
    inputs = Inputs(study)
    (prior,) = inputs.train(*NORMAL_PRIOR).levels
    rows = inputs.maps.rows("test")
    images = np.load(inputs.ingest / "images.npy")[rows]
    bits = score_images(inputs.model, prior, images).negative_log_likelihood.mean((1, 2))
    is_ill = inputs.maps.labels.numpy()[rows] != inputs.maps.label_of("NORMAL")
    name = "codes, bits of a prior, training 1: AUROC, test"
    assert figures[name] == pytest.approx(roc_auc_score(is_ill, bits), abs=0.01)
    assert "embedding's neighbours and the codes' bits, training 1: AUROC, test" in figures


def test_codes_are_compared_with_as_many_bytes_of_the_embedding(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(codes.DATA_SETS, "phantom", (0.5, 1.0))
    codes.main(
        study_of(folder, "codes", *SMALL_PRIOR, json=True), argparse.Namespace(only=["phantom"])
    )
    file = folder / "results" / "codes-phantom.md"
    assert headings(file) == ["At no more bytes", "tiny", "tiny: ways to decode MedVQ's codes"]
    assert file.with_suffix(".png").exists()
    *_, line = capsys.readouterr().out.splitlines()
    for row in json.loads(line)["rows"]:
        assert f"| {row['figure']} | {row['value']:+.4f} | at least 0 |" in file.read_text()


def test_bits_per_pixel_are_those_of_all_levels_of_codes(folder: Path) -> None:
    finer = "pretrain.finer=[{halvings: 2, codebook_size: 8}]"
    inputs = Inputs(study_of(folder, "prior", *SMALL_PRIOR, finer))
    found = {row.figure: row.value for row in likelihood(inputs, [inputs.train()])}
    levels = [found[f"transformer: bits per code of level {level}, test"] for level in (0, 1)]
    per_pixel = found["transformer: bits per pixel, test"]
    assert per_pixel == pytest.approx((levels[0] * 16 + levels[1] * 64) / 32**2)
    assert found["uniform: bits per pixel, test"] == pytest.approx((4 * 16 + 3 * 64) / 32**2)


def test_reconstructions_are_measured_on_test_images_of_every_data_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The trainings that lie there: that of the flow, twice.
    monkeypatch.setattr(reconstructions, "COMMON", SMALLEST)
    monkeypatch.setattr(reconstructions, "DATA_SETS", {"phantom": ("extract.versions=0",)})
    monkeypatch.setattr(reconstructions, "SEEDS", (0, 0))
    options = RunOptions(folder / "data", None, folder / "artifacts", "cpu")
    study = Study("reconstructions", "benchmark-r", "phantom", (), options, folder / "results")
    reconstructions.main(study, NOTHING)
    page = (folder / "results" / "reconstructions.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith("| tiny"))
    cells = line.strip("| ").split(" | ")
    artifact = study_of(folder, "r", "extract.versions=0").run(
        "pretrain", study_of(folder, "r").config()
    )
    network = load_model(artifact.folder / FILE)
    cache = folder / "artifacts" / "tiny" / "ingest" / "latest"
    test = (read_manifest(cache / "manifest.csv")["split"] == "test").to_numpy()
    images = np.load(cache / "images.npy")[test]
    with torch.inference_mode():
        back = network(to_network(to_unit(images))).images
    error = np.square(to_bytes(back)[:, 0].astype(float) - images).mean((1, 2)) / 255**2
    expected = (-10 * np.log10(error)).mean()
    assert cells[3] == f"{expected:.1f}, {expected:.1f}"
    assert (folder / "results" / "reconstructions.png").exists()


def run_suite(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[str, Any]:
    sets = [part for override in SMALLEST for part in ("--set", override)]
    named = {"data-root": "data", "artifacts": "artifacts", "results": "results"}
    places = [f"--{name}={folder / place}" for name, place in named.items()]
    options = suite.parse(
        ["--only=phantom", "--seeds=2", "--device=cpu", "--json", *places, *sets, *more]
    )
    assert suite.main(options) == 0
    out = capsys.readouterr().out
    return out, json.loads(out.splitlines()[-1])


def test_two_trainings_on_one_ingest_and_every_row_judged(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATA_SETS, "phantom", DataSet("phantom", (1.0,)))
    rival = supervised.Rival(resnet, Recipe(epochs=1, size=16))
    monkeypatch.setitem(supervised.RIVALS, "resnet18_scratch", rival)
    monkeypatch.setitem(ARMS, "networks", NetworkArm(("resnet18_scratch",)))
    _, result = run_suite(folder, capsys, "--arms=medvq,baselines,networks")
    rows = {(row["label_fraction"], row["features"]): row for row in result["rows"]}
    names = {"medvq", "raw_pixels", "hog", "untrained_encoder", "border_only"}
    names |= {"images_per_subject", "resnet18_scratch"}
    assert set(rows) == {(1.0, name) for name in names}
    study = study_of(folder, "suite", "probe.label_fraction=1.0")
    probes = [study.probe(study.config()), study.probe_of_training(study.config(), 1)]
    extracts = [source(probe.artifact, "extract") for probe in probes]
    ingests, trainings = ([source(e, stage).record for e in extracts] for stage in STAGES[:2])
    assert ingests[0] == ingests[1]
    assert [training.settings["seed"] for training in trainings] == [0, 1]
    summaries = [probe.summary for probe in probes]
    reached, pixels = ([s.rows[row].metrics["auroc"].mean for s in summaries] for row in (0, 1))
    assert rows[1.0, "medvq"]["mean"] == pytest.approx(np.mean(reached))
    assert reached[0] != reached[1]
    assert rows[1.0, "medvq"]["seeds"] == 2
    assert rows[1.0, "hog"]["seeds"] == 1
    assert rows[1.0, "resnet18_scratch"]["seeds"] == 2
    assert rows[1.0, "raw_pixels"]["mean"] == pytest.approx(pixels[0]) == pytest.approx(pixels[1])
    page = (folder / "results/suite-phantom.md").read_text()
    assert (folder / "results/suite-phantom.png").exists()
    mean, (low, high) = (rows[1.0, "hog"][key] for key in ("mean", "ci95"))
    assert f"| hog | 1 | {mean:.3f} [{low:.3f}, {high:.3f}] |" in page
    mean = result["medvq_minus_best_baseline"]["mean"]
    assert f"| mean over data sets |  |  |  | {mean:+.3f} " in page
    _show_validation_alone(folder, capsys, rows)
    _validation_reads_no_label_of_the_test(extracts[1])


def _show_validation_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], rows: dict[Any, Any]
) -> None:
    before = (folder / "results/suite-phantom.md").stat().st_mtime_ns
    out, result = run_suite(folder, capsys, "--validation", "--arms=medvq")
    assert result["medvq_minus_best_baseline"] is None
    for row in result["rows"]:
        judged = rows[row["label_fraction"], row["features"]]
        assert row == {k: v for k, v in judged.items() if k not in {"mean", "ci95"}}
    assert f"{rows[1.0, 'medvq']['validation']['score']:.3f}" in out
    assert (folder / "results/suite-phantom.md").stat().st_mtime_ns == before


def _validation_reads_no_label_of_the_test(extract: Artifact) -> None:
    store = FeatureStore(extract.folder)
    config = load_config(config_file("phantom"), SMALLEST).probe
    before = cross_validate(store, ["embedding"], config, seed=0)
    is_test = store.keys["split"] != "train"
    shuffled = store.keys.loc[is_test, "label"].sample(frac=1, random_state=0).to_numpy()
    assert (store.keys.loc[is_test, "label"] != shuffled).any()
    store.keys.loc[is_test, "label"] = shuffled
    assert cross_validate(store, ["embedding"], config, seed=0) == before
