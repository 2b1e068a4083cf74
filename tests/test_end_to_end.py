"""The whole flow on the smallest phantom set: contract, reuse, and the same twice."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from medvq.cli import main
from medvq.config_file import config_file, load_config
from medvq.datasets.manifest import read_manifest
from medvq.flow import Options
from medvq.stages.probe import Store, images_of, label_draws
from PIL import Image
from sklearn.metrics import roc_auc_score

import benchmarks.label_efficiency as label_efficiency
from benchmarks.prior import samples
from benchmarks.prior.study import Study
from benchmarks.supervised import Cache, draws_of

SMALLEST = (
    "name=tiny",
    "source.train_subjects=60",
    "source.test_subjects=20",
    "source.size=64",
    "ingest.read_size=64",
    "ingest.image_size=32",
    "ingest.swap.training_copies=1",
    "pretrain.widths=[8, 8, 8]",
    "pretrain.decoder_widths=null",
    "pretrain.residual_levels=1",
    # Its averages take more steps than there are to settle, and all codes would be the same.
    "pretrain.batch_norm=false",
    "pretrain.codebook_size=16",
    "pretrain.codebook_dim=8",
    "pretrain.batch_size=32",
    # After one epoch what the gate flags is chance.
    "pretrain.epochs=4",
    "extract.versions=1",
    "probe.label_fraction=0.5",
    "probe.repeats=2",
    "probe.folds=2",
    "probe.components=16",
    "probe.regularisation=[0.01]",
    "probe.bootstrap=100",
)
METRICS = (
    "auroc", "auprc", "balanced_accuracy", "accuracy", "sensitivity", "specificity", "brier", "ece",
)  # fmt: skip
STAGES = ("ingest", "pretrain", "extract", "probe")

Captured = pytest.CaptureFixture[str]
Ran = tuple[dict[str, Any], Path]


def command(folder: Path, stage: str = "probe", *more: str) -> list[str]:
    overrides = [part for override in (*SMALLEST, *more) for part in ("--set", override)]
    return [
        stage, "--config", "phantom", "--device", "cpu", "--json",
        "--data-root", str(folder / "data"), "--artifacts", str(folder / "artifacts"), *overrides,
    ]  # fmt: skip


def run(folder: Path) -> dict[str, Any]:
    """In a process of its own, as users do; the last line of its output."""
    ours = ("MLFLOW_TRACKING_URI", "OMP_NUM_THREADS")
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    done = subprocess.run(
        [sys.executable, "-m", "medvq", *command(folder)],
        capture_output=True,
        text=True,
        env=environment | {"MEDVQ_SUBJECT_KEY": "tests only"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("flow")
    return run(folder), folder


@pytest.fixture(autouse=True)
def _own_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_the_line_of_the_probe_keeps_the_contract(ran: Ran) -> None:
    result, folder = ran
    assert (result["stage"], result["dataset"], result["up_to_date"]) == ("probe", "tiny", False)
    assert (result["label_fraction"], result["repeats"]) == (0.5, 2)
    assert result["seconds"] > 0
    assert result["mlflow_run_id"]
    assert result["labels"] >= result["subjects"] > 0
    assert Path(result["artifact"]).parent == folder / "artifacts" / "tiny" / "probe"
    names = [row["features"] for row in result["rows"]]
    assert names[:5] == ["medvq", "raw_pixels", "hog", "untrained_encoder", "border_only"]
    assert "histogram" in names[5:]
    for row in result["rows"]:
        for metric in METRICS:
            figure = row[metric]
            low, high = figure["ci95"]
            assert 0 <= low <= high <= 1
            assert 0 <= figure["mean"] <= 1
            assert figure["std"] >= 0
        validation = row["validation"]
        mixed = 0.75 * validation["clean"] + 0.25 * validation["swapped"]
        assert validation["score"] == pytest.approx(mixed, abs=1e-9)


def test_every_stage_left_a_finished_artifact(ran: Ran) -> None:
    _, folder = ran
    before: dict[str, str] = {}
    for stage in STAGES:
        latest = folder / "artifacts" / "tiny" / stage / "latest"
        record = json.loads((latest / "stage.json").read_text())
        assert record["stage"] == stage
        assert record["fingerprint"] == latest.resolve().name
        assert record["configuration"]["seed"] == 0
        assert record["configuration"]["pretrain"]["epochs"] == 4
        assert all(before.get(name, value) == value for name, value in record["inputs"].items())
        before[stage] = record["fingerprint"]
    assert len(before) == 4
    for stage in ("ingest", "pretrain", "probe"):
        assert any((folder / "artifacts" / "tiny" / stage / "latest" / "figures").glob("*.png"))
    store = folder / "artifacts" / "tiny" / "extract" / "latest" / "features.parquet"
    keys = pd.read_parquet(store, columns=["image_id", "subject_id", "split", "label"])
    ingested = pd.read_csv(folder / "artifacts" / "tiny" / "ingest" / "latest" / "manifest.csv")
    assert keys["image_id"].tolist() == ingested["image_id"].tolist()


def test_what_is_up_to_date_is_not_run_again_and_loads_nothing_heavy(ran: Ran) -> None:
    first, folder = ran
    script = (
        "import json, sys\n"
        "from medvq.cli import main\n"
        f"status = main({command(folder)!r})\n"
        "print([n for n in ('torch', 'monai', 'mlflow', 'sklearn') if n in sys.modules])\n"
        "sys.exit(status)\n"
    )
    environment = os.environ | {"MEDVQ_SUBJECT_KEY": "tests only"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    *_, line, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    # The seconds are those of all stages in the first run, of the probe alone in its artifact.
    again = json.loads(line)
    assert again | {"seconds": 0} == first | {"seconds": 0, "up_to_date": True}
    assert 0 < again["seconds"] <= first["seconds"]


def test_the_same_seed_elsewhere_gives_the_same_to_the_bit(ran: Ran, tmp_path: Path) -> None:
    first, _ = ran
    second = run(tmp_path)
    changing = {"artifact", "seconds", "mlflow_run_id"}
    assert {k: v for k, v in second.items() if k not in changing} == {
        k: v for k, v in first.items() if k not in changing
    }


TWO_LEVELS = (
    "pretrain.finer=[{halvings: 2, codebook_size: 8}]",
    "extract.versions=0",
    "prior.channels=8",
    "prior.depth=1",
    "prior.epochs=1",
    "sample.number=5",
    "sample.class_name=OPACITY",
    "sample.guidance=2",
)


def test_two_levels_of_codes_are_learnt_drawn_and_decoded(ran: Ran, capsys: Captured) -> None:
    _, folder = ran
    assert main(command(folder, "sample", *TWO_LEVELS)) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["samples"], result["class"], result["guidance"]) == (5, "OPACITY", 2.0)
    with np.load(Path(result["artifact"]) / "samples.npz") as made:
        assert made["codes_0"].shape == (5, 4, 4)
        assert made["codes_1"].shape == (5, 8, 8)
        assert made["codes_1"].max() < 8
        assert made["samples"].shape == (5, 32, 32)
    learnt = folder / "artifacts" / "tiny" / "prior" / "latest"
    summary = json.loads((learnt / "stage.json").read_text())["summary"]
    (finer,) = summary["finer"]
    bits = 16 * summary["val_bits_per_code"] + 64 * finer["val_bits_per_code"]
    assert summary["val_bits_per_image"] == pytest.approx(bits)
    assert finer["val_bits_per_code"] < 3
    for file in ("prior.safetensors", "level_1/prior.safetensors", "level_1/history.csv"):
        assert (learnt / file).exists()


def test_a_study_of_two_levels_of_codes_says_what_its_parts_say(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = ran
    for name, value in (
        ("GUIDANCE", (1.0, 2.0)),
        ("TEMPERATURE", (1.0,)),
        ("_PER_CLASS", 8),
        ("_PER_CLASS_TO_CHOOSE_BY", 4),
    ):
        monkeypatch.setattr(samples, name, value)
    options = Options(folder / "data", None, folder / "artifacts", "cpu")
    overrides = (*SMALLEST, *TWO_LEVELS)
    config = load_config(config_file("phantom"), overrides)
    study = Study(config, overrides, "phantom", options)
    priors, trained = study.priors()
    found = {row.figure: row.value for row in samples.likelihood(study, (priors, trained))}
    levels = [found[f"transformer: bits per code of level {level}, test"] for level in (0, 1)]
    per_pixel = found["transformer: bits per pixel, test"]
    assert per_pixel == pytest.approx((levels[0] * 16 + levels[1] * 64) / 32**2)
    assert found["uniform: bits per pixel, test"] == pytest.approx((4 * 16 + 3 * 64) / 32**2)
    groups = samples.Samples(study, priors).groups()
    figures = [row.figure for rows in groups.values() for row in rows]
    assert len(figures) == len(set(figures)) > 30
    assert set(groups) | {"Likelihood"} == set(samples.ABOUT)
    assert (folder / "artifacts" / "tiny" / "prior_samples.png").exists()


def test_the_benchmark_tells_subgroups_and_finds_nothing_in_shuffled_labels(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, folder = ran
    config = load_config(config_file("phantom"), SMALLEST)
    monkeypatch.setattr(label_efficiency, "FEW", config.probe.label_fraction)
    options = Options(folder / "data", None, folder / "artifacts", device="cpu")
    before = {stage: (folder / "artifacts/tiny" / stage / "latest").resolve() for stage in STAGES}
    lines = label_efficiency._page([first], "tiny", "", "none.png")
    lines += label_efficiency._trust([config], [first], options)
    heads = [line for line in lines if line.startswith("## ")]
    assert [head.split(",")[0] for head in heads[-3:]] == [
        "## MedVQ's calibration",
        "## Subgroups of the test split",
        "## Permutation check",
    ]
    made = folder / "artifacts/tiny-shuffled/probe/latest/stage.json"
    shuffled = json.loads(made.read_text())["summary"]["rows"]
    assert [row["features"] for row in shuffled] == [row["features"] for row in first["rows"]]
    chance = [row["auroc"]["ci95"][0] <= 0.5 <= row["auroc"]["ci95"][1] for row in shuffled]
    # Of nine rows that each miss once in twenty, three miss in less than one case of a hundred.
    assert sum(chance) >= len(chance) - 2
    assert [line.split(" | ")[-1] for line in lines[-len(chance) :]] == [
        "yes |" if held else "**no** |" for held in chance
    ]
    for stage, artifact in before.items():
        assert (folder / "artifacts/tiny" / stage / "latest").resolve() == artifact


def test_a_supervised_network_is_given_the_draws_of_the_probe(ran: Ran) -> None:
    _, folder = ran
    config = load_config(config_file("phantom"), SMALLEST)
    ingest, extract = (folder / "artifacts/tiny" / s / "latest" for s in ("ingest", "extract"))
    images = images_of(Store(extract))
    theirs = draws_of(Cache(ingest, read_manifest(ingest / "manifest.csv"), swaps=True), config)
    for rows, other in zip(label_draws(images, config.probe, config.seed), theirs, strict=True):
        assert rows.tolist() == other.tolist()


def test_too_few_labels_for_a_class_is_one_line(ran: Ran, capsys: Captured) -> None:
    _, folder = ran
    earlier = sorted((folder / "artifacts" / "tiny" / "probe").rglob("stage.json"))
    assert main(command(folder, "probe", "probe.label_fraction=0.001")) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = (line for line in err.splitlines() if line.startswith("medvq: "))
    assert "label_fraction=0.001" in line.lower()
    assert "Traceback" not in err
    assert sorted((folder / "artifacts" / "tiny" / "probe").rglob("stage.json")) == earlier


@pytest.fixture(scope="module")
def elsewhere(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom's test images and one of its training images, as the set of another site."""
    _, folder = ran
    (phantom,) = (folder / "data").glob("phantom-*")
    site = tmp_path_factory.mktemp("site")
    table = pd.read_csv(phantom / "labels.csv")
    taken = pd.concat([table[table["split"] == "test"], table[table["split"] == "train"].head(1)])
    for file in taken["file"]:
        (site / file).parent.mkdir(exist_ok=True)
        (site / file).write_bytes((phantom / file).read_bytes())
    labels = taken.assign(label=taken["label"].str.upper(), split="test")
    labels.to_csv(site / "labels.csv", index=False)
    (site / "other.yaml").write_text(
        f"name: other\nsource:\n  kind: dicom_folder\n  folder: {site}\n  labels: labels.csv\n"
    )
    return site


def evaluate(ran: Ran, config: Path, *more: str) -> list[str]:
    _, folder = ran
    return [
        "evaluate", "--config", str(config), "--device", "cpu", "--json",
        "--artifacts", str(folder / "artifacts"), *more,
    ]  # fmt: skip


def test_a_probe_says_of_another_sites_images_what_it_said_of_its_own(
    ran: Ran, elsewhere: Path, capsys: Captured
) -> None:
    first, folder = ran
    assert main(evaluate(ran, elsewhere / "other.yaml", "--probe", first["artifact"])) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    told = pd.read_parquet(Path(result["artifact"]) / "predictions.parquet")
    before = pd.read_parquet(Path(first["artifact"]) / "predictions.parquet")
    before = before.query("features == 'medvq' and draw == 0").set_index("image_id")
    assert (result["seen_in_training"], result["images"]) == (1, len(before))
    told = told.set_index("image_id").loc[before.index]
    assert told["probability"].to_numpy() == pytest.approx(before["probability"], abs=1e-4)
    assert told["label"].tolist() == before["label"].tolist()
    (row,) = result["rows"]
    auroc = roc_auc_score(before["label"], before["probability"])
    assert row["auroc"]["mean"] == pytest.approx(auroc, abs=1e-3)
    assert row["auroc"]["ci95"][0] < auroc < row["auroc"]["ci95"][1]
    # What is typical was learnt from the training alone, and most of these images are.
    prior = folder / "artifacts/tiny/prior/latest/stage.json"
    probe = json.loads((Path(first["artifact"]) / "stage.json").read_text())
    assert json.loads(prior.read_text())["inputs"] == probe["inputs"]
    gate = result["typicality"]
    assert gate["images"] == result["images"]
    assert gate["flagged"] == told["untypical"].sum() < 0.3 * len(told)
    assert (told["untypical"] == (told["surprise"] > gate["threshold"])).all()
    assert (Path(result["artifact"]) / "figures/gate.png").exists()
    # Nothing was fitted anew: the artifacts of the probe's own set are all that were read.
    stages = {
        path.parent.parent.name for path in (folder / "artifacts/other").glob("*/*/stage.json")
    }
    assert stages == {"ingest", "extract", "evaluate"}


@pytest.mark.parametrize(
    ("change", "more", "told"),
    [
        ("", (), "evaluate needs --probe"),
        ("", ("--probe", "{extract}"), "is no finished artifact of the stage 'probe'"),
        ("NORMAL,", ("--probe", "{probe}"), "'HEALTHY' is none of them"),
    ],
)
def test_a_probe_that_cannot_be_applied_is_one_line(
    ran: Ran,
    elsewhere: Path,
    tmp_path: Path,
    capsys: Captured,
    change: str,
    more: tuple[str, ...],
    told: str,
) -> None:
    first, folder = ran
    config = elsewhere / "other.yaml"
    if change:
        labels = (elsewhere / "labels.csv").read_text().replace("NORMAL", "HEALTHY")
        (elsewhere / "others.csv").write_text(labels)
        config = tmp_path / "others.yaml"
        text = (elsewhere / "other.yaml").read_text()
        config.write_text(text.replace("labels.csv", "others.csv"))
    places = {"probe": first["artifact"], "extract": folder / "artifacts/tiny/extract/latest"}
    more = tuple(str(part).format(**places) for part in more)
    assert main(evaluate(ran, config, *more)) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("medvq: "))
    assert told in line


def test_images_unlike_the_training_are_flagged_and_none_is_dropped(
    ran: Ran, tmp_path: Path, capsys: Captured
) -> None:
    """Inverted, and upside down."""
    first, folder = ran
    greys = np.load(folder / "artifacts/tiny/ingest/latest/originals.npy")[-12:]
    for number, grey in enumerate(greys):
        strange = 255 - grey if number % 2 else np.flipud(grey)
        Image.fromarray(np.ascontiguousarray(strange)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "labels.csv").write_text("file\n" + "".join(f"{n:02d}.png\n" for n in range(12)))
    config = tmp_path / "strange.yaml"
    config.write_text(
        "name: strange\nsource:\n  kind: image_folder\n"
        f"  folder: {tmp_path}\n  labels: labels.csv\n"
    )
    assert main(evaluate(ran, config, "--probe", first["artifact"])) == 0
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    told = pd.read_parquet(Path(result["artifact"]) / "predictions.parquet")
    assert (len(told), result["labelled"], result["rows"]) == (12, 0, [])
    assert told["untypical"].mean() == result["typicality"]["share"] > 0.8
    assert f"{told['untypical'].sum()} of 12 images" in err
    assert (Path(result["artifact"]) / "figures/untypical.png").exists()
