"""The stage ``extract``: a trained model and the cache in, the feature store out.

Writes into its artifact:

===================== ==========================================================================
``features.parquet``  one row per image, in the order of the manifest: code maps, coarsest level
                      first (``codes_0``, ``codes_1``, ...), histogram and pyramid of the coarsest,
                      embeddings, latents of every level (``latent``, ``latent_1``, ...), the
                      codebook's vectors in place of the coarsest (``quantized``, of codes alone),
                      and the features of the baselines
``versions.parquet``  the same (less histogram and pyramid, which follow from the codes) for random
                      versions of the training images and for the acquisition-swapped copies of the
                      training and validation images; the column ``version`` says which. Not
                      written where there is neither
===================== ==========================================================================
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from medvq.config import ExtractConfig
from medvq.datasets.manifest import read_manifest
from medvq.distributed import keep_freed_memory, threads_of_one_core
from medvq.method import features as baselines
from medvq.method.augmentation import change, draw_changes
from medvq.method.collectives import rank
from medvq.method.encodings import CodeHistogram, pyramid_grids
from medvq.method.scaling import to_network, to_unit
from medvq.method.vqvae import VQVAE, architecture
from medvq.storage.artifacts import StageContext
from medvq.storage.feature_store import (
    FEATURES,
    KEYS,
    MORE_KEYS,
    VERSIONS,
    StoreWriter,
    feature_names,
)
from medvq.storage.weights import FILE, load_model

Arrays = dict[str, NDArray[Any]]
SWAPPED = "swapped"
_IN_CACHE = 32


def augmented(number: int) -> str:
    """The name of a random version in the column ``version``."""
    return f"augmented-{number}"


def extract(context: StageContext) -> dict[str, Any]:
    """Run the stage; return its summary."""
    keep_freed_memory()
    with threads_of_one_core(torch.get_num_threads()) as cores:
        return _extract(context, cores)


def _extract(context: StageContext, cores: Executor) -> dict[str, Any]:
    config = context.config.extract
    cache = context.inputs["ingest"].folder
    manifest = read_manifest(cache / "manifest.csv")
    model = load_model(context.inputs["pretrain"].folder / FILE)
    features = _Features(model, context, cores)
    images = np.load(cache / "images.npy", mmap_mode="r")
    swaps = context.config.ingest.swap.enabled
    frame = np.load(cache / "frame.npy") if swaps else None
    sizes = [quantizer.size for quantizer in model.quantizers]
    sides = context.config.ingest.image_shape
    shapes = [[side // 2**halvings for side in sides] for halvings in model.halvings]
    levels = [
        {"codebook_size": size, "latent_shape": shape}
        for size, shape in zip(sizes, shapes, strict=True)
    ]
    names = manifest.drop_duplicates("label").dropna(subset="label").sort_values("label")
    metadata = {
        "model": context.inputs["pretrain"].fingerprint,
        "data": context.inputs["ingest"].fingerprint,
        **levels[0],
        **{f"codes_{number}": levels[number] for number in range(1, len(levels))},
        "grid": config.grid,
        "classes": names["label_name"].tolist(),
        "target": manifest["target_name"].iloc[0],
    }
    histogram = CodeHistogram(sizes[0], shapes[0]).fit([])
    pyramid = CodeHistogram(sizes[0], shapes[0], pyramid_grids(config.grid)).fit([])

    started = time.perf_counter()
    done = 0
    with StoreWriter(context.folder / FEATURES, metadata, _number(len(manifest), config)) as store:
        for rows in _batches(np.arange(len(manifest)), config, "extracting"):
            done += len(rows)
            if not store.takes_next():
                continue
            computed = features(to_unit(images[rows]), None if frame is None else frame[rows])
            computed["histogram"] = histogram.transform(computed["codes_0"]).toarray()
            computed["pyramid"] = pyramid.transform(computed["codes_0"]).toarray()
            store.write(_keys(manifest).iloc[rows], computed)
    rate = done / (time.perf_counter() - started)
    shown, kept = _rows_to_augment(manifest), np.flatnonzero(manifest["split"] != "test")
    batches = config.versions * _number(len(shown), config) + swaps * _number(len(kept), config)
    with StoreWriter(context.folder / VERSIONS, metadata, batches) as store:
        _write_augmented(store, manifest, shown, images, frame, features, context)
        if swaps:
            _write_swapped(store, manifest, kept, cache, features, config)
    sets = feature_names(context.folder / FEATURES)
    return {"images": done, "images_per_second": round(rate, 1), "feature_sets": sets}


def _write_augmented(
    store: StoreWriter,
    manifest: pd.DataFrame,
    rows: NDArray[np.intp],
    images: NDArray[np.uint8],
    frame: NDArray[np.float32] | None,
    features: _Features,
    context: StageContext,
) -> None:
    config, axes = context.config.extract, len(context.config.ingest.image_shape)
    for number in range(config.versions):
        generator = torch.Generator().manual_seed(1_000_003 * (context.config.seed + 1) + number)
        # For all images at once, so that a version does not hang on the batch it comes in.
        changes = draw_changes(len(rows), config.augment, config.augment_strength, generator, axes)
        for index in _batches(np.arange(len(rows)), config, f"extracting {augmented(number)}"):
            if not store.takes_next():
                continue
            of = rows[index]
            version = change(to_unit(images[of]), changes[index])
            computed = features(version, None if frame is None else frame[of])
            _write_version(store, manifest, of, augmented(number), computed)


def _rows_to_augment(manifest: pd.DataFrame) -> NDArray[np.intp]:
    """Those whose label a probe may see."""
    known = manifest["label"].notna() | manifest["target"].notna()
    # An official draw may hold images of our validation part.
    drawable = (manifest["split"] == "train") | (
        (manifest["split"] == "validation") & (manifest["folds"] != "")
    )
    return np.flatnonzero(drawable & known)


def _write_swapped(
    store: StoreWriter,
    manifest: pd.DataFrame,
    rows: NDArray[np.intp],
    cache: Any,
    features: _Features,
    config: ExtractConfig,
) -> None:
    swapped = np.load(cache / "swapped_validation.npy", mmap_mode="r")
    frame = np.load(cache / "frame_swapped.npy")
    for index in _batches(np.arange(len(rows)), config, "extracting swapped"):
        if not store.takes_next():
            continue
        computed = features(to_unit(swapped[index]), frame[index])
        _write_version(store, manifest, rows[index], SWAPPED, computed)


def _write_version(
    store: StoreWriter, manifest: pd.DataFrame, rows: NDArray[np.intp], name: str, computed: Arrays
) -> None:
    keys = _keys(manifest).iloc[rows].assign(version=name)
    # Half precision: three digits of a feature, at half the size of the largest file.
    halved = {
        key: values.astype(np.float16) if values.dtype == np.float32 else values
        for key, values in computed.items()
    }
    store.write(keys, halved)


def _keys(manifest: pd.DataFrame) -> pd.DataFrame:
    """The key columns, and those of :data:`MORE_KEYS` that say anything."""
    said = manifest[list(MORE_KEYS)].replace("", None).notna().any()
    return manifest[[*KEYS, *(name for name in MORE_KEYS if said[name])]]


class _Features:
    """Every feature set of a batch of images."""

    def __init__(self, model: VQVAE, context: StageContext, cores: Executor) -> None:
        self.cores = cores
        self.device = torch.device(context.device)
        self.grid = context.config.extract.grid
        self.model = model.to(self.device).eval()
        ingest = context.config.ingest
        shape = architecture(context.config.pretrain, ingest.channels, len(ingest.image_shape))
        untrained = baselines.untrained(VQVAE, **shape)
        assert isinstance(untrained, VQVAE)
        self.untrained = untrained.to(self.device)

    def __call__(self, images: Tensor, frame: NDArray[np.float32] | None) -> Arrays:
        """Images (B, C, *spatial) in [0, 1] and what is known of their frames."""
        # Of so few images the feature maps stay in a core's cache, and every core has its own:
        # twice as fast and more.
        number = len(images) if self.device.type == "cuda" else _IN_CACHE
        coming = self.cores.map(self._networks, images.split(number))
        computed = {"raw_pixels": baselines.raw_pixels(images)}
        if images.ndim == 4:
            computed["hog"] = baselines.histogram_of_oriented_gradients(images)
        parts = list(coming)
        computed |= {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if frame is not None:
            computed["border_only"] = frame
        return computed

    @torch.inference_mode()
    def _networks(self, images: Tensor) -> Arrays:
        seen = to_network(images).to(self.device)
        encoded = self.model.features(seen)
        latents, codes = self.model.quantize(encoded)
        finer = {
            f"latent_{level}": baselines.pooled(latents[level], self.grid)
            for level in range(1, len(latents))
        }
        raw = self.untrained.encoder(seen)
        return {
            **{
                f"codes_{level}": grid.flatten(1).cpu().numpy().astype(np.uint16)
                for level, grid in enumerate(codes)
            },
            "embedding": baselines.pooled(encoded.levels[-1], self.grid),
            "embedding_fine": baselines.pooled(encoded.levels[-2], self.grid),
            "latent": baselines.pooled(encoded.latent, self.grid),
            "quantized": baselines.pooled(self.model.quantizers[0].decode(codes[0]), self.grid),
            **finer,
            "untrained_encoder": np.concatenate(
                [baselines.pooled(level, self.grid) for level in raw[-2:]], axis=1
            ),
        }


def _number(rows: int, config: ExtractConfig) -> int:
    """Of the batches that :func:`_batches` makes of so many rows."""
    return -(-rows // config.batch_size)


def _batches(
    rows: NDArray[np.intp], config: ExtractConfig, what: str
) -> Iterator[NDArray[np.intp]]:
    with tqdm(
        total=len(rows), desc=what, unit=" images", mininterval=1.0, disable=rank() > 0
    ) as progress:
        for start in range(0, len(rows), config.batch_size):
            chunk = rows[start : start + config.batch_size]
            yield chunk
            progress.update(len(chunk))
