"""Feature stores without an extraction: one feature set tells the truth, the others nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from factories.artifacts import artifact
from medvq.method.encodings import CodeHistogram
from medvq.storage.artifacts import Artifact
from medvq.storage.feature_store import (
    FEATURES,
    SWAPPED,
    VERSIONS,
    CodeLevel,
    FeatureStoreMetadata,
    StoreWriter,
    augmented,
)
from numpy.typing import NDArray

SUBJECTS = {"train": 60, "validation": 16, "test": 40}
SIZE, SHAPE = 6, (4, 4)
METADATA = FeatureStoreMetadata("model", "data", [CodeLevel(SIZE, [*SHAPE])], 2, ["0", "1"], "")
WIDTHS = {
    "raw_pixels": 8, "hog": 8, "untrained_encoder": 8, "border_only": 8, "images_per_subject": 1,
    "embedding": 8, "embedding_fine": 8, "latent": 4, "quantized": 4,
}  # fmt: skip
OTHER_WIDTHS = {"frozen_imagenet": 8, "external": 8}
Features = dict[str, NDArray[Any]]


def store_keys(**columns: Any) -> pd.DataFrame:
    """Return the keys of two images of each subject, of classes 2 : 1, in any order."""
    rng = np.random.default_rng(0)
    split = np.repeat(list(SUBJECTS), list(SUBJECTS.values()))
    label = np.concatenate([rng.permutation(np.arange(n) % 3 > 0) for n in SUBJECTS.values()])
    order = rng.permutation(2 * len(split))
    keys = {
        "image_id": [f"image {number:03d}" for number in order],
        "subject_id": np.repeat([f"subject {n}" for n in range(len(split))], 2)[order],
        "split": np.repeat(split, 2)[order],
        "label": np.repeat(label, 2)[order].astype(np.int64),
    }
    return pd.DataFrame(keys | columns)


def random_features(signal: NDArray[Any], rng: np.random.Generator) -> Features:
    """Return noise; ``signal`` (N, 1) or (N, 8) is added to the embedding."""
    sets = {name: rng.normal(size=(len(signal), width)) for name, width in WIDTHS.items()}
    sets["embedding"] = sets["embedding"] + signal
    codes = rng.integers(0, SIZE, (len(signal), 16)).astype(np.uint16)
    for name, width in OTHER_WIDTHS.items():
        sets[name] = rng.normal(size=(len(signal), width))
    return {"codes_0": codes} | {name: values.astype(np.float32) for name, values in sets.items()}


def write_features(
    folder: Path, keys: pd.DataFrame, features: Features, **metadata: Any
) -> Artifact:
    """Write a store without versions, histograms of the codes included."""
    histograms = {
        name: CodeHistogram(SIZE, SHAPE, grids).fit_transform(features["codes_0"]).toarray()
        for name, grids in (("histogram", (1,)), ("pyramid", (1, 2)))
    }
    with StoreWriter(folder / FEATURES, replace(METADATA, **metadata)) as store:
        store.write(keys, features | histograms)
    return artifact(folder, "extract")


def write_store(folder: Path, keys: pd.DataFrame) -> Artifact:
    """Write a store of two classes, with random versions and swapped copies."""
    rng = np.random.default_rng(0)
    signal = np.where(keys["label"] == 1, 1.0, -1.0)[:, None]
    extract = write_features(folder, keys, random_features(signal, rng))
    train = np.flatnonzero(keys["split"] == "train")
    not_test = np.flatnonzero(keys["split"] != "test")
    with StoreWriter(folder / VERSIONS, METADATA) as store:
        for name, rows in ((augmented(0), train), (augmented(1), train), (SWAPPED, not_test)):
            store.write(keys.iloc[rows].assign(version=name), random_features(signal[rows], rng))
    return extract


def rewrite(table: Path, to: Path, **columns: pd.Series[Any]) -> None:
    """Write a table anew with other key columns, by its ``image_id``."""
    read = pd.read_parquet(table)
    lists = [str(name) for name in read if isinstance(read[name].iloc[0], np.ndarray)]
    keys = read.drop(columns=lists)
    for name, values in columns.items():
        keys[name] = keys["image_id"].map(values)
    with StoreWriter(to, METADATA) as store:
        store.write(keys, {name: np.stack(list(read[name])) for name in lists})
