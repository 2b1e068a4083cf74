"""What `medvq bundle` and `medvq onnx` write of the smallest phantom flow."""

import errno
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from factories.flow import json_line
from factories.images import dicom, save_dicom
from medvq.cli import main
from medvq.config import DicomFolderSource
from medvq.export.bundle import write_bundle
from medvq.export.onnx import run_onnx
from medvq.export.source import ExportSource
from medvq.images.preparation import Preparation
from medvq.images.reading import ImageFiles, Reader
from medvq.inference import load_probe
from medvq.method.alignment import Alignment
from medvq.method.scaling import to_unit
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out
from monai.bundle import run as run_bundle
from PIL import Image

REQUIRED = (
    "schema", "version", "monai_version", "pytorch_version", "numpy_version",
    "required_packages_version", "task", "description", "authors", "copyright",
    "network_data_format",
)  # fmt: skip
"""What MONAI's own schema asks for, which is downloaded from where metadata say it is."""
TENSOR = ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range")


@pytest.fixture(scope="module")
def folder(flow_folder: Path) -> Path:
    """The smallest phantom flow, and the bundle of its probe."""
    assert (
        main(["bundle", *of_probe(flow_folder), "--out", str(flow_folder / "bundle"), "--zip"]) == 0
    )
    return flow_folder


def of_probe(folder: Path) -> list[str]:
    artifacts = folder / "artifacts"
    return ["--probe", str(artifacts / "tiny/probe/latest"), "--artifacts", str(artifacts)]


def test_monai_verifies_the_bundle(folder: Path, tmp_path: Path) -> None:
    configs = folder / "bundle/configs"
    tensor = {"type": "object", "required": list(TENSOR)}
    tensors = {"type": "object", "additionalProperties": tensor, "minProperties": 1}
    formats = {
        "type": "object",
        "properties": {"inputs": tensors, "outputs": tensors},
        "required": ["inputs", "outputs"],
    }
    schema = {
        "type": "object",
        "required": list(REQUIRED),
        "properties": {"network_data_format": formats, "eval_metrics": {"type": "object"}},
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    metadata = str(configs / "metadata.json")
    verify_metadata(meta_file=metadata, filepath=str(tmp_path / "schema.json"))
    verify_net_in_out(
        net_id="network_def",
        meta_file=metadata,
        config_file=str(configs / "inference.json"),
        device="cpu",
    )


def test_its_network_has_the_features_of_the_feature_store(folder: Path) -> None:
    parser = ConfigParser()
    parser.read_config(str(folder / "bundle/configs/inference.json"))
    parser["bundle_root"], parser["device"] = str(folder / "bundle"), "cpu"
    network = parser.get_parsed_content("network")
    artifacts = folder / "artifacts/tiny"
    images = np.load(artifacts / "ingest/latest/images.npy")[:, None] / np.float32(255)
    stored = pd.read_parquet(artifacts / "extract/latest/features.parquet")["embedding"]
    features = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(features, np.stack(list(stored)), atol=1e-5)


def test_its_configuration_has_textures_where_the_probe_reads_them(
    flow_folder: Path, tmp_path: Path
) -> None:
    pretrain = flow_folder / "artifacts/tiny/pretrain/latest"
    source = ExportSource.of_encoder(pretrain, ["embedding", "texture"])
    write_bundle(source, tmp_path / "bundle")
    parser = ConfigParser()
    parser.read_config(str(tmp_path / "bundle/configs/inference.json"))
    parser["bundle_root"], parser["device"] = str(tmp_path / "bundle"), "cpu"
    images = torch.rand(2, 1, *source.config.ingest.image_shape)
    torch.testing.assert_close(parser.get_parsed_content("network")(images), source.network(images))


def test_dicom_files_are_shown_with_the_window_of_the_configuration(
    flow_folder: Path, tmp_path: Path
) -> None:
    made = ExportSource.of_encoder(flow_folder / "artifacts/tiny/pretrain/latest", ())
    window = (300.0, 100.0)
    shown = DicomFolderSource(kind="dicom_folder", window=window)
    source = replace(made, config=made.config.model_copy(update={"source": shown}))
    write_bundle(source, tmp_path / "bundle")
    parser = ConfigParser()
    parser.read_config(str(tmp_path / "bundle/configs/inference.json"))
    parser["bundle_root"] = str(tmp_path / "bundle")
    pixels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) % 1000
    save_dicom(tmp_path / "a.dcm", dicom(pixels))
    ingest = source.config.ingest
    files = ImageFiles((tmp_path / "a.dcm",), window=window)
    image = Reader(ingest.read_shape, ingest.channels, ingest.fit)(files).image
    assert image is not None
    assert source.template is not None
    alignment = Alignment(source.template, ingest.alignment)
    expected = to_unit(Preparation(ingest, alignment)(image).images)[0]
    prepared = parser.get_parsed_content("preprocessing")(str(tmp_path / "a.dcm"))
    torch.testing.assert_close(prepared["image"], expected)


def test_monai_runs_the_bundle_and_the_graph_says_the_same(folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for file in sorted(folder.glob("data/phantom-*/images/*.dcm"))[:5]:
        (images / file.name).write_bytes(file.read_bytes())
    bundle = folder / "bundle"
    run_bundle(
        config_file=str(bundle / "configs/inference.json"),
        bundle_root=str(bundle),
        dataset_dir=str(images),
        output_dir=str(tmp_path / "out"),
        device="cpu",
    )
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("out/*")}
    assert modes == {"features.parquet": 0o600, "predictions.csv": 0o600}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    table = pd.read_parquet(tmp_path / "out/features.parquet")
    predictions = pd.read_csv(tmp_path / "out/predictions.csv", dtype={"image_id": str})
    assert predictions["file"].isna().all()  # the name of a DICOM file may name a patient
    artifacts = folder / "artifacts/tiny"
    stored = pd.read_parquet(artifacts / "extract/latest/features.parquet").set_index("image_id")
    features, expected = (
        np.stack(list(one))
        for one in (table["features"], stored.loc[table["image_id"], "embedding"])
    )
    np.testing.assert_allclose(features, expected, atol=1e-5)
    probability = load_probe(artifacts / "probe/latest").predict_proba(features)[:, 1]
    np.testing.assert_allclose(predictions["probability_1"], probability, atol=1e-6)


def test_a_bundle_counts_what_is_no_image_and_says_why_one_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, bundle = tmp_path / "images", folder / "bundle"
    (images / "in").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(noise).save(images / "in/b.png")
    (images / "a.png").write_bytes((images / "in/b.png").read_bytes()[:900])
    (images / "labels.csv").write_text("file\n")
    arguments: dict[str, str] = {
        "config_file": str(bundle / "configs/inference.json"),
        "bundle_root": str(bundle),
        "dataset_dir": str(images),
        "output_dir": str(tmp_path / "out"),
        "device": "cpu",
    }
    run_bundle(**arguments)
    told = capsys.readouterr().err
    assert "skipped: 1 x no image (.csv)" in told
    assert "refused: 1 x not a readable image" in told
    table = pd.read_csv(tmp_path / "out/predictions.csv")
    assert list(table["file"]) == ["a.png", "in/b.png"]
    assert list(table["refused"].notna()) == list(table["probability_1"].isna()) == [True, False]
    assert len(pd.read_parquet(tmp_path / "out/features.parquet")) == 1
    (images / "in/b.png").unlink()
    with pytest.raises(RuntimeError) as caught:
        run_bundle(**arguments)
    assert "none of the images" in str(caught.value.__cause__)


def test_the_graph_predicts_what_the_probe_predicts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "encoder.onnx"
    capsys.readouterr()
    assert main(["onnx", *of_probe(folder), "--out", str(file), "--json"]) == 0
    report = json_line(capsys.readouterr().out)
    assert report["difference"] < 1e-4
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 64, 64), np.uint8)
    features, prediction = run_onnx(file, images)
    probe = load_probe(folder / "artifacts/tiny/probe/latest")
    np.testing.assert_allclose(prediction[:, 0], probe.predict_proba(features)[:, 1], atol=1e-4)


def test_the_card_tells_use_limits_data_and_metrics(folder: Path) -> None:
    card = (folder / "bundle/docs/README.md").read_text()
    metrics = json.loads((folder / "artifacts/tiny/probe/latest/metrics.json").read_text())
    auroc = metrics["rows"][0]["auroc"]
    assert f"| auroc | {auroc['mean']:.3f} | {auroc['ci95'][0]:.3f} to" in card
    for title in ("Intended use", "Limits", "Training data", "Licences", "Provenance"):
        assert f"## {title}\n" in card
    assert (folder / "bundle.zip").stat().st_size > 1000
    everything = "".join(
        path.read_text()
        for path in (folder / "bundle").rglob("*")
        if path.suffix in {".json", ".md"}
    )
    assert str(folder) not in everything
    assert "finished-flow" not in everything  # the folder that it is a copy of


def test_a_bundle_that_is_made_anew_keeps_and_does_not_pack_what_else_is_there(
    folder: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(folder / "bundle", bundle)
    (bundle / "models/old.safetensors").write_text("of another probe")
    (bundle / "output").mkdir()
    (bundle / "output/predictions.csv").write_text("file\nAnn.png\n")
    assert main(["bundle", *of_probe(folder), "--out", str(bundle), "--zip"]) == 0
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        packed = {name for name in archive.namelist() if not name.endswith("/")}
    parts = [path for path in bundle.rglob("*") if path.is_file() and "output" not in path.parts]
    assert packed == {str(path.relative_to(tmp_path)) for path in parts}
    assert not (bundle / "models/old.safetensors").exists()
    assert (bundle / "output/predictions.csv").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "bundle.zip"]


PARTS = ["configs", "docs", "models"]


class Killed(BaseException):
    """The end of a process at one point."""


@pytest.mark.parametrize("moment", range(1, 7))
def test_a_run_that_is_killed_leaves_no_mixture_and_the_next_one_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    bundle, rename, left = tmp_path / "bundle", Path.rename, [moment]
    shutil.copytree(folder / "bundle", bundle)
    (bundle / "models/old.safetensors").write_text("of another probe")

    def kill(path: Path, target: Path) -> Path:
        left[0] -= bundle in Path(target).parents
        if left[0] == 0:
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", kill)
        with pytest.raises(Killed):
            main(["bundle", *of_probe(folder), "--out", str(bundle)])
    if (bundle / "configs").exists():
        assert (bundle / "models/old.safetensors").exists()
    assert main(["bundle", *of_probe(folder), "--out", str(bundle)]) == 0
    assert sorted(path.name for path in bundle.iterdir()) == PARTS
    assert not (bundle / "models/old.safetensors").exists()


def test_a_second_run_on_the_same_bundle_is_refused(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["bundle", *of_probe(folder), "--out", str(tmp_path / "bundle")]
    statuses: list[int] = []

    def second(source: ExportSource) -> str:
        if not statuses:
            statuses.append(main(command))
        return "a card"

    monkeypatch.setattr("medvq.export.bundle.model_card", second)
    assert main(command) == 0
    assert statuses == [2]
    assert "bundle; wait for it, or stop it and start again" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == PARTS


def test_an_error_leaves_the_bundle_before_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "bundle", tmp_path / "bundle")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("medvq.export.bundle.model_card", fail)
    assert main(["bundle", *of_probe(folder), "--out", str(tmp_path / "bundle"), "--zip"]) == 2
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == PARTS
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_zip_file_that_the_disk_refuses_leaves_no_part_of_itself(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(base: str, kind: str, *_: object) -> None:
        Path(f"{base}.{kind}").write_bytes(b"a part")
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(shutil, "make_archive", fail)
    assert main(["bundle", *of_probe(folder), "--out", str(tmp_path / "bundle"), "--zip"]) == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle"]


def test_what_another_encoder_is_named_in_is_not_exported_as_our_own(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("extends: phantom\nname: tiny\nencoder: {kind: torchscript, file: own.pt}\n")
    artifacts = str(folder / "artifacts")
    places = ["--artifacts", artifacts, "--out", str(tmp_path / "bundle")]
    assert main(["bundle", "--config", str(file), *places]) == 2
    assert "names another encoder" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_files_of_the_users_own_are_not_overwritten(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("configs", "docs", "models"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.txt").write_text("own")
    (tmp_path / "configs/inference.json").write_bytes(b'{"a": "\xff"}')  # of somebody else
    (tmp_path / "own.onnx").write_bytes(b"own")
    (tmp_path / "packed.zip").write_bytes(b"own")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["bundle", *of_probe(folder), "--out", str(tmp_path)]) == 2
    assert main(["bundle", *of_probe(folder), "--out", str(tmp_path / "own.onnx")]) == 2
    assert main(["bundle", *of_probe(folder), "--zip", "--out", str(tmp_path / "packed")]) == 2
    assert main(["onnx", *of_probe(folder), "--out", str(tmp_path / "own.onnx")]) == 2
    assert main(["onnx", *of_probe(folder), "--out", str(tmp_path / "docs")]) == 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    bundle, file, archive, onnx, no_file = capsys.readouterr().err.splitlines()
    assert "holds other files than MedVQ's bundle; choose another --out" in bundle
    assert "own.onnx is a file, and a bundle is a folder; choose another --out" in file
    assert "packed.zip is no bundle of MedVQ and is not overwritten; choose another" in archive
    assert "own.onnx is no graph of MedVQ and is not overwritten; choose another --out" in onnx
    assert "docs is no graph of MedVQ and is not overwritten; choose another --out" in no_file


@pytest.mark.parametrize("name", ["bundle", "onnx"])
def test_without_an_artifact_one_line_says_so(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--config", "phantom", "--artifacts", str(tmp_path)]) == 2
    assert main([name, "--probe", str(tmp_path), "--artifacts", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all("is no finished artifact of the stage" in line for line in said)
