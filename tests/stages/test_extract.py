"""Extraction from a hand-made cache and a small model that was never trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from factories.extraction import (
    FINER,
    GRID,
    SIZE,
    SPLITS,
    Inputs,
    configuration,
    extract,
    write_inputs,
)
from medvq.method.augmentation import random_versions
from medvq.method.encodings import CodeHistogram
from medvq.method.features import (
    histogram_of_oriented_gradients,
    pool_to_grid,
    raw_pixels,
    untrained_network,
)
from medvq.method.scaling import to_network, to_unit
from medvq.method.vqvae import VQVAE, Architecture
from medvq.storage.feature_store import (
    FEATURES,
    SWAPPED,
    VERSIONS,
    CodeLevel,
    FeatureStoreMetadata,
    augmented,
    feature_names,
    read_feature,
    read_keys,
    read_metadata,
)
from medvq.storage.weights import FILE, load_model
from numpy.typing import NDArray
from torch import Tensor


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def store(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return extract(inputs.artifacts, tmp_path_factory.mktemp("extract"), configuration())


@pytest.fixture(scope="module")
def manifest(inputs: Inputs) -> pd.DataFrame:
    return pd.read_csv(inputs.artifacts["ingest"].folder / "manifest.csv", dtype=str)


@pytest.fixture(scope="module")
def model(inputs: Inputs) -> VQVAE:
    return load_model(inputs.artifacts["pretrain"].folder / FILE)


def nearest(latent: Tensor, codebook: Tensor) -> Tensor:
    """The codebook's vector at every place, by the distances themselves."""
    places = latent.movedim(1, -1)
    return codebook[torch.cdist(places, codebook).argmin(-1)].movedim(-1, 1)


def expected(model: VQVAE, images: Tensor) -> dict[str, NDArray[np.float32]]:
    """Every float feature set, in one batch."""
    scaled = to_network(images)
    untrained = untrained_network(Architecture.from_config(configuration().pretrain))
    with torch.no_grad():
        encoded, raw, out = model.features(scaled), untrained.encoder(scaled), model(scaled)
    return {
        "embedding": pool_to_grid(encoded.levels[1], GRID),
        "embedding_fine": pool_to_grid(encoded.levels[0], GRID),
        "latent": pool_to_grid(encoded.latent, GRID),
        "quantized": pool_to_grid(nearest(encoded.latent, model.quantizers[0].codebook), GRID),
        "latent_1": pool_to_grid(out.latents[1], GRID),
        "raw_pixels": raw_pixels(images).numpy(),
        "hog": histogram_of_oriented_gradients(images),
        "untrained_encoder": np.concatenate(
            [pool_to_grid(level, GRID) for level in raw.levels], axis=1
        ),
    }


def test_rows_are_those_of_the_manifest_in_order(store: Path, manifest: pd.DataFrame) -> None:
    keys = read_keys(store / FEATURES)
    for column in ("image_id", "subject_id", "split"):
        assert keys[column].tolist() == manifest[column].tolist()
    assert keys["label"].tolist() == manifest["label"].astype(int).tolist()


def test_codes_are_the_models(store: Path, inputs: Inputs, model: VQVAE) -> None:
    codes = model.encode(to_network(to_unit(inputs.images)))
    for level, (size, sides) in enumerate([(SIZE, (4, 4)), (FINER, (8, 8))]):
        assert len(codes[level].unique()) > size // 2
        assert codes[level].shape[1:] == sides
        read = read_feature(store / FEATURES, f"codes_{level}")
        np.testing.assert_array_equal(read, codes[level].flatten(1).numpy())


def test_histogram_and_pyramid_are_of_the_codes(store: Path) -> None:
    codes = read_feature(store / FEATURES, "codes_0")
    for name, grids in (("histogram", (1,)), ("pyramid", (1, 2, 4))):
        histogram = CodeHistogram(SIZE, (4, 4), grids).fit_transform(codes).toarray()
        np.testing.assert_allclose(read_feature(store / FEATURES, name), histogram, rtol=1e-6)


def test_feature_sets_are_those_of_one_large_batch(
    store: Path, inputs: Inputs, model: VQVAE
) -> None:
    for name, values in expected(model, to_unit(inputs.images)).items():
        np.testing.assert_allclose(
            read_feature(store / FEATURES, name), values, atol=1e-5, err_msg=name
        )
    np.testing.assert_array_equal(read_feature(store / FEATURES, "border_only"), inputs.frame)


def test_number_of_images_of_the_subject_is_a_baseline(store: Path) -> None:
    # Its binary logarithm: subject 03 has four images, the others one.
    for table in (FEATURES, VERSIONS):
        keys = read_keys(store / table)
        read = read_feature(store / table, "images_per_subject")[:, 0]
        assert read.tolist() == [2.0 * (subject == "03") for subject in keys["subject_id"]]


def test_metadata_names_the_making(store: Path) -> None:
    assert read_metadata(store / FEATURES) == FeatureStoreMetadata(
        model="pretrain",
        data="ingest",
        levels=[CodeLevel(SIZE, [4, 4]), CodeLevel(FINER, [8, 8])],
        grid=GRID,
        classes=["normal", "ill"],
        target="",
    )


def test_versions_are_of_the_right_images(store: Path, manifest: pd.DataFrame) -> None:
    keys = read_keys(store / VERSIONS, "version")
    train = manifest.loc[manifest["split"] == "train", "image_id"].tolist()
    kept = manifest.loc[manifest["split"] != "test", "image_id"].tolist()
    found = {name: part["image_id"].tolist() for name, part in keys.groupby("version")}
    assert found == {augmented(0): train, augmented(1): train, SWAPPED: kept}
    known = manifest.set_index("image_id")
    of_row = known.loc[keys["image_id"]]
    assert keys["split"].tolist() == of_row["split"].tolist()
    assert keys["label"].tolist() == of_row["label"].astype(int).tolist()


def test_swapped_rows_hold_features_of_the_swapped_images(
    store: Path, inputs: Inputs, model: VQVAE
) -> None:
    rows = np.flatnonzero(read_keys(store / VERSIONS, "version")["version"] == SWAPPED)
    for name, values in expected(model, to_unit(inputs.swapped)).items():
        read = read_feature(store / VERSIONS, name)[rows]
        # Half precision keeps eleven bits.
        np.testing.assert_allclose(read, values, rtol=1e-3, atol=1e-4, err_msg=name)
    frame = read_feature(store / VERSIONS, "border_only")[rows]
    np.testing.assert_array_equal(frame, inputs.frame_swapped.astype(np.float16))


def test_augmented_rows_hold_features_of_random_versions(
    inputs: Inputs, model: VQVAE, tmp_path: Path
) -> None:
    config = configuration(batch_size=64)
    file = extract(inputs.artifacts, tmp_path, config) / VERSIONS
    names = read_keys(file, "version")["version"]
    train = np.array(SPLITS) == "train"
    for number in range(2):
        generator = torch.Generator().manual_seed(1_000_003 + number)
        versions = random_versions(
            to_unit(inputs.images[train]), config.extract.augment, 0.6, generator
        )
        rows = np.flatnonzero(names == augmented(number))
        for name, values in expected(model, versions).items():
            read = read_feature(file, name)[rows]
            np.testing.assert_allclose(read, values, rtol=1e-3, atol=1e-4, err_msg=name)


def test_batch_size_changes_nothing(store: Path, inputs: Inputs, tmp_path: Path) -> None:
    other = extract(inputs.artifacts, tmp_path, configuration(batch_size=1, versions=0))
    names = feature_names(store / FEATURES)
    assert feature_names(other / FEATURES) == names
    swapped = np.flatnonzero(read_keys(store / VERSIONS, "version")["version"] == SWAPPED)
    for name in names:
        np.testing.assert_allclose(
            read_feature(other / FEATURES, name),
            read_feature(store / FEATURES, name),
            atol=1e-5,
            err_msg=name,
        )
        if name not in ("histogram", "pyramid"):
            np.testing.assert_allclose(
                read_feature(other / VERSIONS, name),
                read_feature(store / VERSIONS, name)[swapped],
                rtol=2e-3,
                atol=1e-4,
                err_msg=name,
            )


def test_extraction_alters_no_weight(
    inputs: Inputs, model: VQVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    watched = model.train()
    monkeypatch.setattr("medvq.storage.weights.load_model", lambda _: watched)
    extract(inputs.artifacts, tmp_path, configuration())
    model.eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
