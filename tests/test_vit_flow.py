"""A Vision Transformer from training to what is explained, reported and shared of it."""

import json
from pathlib import Path

import medvq
import numpy as np
import pandas as pd
import pytest
import torch
from factories.flow import command
from medvq.cli import main
from medvq.explain.atlas import describe_codes, nearest_patches
from monai.bundle import ConfigParser, verify_net_in_out

SETTINGS = (
    "pretrain.encoder=vit",
    "pretrain.widths=null",
    "pretrain.vit={patch_size: 8, channels: 16, depth: 2, decoder_depth: 1, heads: 2}",
    "pretrain.epochs=1",
)


@pytest.fixture(scope="module")
def folder(flow_folder: Path) -> Path:
    """The smallest phantom flow, trained anew with a Vision Transformer, up to the probe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVQ_SUBJECT_KEY", "tests only")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main(command(flow_folder, "probe", *SETTINGS)) == 0
    return flow_folder


@pytest.fixture
def probe(folder: Path) -> Path:
    return folder / "artifacts/tiny/probe/latest"


def test_its_evidence_and_the_intercept_are_the_logit(
    folder: Path, probe: Path, tmp_path: Path
) -> None:
    image = next(folder.glob("data/phantom-*/images/*.dcm"))
    assert main(["explain", str(image), "--probe", str(probe), "--out", str(tmp_path)]) == 0
    values = json.loads(next(tmp_path.glob("*.json")).read_text())
    encoder = medvq.load_encoder(folder / "artifacts/tiny/pretrain/latest", "cpu")
    logit = medvq.load_probe(probe).decision_function(encoder([image]))[0]
    assert values["intercept"][0] + np.sum(values["evidence"]) == pytest.approx(logit, abs=1e-5)


def test_the_patches_of_its_atlas_have_the_codes_that_they_stand_for(folder: Path) -> None:
    artifacts = folder / "artifacts/tiny"
    store = artifacts / "extract/latest/features.parquet"
    entries = describe_codes(store, 16)
    assert sum(entry.share for entry in entries) == pytest.approx(1.0)
    assert {entry.places.shape for entry in entries} == {(4, 4)}
    encoder = medvq.load_encoder(artifacts / "pretrain/latest", "cpu")
    images = np.load(artifacts / "ingest/latest/images.npy")
    shown = [entry.code for entry in entries]
    codes = np.stack(list(pd.read_parquet(store)["codes_0"]))
    found = nearest_patches(store, encoder, images, shown, 3)
    assert set(found) == set(shown)
    assert all(codes[one.row, one.place] == code for code in shown for one in found[code])
    assert (artifacts / "report/report.html").is_file()


def test_its_bundle_has_the_features_of_the_feature_store(
    folder: Path, probe: Path, tmp_path: Path
) -> None:
    artifacts = folder / "artifacts/tiny"
    shared = tmp_path / "shared"
    assert main(["bundle", "--probe", str(probe), "--out", str(shared)]) == 0
    inference = str(shared / "configs/inference.json")
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(shared / "configs/metadata.json"),
        config_file=inference,
        device="cpu",
    )
    parser = ConfigParser()
    parser.read_config(inference)
    parser["bundle_root"], parser["device"] = str(shared), "cpu"
    network = parser.get_parsed_content("network")
    images = np.load(artifacts / "ingest/latest/images.npy")[:, None] / np.float32(255)
    stored = pd.read_parquet(artifacts / "extract/latest/features.parquet")["embedding"]
    with torch.no_grad():
        features = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(features, np.stack(list(stored)), atol=1e-5)
