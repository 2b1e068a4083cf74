"""The public API on what the smallest phantom flow left."""

import subprocess
import sys
from pathlib import Path

import medvq
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from factories.flow import SMALLEST
from medvq.errors import UserError
from PIL import Image


@pytest.fixture(scope="module")
def folder(flow_folder: Path) -> Path:
    return flow_folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> medvq.Encoder:
    return medvq.load_encoder(folder / "artifacts/tiny/pretrain/latest", device="cpu")


@pytest.fixture(scope="module")
def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("data/phantom-*/images/*.dcm"))[:10]


def stored(folder: Path, ids: pd.Series) -> pd.DataFrame:
    table = pd.read_parquet(folder / "artifacts/tiny/extract/latest/features.parquet")
    return table.set_index("image_id").loc[ids]


def test_files_are_encoded_as_extraction_encoded_them(
    folder: Path, encoder: medvq.Encoder, files: list[Path]
) -> None:
    table = encoder(files)
    assert table["file"].tolist() == [""] * 10
    expected = stored(folder, table["image_id"])
    for name in ("embedding", "latent", "quantized", "histogram", "hog", "untrained_encoder"):
        one, other = (np.stack(t[name]) for t in (table, expected))
        # Registration sums over a batch: its size moves a position in the last bits.
        np.testing.assert_allclose(one, other, atol=0.02 * np.abs(other).max(), err_msg=name)
    codes, before = (np.stack(t["codes_0"]) for t in (table, expected))
    assert (codes == before).mean() > 0.98


def test_the_probe_says_of_the_table_what_it_said_of_the_test_images(
    folder: Path, encoder: medvq.Encoder
) -> None:
    artifact = folder / "artifacts/tiny/probe/latest"
    probe = medvq.load_probe(artifact)
    before = pd.read_parquet(artifact / "predictions.parquet")
    before = before.query("features == 'medvq' and label_subset == 0").set_index("image_id")
    table = encoder(sorted(folder.glob("data/phantom-*/images/*.dcm")))
    table = table[table["image_id"].isin(before.index)]
    probability = probe.predict_proba(table)[:, 1]
    assert probability == pytest.approx(before["probability"].loc[table["image_id"]], abs=0.02)


def test_encode_takes_prepared_images_and_says_what_codes_they_have(
    folder: Path, encoder: medvq.Encoder
) -> None:
    ingest = folder / "artifacts/tiny/ingest/latest"
    images = torch.from_numpy(np.load(ingest / "images.npy"))[:8, None] / 255
    codes, latents = encoder.encode(images)
    ids = pd.read_csv(ingest / "manifest.csv")["image_id"][:8]
    np.testing.assert_array_equal(codes[0].flatten(1), np.stack(stored(folder, ids)["codes_0"]))
    distance = torch.cdist(
        latents[0].flatten(2).transpose(1, 2), encoder.model.quantizers[0].codebook
    )
    assert (distance.argmin(2) == codes[0].flatten(1)).all()


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (torch.zeros(2, 1, 32, 16), r"shape \(2, 1, 32, 16\)"),
        (torch.zeros(1, 32, 32), r"shape \(1, 32, 32\)"),
        (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), "torch.uint8"),
        (torch.full((2, 1, 32, 32), 255.0), "from 255 to 255"),
        (torch.full((2, 1, 32, 32), -0.1), "from -0.1"),
        (torch.full((2, 1, 32, 32), float("nan")), "nan"),
    ],
)
def test_images_of_another_shape_or_range_are_refused(
    encoder: medvq.Encoder, images: torch.Tensor, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        encoder.encode(images)


def test_a_picture_of_the_same_pixels_has_the_same_codes(
    encoder: medvq.Encoder, files: list[Path], tmp_path: Path
) -> None:
    header = pydicom.dcmread(files[0])
    stored_pixels = header.pixel_array.astype(float)
    if header.PhotometricInterpretation == "MONOCHROME1":
        stored_pixels = 4095 - stored_pixels
    picture = tmp_path / "a.png"
    Image.fromarray(np.round(stored_pixels / 4095 * 65535).astype(np.uint16)).save(picture)
    table = encoder([files[0], str(picture)])
    assert table["file"].tolist() == ["", str(picture)]
    first, second = table["codes_0"]
    assert (first == second).mean() > 0.9


def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    encoder: medvq.Encoder, files: list[Path], tmp_path: Path
) -> None:
    broken, secret = tmp_path / "broken.png", tmp_path / "Ann.dcm"
    broken.write_bytes(b"no picture")
    secret.write_bytes(files[0].read_bytes()[:1000])
    with pytest.raises(UserError, match=r"broken\.png: not a readable image"):
        encoder([files[0], broken])
    with pytest.raises(UserError, match=r"^file 1: ") as caught:
        encoder([files[0], secret])
    assert "Ann" not in str(caught.value)
    (bare := tmp_path / "Ann").touch()  # what may have been DICOM
    with pytest.raises(UserError, match=r"^file 1: the file is empty$"):
        encoder([files[0], bare])
    assert len(encoder([])) == 0
    with pytest.raises(TypeError, match="a list of paths"):
        encoder(str(files[0]))


@pytest.mark.parametrize("load", [medvq.load_encoder, medvq.load_probe])
def test_what_is_no_artifact_of_the_stage_is_refused(folder: Path, load: object) -> None:
    assert callable(load)
    for path in (folder / "nowhere", folder / "artifacts/tiny/ingest/latest"):
        with pytest.raises(UserError, match="is no finished artifact of the stage"):
            load(path)


def test_run_is_what_the_command_line_calls(folder: Path) -> None:
    config = medvq.load_config("phantom", SMALLEST)
    options = medvq.RunOptions(
        data_root=folder / "data", artifacts=folder / "artifacts", device="cpu"
    )
    result = medvq.run("ingest", config, options)
    assert result.up_to_date
    summary = result.summary.to_json()
    assert summary["images"] > summary["subjects"] > 30


def test_importing_is_quick_and_changes_nothing() -> None:
    script = (
        "import os, sys, warnings, logging\n"
        "before = dict(os.environ), list(warnings.filters), set(logging.root.manager.loggerDict)\n"
        "import medvq\n"
        "after = dict(os.environ), list(warnings.filters), set(logging.root.manager.loggerDict)\n"
        "assert before == after\n"
        "print([m for m in ('torch', 'numpy', 'pandas', 'mlflow', 'monai') if m in sys.modules])\n"
        "print(sorted(set(medvq.__all__) - set(dir(medvq))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[]", "[]"]


def test_what_is_no_list_of_files_is_said(encoder: medvq.Encoder, files: list[Path]) -> None:
    for path in (files[0], str(files[0])):
        with pytest.raises(TypeError, match="files is one path; give a list"):
            encoder(path)
    with pytest.raises(TypeError, match="files holds a ndarray, not paths"):
        encoder(np.zeros((2, 32, 32)))
    assert len(encoder(str(file) for file in files[:2])) == 2
    with pytest.raises(TypeError, match=r"images are a ndarray, not a torch.Tensor"):
        encoder.encode(np.zeros((2, 1, 32, 32)))


def test_a_device_that_there_is_not_is_refused_and_not_taken_for_another(folder: Path) -> None:
    artifact = folder / "artifacts/tiny/pretrain/latest"
    with pytest.raises(UserError, match="device=tpu is none of: auto, cpu, cuda"):
        medvq.load_encoder(artifact, "tpu")
    encoder = medvq.load_encoder(artifact, torch.device("cpu"))
    assert encoder.device == torch.device("cpu")
    with pytest.raises(UserError, match="device=gpu is none of: auto, cpu, cuda"):
        medvq.run("ingest", medvq.load_config("phantom"), medvq.RunOptions(device="gpu"))


def test_features_of_another_width_are_not_taken_for_the_probes(folder: Path) -> None:
    probe = medvq.load_probe(folder / "artifacts/tiny/probe/latest")
    width = len(probe[1].mean_)
    for shape in ((3, 1), (3, width - 1), (width,)):
        with pytest.raises(ValueError, match=rf"the features have the shape .*, not \(N, {width}"):
            probe.predict_proba(np.zeros(shape))
    assert probe.predict_proba(np.zeros((3, width))).shape == (3, 2)


def test_a_run_takes_paths_as_text_and_says_what_it_does_not_take() -> None:
    options = medvq.RunOptions(data_root="a", artifacts="b", probe="c")
    assert (options.data_root, options.artifacts) == (Path("a"), Path("b"))
    assert (options.cache, options.probe) == (Path("b/.cache"), Path("c"))
    with pytest.raises(UserError, match="there is no stage 'train'; there are: ingest, pretrain"):
        medvq.run("train", medvq.load_config("phantom"))
    with pytest.raises(TypeError, match="config is a str; give what load_config returns"):
        medvq.run("ingest", "phantom")
