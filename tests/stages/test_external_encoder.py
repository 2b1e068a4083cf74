"""Encoders that MedVQ did not make, through the flow of the smallest phantom set."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import medvq
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from factories.flow import SMALLEST, STAGES, json_line
from medvq.cli import main
from medvq.config.encoder import OnnxEncoder, PythonEncoder, TableEncoder, TorchscriptEncoder
from medvq.config_file import load_config
from medvq.errors import UserError
from medvq.storage.external import ExternalFeatures, fingerprint, read_embeddings
from safetensors.torch import save_file

pytestmark = pytest.mark.usefixtures("kept_workers")
CPU = torch.device("cpu")
PYTHON = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Conv2d(1, 3, 4, 4), torch.nn.ReLU())
"""


class Halves(torch.nn.Module):
    """The means of the upper and of the lower half, and a number that tells their order."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        upper, lower = images.mean(1).chunk(2, 1)
        return torch.stack([upper.mean((1, 2)), lower.mean((1, 2))], 1)


def scripted(file: Path, network: torch.nn.Module | None = None) -> TorchscriptEncoder:
    example = torch.zeros(2, 3, 16, 16)
    torch.jit.trace(network or Halves(), example).save(str(file))
    return TorchscriptEncoder(kind="torchscript", file=str(file), input_size=16)


def written(folder: Path, **encoder: Any) -> Path:
    file = folder / "own.yaml"
    file.write_text(yaml.safe_dump({"extends": "phantom", "name": "tiny", "encoder": encoder}))
    return file


def run(folder: Path, file: Path, stage: str, *more: str) -> int:
    overrides = [part for one in (*SMALLEST, *more) for part in ("--set", one)]
    return main([
        stage, "--config", str(file), "--device", "cpu", "--json",
        "--data-root", str(folder / "data"), "--artifacts", str(folder / "artifacts"), *overrides,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def folder(flow_folder: Path) -> Path:
    """The smallest phantom set, ingested, and judged by an encoder of its user's own."""
    for stage in STAGES[1:]:
        shutil.rmtree(flow_folder / "artifacts/tiny" / stage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVQ_SUBJECT_KEY", "tests only")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        scripted(flow_folder / "halves.pt")
        file = written(flow_folder, kind="torchscript", file="halves.pt", input_size=16)
        assert run(flow_folder, file, "probe") == 0
    return flow_folder


def test_a_network_of_the_users_own_is_judged_and_no_vqvae_is_trained(folder: Path) -> None:
    artifacts = folder / "artifacts/tiny"
    assert not (artifacts / "pretrain").exists()
    summary = json.loads((artifacts / "probe/latest/metrics.json").read_text())
    rows = {row["features"]: row for row in summary["rows"]}
    assert next(iter(rows)) == "medvq"
    assert {"raw_pixels", "hog", "untrained_encoder", "external"} <= set(rows)
    assert "embedding" not in rows
    assert rows["medvq"]["auroc"] == rows["external"]["auroc"]
    assert "external" not in summary["medvq_minus"]


def test_features_are_those_of_the_prepared_images(folder: Path) -> None:
    artifacts = folder / "artifacts/tiny"
    table = pd.read_parquet(artifacts / "extract/latest/features.parquet")
    images = torch.from_numpy(np.load(artifacts / "ingest/latest/images.npy"))[:, None] / 255
    small = F.interpolate(images.expand(-1, 3, -1, -1), (16, 16), mode="bilinear", antialias=True)
    expected = Halves()(small).numpy()
    np.testing.assert_allclose(np.stack(list(table["external"])), expected, atol=1e-6)


def test_new_files_are_encoded_by_the_same_encoder_or_refused(folder: Path, tmp_path: Path) -> None:
    extract = folder / "artifacts/tiny/extract/latest"
    files = sorted(folder.glob("data/phantom-*/images/*.dcm"))[:4]
    table = medvq.load_encoder(extract, device="cpu")(files)
    stored = pd.read_parquet(extract / "features.parquet").set_index("image_id")
    expected = np.stack(list(stored.loc[table["image_id"], "external"]))
    np.testing.assert_allclose(np.stack(list(table["external"])), expected, atol=0.02)
    probe = medvq.load_probe(folder / "artifacts/tiny/probe/latest")
    assert ((probe.predict_proba(table) > 0) & (probe.predict_proba(table) < 1)).all()
    shutil.copy(folder / "halves.pt", tmp_path / "kept.pt")
    try:
        scripted(folder / "halves.pt", torch.nn.Sequential(Halves(), torch.nn.ReLU()))
        with pytest.raises(UserError, match="another file than the features were made with"):
            medvq.load_encoder(extract, device="cpu")
    finally:
        shutil.copy(tmp_path / "kept.pt", folder / "halves.pt")


def test_a_table_is_judged_by_its_images_and_says_what_it_lacks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_parquet(folder / "artifacts/tiny/extract/latest/features.parquet")
    values = pd.DataFrame(np.stack(list(table["external"]))).add_prefix("x")
    values.assign(image_id=table["image_id"]).sample(frac=1, random_state=0).to_csv(
        folder / "own.csv", index=False
    )
    capsys.readouterr()
    assert run(folder, written(folder, kind="table", file="own.csv"), "probe") == 0
    said = capsys.readouterr()
    assert said.err.count("encoder.kind=table has no embeddings of") == 1
    summary = json_line(said.out)
    assert summary["rows"][0]["features"] == "medvq"
    assert summary["rows"][0]["validation"]["swapped"] is None
    extract = folder / "artifacts/tiny/extract/latest"
    again = pd.read_parquet(extract / "features.parquet")
    np.testing.assert_allclose(
        np.stack(list(again["external"])), np.stack(list(table["external"])), rtol=1e-5
    )
    with pytest.raises(UserError, match="no new image can be encoded"):
        medvq.load_encoder(extract, device="cpu")


def test_stages_that_need_codes_say_so_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(folder, kind="torchscript", file="halves.pt", input_size=16)
    assert run(folder, file, "prior") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("medvq: there are no codes")
    assert not (folder / "artifacts/tiny/prior").exists()


def test_weights_and_python_file_make_a_network_of_maps(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(PYTHON)
    with torch.random.fork_rng():
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 4, 4), torch.nn.ReLU())
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "own.yaml").write_text(
        yaml.safe_dump(
            {
                "extends": "phantom",
                "encoder": {
                    "kind": "safetensors+python",
                    "file": "net.safetensors",
                    "python": "net.py",
                    "input_size": 32,
                    "input_channels": 1,
                    "mean": [0.5],
                    "std": [0.25],
                    "output": "map",
                },
            }
        )
    )
    encoder = load_config(tmp_path / "own.yaml").encoder
    assert encoder is not None
    assert set(fingerprint(encoder)) == {"encoder.file", "encoder.python"}
    images = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    features = ExternalFeatures(encoder, 4, CPU)(images)
    maps = network((images - 0.5) / 0.25)
    expected = F.adaptive_avg_pool2d(maps, 4).flatten(1).detach().numpy()
    np.testing.assert_allclose(features, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return 3", "'build' returns no torch.nn.Module"),
        ("raise SystemExit(3)", r"does not load: 3"),
        ("import not_there", "does not load: No module named 'not_there'"),
        ("return torch.nn.Conv2d(1, 8, 4, 4)", "does not load: Error.*size mismatch"),
    ],
)
def test_a_python_file_that_builds_no_such_network_is_refused(
    tmp_path: Path, body: str, reason: str
) -> None:
    save_file(torch.nn.Conv2d(1, 3, 4, 4).state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "net.py").write_text(f"import torch\n\ndef build():\n    {body}\n")
    encoder = PythonEncoder(
        kind="safetensors+python",
        file=str(tmp_path / "net.safetensors"),
        python=str(tmp_path / "net.py"),
    )
    with pytest.raises(UserError, match=reason):
        ExternalFeatures(encoder, 4, CPU)


class Refuses(torch.nn.Module):
    """NaN for a black image; maps where asked for vectors."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.kind == "map":
            return images
        if self.kind == "nan":
            return images.mean((2, 3)) * float("nan")
        return F.conv2d(images, torch.ones(1, 1, 1, 1)).mean((2, 3))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("map", "set encoder.output to"), ("nan", "not finite"), ("channels", "refuses the images")],
)
def test_an_encoder_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, kind: str, reason: str
) -> None:
    example = torch.zeros(2, 1 if kind == "channels" else 3, 16, 16)
    torch.jit.trace(Refuses(kind), example).save(str(tmp_path / "bad.pt"))
    encoder = TorchscriptEncoder(kind="torchscript", file=str(tmp_path / "bad.pt"), input_size=16)
    with pytest.raises(UserError, match=reason) as error:
        ExternalFeatures(encoder, 4, CPU)(torch.zeros(2, 1, 16, 16))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_network_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_text("no network")
    encoder = TorchscriptEncoder(kind="torchscript", file=str(tmp_path / "bad.pt"))
    with pytest.raises(UserError, match=r"bad.pt \(torchscript\) does not load"):
        ExternalFeatures(encoder, 4, CPU)
    absent = TorchscriptEncoder(kind="torchscript", file=str(tmp_path / "absent.pt"))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        fingerprint(absent)


MANIFEST = pd.DataFrame({"image_id": ["01", "02", "03"], "path": ["a.png", "b.png", "c.png"]})


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ({"image_id": ["01", "02"], "x": [1, 2]}, r"no row of 1 image \(image_id 03"),
        (
            {"image_id": ["01", "02", "02", "03"], "x": [1, 2, 2, 3]},
            r"several rows of one image: row 3",
        ),
        ({"image_id": ["01", "02", "03"], "x": [1, np.nan, 3]}, "not finite, of the images: 02"),
        ({"image_id": ["01", "02", "03"], "x": ["1", "b", "3"]}, "column 'x' holds no numbers"),
        ({"id": ["01", "02", "03"], "x": [1, 2, 3]}, "no column 'image_id'"),
        ({"image_id;x": ["01;1", "02;2"]}, "one column only, or is it not separated by commas"),
        ({"image_id": ["01", "02", "03"]}, "no column beside 'image_id'"),
        (
            {"image_id": ["01", "02", "03"], "x": [1, 2, 3], "Label": [0, 1, 0]},
            "column 'Label' is the label by its name.*encoder.columns",
        ),
        (
            {"": [0, 1, 2], "image_id": ["01", "02", "03"], "x": [1, 2, 3]},
            "column 'Unnamed: 0' is the number of the row by its name.*encoder.columns",
        ),
    ],
)
def test_a_table_that_does_not_fit_the_images_is_refused(
    tmp_path: Path, rows: dict[str, list[Any]], reason: str
) -> None:
    pd.DataFrame(rows).to_csv(tmp_path / "own.csv", index=False)
    with pytest.raises(UserError, match=reason):
        read_embeddings(TableEncoder(kind="table", file=str(tmp_path / "own.csv")), MANIFEST)


def test_a_table_of_lists_is_joined_by_file_and_its_widths_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "own.parquet"
    encoder = TableEncoder(kind="table", file=str(file), join="file")
    rows = {"file": ["c.png", "a.png", "b.png"], "embedding": [[3.0, 3], [1.0, 1], [2.0, 2]]}
    pd.DataFrame(rows).to_parquet(file)
    assert read_embeddings(encoder, MANIFEST).tolist() == [[1, 1], [2, 2], [3, 3]]
    rows["embedding"][1] = [1.0]
    pd.DataFrame(rows).to_parquet(file)
    with pytest.raises(UserError, match="row 2: 1 numbers, where row 1 has 2"):
        read_embeddings(encoder, MANIFEST)


def test_images_without_a_path_are_not_joined_to_a_row_without_one(tmp_path: Path) -> None:
    file = tmp_path / "own.parquet"
    pd.DataFrame({"file": ["a.png", ""], "x": [1.0, 2.0]}).to_parquet(file)
    of_dicom = MANIFEST.assign(path=["a.png", "", ""])
    with pytest.raises(UserError, match=r"manifest.csv has no path of 2 images, .*image_id"):
        read_embeddings(TableEncoder(kind="table", file=str(file), join="file"), of_dicom)


def test_lists_of_nothing_are_no_embedding(tmp_path: Path) -> None:
    file = tmp_path / "own.parquet"
    pd.DataFrame({"image_id": MANIFEST["image_id"], "x": [[], [], []]}).to_parquet(file)
    with pytest.raises(UserError, match="its lists hold no numbers"):
        read_embeddings(TableEncoder(kind="table", file=str(file)), MANIFEST)


@pytest.mark.parametrize("broken", [None, [[1.0, 1.0], [2.0, 2.0]], ["a", "b"]])
def test_a_row_without_a_list_of_numbers_is_named(tmp_path: Path, broken: Any) -> None:
    file = tmp_path / "own.parquet"
    encoder = TableEncoder(kind="table", file=str(file))
    values = [broken] * 3 if broken else [[1.0, 2.0], None, [1.0, 2.0]]
    pd.DataFrame({"image_id": ["01", "02", "03"], "embedding": values}).to_parquet(file)
    row = 1 if broken else 2
    with pytest.raises(UserError, match=rf"row {row}: 'embedding' is no list of numbers"):
        read_embeddings(encoder, MANIFEST)


def test_columns_that_are_named_are_taken_whatever_they_are_called(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    pd.DataFrame({"image_id": ["01", "02", "03"], "x": [1, 2, 3], "y": [4, 5, 6]}).to_csv(file)
    encoder = TableEncoder(kind="table", file=str(file), columns=("x", "y"))
    assert read_embeddings(encoder, MANIFEST).tolist() == [[1, 4], [2, 5], [3, 6]]


def test_files_that_a_table_names_otherwise_are_explained(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    pd.DataFrame({"file": ["/data/a.png", "b", "c"], "x": [1, 2, 3]}).to_csv(file, index=False)
    with pytest.raises(UserError, match="compared with the column 'path' of manifest"):
        read_embeddings(TableEncoder(kind="table", file=str(file), join="file"), MANIFEST)


def test_the_examples_of_the_how_to_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/own-encoder.md").read_text()
    onnx, table = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(onnx, {})
    features = ExternalFeatures(
        OnnxEncoder(kind="onnx", file="my-encoder.onnx", input_size=64), 4, CPU
    )
    assert features(torch.rand(5, 1, 32, 32)).shape == (5, 32)
    ingest = tmp_path / "artifacts/phantom/ingest/latest"
    shutil.copytree((folder / "artifacts/tiny/ingest/latest").resolve(), ingest)
    exec(table, {})
    manifest = pd.read_csv(ingest / "manifest.csv", dtype={"image_id": str})
    embeddings = read_embeddings(TableEncoder(kind="table", file="embeddings.csv"), manifest)
    assert embeddings[:, 1].tolist() == list(range(len(manifest)))


def test_a_table_takes_no_whitening_from_the_configuration_it_extends(tmp_path: Path) -> None:
    text = (
        "extends: encoders/imagenet\nname: own\nsource: {kind: image_folder, folder: .}\n"
        "encoder: {kind: table, file: a.csv}\n"
    )
    own = tmp_path / "own.yaml"
    own.write_text(text)
    assert load_config(own).probe.whitening is None
    own.write_text(text + "probe: {whitening: 2.0}\n")  # refused by the probe, with the mend
    assert load_config(own).probe.whitening == 2
    own.write_text(text.replace("table", "onnx"))
    assert load_config(own).probe.whitening == 1
