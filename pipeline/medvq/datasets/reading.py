"""A data set read into one array, with its manifest and what had to be set aside."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from medvq.config import Config, FolderSource, IngestConfig
from medvq.datasets.array_files import ArrayImage, read_array_images
from medvq.datasets.dataset import SourceImage
from medvq.datasets.folder_files import CONTRADICTION
from medvq.datasets.sources import dataset
from medvq.datasets.splits import draw_splits, join_equal_images
from medvq.distributed import from_first, rank, world_size
from medvq.errors import Notice, UserError
from medvq.images.cache import ReadCache
from medvq.images.reading import (
    ImageFiles,
    Reader,
    ReadResult,
    image_checksum,
    not_cached,
    read_all,
    warn_of_notices,
)
from medvq.wording import counted

Bytes = NDArray[np.uint8]

# Classes that a notice names.
_MOST_NAMED = 5


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
        reasons = self.quarantine["reason"].tolist()
        problem = (
            f"all {total} files were set aside" if total > 1 else "the only file was set aside"
        )
        if self.images:
            reasons, problem = (
                self.broken,
                (
                    f"{len(self.broken)} of {total} files cannot be read, more than "
                    f"ingest.max_quarantined={max_share:g}"
                ),
            )
        listed = "; ".join(f"{number} x {why}" for why, number in Counter(reasons).most_common())
        raise UserError(f"{problem}: {listed} (table: {table})")


def share_reading(
    listed: Sequence[SourceImage],
    config: IngestConfig,
    open_cache: Callable[[int | None], ReadCache],
) -> None:
    """Read, in each of several processes, a share of what was not read before, into the cache.

    Parameters
    ----------
    open_cache : opens the cache of a process, or, with None, all that processes have left.
    """
    reader, files = _reader(config), _files(listed)

    def missing() -> list[ImageFiles]:
        with open_cache(None) as cache:
            return not_cached(files, reader, cache) if cache.is_kept else []

    own = from_first(missing)[rank() :: world_size()]
    with open_cache(rank()) as cache:
        bar = tqdm(total=len(own), desc="reading a share", unit=" images", disable=rank() > 0)
        for _ in read_all(own, reader, cache):
            bar.update()
        bar.close()


def read_dataset(
    listed: Sequence[SourceImage],
    config: Config,
    file: Path,
    cache: ReadCache,
    find_alike: Callable[[Bytes], list[list[int]]],
) -> ReadDataset:
    """Read every image of a data set, and draw the splits that it does not have.

    Parameters
    ----------
    listed : the images, in the order of the manifest.
    file : the NPY file to write the images into: they may be more than fit into memory.
    cache : knows what was read before.
    find_alike : returns groups of images that show nearly the same.
    """
    shape = _stored_shape(config.ingest)
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
        quarantine.append((item.shown_path, _first_sum(item, result, cache), result.reason))
        if not item.set_aside:
            broken.append(result.reason)
    originals.flush()  # other processes read them, on other machines, too
    warn_of_notices(results)
    _warn_of_lost_labels(listed, images)
    contradicted = _contradicted(images, results, config)
    for number in sorted(contradicted):
        item, sha256 = images[number], _first_sum(images[number], results[number], cache)
        quarantine.append((item.shown_path, sha256, CONTRADICTION))
    chosen = [number for number in range(len(images)) if number not in contradicted]
    images, results = [images[n] for n in chosen], [results[n] for n in chosen]
    if quarantine and images:
        np.save(file, originals[chosen])
        originals = np.load(file, mmap_mode="r")
    images = _with_splits(images, results, originals, config, find_alike)
    return ReadDataset(
        images,
        originals,
        _manifest(listed, images, results, config),
        pd.DataFrame(quarantine, columns=["path", "sha256", "reason"]),
        broken,
    )


def _warn_of_lost_labels(listed: Sequence[SourceImage], read: Sequence[SourceImage]) -> None:
    """Say how many labelled images cannot be read, where any can: the loss may go with the class.

    Parameters
    ----------
    read : those of ``listed`` that can be read.
    """
    stated = Counter(item.label for item in listed if item.label and not item.set_aside)
    lost = stated - Counter(item.label for item in read if item.label)
    if read and lost:
        classes = lost.most_common(_MOST_NAMED)
        named = ", ".join(f"{count} of {stated[name]} of '{name}'" for name, count in classes)
        text = f"labelled images that cannot be read, and so are left out: {named}"
        warnings.warn(Notice(text), stacklevel=3)


def _first_sum(item: SourceImage, result: ReadResult, cache: ReadCache) -> str:
    """Return the checksum by which the owner finds a file: of a series, that of its first file.

    That of the series itself is over all its files.
    """
    return image_checksum(item.files[:1], cache) if item.parts else result.sha256


def _stored_shape(config: IngestConfig) -> tuple[int, ...]:
    grey_pictures = config.channels == 1 and len(config.read_shape) == 2
    return config.read_shape if grey_pictures else (config.channels, *config.read_shape)


def _allocate(file: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    images = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    with file.open("r+b") as stream:
        # A sparse file that meets a full disk while it is mapped kills the process (SIGBUS).
        os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    return images


def _read(
    listed: Sequence[SourceImage], config: IngestConfig, cache: ReadCache
) -> Iterator[ReadResult]:
    """Yield every image as read, in worker processes."""
    reader = _reader(config)
    results = read_all(_files(listed), reader, cache)
    arrays = read_array_images(
        [ArrayImage(item.path, item.index) for item in listed if item.index is not None], reader
    )
    for item in tqdm(listed, desc="reading", unit=" images", mininterval=1.0):
        if item.set_aside:
            yield ReadResult(None, image_checksum(item.files, cache), reason=item.set_aside)
        elif item.index is not None:
            yield next(arrays)
        else:
            yield next(results)


def _reader(config: IngestConfig) -> Reader:
    return Reader(config.read_shape, config.channels, config.fit)


def _files(listed: Sequence[SourceImage]) -> list[ImageFiles]:
    """Return the files of each image that has files of its own and is to be read."""
    return [
        ImageFiles(item.files, bool(item.parts), item.window)
        for item in listed
        if item.index is None and not item.set_aside
    ]


def _contradicted(
    images: Sequence[SourceImage], results: Sequence[ReadResult], config: Config
) -> set[int]:
    """Return the images whose file is identical to another with another label or number.

    Published data sets stay as they were published.
    """
    if not isinstance(config.source, FolderSource):
        return set()
    stated: dict[str, set[tuple[str | None, float | None]]] = {}
    for image, result in zip(images, results, strict=True):
        if image.label is not None or image.target is not None:
            stated.setdefault(result.sha256, set()).add((image.label, image.target))
    return {n for n, result in enumerate(results) if len(stated.get(result.sha256, ())) > 1}


def _with_splits(
    images: Sequence[SourceImage],
    results: Sequence[ReadResult],
    originals: Bytes,
    config: Config,
    find_alike: Callable[[Bytes], list[list[int]]],
) -> list[SourceImage]:
    """Draw splits; where no subject is known, images that are alike count as one subject."""
    if any(image.split == "train" and not image.has_known_subject for image in images):
        equal: dict[str, list[int]] = {}
        for number, result in enumerate(results):
            equal.setdefault(result.sha256, []).append(number)
        joined = join_equal_images(images, [*equal.values(), *find_alike(originals)])
        number = sum(a.subject != b.subject for a, b in zip(images, joined, strict=True))
        if number:
            text = (
                f"{counted(number, 'image')} counted as the patients of others that are identical "
                "or nearly so"
            )
            warnings.warn(Notice(text), stacklevel=2)
        images = joined
    return draw_splits(
        images,
        test_fraction=dataset(config.source).test_fraction,
        validation_fraction=config.ingest.validation_fraction,
        seed=config.seed,
    )


def _manifest(
    listed: Sequence[SourceImage],
    images: Sequence[SourceImage],
    results: Sequence[ReadResult],
    config: Config,
) -> pd.DataFrame:
    """Return the manifest of ``images``, a part of ``listed``."""
    labels = sorted({item.label for item in listed if item.label is not None})
    copies: Counter[str] = Counter()
    rows = []
    for item, result in zip(images, results, strict=True):
        copies[result.sha256] += 1
        # Duplicates need identities of their own.
        suffix = f"-{copies[result.sha256]}" if copies[result.sha256] > 1 else ""
        rows.append(
            {
                "image_id": result.sha256[:16] + suffix,
                "path": item.shown_path,
                "subject_id": item.subject,
                "certain_subject_id": item.certain_subject or item.subject,
                "split": item.split,
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
