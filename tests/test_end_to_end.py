"""The whole flow on the smallest phantom set: contract, reuse, and the same twice."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from factories.flow import STAGES, command, copied_flow, json_line, run_probe
from medvq.cli import main
from medvq.code_hash import code_of
from medvq.datasets import sources
from medvq.evaluation.metrics import range_of
from medvq.storage.probe_file import FILE as PROBE_FILE
from PIL import Image
from sklearn.metrics import roc_auc_score

pytestmark = pytest.mark.usefixtures("kept_workers")
METRICS = (
    "auroc", "auprc", "balanced_accuracy", "accuracy", "sensitivity", "specificity", "brier", "ece",
)  # fmt: skip
PUBLISHED = {
    "ingest": {
        "alignment.csv", "audit.html", "audit.json", "clusters.csv", "frame.npy",
        "frame_swapped.npy", "images.npy", "manifest.csv", "originals.npy", "quarantine.csv",
        "stage.json", "swapped_training.npy", "swapped_validation.npy", "template.npy",
    },
    "pretrain": {
        "checkpoint.pt", "codebook_use.npy", "history.csv", "model.safetensors",
        "reconstructions.npz", "stage.json",
    },
    "extract": {
        "features.parquet", "features.parquet/part-00.parquet", "stage.json", "versions.parquet",
        "versions.parquet/part-00.parquet", "versions.parquet/part-01.parquet",
    },
    "probe": {"metrics.json", "predictions.parquet", PROBE_FILE, "stage.json"},
}  # fmt: skip
Captured = pytest.CaptureFixture[str]
Ran = tuple[dict[str, Any], Path]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("flow")
    return copied_flow(tmp_path_factory.getbasetemp(), folder), folder


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
            lowest, highest = range_of(metric)
            assert lowest <= low <= figure["mean"] <= high <= highest
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


def test_nothing_but_what_is_meant_is_written_for_the_owner_alone(ran: Ran) -> None:
    _, folder = ran
    artifacts = folder / "artifacts"
    for path in (artifacts, *artifacts.rglob("*")):
        if not path.is_symlink():
            expected = 0o700 if path.is_dir() else 0o600
            assert path.stat().st_mode & 0o777 == expected, path
    assert {path.name for path in artifacts.iterdir()} == {
        ".cache", ".mlflow.lock", "mlflow-artifacts", "mlflow.db", "tiny",
    }  # fmt: skip
    for stage in STAGES:
        latest = artifacts / "tiny" / stage / "latest"
        files = {path.relative_to(latest).as_posix() for path in latest.rglob("*")}
        assert {name for name in files if not name.startswith("figures")} == PUBLISHED[stage]
        assert {path.name for path in latest.parent.iterdir()} == {
            "latest", latest.resolve().name, f".{latest.resolve().name}.lock",
        }  # fmt: skip


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


@pytest.mark.parametrize(
    ("stage", "file", "first"),
    [
        ("probe", "figures/roc_and_calibration.png", "probe"),
        ("probe", "stage.json", "probe"),
        ("ingest", "originals.npy", "ingest"),
        ("extract", "stage.json", "probe"),
    ],
)
def test_what_is_damaged_is_not_up_to_date_and_force_mends_it(
    ran: Ran, tmp_path: Path, capsys: Captured, stage: str, file: str, first: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(ran[1], folder, symlinks=True)
    damaged = folder / "artifacts" / "tiny" / stage / "latest" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert main(command(folder, first)) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("medvq: ")
    assert (
        f"{file} was changed or damaged since it was written; make it anew: medvq {stage}" in line
    )
    assert main([*command(folder, stage), "--force"]) == 0
    assert main(command(folder)) == 0
    assert json_line(capsys.readouterr().out)["up_to_date"]


def test_the_files_of_a_data_set_are_listed_once_in_a_command(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = ran
    listed = mock.Mock(wraps=sources.list_images)
    monkeypatch.setattr(sources, "list_images", listed)
    assert main(command(folder)) == 0
    assert listed.call_count == 1


# Every Python process runs it at its start: worker processes too.
NO_NETWORK = """
import sys

def refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        raise PermissionError("no network")
    if event == "socket.connect" and not isinstance(arguments[1], (str, bytes)):
        raise PermissionError("no network")

sys.addaudithook(refuse)
"""


def test_the_same_seed_elsewhere_and_without_a_network_gives_the_same_to_the_bit(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = ran
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    second = json_line(run_probe(tmp_path))
    changing = {"artifact", "seconds", "mlflow_run_id"}
    assert {k: v for k, v in second.items() if k not in changing} == {
        k: v for k, v in first.items() if k not in changing
    }


def test_changed_code_is_named_and_run_again_unless_it_is_accepted(
    ran: Ran, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = ran
    artifacts = folder / "artifacts" / "tiny" / "pretrain"
    before = json.loads((artifacts / "latest" / "stage.json").read_text())

    def edited(module: str) -> dict[str, str]:
        code = code_of(module)
        return code | {"medvq.method.loss": "edited"} if "medvq.method.loss" in code else code

    monkeypatch.setattr("medvq.flow.code_of", edited)
    named = f"pretrain: code changed since commit {before['commit']}: method.loss; "
    assert main([*command(folder, "pretrain"), "--accept-code"]) == 0
    out, err = capsys.readouterr()
    accepted = json_line(out)
    assert (accepted["up_to_date"], accepted["accepted_code"]) == (True, ["method.loss"])
    assert Path(accepted["artifact"]).name == before["fingerprint"]
    assert named + "the old result is used" in err
    assert main(command(folder, "pretrain")) == 0
    out, err = capsys.readouterr()
    again = json_line(out)
    assert not again["up_to_date"]
    assert "accepted_code" not in again
    assert Path(again["artifact"]).name != before["fingerprint"]
    assert named + "ACCEPT_CODE=1 uses the old result" in err


def test_too_few_labels_are_refused_before_training(ran: Ran, capsys: Captured) -> None:
    _, folder = ran
    trained = sorted((folder / "artifacts" / "tiny" / "pretrain").iterdir())
    fewer = ("pretrain.epochs=5", "probe.label_fraction=0.01")
    assert main(command(folder, "probe", *fewer)) == 2
    assert "the smallest that works here is" in capsys.readouterr().err.splitlines()[-1]
    assert sorted((folder / "artifacts" / "tiny" / "pretrain").iterdir()) == trained


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
    assert (result["samples"], result["class_name"], result["guidance"]) == (5, "OPACITY", 2.0)
    with np.load(Path(result["artifact"]) / "samples.npz") as made:
        assert made["codes_0"].shape == (5, 4, 4)
        assert made["codes_1"].shape == (5, 8, 8)
        assert made["codes_1"].max() < 8
        assert made["samples"].shape == (5, 32, 32)
    learnt = folder / "artifacts" / "tiny" / "prior" / "latest"
    summary = json.loads((learnt / "stage.json").read_text())["summary"]
    coarsest, finer = summary["levels"]
    bits = 16 * coarsest["val_bits_per_code"] + 64 * finer["val_bits_per_code"]
    assert summary["val_bits_per_image"] == pytest.approx(bits)
    assert finer["val_bits_per_code"] < 3
    for file in ("prior.safetensors", "level_1/prior.safetensors", "level_1/history.csv"):
        assert (learnt / file).exists()


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
    before = before.query("features == 'medvq' and label_subset == 0").set_index("image_id")
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
    typicality = result["typicality"]
    assert typicality["images"] == result["images"]
    assert typicality["flagged"] == told["untypical"].sum() < 0.3 * len(told)
    beyond = told["out_of_distribution_score"] > typicality["threshold"]
    assert (told["untypical"] == beyond).all()
    assert (Path(result["artifact"]) / "figures/typicality.png").exists()
    # Nothing was fitted anew: the artifacts of the probe's own set are all that were read.
    stages = {
        path.parent.parent.name for path in (folder / "artifacts/other").glob("*/*/stage.json")
    }
    assert stages == {"ingest", "extract", "evaluate"}
    # Without training images there is no atlas of codes.
    assert not [*(folder / "artifacts/other/extract").glob("*/figures/atlas.png")]
    places = ["--dataset", "other", "--artifacts", str(folder / "artifacts")]
    assert main(["report", *places]) == 2
    assert "judge a probe of another data set, which has the report" in capsys.readouterr().err
    # A model that is only lost is not taken for another data set's.
    (folder / "artifacts/other/evaluate/latest").unlink()
    assert main(["report", *places]) == 2
    assert "that it was made from: copy it there" in capsys.readouterr().err


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
    greys = np.load(folder / "artifacts/tiny/ingest/latest/originals.npy")[-40:]
    for number, grey in enumerate(greys):
        strange = 255 - grey if number % 2 else np.flipud(grey)
        Image.fromarray(np.ascontiguousarray(strange)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "labels.csv").write_text("file\n" + "".join(f"{n:02d}.png\n" for n in range(40)))
    config = tmp_path / "strange.yaml"
    config.write_text(
        "name: strange\nsource:\n  kind: image_folder\n"
        f"  folder: {tmp_path}\n  labels: labels.csv\n"
    )
    assert main(evaluate(ran, config, "--probe", first["artifact"])) == 0
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    told = pd.read_parquet(Path(result["artifact"]) / "predictions.parquet")
    assert (len(told), result["labelled"], result["rows"]) == (40, 0, [])
    assert told["untypical"].mean() == result["typicality"]["share"] > 0.7
    assert f"{told['untypical'].sum()} of 40 images" in err
    assert (Path(result["artifact"]) / "figures/untypical.png").exists()


def test_cross_validation_judges_all_labelled_images(
    ran: Ran, elsewhere: Path, capsys: Captured
) -> None:
    _, folder = ran
    arguments = command(folder, "probe", "probe.evaluate=cross_validation", "probe.outer_folds=3")
    assert main(arguments) == 0
    output = capsys.readouterr()
    result = json_line(output.out)
    assert (result["evaluate"], result["outer_folds"], result["repeats"]) == (
        "cross_validation",
        3,
        2,
    )
    assert "over 2 x 3-fold cross-validation of all labelled images" in output.err + output.out
    predictions = pd.read_parquet(Path(result["artifact"]) / "predictions.parquet")
    counts = predictions.groupby(["features", "label_subset"])["image_id"].nunique()
    features = pd.read_parquet(folder / "artifacts/tiny/extract/latest/features.parquet")
    assert set(counts) == {len(features)}
    # Its probe may have been fitted on the images of the test split.
    assert main(evaluate(ran, elsewhere / "other.yaml", "--probe", result["artifact"])) != 0
    assert "nothing is new" in capsys.readouterr().err
