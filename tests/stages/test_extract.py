"""Extraction from a hand-made cache and a small model that was never trained."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from medvq.config import (
    Config,
    ExtractConfig,
    FinerCodes,
    IngestConfig,
    PhantomSource,
    PretrainConfig,
)
from medvq.datasets.manifest import COLUMNS
from medvq.method.augmentation import random_versions
from medvq.method.encodings import CodeHistogram
from medvq.method.features import (
    histogram_of_oriented_gradients,
    pooled,
    raw_pixels,
    untrained,
)
from medvq.method.scaling import to_network, to_unit
from medvq.method.vqvae import VQVAE, architecture
from medvq.stages import extract as module
from medvq.stages.extract import SWAPPED, augmented, extract
from medvq.storage.artifacts import Artifact, StageContext
from medvq.storage.feature_store import (
    FEATURES,
    VERSIONS,
    feature_names,
    read_feature,
    read_keys,
    read_metadata,
)
from medvq.storage.weights import FILE, load_model, save_model
from numpy.typing import NDArray
from torch import Tensor

SIDE, SIZE, FINER, GRID, FRAME = 16, 8, 5, 4, 6
SPLITS = ["train", "test", "validation", "train", "train", "test", "train", "validation", "train"]


def configuration(batch_size: int = 4, versions: int = 2) -> Config:
    return Config(
        name="tiny",
        source=PhantomSource(kind="phantom"),
        ingest=IngestConfig(image_size=SIDE),
        pretrain=PretrainConfig(
            widths=(8, 8),
            residual_levels=1,
            codebook_size=SIZE,
            codebook_dim=4,
            finer=(FinerCodes(halvings=1, codebook_size=FINER),),
        ),
        extract=ExtractConfig(grid=GRID, versions=versions, batch_size=batch_size),
    )


@dataclass(frozen=True)
class Made:
    """A cache and a model on disk, and their arrays."""

    inputs: dict[str, Artifact]
    images: NDArray[np.uint8]
    swapped: NDArray[np.uint8]
    frame: NDArray[np.float32]
    frame_swapped: NDArray[np.float32]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    cache, trained = tmp_path_factory.mktemp("ingest"), tmp_path_factory.mktemp("pretrain")
    rng = np.random.default_rng(0)
    number, kept = len(SPLITS), sum(split != "test" for split in SPLITS)
    images = rng.integers(0, 256, (number, SIDE, SIDE), np.uint8)
    swapped = rng.integers(0, 256, (kept, SIDE, SIDE), np.uint8)
    frame = rng.normal(size=(number, FRAME)).astype(np.float32)
    frame_swapped = rng.normal(size=(kept, FRAME)).astype(np.float32)
    np.save(cache / "images.npy", images)
    np.save(cache / "swapped_validation.npy", swapped)
    np.save(cache / "frame.npy", frame)
    np.save(cache / "frame_swapped.npy", frame_swapped)
    manifest = pd.DataFrame(dict.fromkeys(COLUMNS, ""), index=range(number)).assign(
        # Names that a careless reader takes for numbers.
        image_id=[f"{number:03d}" for number in rng.permutation(number)],
        subject_id=[f"{subject:02d}" for subject in range(number)],
        split=SPLITS,
        label=rng.integers(0, 2, number),
    )
    manifest["label_name"] = manifest["label"].map({0: "normal", 1: "ill"})
    manifest.to_csv(cache / "manifest.csv", index=False)
    shape = architecture(configuration().pretrain)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = VQVAE(**shape)
        for _ in range(60):  # until the batch norms know what they will see
            network(to_network(to_unit(images)))
    save_model(network, shape, trained / FILE)
    inputs = {
        "ingest": Artifact(cache, {"fingerprint": "of ingest"}),
        "pretrain": Artifact(trained, {"fingerprint": "of pretrain"}),
    }
    return Made(inputs, images, swapped, frame, frame_swapped)


def run(made: Made, folder: Path, config: Config, device: str = "cpu") -> Path:
    extract(StageContext(config, folder, made.inputs, Path("none"), None, device))
    return folder


@pytest.fixture(scope="module")
def store(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(made, tmp_path_factory.mktemp("extract"), configuration())


@pytest.fixture(scope="module")
def manifest(made: Made) -> pd.DataFrame:
    return pd.read_csv(made.inputs["ingest"].folder / "manifest.csv", dtype=str)


@pytest.fixture(scope="module")
def model(made: Made) -> VQVAE:
    return load_model(made.inputs["pretrain"].folder / FILE)


def nearest(latent: Tensor, codebook: Tensor) -> Tensor:
    """The codebook's vector at every place, by the distances themselves."""
    places = latent.movedim(1, -1)
    return codebook[torch.cdist(places, codebook).argmin(-1)].movedim(-1, 1)


def expected(model: VQVAE, images: Tensor) -> dict[str, NDArray[np.float32]]:
    """Every float feature set, in one batch."""
    seen = to_network(images)
    bare = untrained(VQVAE, **architecture(configuration().pretrain))
    assert isinstance(bare, VQVAE)
    with torch.no_grad():
        encoded, raw, out = model.features(seen), bare.encoder(seen), model(seen)
    return {
        "embedding": pooled(encoded.levels[1], GRID),
        "embedding_fine": pooled(encoded.levels[0], GRID),
        "latent": pooled(encoded.latent, GRID),
        "quantized": pooled(nearest(encoded.latent, model.quantizers[0].codebook), GRID),
        "latent_1": pooled(out.latents[1], GRID),
        "raw_pixels": raw_pixels(images),
        "hog": histogram_of_oriented_gradients(images),
        "untrained_encoder": np.concatenate([pooled(level, GRID) for level in raw], axis=1),
    }


def test_rows_are_those_of_the_manifest_in_order(store: Path, manifest: pd.DataFrame) -> None:
    keys = read_keys(store / FEATURES)
    for column in ("image_id", "subject_id", "split"):
        assert keys[column].tolist() == manifest[column].tolist()
    assert keys["label"].tolist() == manifest["label"].astype(int).tolist()


def test_codes_are_the_models(store: Path, made: Made, model: VQVAE) -> None:
    codes = model.encode(to_network(to_unit(made.images)))
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


def test_feature_sets_are_those_of_one_large_batch(store: Path, made: Made, model: VQVAE) -> None:
    for name, values in expected(model, to_unit(made.images)).items():
        np.testing.assert_allclose(
            read_feature(store / FEATURES, name), values, atol=1e-5, err_msg=name
        )
    np.testing.assert_array_equal(read_feature(store / FEATURES, "border_only"), made.frame)


def test_metadata_names_the_making(store: Path) -> None:
    assert read_metadata(store / FEATURES) == {
        "model": "of pretrain",
        "data": "of ingest",
        "codebook_size": SIZE,
        "latent_shape": [4, 4],
        "codes_1": {"codebook_size": FINER, "latent_shape": [8, 8]},
        "grid": GRID,
        "classes": ["normal", "ill"],
        "target": "",
    }


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
    store: Path, made: Made, model: VQVAE
) -> None:
    rows = np.flatnonzero(read_keys(store / VERSIONS, "version")["version"] == SWAPPED)
    for name, values in expected(model, to_unit(made.swapped)).items():
        read = read_feature(store / VERSIONS, name)[rows]
        # Half precision keeps eleven bits.
        np.testing.assert_allclose(read, values, rtol=1e-3, atol=1e-4, err_msg=name)
    frame = read_feature(store / VERSIONS, "border_only")[rows]
    np.testing.assert_array_equal(frame, made.frame_swapped.astype(np.float16))


def test_augmented_rows_hold_features_of_random_versions(
    made: Made, model: VQVAE, tmp_path: Path
) -> None:
    config = configuration(batch_size=64)
    file = run(made, tmp_path, config) / VERSIONS
    names = read_keys(file, "version")["version"]
    train = np.array(SPLITS) == "train"
    for number in range(2):
        generator = torch.Generator().manual_seed(1_000_003 + number)
        versions = random_versions(
            to_unit(made.images[train]), config.extract.augment, 0.6, generator
        )
        rows = np.flatnonzero(names == augmented(number))
        for name, values in expected(model, versions).items():
            read = read_feature(file, name)[rows]
            np.testing.assert_allclose(read, values, rtol=1e-3, atol=1e-4, err_msg=name)


def test_batch_size_changes_nothing(store: Path, made: Made, tmp_path: Path) -> None:
    other = run(made, tmp_path, configuration(batch_size=1, versions=0))
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
    made: Made, model: VQVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    watched = model.train()
    monkeypatch.setattr(module, "load_model", lambda _: watched)
    run(made, tmp_path, configuration())
    model.eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
