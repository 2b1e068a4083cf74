"""From files to bytes of one size: on all processors, in order, and none of it twice.

Every file is read in a worker process (:mod:`medvq.images.workers`), so that a decoder that crashes
or hangs sets one file aside. What was read before comes from the cache
(:mod:`medvq.images.cache`). Memory does not grow with the data set.
"""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from medvq.code_hash import PACKAGE, code_of
from medvq.errors import Notice, UnreachableFile, UnreadableImage
from medvq.images.cache import ReadCache
from medvq.images.formats import Window, read_image, read_series
from medvq.images.formats.messages import decode_jpeg
from medvq.images.formats.notes import recorded
from medvq.images.resizing import Fit, fit_to_shape, shrink_bytes
from medvq.images.workers import WorkerFailure, map_in_processes, processors
from medvq.wording import counted

Bytes = NDArray[np.uint8]

# Seconds after which a decoder counts as hung: far more than any image takes, even from a share.
TIMEOUT = 300.0
# Larger JPEGs, in pixels or bytes, are read with bounded memory by `formats.picture`.
_MAX_FAST_PIXELS = 2**26
_EXIF_ORIENTATION = 0x0112
_CHANGED = "the file was changed while it was read; run again when it is whole"
_DECIDES = ("medvq.images.formats", "medvq.images.reading", "medvq.images.resizing")
_DECODERS = ("pillow", "opencv-python-headless", "pydicom", "python-gdcm", "nibabel")
# Files that are handed to the hashing threads at a time; checksums are saved after each batch.
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
    notices : deviations of the file that the user should be told of.
    """

    image: Bytes | None
    sha256: str
    size: tuple[int, ...] = ()
    reason: str = ""
    lasting: bool = False
    notices: tuple[str, ...] = ()


class ImageFiles(NamedTuple):
    """The files that one image is read from: one, or the slices of a series."""

    paths: tuple[Path, ...]
    series: bool = False
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Reader:
    """How images are read; a function from :class:`ImageFiles` to :class:`ReadResult`."""

    shape: tuple[int, ...]
    channels: Literal[1, 3] = 1
    fit: Fit = "stretch"

    def __call__(self, files: ImageFiles) -> ReadResult:
        with recorded() as notes:
            before = _states(files)
            result = self._result(files)
            if _states(files) != before:  # by a copy that is not finished, say
                result = ReadResult(None, result.sha256, reason=_CHANGED)
        return replace(result, notices=notes.notices)

    def _result(self, files: ImageFiles) -> ReadResult:
        cv2.setNumThreads(1)
        if result := self._read_grey_jpeg(files):
            return result
        checksum = ""
        try:
            checksum = _combine([_sha256(path) for path in files.paths])
            image = self._read(files)
            pixels = fit_to_shape(image, self.shape, self.fit)
        except UnreadableImage as error:
            lasting = not isinstance(error, UnreachableFile)
            return ReadResult(None, checksum, reason=str(error), lasting=lasting)
        except FileNotFoundError:
            return ReadResult(None, checksum, reason="the file is not there")
        except OSError as error:
            reason = f"the file cannot be read ({error.strerror})"
            return ReadResult(None, checksum, reason=reason)
        return ReadResult(pixels, checksum, image.shape[1:])

    def key(self, files: ImageFiles, sha256: str) -> str:
        """Name a picture in the cache by its content and all that its pixels depend on."""
        settings = (
            _code(),
            _decoder_versions(),
            self.shape,
            self.channels,
            self.fit,
            files.series,
            files.window,
        )
        return hashlib.sha256(f"{sha256} {settings}".encode()).hexdigest()

    def _read(self, files: ImageFiles) -> NDArray[np.float32]:
        window = Window(*files.window, "LINEAR_EXACT") if files.window else None
        if files.series:
            return np.repeat(read_series(files.paths, window), self.channels, axis=0)
        return read_image(files.paths[0], self.channels, window)

    def _read_grey_jpeg(self, files: ImageFiles) -> ReadResult | None:
        """Read a large grey JPEG once and without leaving bytes; None for all others.

        Most public radiographs are such files, and this is several times as fast.
        """
        if files.series or self.channels != 1 or self.fit != "stretch" or len(self.shape) != 2:
            return None
        (path,), (height, width) = files.paths, self.shape
        try:
            with path.open("rb") as stream, Pillow.open(stream, formats=("JPEG",)) as opened:
                shrinks = opened.height >= height and opened.width >= width
                upright = opened.getexif().get(_EXIF_ORIENTATION, 1) == 1
                largest = max(opened.height * opened.width, path.stat().st_size)
                if opened.mode != "L" or not (shrinks and upright) or largest > _MAX_FAST_PIXELS:
                    return None
                stream.seek(0)
                content = stream.read()
        except Exception:  # one of dozens of types, and read_image knows the reason
            return None
        # The same pixels as Pillow's, sooner; none where the file is not whole.
        stored = np.frombuffer(content, np.uint8)
        picture = decode_jpeg(stored, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
        if picture is None:
            return None
        checksum = hashlib.sha256(content).hexdigest()
        return ReadResult(shrink_bytes(picture, (height, width))[None], checksum, picture.shape)


def read_all(
    listed: Sequence[ImageFiles], reader: Reader, cache: ReadCache
) -> Iterator[ReadResult]:
    """Read images in the order of ``listed``, from the cache or in worker processes."""
    checksums = [_cached_checksum(files, reader, cache) for files in listed]
    missing = (files for files, checksum in zip(listed, checksums, strict=True) if not checksum)
    fresh = map_in_processes(reader, missing, processes=processors(), timeout=TIMEOUT)
    for files, checksum in zip(listed, checksums, strict=True):
        results = fresh
        if checksum:
            if cached := _cached_result(reader.key(files, checksum), checksum, cache):
                yield cached
                continue
            # The entry was damaged, which only reading it shows.
            results = map_in_processes(reader, [files], processes=1, timeout=TIMEOUT)
        result = next(results)
        if isinstance(result, WorkerFailure) and result.out_of_memory:
            # A process that is alone may take as much as all together.
            result = next(map_in_processes(reader, [files], processes=1, timeout=TIMEOUT))
        if isinstance(result, WorkerFailure):
            result = ReadResult(None, image_checksum(files.paths, cache), reason=result.reason)
        key = reader.key(files, result.sha256)
        if result.image is not None:
            cache.put_picture(key, result.image, result.size, result.notices)
        elif result.lasting:
            cache.put_refusal(key, result.reason)
        yield result


def not_cached(listed: Sequence[ImageFiles], reader: Reader, cache: ReadCache) -> list[ImageFiles]:
    """Return the images that the cache does not have."""
    return [files for files in listed if not _cached_checksum(files, reader, cache)]


def warn_of_notices(results: Iterable[ReadResult]) -> None:
    """Say each distinct notice of the images that were read once, with its number of files."""
    counts = Counter(notice for result in results for notice in result.notices)
    for notice, count in counts.items():
        warnings.warn(Notice(f"{counted(count, 'file')}: {notice}"), stacklevel=2)


def _cached_checksum(files: ImageFiles, reader: Reader, cache: ReadCache) -> str:
    """Return the checksum of an image that the cache has; empty of any other."""
    checksums = [_remembered(path, cache) for path in files.paths]
    checksum = _combine([one for one in checksums if one])
    return checksum if all(checksums) and cache.has(reader.key(files, checksum)) else ""


def _cached_result(key: str, checksum: str, cache: ReadCache) -> ReadResult | None:
    if picture := cache.picture(key):
        image, size, notices = picture
        return ReadResult(image, checksum, size, notices=notices)
    if reason := cache.refusal(key):
        return ReadResult(None, checksum, reason=reason, lasting=True)
    return None


@functools.cache
def _code(package: Path = PACKAGE) -> str:
    """Return a hash of the code that decides what pixels a file has, and what is told of it."""
    code = code_of(__name__, package)
    deciding = [one for name, one in code.items() if name.startswith(_DECIDES)]
    return hashlib.sha256(" ".join(deciding).encode()).hexdigest()


@functools.cache
def _decoder_versions() -> tuple[str, ...]:
    """Return the versions of the decoders: another may read what this one refused."""
    return tuple(version(name) for name in _DECODERS)


def image_checksum(paths: Sequence[Path], cache: ReadCache) -> str:
    """Return the checksum of an image: of its file, or over those of the files of a series."""
    return _combine(file_checksums(paths, cache))


def file_checksums(paths: Sequence[Path], cache: ReadCache) -> list[str]:
    """Return SHA-256 sums of files, in order; only files that have changed are hashed.

    A file that has vanished or cannot be read has an empty one.
    """
    checksums = [_remembered(path, cache) for path in paths]
    unknown = [index for index, checksum in enumerate(checksums) if checksum is None]
    with ThreadPoolExecutor(processors()) as pool:
        for start in range(0, len(unknown), _BATCH):
            batch = unknown[start : start + _BATCH]
            hashed = pool.map(_hash_with_status, [paths[index] for index in batch])
            for index, (checksum, status) in zip(batch, hashed, strict=True):
                checksums[index] = checksum
                if status is not None:
                    cache.put_sha256(paths[index], status, checksum)
    return [checksum or "" for checksum in checksums]


def _combine(checksums: Sequence[str]) -> str:
    if len(checksums) == 1:
        return checksums[0]
    return hashlib.sha256("".join(checksums).encode()).hexdigest()


def _remembered(path: Path, cache: ReadCache) -> str | None:
    try:
        return cache.sha256(path, path.stat())
    except OSError:
        return None


def _hash_with_status(path: Path) -> tuple[str, os.stat_result | None]:
    """Return the checksum and the status it belongs to, None where the file changed meanwhile."""
    try:
        before = path.stat()
        checksum = _sha256(path)
        after = path.stat()
    except OSError:
        return "", None
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    return checksum, after if same else None


def _states(files: ImageFiles) -> list[tuple[int, int] | None]:
    """Return the size and the time of the last change of each file, None of one that is gone."""
    states: list[tuple[int, int] | None] = []
    for path in files.paths:
        try:
            status = path.stat()
        except OSError:
            states.append(None)
        else:
            states.append((status.st_size, status.st_mtime_ns))
    return states


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
