"""From images as read to the images that a network sees: equalised, registered, resampled.

Ingest prepares whole data sets with it, and an encoder the files of a user, so both see the same.
Processes that only read files do not import this module, since it imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from medvq.config import IngestConfig
from medvq.distributed import map_shared, rank
from medvq.images.workers import processors
from medvq.method.alignment import Alignment, Registration, warp

Bytes = NDArray[np.uint8]

# Images that are registered or resampled at a time: it bounds the memory of their copies, which are
# in double precision, see the alignment.
_CHUNK = 256


class PreparedImages(NamedTuple):
    """Images as a network sees them, and where in the images as read they lie.

    Attributes
    ----------
    images : uint8 (B, *image_shape) of grey pictures, (B, C, *image_shape) of all others.
    registration : their positions.
    """

    images: Bytes
    registration: Registration


@dataclass(frozen=True)
class Preparation:
    """The chain from images as read to prepared images: equalise, register, resample.

    Grey pictures are arrays without an axis of channels, (B, height, width); colour pictures and
    volumes have one, (B, C, *spatial).

    Attributes
    ----------
    config : the settings of ingest, of which ``equalise``, ``read_size`` and ``image_size`` count.
    alignment : the template that images are registered to; None resizes the whole image instead.
    """

    config: IngestConfig
    alignment: Alignment | None = None

    def __call__(self, images: Bytes) -> PreparedImages:
        """Prepare a batch of images as read, bytes of shape (B, [C,] *read_shape)."""
        if self.changes_nothing:
            # The images may be mapped from a file that is larger than memory.
            return PreparedImages(images, self.zero_registration(len(images)))
        equalised = self.equalise(images)
        registration = self.register(equalised)
        return PreparedImages(self.resample(equalised, registration), registration)

    def equalise(self, images: Bytes) -> Tensor:
        """Equalise histograms with limited contrast (CLAHE), where the settings say so.

        Returns
        -------
        Bytes of shape (B, C, *read_shape).
        """
        if (config := self.config.equalise) is None:
            copy = torch.from_numpy(np.array(images))
            return copy[:, None] if self._is_grey else copy

        def equalise(image: Bytes) -> NDArray[np.uint8]:
            # OpenCV's object keeps buffers, so every call (and thread) has its own.
            clahe = cv2.createCLAHE(config.clip_limit, (config.tiles, config.tiles))
            return np.asarray(clahe.apply(image), np.uint8)

        with ThreadPoolExecutor(processors()) as pool:
            return torch.from_numpy(np.stack(list(pool.map(equalise, images))))[:, None]

    def register(self, equalised: Tensor) -> Registration:
        """Find the position of each image in the template, or zero where there is no template.

        Parameters
        ----------
        equalised : bytes of shape (B, C, *read_shape).
        """
        if self.alignment is None:
            return self.zero_registration(len(equalised))
        return _joined([self.alignment.register(chunk) for chunk in equalised.split(_CHUNK)])

    def resample(self, equalised: Tensor, registration: Registration) -> Bytes:
        """Resample each image at its position: bytes of shape (B, [C,] *image_shape)."""
        shape = self.config.image_shape
        chunks = zip(equalised.split(_CHUNK), registration.positions.split(_CHUNK), strict=True)
        parts = [
            (warp(images.double(), positions, shape) + 0.5).clamp(0, 255).byte()
            for images, positions in chunks
        ]
        resampled = torch.cat(parts).numpy()
        return np.asarray(resampled[:, 0] if self._is_grey else resampled)

    @property
    def changes_nothing(self) -> bool:
        """Whether the images are used as they are read."""
        return self.alignment is None and self.config.equalise is None and not self._resizes

    @property
    def _is_grey(self) -> bool:
        return self.config.channels == 1 and len(self.config.read_shape) == 2

    @property
    def _resizes(self) -> bool:
        return self.config.read_shape != self.config.image_shape

    def zero_registration(self, count: int) -> Registration:
        """Return the registration of images that lie as the template does."""
        zeros = torch.zeros(count, 1 + 2 * len(self.config.read_shape))
        return Registration(zeros[:, 1:], zeros[:, 0], zeros[:, 0].bool())


def prepare_shared(preparation: Preparation, originals: Bytes) -> PreparedImages:
    """Prepare all images of a data set; of several processes each prepares some, bit for bit alike.

    The images are returned by the first process alone.
    """
    if preparation.changes_nothing:
        return preparation(originals)
    starts = range(0, len(originals), _CHUNK)
    made = map_shared(lambda start: preparation(originals[start : start + _CHUNK]), starts)
    parts = list(tqdm(made, "preparing", len(starts), unit=" batches", disable=rank() > 0))
    if not parts:
        return PreparedImages(originals[:0], preparation.zero_registration(0))
    images = np.concatenate([part.images for part in parts])
    return PreparedImages(images, _joined([part.registration for part in parts]))


def _joined(parts: Sequence[Registration]) -> Registration:
    return Registration(
        torch.cat([part.positions for part in parts]),
        torch.cat([part.correlation for part in parts]),
        torch.cat([part.failed for part in parts]),
    )
