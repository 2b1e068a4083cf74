"""The stage ``extract``: a trained model and the cache in, the feature store out.

Writes into its artifact:

===================== ==========================================================================
``features.parquet``  one row per image, in the order of the manifest, and a column for each feature
                      set, see :mod:`medvq.method.features`, and each level of codes
``versions.parquet``  the same (less histogram and pyramid, which follow from the codes) for random
                      versions of the training images and for the acquisition-swapped copies of the
                      training and validation images; the column ``version`` says which. Not
                      written where there is neither
===================== ==========================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medvq.stages.ingest import INGEST
from medvq.stages.pretrain import PRETRAIN
from medvq.stages.stage import Stage
from medvq.storage.artifacts import StageContext
from medvq.summaries import ExtractSummary

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pandas as pd
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from medvq.config import Config
    from medvq.method.features import FeatureExtractor, FeatureSets
    from medvq.method.vqvae import VQVAE
    from medvq.stages.stage import RunOptions
    from medvq.storage.external import ExternalFeatures
    from medvq.storage.feature_store import FeatureStoreMetadata, StoreWriter


@dataclass(frozen=True)
class Pass:
    """One reading of images: the originals, a random version of them, or their swapped copies."""

    version: str  # its name in the column ``version``; empty for the originals
    rows: NDArray[Any]  # of the manifest
    images: Callable[[NDArray[Any]], Tensor]  # (B, C, *spatial) in [0, 1], of indices into rows
    frame: NDArray[Any] | None  # (rows, width), features of the outer frame, where there are any

    def batches(self, size: int) -> int:
        """Return the number of batches of ``size`` images."""
        return -(-len(self.rows) // size)


def run(context: StageContext) -> ExtractSummary:
    """Write the feature store."""
    import time

    import torch

    from medvq.datasets.manifest import read_manifest
    from medvq.device import keep_freed_memory, threads_of_one_core
    from medvq.method.features import FeatureExtractor
    from medvq.method.vqvae import Architecture
    from medvq.storage.feature_store import FEATURES, VERSIONS, StoreWriter, feature_names
    from medvq.storage.start import imagenet_encoder
    from medvq.storage.weights import FILE, load_model

    keep_freed_memory()
    manifest = read_manifest(context.inputs["ingest"].folder / "manifest.csv")
    config, device = context.config, torch.device(context.device)
    architecture = Architecture.from_config(
        config.pretrain, config.ingest.channels, len(config.ingest.image_shape)
    )
    model = (
        load_model(context.inputs["pretrain"].folder / FILE)
        if "pretrain" in context.inputs
        else None
    )
    metadata, size = _metadata(context, manifest, model), config.extract.batch_size
    shape = metadata.levels[0].latent_shape if model else []
    frozen = imagenet_encoder(config.ingest.channels) if config.extract.frozen_imagenet else None
    network, embeddings = _external(context, manifest, device)
    originals, *versions = _passes(context, manifest)
    seconds = {}
    with threads_of_one_core(torch.get_num_threads()) as threads:
        extractor = FeatureExtractor(
            model or architecture,
            shape,
            metadata.grid,
            device,
            threads,
            frozen=frozen,
            external=network,
            with_texture=config.extract.texture,
        )
        for name, passes in ((FEATURES, [originals]), (VERSIONS, versions)):
            started = time.perf_counter()
            batches = sum(part.batches(size) for part in passes)
            with StoreWriter(context.folder / name, metadata, batches) as store:
                for part in passes:
                    _write(store, part, extractor, manifest, size, embeddings)
            seconds[name] = time.perf_counter() - started
    speed = round(len(manifest) / seconds[FEATURES], 1)
    return ExtractSummary(len(manifest), speed, feature_names(context.folder / FEATURES))


def _passes(context: StageContext, manifest: pd.DataFrame) -> list[Pass]:
    """Return the originals, the random versions, and the swapped copies where there are any."""
    import numpy as np
    import torch

    from medvq.method.augmentation import apply_affine, sample_affine
    from medvq.method.scaling import to_unit
    from medvq.storage.feature_store import SWAPPED, augmented

    config, cache = context.config.extract, context.inputs["ingest"].folder
    images = np.load(cache / "images.npy", mmap_mode="r")
    swaps = context.config.ingest.swap.enabled
    frame = np.load(cache / "frame.npy") if swaps else None
    passes = [Pass("", np.arange(len(manifest)), lambda index: to_unit(images[index]), frame)]
    # Random versions are of the images whose label a probe may see; an official label subset may
    # hold images of our validation part.
    official = (manifest["split"] == "validation") & (manifest["folds"] != "")
    known = manifest["label"].notna() | manifest["target"].notna()
    rows = np.flatnonzero(((manifest["split"] == "train") | official) & known)
    axes = len(context.config.ingest.image_shape)
    for number in range(config.versions):
        generator = torch.Generator().manual_seed(1_000_003 * (context.config.seed + 1) + number)
        # For all images at once, so that a version does not depend on the batch it comes in.
        affine = sample_affine(len(rows), config.augment, config.augment_strength, generator, axes)

        def version(index: NDArray[Any], affine: Tensor = affine) -> Tensor:
            return apply_affine(to_unit(images[rows[index]]), affine[index])

        frame_of_rows = None if frame is None else frame[rows]
        passes.append(Pass(augmented(number), rows, version, frame_of_rows))
    if swaps:
        swapped = np.load(cache / "swapped_validation.npy", mmap_mode="r")
        kept = np.flatnonzero(manifest["split"] != "test")
        frame = np.load(cache / "frame_swapped.npy")
        passes.append(Pass(SWAPPED, kept, lambda index: to_unit(swapped[index]), frame))
    return passes


def _write(
    store: StoreWriter,
    part: Pass,
    extractor: FeatureExtractor,
    manifest: pd.DataFrame,
    size: int,
    embeddings: NDArray[np.float32] | None,
) -> None:
    """Write the features of a pass, ``size`` images at a time, and the rows of ``embeddings``."""
    import numpy as np
    from tqdm import tqdm

    from medvq.datasets.manifest import images_per_subject
    from medvq.distributed import rank
    from medvq.storage.feature_store import KEYS, OPTIONAL_KEYS

    used = manifest[list(OPTIONAL_KEYS)].replace("", None).notna().any()
    keys = manifest[[*KEYS, *(name for name in OPTIONAL_KEYS if used[name])]]
    multiplicity = images_per_subject(manifest).to_numpy(np.float32)[:, None]
    number = len(part.rows)
    what = f"extracting {part.version}".rstrip()
    with tqdm(total=number, desc=what, unit=" images", disable=rank() > 0) as progress:
        for start in range(0, number, size):
            index = np.arange(start, min(start + size, number))
            if store.takes_next():
                frame = None if part.frame is None else part.frame[index]
                sets = extractor.features(part.images(index), frame)
                if multiplicity.any():
                    sets["images_per_subject"] = multiplicity[part.rows[index]]
                if embeddings is not None and not part.version:
                    sets["external"] = embeddings[part.rows[index]]
                rows = keys.iloc[part.rows[index]]
                store.write(*_as_stored(rows, sets, part.version, extractor))
            progress.update(len(index))


def _as_stored(
    rows: pd.DataFrame, sets: FeatureSets, version: str, extractor: FeatureExtractor
) -> tuple[pd.DataFrame, FeatureSets]:
    """Add histograms of codes to the features of images; those of versions are halved in size."""
    import numpy as np

    if version:
        # Half precision: three digits of a feature, at half the size of the largest file.
        floats = [name for name, values in sets.items() if values.dtype == np.float32]
        halved = {name: sets[name].astype(np.float16) for name in floats}
        return rows.assign(version=version), sets | halved
    if "codes_0" in sets:
        sets |= extractor.histograms(sets["codes_0"])
    return rows, sets


def _metadata(
    context: StageContext, manifest: pd.DataFrame, model: VQVAE | None
) -> FeatureStoreMetadata:
    from medvq.storage.feature_store import CodeLevel, FeatureStoreMetadata

    sides = context.config.ingest.image_shape
    levels = [
        CodeLevel(quantizer.size, [side // 2**halvings for side in sides])
        for quantizer, halvings in zip(
            model.quantizers if model else (), model.halvings if model else (), strict=True
        )
    ]
    classes = manifest.drop_duplicates("label").dropna(subset="label").sort_values("label")
    return FeatureStoreMetadata(
        model=context.inputs["pretrain"].fingerprint if model else "",
        data=context.inputs["ingest"].fingerprint,
        levels=levels,
        grid=context.config.extract.grid,
        classes=classes["label_name"].tolist(),
        target=manifest["target_name"].iloc[0],
    )


def _external(
    context: StageContext, manifest: pd.DataFrame, device: torch.device
) -> tuple[ExternalFeatures | None, NDArray[np.float32] | None]:
    """Return the encoder of the section ``encoder``, or the embeddings of its table."""
    import warnings

    from medvq.config.encoder import TableEncoder
    from medvq.errors import Notice
    from medvq.storage.external import ExternalFeatures, read_embeddings

    encoder = context.config.encoder
    if encoder is None:
        return None, None
    if not isinstance(encoder, TableEncoder):
        return ExternalFeatures(encoder, context.config.extract.grid, device), None
    missing = "random versions" if context.config.extract.versions else ""
    if context.config.ingest.swap.enabled:
        missing = " and ".join(filter(None, (missing, "acquisition-swapped copies")))
    if missing:
        told = (
            f"encoder.kind=table has no embeddings of {missing}: probes on 'external' are fitted, "
            "chosen and calibrated on the images as they are alone"
        )
        warnings.warn(Notice(told), stacklevel=2)
    return None, read_embeddings(encoder, manifest)


def external_fingerprint(config: Config, options: RunOptions) -> Mapping[str, str]:
    """Return the checksums of the files of the section ``encoder``."""
    if config.encoder is None:
        return {}
    from medvq.storage.external import fingerprint

    return fingerprint(config.encoder)


def settings(config: Config) -> dict[str, Any]:
    """Return the settings; of an encoder's files the checksums count, not where they lie."""
    values = config.extract.model_dump(mode="json")
    if config.encoder is not None:
        values["encoder"] = config.encoder.model_dump(mode="json", exclude={"file", "python"})
    return values


def draw(context: StageContext, summary: ExtractSummary) -> None:
    """Draw the atlas of codes, where there are any."""
    from medvq.report.atlas_figure import draw_extract

    if "pretrain" in context.inputs:
        draw_extract(context.folder, context.inputs, context.device, context.figures)


def table(summary: ExtractSummary) -> list[str]:
    """Return the lines for people."""
    from medvq.report.tables import extract_table

    return extract_table(summary)


EXTRACT = Stage(
    name="extract",
    help="write codes, histograms and embeddings of every image to the feature store",
    settings=settings,
    run=run,
    summary=ExtractSummary,
    table=table,
    draw=draw,
    reads=(INGEST, PRETRAIN),
    distributed=True,
    outside=external_fingerprint,
)
