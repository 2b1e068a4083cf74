"""Batches of views for pretraining, straight from the memory-mapped cache.

Everything random in an epoch comes from (seed, epoch), so that a run that was interrupted goes on
as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import PretrainConfig
from pipeline.data.augment import disturb, random_versions

# What a network sees: unit images with the mean and deviation of an equalised radiograph.
_MEAN, _DEVIATION = 0.5, 0.25


def normalise(images: Tensor) -> Tensor:
    """[0, 1] to what networks take: (x - 0.5) / 0.25, channels last in memory."""
    layout = torch.channels_last if images.ndim == 4 else torch.channels_last_3d
    return ((images - _MEAN) / _DEVIATION).contiguous(memory_format=layout)


def to_unit(images: NDArray[np.uint8]) -> Tensor:
    """Cached bytes to (B, C, *spatial) float32 in [0, 1]: (B, height, width) of grey pictures, or
    (B, C, *spatial) of anything else.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(images)).float() / 255.0
    return tensor[:, None] if tensor.ndim == 3 else tensor


class Views(TypedDict):
    """A batch for training, each of shape (B, C, *spatial).

    ``first`` and ``second`` are what the network sees, normalised; ``target`` is ``first`` before
    it was disturbed, in [0, 1]: what is to be reconstructed.
    """

    first: Tensor
    second: Tensor
    target: Tensor


@dataclass
class ViewBatches:
    """One epoch of training batches, anew at every iteration over it.

    Attributes
    ----------
    images : uint8, the training images as cached; see :func:`to_unit`.
    swapped : uint8 (copies, *images.shape), their acquisition-swapped copies; none where empty.
    config : batch size, augmentation, share of swapped second views.
    seed : of the whole run.
    epoch : which epoch the next iteration is; set by the trainer.
    """

    images: NDArray[np.uint8]
    swapped: NDArray[np.uint8]
    config: PretrainConfig
    seed: int
    epoch: int = 0

    def __len__(self) -> int:
        return max(1, len(self.images) // self.config.batch_size)

    def __iter__(self) -> Iterator[Views]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.images), generator=generator).numpy()
        size = min(self.config.batch_size, len(self.images))
        for number in range(len(self)):
            # Sorted, since a memory map is read faster in order, and a batch has none.
            chosen = np.sort(order[number * size : (number + 1) * size])
            images = to_unit(self.images[chosen])
            yield self._views(images, self._second(images, chosen, generator), generator)

    def _second(
        self, images: Tensor, chosen: NDArray[np.intp], generator: torch.Generator
    ) -> Tensor:
        if not len(self.swapped):
            return images
        copy = torch.randint(len(self.swapped), (len(chosen),), generator=generator).numpy()
        take = torch.rand(len(chosen), generator=generator) < self.config.agreement.swapped_share
        mask = take.reshape(-1, *[1] * (images.ndim - 1))
        return torch.where(mask, to_unit(self.swapped[copy, chosen]), images)

    def _views(self, images: Tensor, others: Tensor, generator: torch.Generator) -> Views:
        config, strength = self.config.augment, self.config.augment_strength
        target = random_versions(images, config, strength, generator)
        second = random_versions(others, config, strength, generator)
        return {
            "first": normalise(disturb(target, generator, config)),
            "second": normalise(disturb(second, generator, config)),
            "target": target,
        }


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for an epoch that no other epoch of no other run shares, as far as 63 bits go."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
