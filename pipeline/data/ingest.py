"""The stage ``ingest``: files in, manifest and cache of preprocessed images out.

Writes into its artifact, N images in the order of the manifest, S the side of an image:

==========================  ================================================================
``manifest.csv``            one row per image, see :mod:`pipeline.data.manifest`
``quarantine.csv``          files that were set aside, with the reason
``audit.json``              what may be wrong with the set, see :mod:`pipeline.data.audit`
``clusters.csv``            the cluster of acquisition of each image
``images.npy``              uint8 (N, S, S): equalised and aligned
``originals.npy``           uint8 (N, R, R): as read, resized
``alignment.csv``           position, correlation and failure of each image
``template.npy``            float32 (T, T): what was aligned to
``swapped_training.npy``    uint8 (copies, train, S, S): see :mod:`pipeline.data.swap`
``swapped_validation.npy``  uint8 (train and validation, S, S), of the kind no training sees
``frame.npy``               float32 (N, F): the frame around the thorax and its position
``frame_swapped.npy``       the same of the swapped images of ``swapped_validation.npy``
==========================  ================================================================
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
from pipeline.data import acquisition, audit, kermany, sources
from pipeline.data.alignment import Alignment, Placed
from pipeline.data.formats import read_grey
from pipeline.data.manifest import SPLITS, SourceImage, check_manifest
from pipeline.data.swap import Kind, swap_acquisition
from pipeline.data.transforms import Equalise, ResizeByArea, cut_out
from pipeline.errors import UnreadableImage, UserError
from pipeline.stage import Work

Bytes = NDArray[np.uint8]
_SWAP_CHUNK = 512
_AXES = ("log_scale_x", "log_scale_y", "shift_x", "shift_y")


@dataclass(frozen=True)
class _Read:
    """One image as read, or why it was not."""

    image: Bytes | None
    sha256: str
    width: int = 0
    height: int = 0
    reason: str = ""


def ingest(work: Work) -> dict[str, Any]:
    """Run the stage; return its summary."""
    config = work.config
    folder = sources.locate(config, work.data_root, work.data_mirror)
    listed = sources.list_images(config, folder)
    manifest, originals, kept = _read_all(listed, config, work.folder)
    official = isinstance(config.source, KermanySource)
    manifest = check_manifest(manifest, official_crossing=official)
    manifest.to_csv(work.folder / "manifest.csv", index=False)
    failed = _preprocess(manifest, originals, config, work.folder)
    found = _audit(manifest, originals, kept, config, work.folder)
    quarantined = len(pd.read_csv(work.folder / "quarantine.csv"))
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
    listed: list[SourceImage], config: Config, folder: Path
) -> tuple[pd.DataFrame, Bytes, list[SourceImage]]:
    """Read every image into ``originals.npy``; return its manifest, the array, and the sources."""
    side = config.ingest.read_size
    shape = (len(listed), side, side)
    file = folder / "originals.npy"
    images = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    with file.open("r+b") as stream:
        # A sparse file that meets a full disk while it is mapped kills the process (SIGBUS).
        os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    rows: list[dict[str, Any]] = []
    sources_kept: list[SourceImage] = []
    quarantine: list[dict[str, str]] = []
    labels = sorted({item.label for item in listed if item.label is not None})
    seen: dict[str, int] = {}
    for item, read in zip(listed, _reads(listed, side), strict=True):
        if read.image is None:
            quarantine.append(
                {"path": item.shown_path, "sha256": read.sha256, "reason": read.reason}
            )
            continue
        images[len(rows)] = read.image
        sources_kept.append(item)
        seen[read.sha256] = seen.get(read.sha256, 0) + 1
        again = f"-{seen[read.sha256]}" if seen[read.sha256] > 1 else ""
        held_back = validation_share(item.subject, config.seed) < config.ingest.validation_fraction
        rows.append(
            {
                "image_id": read.sha256[:16] + again,
                "path": item.shown_path,
                "subject_id": item.subject,
                "split": "validation" if item.split == "train" and held_back else item.split,
                "label": None if item.label is None else labels.index(item.label),
                "label_name": item.label or "",
                "sha256": read.sha256,
                "width": read.width,
                "height": read.height,
                "depth": 1,
                "channels": 1,
                "source": config.source.kind,
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
    return manifest, images, sources_kept


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


def _reads(listed: list[SourceImage], side: int) -> Iterator[_Read]:
    """Read in parallel, in order, with a bounded number in memory."""
    shrink = ResizeByArea(side)

    def read(item: SourceImage) -> _Read:
        try:
            digest = hashlib.sha256(item.path.read_bytes()).hexdigest()
        except OSError as error:  # whose own message holds the path
            return _Read(None, "", reason=f"the file cannot be read ({error.strerror})")
        try:
            grey = read_grey(item.path)
        except UnreadableImage as error:
            return _Read(None, digest, reason=str(error))
        return _Read(shrink(grey), digest, grey.shape[1], grey.shape[0])

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
    table = pd.DataFrame(placed.positions.numpy(), columns=list(_AXES))
    table.insert(0, "image_id", manifest["image_id"].to_numpy())
    return table.assign(correlation=placed.correlation.numpy(), failed=placed.failed.numpy())


def _audit(
    manifest: pd.DataFrame,
    originals: Bytes,
    listed: list[SourceImage],
    config: Config,
    folder: Path,
) -> dict[str, Any]:
    found, clusters = audit.audit(
        manifest,
        originals,
        _frame(originals, int(manifest["channels"].max()) > 1, folder / "alignment.csv"),
        acquisition.describe([item.path for item in listed], _processors()),
        kermany.groupings(manifest["path"]) or {"subject": manifest["subject_id"].tolist()},
        sources.describe(config.source.kind).get("images"),
        config.seed,
    )
    found = {"dataset": config.name, **found}
    (folder / "audit.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    table = pd.DataFrame({"image_id": manifest["image_id"], "cluster": clusters})
    table.to_csv(folder / "clusters.csv", index=False)
    return found


def _frame(originals: Bytes, colour: bool, aligned: Path) -> NDArray[np.float32]:
    """The frame of every image, with its position where images are aligned."""
    positions = torch.zeros(len(originals), 4)
    if aligned.is_file():
        positions = torch.from_numpy(pd.read_csv(aligned).iloc[:, 1:5].to_numpy(np.float32))
    chunks = zip(range(0, len(originals), 512), positions.split(512), strict=True)
    return np.concatenate(
        [
            frame_features(audit.planes(originals[start : start + 512], colour=colour), part)
            for start, part in chunks
        ]
    )


def _count(table: pd.DataFrame) -> dict[str, Any]:
    labels = table.loc[table["label_name"] != "", "label_name"].value_counts().sort_index()
    return {
        "images": len(table),
        "subjects": int(table["subject_id"].nunique()),
        "labels": {str(name): int(count) for name, count in labels.items()},
    }


def _processors() -> int:
    return len(os.sched_getaffinity(0))
