"""From files to bytes of one size: on all processors, in order, and none of it twice.

Every file is read in a process of its own kind (:mod:`medvq.images.workers`), so that a decoder
that crashes or hangs sets one file aside. What was read before comes from the cache
(:mod:`medvq.images.cache`). Memory does not grow with the data set.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from medvq.errors import UnreachableFile, UnreadableImage
from medvq.images.cache import ReadCache
from medvq.images.formats import Window, read_image, read_series
from medvq.images.resizing import fit, shrink_bytes
from medvq.images.workers import WorkerFailure, map_in_processes, processors

Bytes = NDArray[np.uint8]

TIMEOUT = 300.0
"""Seconds after which reading an image is given up."""
_VERSION = 2
"""Of what is read: raise it when the same file comes to give other bytes."""
_PLAIN_PIXELS = 2**26
_ORIENTATION = 0x0112
_DECODERS = ("pillow", "opencv-python-headless", "pydicom", "python-gdcm", "nibabel")
_BATCH = 4096


@dataclass(frozen=True)
class ReadResult:
    """One image as read, or why it was not.

    Attributes
    ----------
    image : bytes (channels, *shape), None where it cannot be read.
    sha256 : of the file, or of the checksums of the files of a series; empty where it vanished.
    size : along each spatial axis, before it was fitted.
    reason : why it was not read, for the quarantine.
    lasting : whether that is so for any file of this content, and not of this moment.
    """

    image: Bytes | None
    sha256: str
    size: tuple[int, ...] = ()
    reason: str = ""
    lasting: bool = False


class ImageFiles(NamedTuple):
    """What one image is read from: a file, or the parts of a series."""

    paths: tuple[Path, ...]
    series: bool = False
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Reader:
    """How images are read; a function from :class:`Files` to :class:`Read`."""

    shape: tuple[int, ...]
    channels: Literal[1, 3] = 1
    how: Literal["stretch", "pad"] = "stretch"

    def __call__(self, files: ImageFiles) -> ReadResult:
        cv2.setNumThreads(1)
        if plain := self._plain(files):
            return plain
        digest = ""
        try:
            digest = combined([_sha256(path) for path in files.paths])
            image, size = self._image(files)
        except UnreadableImage as error:
            lasting = not isinstance(error, UnreachableFile)
            return ReadResult(None, digest, reason=str(error), lasting=lasting)
        except FileNotFoundError:
            return ReadResult(None, digest, reason="the file has vanished")
        except OSError as error:
            return ReadResult(None, digest, reason=f"the file cannot be read ({error.strerror})")
        return ReadResult(image, digest, size)

    def key(self, files: ImageFiles, sha256: str) -> str:
        """Of the picture in the cache: its content, and all that its pixels depend on."""
        how = (
            _VERSION,
            _decoders(),
            self.shape,
            self.channels,
            self.how,
            files.series,
            files.window,
        )
        return hashlib.sha256(f"{sha256} {how}".encode()).hexdigest()

    def _image(self, files: ImageFiles) -> tuple[Bytes, tuple[int, ...]]:
        window = Window(*files.window, "LINEAR_EXACT") if files.window else None
        if files.series:
            volume = read_series(files.paths, window)
            image = np.repeat(volume, self.channels, axis=0)
        else:
            (path,) = files.paths
            image = read_image(path, self.channels, window)
        return fit(image, self.shape, self.how), image.shape[1:]

    def _plain(self, files: ImageFiles) -> ReadResult | None:
        """A large grey JPEG, read once and without leaving bytes; None for all others."""
        if files.series or self.channels != 1 or self.how != "stretch" or len(self.shape) != 2:
            return None
        (path,), (height, width) = files.paths, self.shape
        try:
            with path.open("rb") as stream, Pillow.open(stream, formats=("JPEG",)) as opened:
                shrinks = opened.height >= height and opened.width >= width
                plain = opened.mode == "L" and opened.getexif().get(_ORIENTATION, 1) == 1
                largest = max(opened.height * opened.width, path.stat().st_size)
                if not (plain and shrinks) or largest > _PLAIN_PIXELS:
                    return None
                stream.seek(0)
                content = stream.read()
        except Exception:  # of dozens of types
            return None  # read_image knows what is wrong with it
        # The same pixels as Pillow's, sooner; and none, where those are not whole.
        stored = np.frombuffer(content, np.uint8)
        picture = cv2.imdecode(stored, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
        if picture is None:
            return None
        digest = hashlib.sha256(content).hexdigest()
        return ReadResult(shrink_bytes(picture, (height, width))[None], digest, picture.shape)


def read_all(
    listed: Sequence[ImageFiles], reader: Reader, cache: ReadCache
) -> Iterator[ReadResult]:
    """Read images in the order of ``listed``, from the cache or by :func:`map_in_processes`."""
    keys = _known(listed, reader, cache)
    missing = (files for files, key in zip(listed, keys, strict=True) if key is None)
    read = map_in_processes(reader, missing, processes=processors(), timeout=TIMEOUT)
    for files, known in zip(listed, keys, strict=True):
        if known is not None:
            key, sha256 = known
            if (found := cache.picture(key)) is not None:
                yield ReadResult(found[0], sha256, found[1])
                continue
            if reason := cache.refusal(key):
                yield ReadResult(None, sha256, reason=reason, lasting=True)
                continue
            again = map_in_processes(reader, [files], processes=1, timeout=TIMEOUT)
            result = next(again)
        else:
            result = next(read)
        if isinstance(result, WorkerFailure):
            sha256 = combined(sha256_of(files.paths, cache))
            result = ReadResult(None, sha256, reason=result.reason)
        if result.image is not None:
            cache.put_picture(reader.key(files, result.sha256), result.image, result.size)
        elif result.lasting:
            cache.put_refusal(reader.key(files, result.sha256), result.reason)
        yield result


def _known(
    listed: Sequence[ImageFiles], reader: Reader, cache: ReadCache
) -> list[tuple[str, str] | None]:
    """Key and checksum of those that the cache has."""
    known: list[tuple[str, str] | None] = []
    for files in listed:
        sums = [_remembered(path, cache) for path in files.paths]
        whole = [checksum for checksum in sums if checksum]
        sha256 = combined(whole)
        key = reader.key(files, sha256)
        found = len(whole) == len(sums) and (cache.has_picture(key) or bool(cache.refusal(key)))
        known.append((key, sha256) if found else None)
    return known


@functools.cache
def _decoders() -> tuple[str, ...]:
    """Versions of the libraries that decode: another may read what this one refused."""
    return tuple(version(name) for name in _DECODERS)


def sha256_of(paths: Iterable[Path], cache: ReadCache) -> list[str]:
    """Checksums of files, in order; hashed, several at a time, only where they have changed.

    One that has vanished or cannot be read has an empty one.
    """
    paths = list(paths)
    sums = [_remembered(path, cache) for path in paths]
    unknown = [at for at, checksum in enumerate(sums) if checksum is None]
    with ThreadPoolExecutor(processors()) as pool:
        for start in range(0, len(unknown), _BATCH):
            batch = unknown[start : start + _BATCH]
            found = pool.map(_hash_with_status, [paths[at] for at in batch])
            for at, (checksum, status) in zip(batch, found, strict=True):
                sums[at] = checksum
                if status is not None:
                    cache.put_sha256(paths[at], status, checksum)
    return [checksum or "" for checksum in sums]


def combined(sums: Sequence[str]) -> str:
    """The checksum of an image: of its file, or over those of the files of a series."""
    if len(sums) == 1:
        return sums[0]
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def _remembered(path: Path, cache: ReadCache) -> str | None:
    try:
        return cache.sha256(path, path.stat())
    except OSError:
        return None


def _hash_with_status(path: Path) -> tuple[str, os.stat_result | None]:
    """The checksum, and the status that it belongs to: None where it changed meanwhile."""
    try:
        before = path.stat()
        checksum = _sha256(path)
        after = path.stat()
    except OSError:
        return "", None
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    return checksum, after if same else None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
