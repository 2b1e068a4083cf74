"""A data set read into one array, with its manifest and what had to be set aside."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from medvq.config import Config, IngestConfig
from medvq.datasets.array_files import read_array_image
from medvq.datasets.dataset import SourceImage
from medvq.errors import UserError
from medvq.images.cache import ReadCache
from medvq.images.reading import (
    ImageFiles,
    Reader,
    ReadResult,
    image_checksum,
    read_all,
    warn_of_notices,
)
from medvq.images.resizing import fit_to_shape

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class ReadDataset:
    """A data set as read.

    Attributes
    ----------
    images : those that were read, as their source names them.
    originals : uint8 (N, [C,] *read_shape), mapped from a file.
    manifest : one row for each of them, see :mod:`medvq.datasets.manifest`.
    quarantine : the others, with the columns ``path``, ``sha256`` and ``reason``.
    broken : the reasons of those that the source itself did not want set aside.
    """

    images: list[SourceImage]
    originals: Bytes
    manifest: pd.DataFrame
    quarantine: pd.DataFrame
    broken: list[str]

    def check_share_broken(self, max_share: float, table: Path) -> None:
        """Stop where too many images are broken; what the source wants set aside does not count.

        Parameters
        ----------
        max_share : of all images of the source.
        table : the file with the quarantine, which the message names.

        Raises
        ------
        UserError
            More are broken, or there is no image left.
        """
        total = len(self.images) + len(self.quarantine)
        if self.images and len(self.broken) <= max_share * total:
            return
        counted, problem = self.quarantine["reason"].tolist(), f"all {total} files were set aside"
        if self.images:
            counted, problem = (
                self.broken,
                (
                    f"{len(self.broken)} of {total} files cannot be read, more than "
                    f"ingest.max_quarantined={max_share:g}"
                ),
            )
        reasons = "; ".join(f"{number} x {why}" for why, number in Counter(counted).most_common())
        raise UserError(f"{problem}: {reasons} (table: {table})")


def read_dataset(
    listed: Sequence[SourceImage], config: Config, file: Path, cache: ReadCache
) -> ReadDataset:
    """Read every image of a data set.

    Parameters
    ----------
    listed : the images, in the order of the manifest.
    file : the NPY file that the images are written into, since they may be more than fit into
        memory.
    cache : knows what was read before.
    """
    grey_pictures = config.ingest.channels == 1 and len(config.ingest.read_shape) == 2
    channels = () if grey_pictures else (config.ingest.channels,)
    shape = (*channels, *config.ingest.read_shape)
    originals = _allocate(file, (len(listed), *shape))
    images: list[SourceImage] = []
    results: list[ReadResult] = []
    quarantine: list[tuple[str, str, str]] = []
    broken: list[str] = []
    for item, result in zip(listed, _read(listed, config.ingest, cache), strict=True):
        if result.image is not None:
            originals[len(images)] = result.image.reshape(shape)
            images.append(item)
            results.append(replace(result, image=None))
            continue
        quarantine.append((item.shown_path, result.sha256, result.reason))
        if not item.set_aside:
            broken.append(result.reason)
    warn_of_notices(results)
    if quarantine and images:
        np.save(file, np.array(originals[: len(images)]))
        originals = np.load(file, mmap_mode="r")
    return ReadDataset(
        images,
        originals,
        _manifest(listed, images, results, config),
        pd.DataFrame(quarantine, columns=["path", "sha256", "reason"]),
        broken,
    )


def validation_share(subject: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on the subject and the seed alone.

    A subject is in the validation split where it is small, so that adding images moves no other.
    """
    digest = hashlib.sha256(f"{seed}:{subject}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _allocate(file: Path, shape: tuple[int, ...]) -> Bytes:
    images = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    with file.open("r+b") as stream:
        # A sparse file that meets a full disk while it is mapped kills the process (SIGBUS).
        os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    return images


def _read(
    listed: Sequence[SourceImage], config: IngestConfig, cache: ReadCache
) -> Iterator[ReadResult]:
    """Yield every image as read: from an array file in this process, else in worker processes."""
    reader = Reader(config.read_shape, config.channels, config.fit)
    files = [
        ImageFiles(item.files, bool(item.parts), item.window)
        for item in listed
        if item.index is None and not item.set_aside
    ]
    results = read_all(files, reader, cache)
    for item in tqdm(listed, desc="reading", unit=" images", mininterval=1.0):
        if item.set_aside:
            yield ReadResult(None, image_checksum(item.files, cache), reason=item.set_aside)
        elif item.index is not None:
            stored, image = read_array_image(item.path, item.index, config.channels)
            checksum = hashlib.sha256(np.ascontiguousarray(stored).data).hexdigest()
            pixels = fit_to_shape(image, config.read_shape, config.fit)
            yield ReadResult(pixels, checksum, image.shape[1:])
        else:
            yield next(results)


def _manifest(
    listed: Sequence[SourceImage],
    images: Sequence[SourceImage],
    results: Sequence[ReadResult],
    config: Config,
) -> pd.DataFrame:
    """Return the manifest of ``images``, a part of ``listed``.

    Where the source has no validation split, a share of the training subjects becomes one.
    """
    labels = sorted({item.label for item in listed if item.label is not None})
    official = any(item.split == "validation" for item in listed)
    copies: Counter[str] = Counter()
    rows = []
    for item, result in zip(images, results, strict=True):
        copies[result.sha256] += 1
        # Duplicates need identities of their own.
        suffix = f"-{copies[result.sha256]}" if copies[result.sha256] > 1 else ""
        share = validation_share(item.subject, config.seed)
        held_back = not official and share < config.ingest.validation_fraction
        rows.append(
            {
                "image_id": result.sha256[:16] + suffix,
                "path": item.shown_path,
                "subject_id": item.subject,
                "certain_subject_id": item.certain_subject or item.subject,
                "split": "validation" if item.split == "train" and held_back else item.split,
                "label": None if item.label is None else labels.index(item.label),
                "label_name": item.label or "",
                "sha256": result.sha256,
                "width": result.size[-1],
                "height": result.size[-2],
                "depth": result.size[0] if len(result.size) == 3 else 1,
                "channels": config.ingest.channels,
                "source": config.source.kind,
                "target": item.target,
                "target_name": item.target_name,
                "folds": " ".join(map(str, item.folds)),
            }
        )
    return pd.DataFrame(rows).astype({"label": "Int64"}) if rows else pd.DataFrame()
