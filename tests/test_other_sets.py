"""The whole flow on tiny copies of sets that are not grey pictures of two classes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import medvq
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from medvq.cli import main
from medvq.images import reading, workers
from PIL import Image

pytestmark = pytest.mark.usefixtures("kept_workers")
SMALL = (
    "pretrain.widths=[8, 8]",
    "pretrain.decoder_widths=null",
    "pretrain.residual_levels=1",
    "pretrain.codebook_size=16",
    "pretrain.codebook_dim=8",
    "pretrain.batch_size=16",
    "pretrain.epochs=1",
    "probe.folds=2",
    "probe.components=8",
    "probe.regularisation=[0.01]",
    "probe.bootstrap=100",
)


@pytest.fixture(autouse=True)
def _own_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, since MLflow takes seconds to make its store."""
    return tmp_path_factory.mktemp("artifacts")


def run(folder: Path, artifacts: Path, config: str, capsys: Any, *overrides: str) -> dict[str, Any]:
    sets = [part for override in (*SMALL, *overrides) for part in ("--set", override)]
    places = ["--data-root", str(folder), "--artifacts", str(artifacts)]
    assert main(["probe", "--config", config, "--device", "cpu", "--json", *places, *sets]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def predicted(images: Path, artifacts: Path, out: Path) -> tuple[pd.DataFrame, pd.DataFrame, Any]:
    """Predict a folder of pictures or volumes; return the table, their features and the probe."""
    probe = artifacts / "probe/latest"
    arguments = ["--in", str(images), "--probe", str(probe), "--out", str(out), "--no-typicality"]
    assert main(["predict", *arguments, "--device", "cpu"]) == 0
    encoder = medvq.load_encoder(artifacts / "pretrain/latest", "cpu")
    files = sorted(path for path in images.rglob("*") if path.is_file())
    return pd.read_csv(out), encoder(files), medvq.load_probe(probe)


def names(result: dict[str, Any]) -> list[str]:
    return [row["features"] for row in result["rows"]]


def test_volumes_and_a_number(
    tmp_path: Path, artifacts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The marked volume is a bright ball, which the image shows."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(16) - 7.5] * 3, indexing="ij"))
    for number in range(60):
        ball = ((grid**2).sum(0) < rng.uniform(2, 7) ** 2).astype(np.uint8)
        for kind, volume in (("imagesTr", 200 * ball), ("labelsTr", ball)):
            file = tmp_path / "hippocampus" / kind / f"hippocampus_{number:03d}.nii.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(volume, np.eye(4)), file)
    sizes = ("ingest.read_size=[16, 16, 16]", "ingest.image_size=[16, 16, 16]")
    regularisation = "probe.regularisation=[0.1]"
    result = run(
        tmp_path, artifacts, "hippocampus", capsys, *sizes, "extract.versions=1", regularisation
    )
    assert (result["headline"], result["task"]) == ("r2", "hippocampus_mm3")
    assert names(result)[:3] == ["medvq", "raw_pixels", "untrained_encoder"]
    assert not {"hog", "border_only"} & set(names(result))
    pixels = next(row for row in result["rows"] if row["features"] == "raw_pixels")
    assert pixels["r2"]["mean"] > 0.8
    volumes = tmp_path / "hippocampus" / "imagesTr"
    table, encoded, probe = predicted(volumes, artifacts / "hippocampus", tmp_path / "p.csv")
    np.testing.assert_allclose(table["predicted"], probe.predict(encoded), rtol=1e-6)
    assert "class" not in table
    cache = np.load(artifacts / "hippocampus/ingest/latest/images.npy")
    assert cache.shape == (60, 1, 16, 16, 16)


def test_colour_of_three_classes_by_official_folds(
    tmp_path: Path, artifacts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The class is the colour: raw pixels tell it, and grey could not."""
    folder = tmp_path / "stl10"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, number in (("train", 120), ("test", 60)):
        labels = np.arange(number) % 3
        pictures = rng.integers(0, 60, (number, 3, 96, 96), np.uint8)
        pictures[np.arange(number), labels] += 120
        pictures.tofile(folder / f"{split}_X.bin")
        (labels + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("red\ngreen\nblue\n")
    folds = [" ".join(map(str, range(start, start + 60))) for start in (0, 30)]
    (folder / "fold_indices.txt").write_text("\n".join(folds) + "\n")
    result = run(
        tmp_path, artifacts, "stl10", capsys, "ingest.read_size=16", "ingest.image_size=16",
        "extract.grid=2", "extract.versions=0", "probe.label_fraction=0.5",
    )  # fmt: skip
    assert (result["labels"], result["repeats"], result["headline"]) == (60, 2, "accuracy")
    assert names(result)[:4] == ["medvq", "raw_pixels", "hog", "untrained_encoder"]
    accuracy = {row["features"]: row["accuracy"]["mean"] for row in result["rows"]}
    assert accuracy["raw_pixels"] == 1.0
    assert accuracy["hog"] < 0.6
    recall = result["rows"][0]["recall"]
    assert list(recall) == ["blue", "green", "red"]
    history = artifacts / "stl10/pretrain/latest/history.csv"
    assert history.read_text().count("\n") == 2
    (new := tmp_path / "new").mkdir()
    for number, picture in enumerate(pictures[:9]):
        Image.fromarray(picture.transpose(1, 2, 0)).save(new / f"{number}.png")
    table, encoded, probe = predicted(new, artifacts / "stl10", tmp_path / "p.csv")
    columns = ["probability_blue", "probability_green", "probability_red"]
    np.testing.assert_allclose(table[columns], probe.predict_proba(encoded), atol=1e-6)
    called = [columns[k].removeprefix("probability_") for k in table[columns].to_numpy().argmax(1)]
    assert table["class"].tolist() == called


class OwnTable:
    """A folder of pictures and a table of their brightness; every tenth has none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = ["file;Age;subject"]
        self.config = folder / "own.yaml"
        self.config.write_text(
            f"name: own\nsource: {{kind: image_folder, folder: {folder},\n"
            "  labels: {file: labels.csv, target: Age}}\n"
            "ingest: {read_size: 16, image_size: 16, equalise: null,\n"
            "  alignment: {enabled: false}, swap: {enabled: false}}\n"
        )

    def add(self, numbers: range) -> None:
        for number in numbers:
            age = 20 + number * 37 % 60
            grey = np.random.default_rng(number).integers(0, 30, (16, 16)) + 2 * age
            Image.fromarray(grey.astype(np.uint8)).save(self.folder / f"{number:03d}.png")
            self.table.append(f"{number:03d}.png;{age if number % 10 else ''};S{number // 2}")
        (self.folder / "labels.csv").write_text("\n".join(self.table))


class Watched:
    """The names of the files that are hashed, and of those that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hashed: list[str] = []
        self.read: list[str] = []
        self._hash, self._map = reading._hash_with_status, workers.map_in_processes
        monkeypatch.setattr(reading, "_hash_with_status", self._hashing)
        monkeypatch.setattr(reading, "map_in_processes", self._mapping)

    def _hashing(self, path: Path) -> object:
        self.hashed.append(path.name)
        return self._hash(path)

    def _mapping(self, function: Any, items: Any, **options: Any) -> object:
        def seen() -> Iterator[reading.ImageFiles]:
            for item in items:
                self.read.append(item.paths[0].name)
                yield item

        return self._map(function, seen(), **options)


def test_a_number_from_a_users_own_table_and_images_added_later(
    tmp_path: Path,
    artifacts: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = OwnTable(tmp_path)
    own.add(range(120))
    result = run(
        tmp_path, artifacts, str(own.config), capsys,
        "probe.label_fraction=1", "probe.regularisation=[1.0]", "extract.versions=0",
    )  # fmt: skip
    assert (result["headline"], result["task"]) == ("r2", "Age")
    pixels = next(row for row in result["rows"] if row["features"] == "raw_pixels")
    assert pixels["r2"]["mean"] > 0.95
    manifest = pd.read_csv(artifacts / "own/ingest/latest/manifest.csv")
    assert manifest["target"].isna().sum() == 12
    labelled = manifest[(manifest["split"] != "test") & manifest["target"].notna()]
    assert result["labels"] <= len(labelled)

    watched = Watched(monkeypatch)
    sets = [part for override in SMALL for part in ("--set", override)]
    places = ["--data-root", str(tmp_path), "--artifacts", str(artifacts)]
    again = ["ingest", "--config", str(own.config), *places, *sets]
    assert main(again) == 0
    assert (watched.hashed, watched.read) == ([], [])
    own.add(range(120, 123))
    assert main(again) == 0
    new = ["120.png", "121.png", "122.png"]
    assert (sorted(watched.hashed), sorted(watched.read)) == (new, new)
