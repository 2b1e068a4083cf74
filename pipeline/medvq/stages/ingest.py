"""The stage ``ingest``: files in, manifest and cache of preprocessed images out.

Writes into its artifact, N images in the order of the manifest, S the side of an image:

==========================  ================================================================
``manifest.csv``            one row per image, see :mod:`medvq.datasets.manifest`
``quarantine.csv``          files that were set aside, with the reason
``audit.json``              what may be wrong with the set, see :mod:`medvq.audit.findings`
``clusters.csv``            the cluster of acquisition of each image
``images.npy``              uint8 (N, S, S): equalised and aligned
``originals.npy``           uint8 (N, R, R): as read, resized
``alignment.csv``           position, correlation and failure of each image
``template.npy``            float32 (T, T): what was aligned to; only with an alignment
``swapped_training.npy``    uint8 (copies, train, S, S): see :mod:`medvq.method.swap`
``swapped_validation.npy``  uint8 (train and validation, S, S), of the kind no training sees
``frame.npy``               float32 (N, F): the frame around the thorax and its position
``frame_swapped.npy``       the same of the swapped images of ``swapped_validation.npy``
==========================  ================================================================

Colour images and volumes are (N, C, *spatial) where grey pictures are (N, S, S). The last four
files are written only where acquisitions are swapped, positions only with those or an alignment.
A validation split that the source publishes is taken as it is; else a share of the training
subjects is one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from medvq.audit import acquisition
from medvq.audit import findings as audit
from medvq.config import Config, IngestConfig
from medvq.datasets import sources
from medvq.datasets.array_files import read_array_image
from medvq.datasets.dataset import SPLITS, SourceImage
from medvq.datasets.manifest import check_manifest
from medvq.errors import UserError
from medvq.images.preparation import Preparation
from medvq.images.reading import ImageFiles, Reader, ReadResult, image_checksum, read_all
from medvq.images.resizing import fit_to_shape
from medvq.images.workers import processors
from medvq.method.alignment import Alignment, Registration
from medvq.method.swap import Kind, swap_acquisition
from medvq.storage.artifacts import StageContext

Bytes = NDArray[np.uint8]
_SWAP_CHUNK = 512


def ingest(context: StageContext) -> dict[str, Any]:
    """Run the stage; return its summary."""
    config = context.config
    folder = sources.locate(config, context.data_root, context.data_mirror)
    listed = sources.list_images(config, folder)
    frozen = "reference" in context.inputs
    if frozen:
        # Nothing will be fitted on these images, whatever split their source puts them in.
        listed = [replace(item, split="test") for item in listed]
    manifest, originals, kept = _read_all(listed, config, context.folder, context.cache)
    official = sources.dataset(config.source).allows_crossing
    splits = ("test",) if frozen else SPLITS
    manifest = check_manifest(manifest, official_crossing=official, splits=splits)
    manifest.to_csv(context.folder / "manifest.csv", index=False)
    failed = _preprocess(manifest, originals, config, context.folder, _template(context))
    found = _audit(manifest, originals, kept, config, context.folder)
    quarantined = len(pd.read_csv(context.folder / "quarantine.csv"))
    return {
        "images": len(manifest),
        "subjects": int(manifest["subject_id"].nunique()),
        "splits": {split: _count(manifest[manifest["split"] == split]) for split in SPLITS},
        "quarantined": quarantined,
        "duplicates": found["duplicate_files"],
        "subjects_in_train_and_test": found["subjects_in_train_and_test"],
        "not_aligned": failed,
        "audit": audit.headline(found),
    }


def validation_share(subject: str, seed: int) -> float:
    """A number in [0, 1) that depends on the subject and the seed alone.

    A subject is in the validation split where it is small, so that adding images moves none.
    """
    digest = hashlib.sha256(f"{seed}:{subject}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def frame_features(originals: Bytes, positions: Tensor) -> NDArray[np.float32]:
    """What can be told without the lungs: mean and deviation of the outer two of 14 cells on each
    side, and the thorax's position; shape (B, 2 x 96 + 4).
    """
    height, width = (side // 14 for side in originals.shape[-2:])
    cells = originals[:, : 14 * height, : 14 * width]
    cells = cells.reshape(len(originals), 14, height, 14, width)
    outer = np.ones((14, 14), bool)
    outer[2:-2, 2:-2] = False
    mean = cells.mean((2, 4), dtype=np.float32)[:, outer]
    deviation = cells.std((2, 4), dtype=np.float32)[:, outer]
    return np.concatenate([mean, deviation, positions.numpy() * 255], 1).astype(np.float32)


def _read_all(
    listed: list[SourceImage], config: Config, folder: Path, cache: Path | None
) -> tuple[pd.DataFrame, Bytes, list[SourceImage]]:
    """Read every image into ``originals.npy``; return its manifest, the array, and the sources."""
    grey_pictures = config.ingest.channels == 1 and len(config.ingest.read_shape) == 2
    channels = () if grey_pictures else (config.ingest.channels,)
    shape = (len(listed), *channels, *config.ingest.read_shape)
    file = folder / "originals.npy"
    images = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    with file.open("r+b") as stream:
        # A sparse file that meets a full disk while it is mapped kills the process (SIGBUS).
        os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    rows: list[dict[str, Any]] = []
    sources_kept: list[SourceImage] = []
    quarantine: list[dict[str, str]] = []
    broken: list[str] = []
    labels = sorted({item.label for item in listed if item.label is not None})
    seen: dict[str, int] = {}
    official = any(item.split == "validation" for item in listed)
    for item, read in zip(listed, _reads(listed, config.ingest, cache), strict=True):
        if read.image is None:
            quarantine.append(
                {"path": item.shown_path, "sha256": read.sha256, "reason": read.reason}
            )
            if not item.set_aside:
                broken.append(read.reason)
            continue
        images[len(rows)] = read.image.reshape(shape[1:])
        sources_kept.append(item)
        seen[read.sha256] = seen.get(read.sha256, 0) + 1
        again = f"-{seen[read.sha256]}" if seen[read.sha256] > 1 else ""
        share = validation_share(item.subject, config.seed)
        held_back = not official and share < config.ingest.validation_fraction
        rows.append(
            {
                "image_id": read.sha256[:16] + again,
                "path": item.shown_path,
                "subject_id": item.subject,
                "certain_subject_id": item.certain_subject or item.subject,
                "split": "validation" if item.split == "train" and held_back else item.split,
                "label": None if item.label is None else labels.index(item.label),
                "label_name": item.label or "",
                "sha256": read.sha256,
                "width": read.size[-1],
                "height": read.size[-2],
                "depth": read.size[0] if len(read.size) == 3 else 1,
                "channels": config.ingest.channels,
                "source": config.source.kind,
                "target": item.target,
                "target_name": item.target_name,
                "folds": " ".join(map(str, item.folds)),
            }
        )
    columns = ["path", "sha256", "reason"]
    pd.DataFrame(quarantine, columns=columns).to_csv(folder / "quarantine.csv", index=False)
    _refuse_too_many(quarantine, broken, len(listed), config.ingest, folder)
    if quarantine:
        kept = np.array(images[: len(rows)])
        np.save(file, kept)
        images = np.load(file, mmap_mode="r")
    manifest = pd.DataFrame(rows)
    manifest["label"] = manifest["label"].astype("Int64")
    return manifest, images, sources_kept


def _refuse_too_many(
    quarantine: list[dict[str, str]],
    broken: list[str],
    total: int,
    config: IngestConfig,
    folder: Path,
) -> None:
    """Stop where too many are ``broken``; what the source wants set aside does not count."""
    nothing_left = len(quarantine) == total
    if nothing_left or len(broken) > config.max_quarantined * total:
        counted = [row["reason"] for row in quarantine] if nothing_left else broken
        reasons = pd.Series(counted).value_counts()
        told = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
        what = (
            f"all {total} files were set aside"
            if nothing_left
            else f"{len(counted)} of {total} files cannot be read, more than "
            f"ingest.max_quarantined={config.max_quarantined:g}"
        )
        raise UserError(f"{what}: {told} (table: {folder / 'quarantine.csv'})")


def _reads(
    listed: list[SourceImage], config: IngestConfig, cache_folder: Path | None
) -> Iterator[ReadResult]:
    """Every image as read: those of array files here, those in files of their own elsewhere."""
    reader = Reader(config.read_shape, config.channels, config.fit)
    files = [
        ImageFiles(item.files, bool(item.parts), item.window)
        for item in listed
        if item.index is None and not item.set_aside
    ]
    with sources.read_cache(cache_folder) as cache:
        read = read_all(files, reader, cache)
        for item in tqdm(listed, desc="reading", unit=" images", mininterval=1.0):
            if item.set_aside:
                digest = image_checksum(item.files, cache)
                yield ReadResult(None, digest, reason=item.set_aside)
            elif item.index is not None:
                stored, image = read_array_image(item.path, item.index, config.channels)
                digest = hashlib.sha256(np.ascontiguousarray(stored).data).hexdigest()
                yield ReadResult(
                    fit_to_shape(image, config.read_shape, config.fit), digest, image.shape[1:]
                )
            else:
                yield next(read)


def _template(context: StageContext) -> Alignment | None:
    """The alignment of another data set, where one is given to be used as it is."""
    if "reference" not in context.inputs or not context.config.ingest.alignment.enabled:
        return None
    template = np.load(context.inputs["reference"].folder / "template.npy")
    return Alignment(torch.from_numpy(template)[None, None], context.config.ingest.alignment)


def _preprocess(
    manifest: pd.DataFrame,
    originals: Bytes,
    config: Config,
    folder: Path,
    alignment: Alignment | None,
) -> int:
    """Equalise, align (to a template of its own where none is given), swap; write the cache;
    return how many images could not be placed.
    """
    settings = config.ingest
    preparation = Preparation(settings)
    if not settings.alignment.enabled and not settings.swap.enabled:
        np.save(folder / "images.npy", preparation(originals).images)
        return 0
    equalised = preparation.equalise(originals)
    train = np.flatnonzero(manifest["split"] == "train")
    if settings.alignment.enabled:
        alignment = alignment or Alignment.fit(
            equalised[torch.from_numpy(train)], settings.alignment
        )
        np.save(folder / "template.npy", alignment.template[0, 0].numpy())
    preparation = Preparation(settings, alignment)
    placed = preparation.register(equalised, progress="aligning")
    np.save(folder / "images.npy", preparation.resample(equalised, placed))
    del equalised
    _positions_table(manifest, placed).to_csv(folder / "alignment.csv", index=False)
    if not settings.swap.enabled:
        return int(placed.failed.sum())
    np.save(folder / "frame.npy", frame_features(originals, placed.positions))

    def swapped(rows: NDArray[np.intp], kind: Kind, seed: int) -> tuple[Bytes, NDArray[np.float32]]:
        rng = np.random.default_rng([config.seed, seed])
        donors = rng.choice(train, len(rows))
        cut, frames = [], []
        for start in tqdm(
            range(0, len(rows), _SWAP_CHUNK), desc=f"swapping ({kind})", unit=" batches"
        ):
            these, given = rows[start : start + _SWAP_CHUNK], donors[start : start + _SWAP_CHUNK]
            images = swap_acquisition(
                originals[these],
                placed.positions[these],
                originals[given],
                placed.positions[given],
                kind,
                rng,
            )
            prepared, registration = preparation(images)
            cut.append(prepared)
            frames.append(frame_features(images, registration.positions))
        return np.concatenate(cut), np.concatenate(frames)

    copies = [swapped(train, "training", 1 + c)[0] for c in range(settings.swap.training_copies)]
    shape = (len(copies), len(train), settings.image_size, settings.image_size)
    np.save(folder / "swapped_training.npy", np.array(copies, np.uint8).reshape(shape))
    kept = np.flatnonzero(manifest["split"] != "test")
    images, frames = swapped(kept, "validation", 0)
    np.save(folder / "swapped_validation.npy", images)
    np.save(folder / "frame_swapped.npy", frames)
    return int(placed.failed.sum())


def _positions_table(manifest: pd.DataFrame, placed: Registration) -> pd.DataFrame:
    axes = [f"{what}_{axis}" for what in ("log_scale", "shift") for axis in "xy"]
    table = pd.DataFrame(placed.positions.numpy(), columns=axes)
    table.insert(0, "image_id", manifest["image_id"].to_numpy())
    return table.assign(correlation=placed.correlation.numpy(), failed=placed.failed.numpy())


def _audit(
    manifest: pd.DataFrame,
    originals: Bytes,
    listed: list[SourceImage],
    config: Config,
    folder: Path,
) -> dict[str, Any]:
    rules = sources.dataset(config.source).subject_rules(manifest["path"].tolist())
    found, clusters = audit.audit(
        manifest,
        originals,
        _frame(originals, folder),
        _acquisition(listed),
        rules or {"subject": manifest["subject_id"].tolist()},
        sources.published_images(config.source),
        config.seed,
    )
    found = {"dataset": config.name, **found}
    (folder / "audit.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    table = pd.DataFrame({"image_id": manifest["image_id"], "cluster": clusters})
    table.to_csv(folder / "clusters.csv", index=False)
    return found


def _frame(originals: Bytes, folder: Path) -> NDArray[np.float32]:
    """The frame and position of each image, for the audit; without an alignment position is 0."""
    if (folder / "frame.npy").is_file():
        return np.asarray(np.load(folder / "frame.npy"))
    positions = torch.zeros(len(originals), 4)
    if (aligned := folder / "alignment.csv").is_file():
        positions = torch.from_numpy(pd.read_csv(aligned).iloc[:, 1:5].to_numpy(np.float32))
    chunks = zip(range(0, len(originals), _SWAP_CHUNK), positions.split(_SWAP_CHUNK), strict=True)
    return np.concatenate(
        [frame_features(audit.planes(originals[i : i + _SWAP_CHUNK]), part) for i, part in chunks]
    )


def _acquisition(listed: list[SourceImage]) -> pd.DataFrame:
    """What each image's own file tells; nothing where one file holds many images."""
    if any(item.index is not None for item in listed):
        return pd.DataFrame(index=range(len(listed)))
    return acquisition.describe([item.path for item in listed], processors())


def _count(table: pd.DataFrame) -> dict[str, Any]:
    labels = table.loc[table["label_name"] != "", "label_name"].value_counts().sort_index()
    return {
        "images": len(table),
        "subjects": int(table["subject_id"].nunique()),
        "labels": {str(name): int(count) for name, count in labels.items()},
    }
