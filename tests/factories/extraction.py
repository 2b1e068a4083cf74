"""A cache and a model that was never trained, to extract features from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from factories.artifacts import artifact
from medvq.config import (
    Config,
    ExtractConfig,
    FinerCodes,
    IngestConfig,
    PhantomSource,
    PretrainConfig,
)
from medvq.datasets.manifest import COLUMNS
from medvq.method.scaling import to_network, to_unit
from medvq.method.vqvae import VQVAE, Architecture
from medvq.stages.extract import EXTRACT
from medvq.storage.artifacts import Artifact, StageContext
from medvq.storage.weights import FILE, save_model
from numpy.typing import NDArray

SIDE, SIZE, FINER, GRID, FRAME = 16, 8, 5, 4, 6
SPLITS = ["train", "test", "validation", "train", "train", "test", "train", "validation", "train"]
SUBJECTS = [0, 1, 2, 3, 3, 5, 3, 7, 3]


def configuration(batch_size: int = 4, versions: int = 2) -> Config:
    """Return the configuration of the model and of its extraction."""
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
class Inputs:
    """The inputs of an extraction on disk, and their arrays."""

    artifacts: dict[str, Artifact]
    images: NDArray[np.uint8]
    swapped: NDArray[np.uint8]
    frame: NDArray[np.float32]
    frame_swapped: NDArray[np.float32]


def write_inputs(folder: Path) -> Inputs:
    """Write a cache of nine images and a model below ``folder``."""
    artifacts = {stage: artifact(folder / stage, stage) for stage in ("ingest", "pretrain")}
    cache, trained = (made.folder for made in artifacts.values())
    rng = np.random.default_rng(0)
    number, kept = len(SPLITS), sum(split != "test" for split in SPLITS)
    images = rng.integers(0, 256, (number, SIDE, SIDE), np.uint8)
    swapped = rng.integers(0, 256, (kept, SIDE, SIDE), np.uint8)
    frame = rng.normal(size=(number, FRAME)).astype(np.float32)
    frame_swapped = rng.normal(size=(kept, FRAME)).astype(np.float32)
    cache.mkdir()
    arrays = {
        "images": images,
        "swapped_validation": swapped,
        "frame": frame,
        "frame_swapped": frame_swapped,
    }
    for name, values in arrays.items():
        np.save(cache / f"{name}.npy", values)
    manifest = pd.DataFrame(dict.fromkeys(COLUMNS, ""), index=range(number)).assign(
        # Names that a careless reader takes for numbers.
        image_id=[f"{number:03d}" for number in rng.permutation(number)],
        subject_id=[f"{subject:02d}" for subject in SUBJECTS],
        split=SPLITS,
        label=rng.integers(0, 2, number),
    )
    manifest["label_name"] = manifest["label"].map({0: "normal", 1: "ill"})
    manifest.to_csv(cache / "manifest.csv", index=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = VQVAE(Architecture.from_config(configuration().pretrain))
        for _ in range(60):  # until the batch norms know the images
            network(to_network(to_unit(images)))
    trained.mkdir()
    save_model(network, trained / FILE)
    return Inputs(artifacts, images, swapped, frame, frame_swapped)


def extract(inputs: dict[str, Artifact], folder: Path, config: Config, device: str = "cpu") -> Path:
    """Run the stage in ``folder``, and return it."""
    folder.mkdir(exist_ok=True)
    EXTRACT.run(StageContext(config, folder, inputs, Path("none"), None, device))
    return folder
