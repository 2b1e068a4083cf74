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

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medvq.stages import INGEST
from medvq.stages.pretrain import PRETRAIN
from medvq.stages.stage import Stage
from medvq.storage.artifacts import StageContext
from medvq.summaries import ExtractSummary

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor

    from medvq.method.features import FeatureExtractor
    from medvq.method.vqvae import VQVAE

SWAPPED = "swapped"
"""The name of acquisition-swapped copies in the column ``version``."""


def augmented(number: int) -> str:
    """Return the name of a random version in the column ``version``."""
    return f"augmented-{number}"


@dataclass(frozen=True)
class Pass:
    """One reading of images: the originals, a random version of them, or their swapped copies.

    Attributes
    ----------
    version : its name in the column ``version``; empty for the originals.
    rows : of the manifest.
    images : of indices into ``rows``, the images (B, C, *spatial) in [0, 1].
    frame : (rows, width), features of the outer frame; None where there are none.
    """

    version: str
    rows: NDArray[Any]
    images: Callable[[NDArray[Any]], Tensor]
    frame: NDArray[Any] | None


def run(context: StageContext) -> ExtractSummary:
    """Write the feature store."""
    import time

    import torch

    from medvq.datasets.manifest import read_manifest
    from medvq.device import keep_freed_memory, threads_of_one_core
    from medvq.method.features import FeatureExtractor
    from medvq.storage.feature_store import FEATURES, VERSIONS, feature_names
    from medvq.storage.weights import FILE, load_model

    keep_freed_memory()
    manifest = read_manifest(context.inputs["ingest"].folder / "manifest.csv")
    model = load_model(context.inputs["pretrain"].folder / FILE)
    metadata = _metadata(context, manifest, model)
    grid, device = context.config.extract.grid, torch.device(context.device)
    originals, *versions = _passes(context, manifest)
    with threads_of_one_core(torch.get_num_threads()) as threads:
        extractor = FeatureExtractor(model, metadata["latent_shape"], grid, device, threads)
        started = time.perf_counter()
        _write(context, FEATURES, [originals], extractor, metadata, manifest)
        speed = len(manifest) / (time.perf_counter() - started)
        _write(context, VERSIONS, versions, extractor, metadata, manifest)
    sets = feature_names(context.folder / FEATURES)
    return ExtractSummary(len(manifest), round(speed, 1), sets)


def _passes(context: StageContext, manifest: pd.DataFrame) -> list[Pass]:
    """Return the originals, the random versions, and the swapped copies where there are any."""
    import numpy as np
    import torch

    from medvq.method.augmentation import apply_affine, sample_affine
    from medvq.method.scaling import to_unit

    config, cache = context.config.extract, context.inputs["ingest"].folder
    swaps = context.config.ingest.swap.enabled
    images = np.load(cache / "images.npy", mmap_mode="r")
    frame = np.load(cache / "frame.npy") if swaps else None
    passes = [Pass("", np.arange(len(manifest)), lambda index: to_unit(images[index]), frame)]
    rows = _rows_with_versions(manifest)
    axes = len(context.config.ingest.image_shape)
    frame_of_rows = None if frame is None else frame[rows]
    for number in range(config.versions):
        generator = torch.Generator().manual_seed(1_000_003 * (context.config.seed + 1) + number)
        # For all images at once, so that a version does not depend on the batch it comes in.
        affine = sample_affine(len(rows), config.augment, config.augment_strength, generator, axes)

        def version(index: NDArray[Any], affine: Tensor = affine) -> Tensor:
            return apply_affine(to_unit(images[rows[index]]), affine[index])

        passes.append(Pass(augmented(number), rows, version, frame_of_rows))
    if swaps:
        swapped = np.load(cache / "swapped_validation.npy", mmap_mode="r")
        kept = np.flatnonzero(manifest["split"] != "test")
        frame = np.load(cache / "frame_swapped.npy")
        passes.append(Pass(SWAPPED, kept, lambda index: to_unit(swapped[index]), frame))
    return passes


def _rows_with_versions(manifest: pd.DataFrame) -> NDArray[Any]:
    """Return the rows whose label a probe may see."""
    import numpy as np

    known = manifest["label"].notna() | manifest["target"].notna()
    # An official label subset may hold images of our validation part.
    official = (manifest["split"] == "validation") & (manifest["folds"] != "")
    return np.flatnonzero(((manifest["split"] == "train") | official) & known)


def _write(
    context: StageContext,
    table: str,
    passes: list[Pass],
    extractor: FeatureExtractor,
    metadata: dict[str, Any],
    manifest: pd.DataFrame,
) -> None:
    """Write the features of some passes into a table of the store."""
    import numpy as np

    from medvq.storage.feature_store import KEYS, MORE_KEYS, StoreWriter

    size = context.config.extract.batch_size
    used = manifest[list(MORE_KEYS)].replace("", None).notna().any()
    keys = manifest[[*KEYS, *(name for name in MORE_KEYS if used[name])]]
    batches = sum(-(-len(one.rows) // size) for one in passes)
    with StoreWriter(context.folder / table, metadata, batches) as store:
        for one in passes:
            for index in _batches(len(one.rows), size, f"extracting {one.version}".rstrip()):
                if not store.takes_next():
                    continue
                frame = None if one.frame is None else one.frame[index]
                sets = extractor.features(one.images(index), frame)
                rows = keys.iloc[one.rows[index]]
                if one.version:
                    rows = rows.assign(version=one.version)
                    # Half precision: three digits of a feature, at half the size of the file.
                    floats = [name for name, v in sets.items() if v.dtype == np.float32]
                    sets |= {name: sets[name].astype(np.float16) for name in floats}
                else:
                    sets |= extractor.histograms(sets["codes_0"])
                store.write(rows, sets)


def _metadata(context: StageContext, manifest: pd.DataFrame, model: VQVAE) -> dict[str, Any]:
    """Return what the schema of the store says of its making."""
    sides = context.config.ingest.image_shape
    levels = [
        {
            "codebook_size": quantizer.size,
            "latent_shape": [side // 2**halvings for side in sides],
        }
        for quantizer, halvings in zip(model.quantizers, model.halvings, strict=True)
    ]
    classes = manifest.drop_duplicates("label").dropna(subset="label").sort_values("label")
    return {
        "model": context.inputs["pretrain"].fingerprint,
        "data": context.inputs["ingest"].fingerprint,
        **levels[0],
        **{f"codes_{number}": level for number, level in enumerate(levels) if number},
        "grid": context.config.extract.grid,
        "classes": classes["label_name"].tolist(),
        "target": manifest["target_name"].iloc[0],
    }


def _batches(number: int, size: int, activity: str) -> Iterator[NDArray[Any]]:
    """Yield indices of ``size`` images at a time, under a progress bar."""
    import numpy as np
    from tqdm import tqdm

    from medvq.method.collectives import rank

    with tqdm(
        total=number, desc=activity, unit=" images", mininterval=1.0, disable=rank() > 0
    ) as progress:
        for start in range(0, number, size):
            yield np.arange(start, min(start + size, number))
            progress.update(min(size, number - start))


def table(summary: ExtractSummary) -> list[str]:
    """Return the lines for people."""
    from medvq.report import tables

    return tables.lines("extract", summary.to_json())


EXTRACT = Stage(
    name="extract",
    help="write codes, histograms and embeddings of every image to the feature store",
    settings=lambda config: config.extract.model_dump(mode="json"),
    run=run,
    summary=ExtractSummary,
    table=table,
    reads=(INGEST, PRETRAIN),
    distributed=True,
)
