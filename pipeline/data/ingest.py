"""The stage ``ingest``: files in, manifest and cache of preprocessed images out.

Writes into its artifact, N images in the order of the manifest, S the side of an image:

==========================  ================================================================
``manifest.csv``            one row per image, see :mod:`pipeline.data.manifest`
``quarantine.csv``          files that were set aside, with the reason
``audit.json``              duplicates, shared subjects, counts
``images.npy``              uint8 (N, S, S): equalised and aligned
``originals.npy``           uint8 (N, R, R): as read, resized
``alignment.csv``           position, correlation and failure of each image
``template.npy``            float32 (T, T): what was aligned to; only with an alignment
``swapped_training.npy``    uint8 (copies, train, S, S): see :mod:`pipeline.data.swap`
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pipeline.config import Config, IngestConfig, KermanySource
from pipeline.data import kermany, sources
from pipeline.data.alignment import Alignment, Placed
from pipeline.data.array_files import read_array_image
from pipeline.data.formats import read_image
from pipeline.data.manifest import SPLITS, SourceImage, check_manifest, crossing_subjects
from pipeline.data.swap import Kind, swap_acquisition
from pipeline.data.transforms import Equalise, Fit, cut_out
from pipeline.errors import UnreadableImage, UserError
from pipeline.stage import Work

Bytes = NDArray[np.uint8]
_SWAP_CHUNK = 512


@dataclass(frozen=True)
class _Read:
    """One image as read, or why it was not."""

    image: Bytes | None
    sha256: str
    size: tuple[int, ...] = ()
    reason: str = ""


def ingest(work: Work) -> dict[str, Any]:
    """Run the stage; return its summary."""
    config = work.config
    folder = sources.locate(config, work.data_root, work.data_mirror)
    listed = sources.list_images(config, folder)
    manifest, originals = _read_all(listed, config, work.folder)
    official = isinstance(config.source, KermanySource)
    manifest = check_manifest(manifest, official_crossing=official)
    manifest.to_csv(work.folder / "manifest.csv", index=False)
    audit = _audit(manifest, listed)
    (work.folder / "audit.json").write_text(json.dumps(audit, indent=2), encoding="utf-8")
    failed = _preprocess(manifest, originals, config, work.folder)
    quarantined = len(pd.read_csv(work.folder / "quarantine.csv"))
    return {
        "images": len(manifest),
        "subjects": int(manifest["subject_id"].nunique()),
        "splits": {split: _count(manifest[manifest["split"] == split]) for split in SPLITS},
        "quarantined": quarantined,
        "duplicates": audit["duplicate_files"],
        "subjects_in_train_and_test": audit["subjects_in_train_and_test"],
        "not_aligned": failed,
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
    side = originals.shape[-1] // 14 * 14
    cells = originals[:, :side, :side].reshape(len(originals), 14, side // 14, 14, side // 14)
    outer = np.ones((14, 14), bool)
    outer[2:-2, 2:-2] = False
    mean = cells.mean((2, 4), dtype=np.float32)[:, outer]
    deviation = cells.std((2, 4), dtype=np.float32)[:, outer]
    return np.concatenate([mean, deviation, positions.numpy() * 255], 1).astype(np.float32)


def _read_all(
    listed: list[SourceImage], config: Config, folder: Path
) -> tuple[pd.DataFrame, Bytes]:
    """Read every image into ``originals.npy``; return its manifest and the array."""
    grey_pictures = config.ingest.channels == 1 and len(config.ingest.read_shape) == 2
    channels = () if grey_pictures else (config.ingest.channels,)
    shape = (len(listed), *channels, *config.ingest.read_shape)
    file = folder / "originals.npy"
    images = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    with file.open("r+b") as stream:
        # A sparse file that meets a full disk while it is mapped kills the process (SIGBUS).
        os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    rows: list[dict[str, Any]] = []
    quarantine: list[dict[str, str]] = []
    labels = sorted({item.label for item in listed if item.label is not None})
    seen: dict[str, int] = {}
    official = any(item.split == "validation" for item in listed)
    for item, read in zip(listed, _reads(listed, config.ingest), strict=True):
        if read.image is None:
            quarantine.append(
                {"path": item.shown_path, "sha256": read.sha256, "reason": read.reason}
            )
            continue
        images[len(rows)] = read.image.reshape(shape[1:])
        seen[read.sha256] = seen.get(read.sha256, 0) + 1
        again = f"-{seen[read.sha256]}" if seen[read.sha256] > 1 else ""
        share = validation_share(item.subject, config.seed)
        held_back = not official and share < config.ingest.validation_fraction
        rows.append(
            {
                "image_id": read.sha256[:16] + again,
                "path": item.shown_path,
                "subject_id": item.subject,
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
    _refuse_too_many(quarantine, len(listed), config.ingest, folder)
    if quarantine:
        kept = np.array(images[: len(rows)])
        np.save(file, kept)
        images = np.load(file, mmap_mode="r")
    manifest = pd.DataFrame(rows)
    manifest["label"] = manifest["label"].astype("Int64")
    return manifest, images


def _refuse_too_many(
    quarantine: list[dict[str, str]], total: int, config: IngestConfig, folder: Path
) -> None:
    if len(quarantine) == total or len(quarantine) > config.max_quarantined * total:
        reasons = pd.DataFrame(quarantine)["reason"].value_counts()
        told = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
        raise UserError(
            f"{len(quarantine)} of {total} files cannot be read, more than "
            f"ingest.max_quarantined={config.max_quarantined:g}: {told} "
            f"(table: {folder / 'quarantine.csv'})"
        )


def _reads(listed: list[SourceImage], config: IngestConfig) -> Iterator[_Read]:
    """Read in parallel, in order, with a bounded number in memory."""
    fit = Fit(config.read_shape, config.fit)

    def read(item: SourceImage) -> _Read:
        if item.index is not None:
            stored, image = read_array_image(item.path, item.index, config.channels)
            digest = hashlib.sha256(stored.tobytes()).hexdigest()
            return _Read(fit(image), digest, image.shape[1:])
        digest = hashlib.sha256(item.path.read_bytes()).hexdigest()
        try:
            image = read_image(item.path, config.channels)
            return _Read(fit(image), digest, image.shape[1:])
        except UnreadableImage as error:
            return _Read(None, digest, reason=str(error))

    # Decoders release the interpreter, so threads do. OpenCV's own would only compete with them.
    cv2.setNumThreads(1)
    with (
        ThreadPoolExecutor(_processors()) as pool,
        tqdm(total=len(listed), desc="reading", unit=" images", mininterval=1.0) as progress,
    ):
        for start in range(0, len(listed), 256):
            for result in pool.map(read, listed[start : start + 256]):
                progress.update()
                yield result


def _preprocess(manifest: pd.DataFrame, originals: Bytes, config: Config, folder: Path) -> int:
    """Equalise, align, swap; write the cache; return how many images could not be placed."""
    settings = config.ingest
    if not settings.alignment.enabled and not settings.swap.enabled:
        np.save(folder / "images.npy", _prepared(originals, settings))
        return 0
    equalised = _equalised(originals, settings)
    train = np.flatnonzero(manifest["split"] == "train")
    alignment = None
    if settings.alignment.enabled:
        alignment = Alignment.fit(equalised[torch.from_numpy(train)], settings.alignment)
        np.save(folder / "template.npy", alignment.template[0, 0].numpy())
    placed = _place(equalised, alignment, desc="aligning")
    np.save(folder / "images.npy", _cut(equalised, placed, settings))
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
            prepared = _equalised(images, settings)
            found = _place(prepared, alignment)
            cut.append(_cut(prepared, found, settings))
            frames.append(frame_features(images, found.positions))
        return np.concatenate(cut), np.concatenate(frames)

    copies = [swapped(train, "training", 1 + c)[0] for c in range(settings.swap.training_copies)]
    shape = (len(copies), len(train), settings.image_size, settings.image_size)
    np.save(folder / "swapped_training.npy", np.array(copies, np.uint8).reshape(shape))
    kept = np.flatnonzero(manifest["split"] != "test")
    images, frames = swapped(kept, "validation", 0)
    np.save(folder / "swapped_validation.npy", images)
    np.save(folder / "frame_swapped.npy", frames)
    return int(placed.failed.sum())


def _prepared(originals: Bytes, config: IngestConfig) -> Bytes:
    """Images that are neither aligned nor swapped: equalised where asked for, and resized."""
    if config.equalise is None and config.read_shape == config.image_shape:
        return originals
    grey = originals.ndim == 3
    images = _equalised(originals, config) if grey else torch.from_numpy(np.array(originals))
    cut = cut_out(images, torch.zeros(len(images), 2 * len(config.image_shape)), config.image_shape)
    return np.asarray(cut[:, 0].numpy() if grey else cut.numpy())


def _equalised(images: Bytes, config: IngestConfig) -> Tensor:
    equalise = Equalise(config.equalise)
    with ThreadPoolExecutor(_processors()) as pool:
        return torch.from_numpy(np.stack(list(pool.map(equalise, images))))[:, None]


def _place(images: Tensor, alignment: Alignment | None, desc: str | None = None) -> Placed:
    if alignment is None:
        nothing = torch.zeros(len(images))
        return Placed(torch.zeros(len(images), 4), nothing, nothing.bool())
    chunks = tqdm(images.split(256), desc=desc, unit=" batches", disable=desc is None)
    parts = [alignment.place(chunk) for chunk in chunks]
    return Placed(
        torch.cat([part.positions for part in parts]),
        torch.cat([part.correlation for part in parts]),
        torch.cat([part.failed for part in parts]),
    )


def _cut(images: Tensor, placed: Placed, config: IngestConfig) -> Bytes:
    return np.asarray(cut_out(images, placed.positions, config.image_size)[:, 0].numpy())


def _positions_table(manifest: pd.DataFrame, placed: Placed) -> pd.DataFrame:
    axes = [f"{what}_{axis}" for what in ("log_scale", "shift") for axis in "xy"]
    table = pd.DataFrame(placed.positions.numpy(), columns=axes)
    table.insert(0, "image_id", manifest["image_id"].to_numpy())
    return table.assign(correlation=placed.correlation.numpy(), failed=placed.failed.numpy())


def _audit(manifest: pd.DataFrame, listed: list[SourceImage]) -> dict[str, Any]:
    copies = manifest[manifest["sha256"].duplicated(keep=False)]
    outer = manifest.assign(split=manifest["split"].replace("validation", "train"))
    audit: dict[str, Any] = {
        "files": len(listed),
        "files_published": sources.describe(manifest["source"].iloc[0]).get("images"),
        "duplicate_files": len(copies),
        "duplicate_groups": int(copies["sha256"].nunique()),
        "duplicates_across_train_and_test": int(
            (outer.loc[copies.index].groupby("sha256")["split"].nunique() > 1).sum()
        ),
        "subjects_in_train_and_test": len(crossing_subjects(outer)),
        "subjects_with_two_labels": int(
            (manifest.groupby("subject_id")["label_name"].nunique() > 1).sum()
        ),
    }
    parsed = [kermany.parse_name(Path(path).name) for path in manifest["path"]]
    if all(parsed) and parsed:
        by_series = outer.assign(subject_id=[name.subject_by_series for name in parsed if name])
        audit["subjects_in_train_and_test_by_series"] = len(crossing_subjects(by_series))
    return audit


def _count(table: pd.DataFrame) -> dict[str, Any]:
    labels = table.loc[table["label_name"] != "", "label_name"].value_counts().sort_index()
    return {
        "images": len(table),
        "subjects": int(table["subject_id"].nunique()),
        "labels": {str(name): int(count) for name, count in labels.items()},
    }


def _processors() -> int:
    return len(os.sched_getaffinity(0))
