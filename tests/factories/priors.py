"""Priors and code maps that are small enough to know everything about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from factories.artifacts import artifact
from medvq.prior.code_prior import PriorArchitecture
from medvq.prior.pixelcnn import GatedPixelCNN
from medvq.storage.artifacts import Artifact
from medvq.storage.feature_store import (
    FEATURES,
    VERSIONS,
    CodeLevel,
    FeatureStoreMetadata,
    StoreWriter,
    read_feature,
    read_keys,
    read_metadata,
)
from numpy.typing import NDArray
from torch import Tensor

SIZE, SIDE = 4, 2
MODEL = "m1"


def frequency_prior(codes: Tensor, size: int, pseudo_count: float = 0.1) -> GatedPixelCNN:
    """Return a prior that knows how often each code stands at each place, and nothing else."""
    torch.manual_seed(0)
    prior = GatedPixelCNN(PriorArchitecture(size, (*codes.shape[1:],), channels=4, depth=1))
    prior.set_base_rates(codes, pseudo_count)
    return prior.eval()


def write_codes(folder: Path, finer: bool = False) -> Artifact:
    """Write code maps of two classes: of the first all codes are 0 or 1, of the second 2 or 3.

    A ``finer`` code is either of the two that the code above it allows. Test codes are 0, which
    would leave its trace were they read.
    """
    rng = np.random.default_rng(0)
    split = np.array(["train", "test", "train", "validation", "train", "train"] * 50)
    number = len(split)
    label = np.arange(number) // 6 % 2
    codes = (2 * label[:, None] + rng.integers(0, 2, (number, SIDE * SIDE))).astype(np.uint16)
    above = codes.reshape(-1, SIDE, SIDE).repeat(2, 1).repeat(2, 2).reshape(number, -1)
    fine = (2 * above + rng.integers(0, 2, above.shape)).astype(np.uint16)
    codes[split == "test"] = 0
    names = [f"{image:04x}" for image in range(number)]
    keys = {"image_id": names, "subject_id": names, "split": split, "label": label}
    columns, levels = {"codes_0": codes}, [CodeLevel(SIZE, [SIDE, SIDE])]
    if finer:
        columns["codes_1"] = fine
        levels.append(CodeLevel(2 * SIZE, [2 * SIDE, 2 * SIDE]))
    metadata = FeatureStoreMetadata(MODEL, "data", levels, 1, ["NORMAL", "PNEUMONIA"], "")
    folder.mkdir(parents=True)
    with StoreWriter(folder / FEATURES, metadata) as writer:
        writer.write(pd.DataFrame(keys), columns)
    return artifact(folder, "extract")


def write_versions(extract: Artifact, versions: dict[str, NDArray[np.intp]]) -> None:
    """Write versions of the code maps of :func:`write_codes`: a code is one more than the image's.

    ``versions`` has by name the rows of the images that have one.
    """
    images = extract.folder / FEATURES
    keys, metadata = read_keys(images), read_metadata(images)
    codes = {
        f"codes_{number}": (read_feature(images, f"codes_{number}") + 1) % level.codebook_size
        for number, level in enumerate(metadata.levels)
    }
    with StoreWriter(extract.folder / VERSIONS, metadata, len(versions)) as writer:
        for name, rows in versions.items():
            writer.takes_next()
            of_rows = {column: values[rows] for column, values in codes.items()}
            writer.write(keys.iloc[rows].assign(version=name), of_rows)
