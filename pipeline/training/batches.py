"""Batches of views for pretraining, straight from the memory-mapped cache.

Everything random comes from (seed, epoch, batch, place in the batch), so that a run that was
interrupted goes on as one that was not, and so that processes make their own part of a batch alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
# Images that are made together: few enough to stay in cache, and what processes share batches by.
GROUP = 8


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
    it was disturbed, in [0, 1]: what is to be reconstructed. Where views need not agree, ``second``
    is ``first``.
    """

    first: Tensor
    second: Tensor
    target: Tensor


@dataclass
class ViewBatches:
    """One epoch of training batches, anew at every iteration over it.

    Attributes
    ----------
    images : uint8, the cache; see :func:`to_unit`.
    rows : (N,), which of them are training images.
    swapped : uint8 (copies, N, ...), their acquisition-swapped copies; none where empty.
    config : batch size, augmentation, share of swapped second views.
    seed : of the whole run.
    epoch : which epoch the next iteration is; set by the trainer.
    rank, world : which part of every batch is made here, of how many equal ones.
    """

    images: NDArray[np.uint8]
    rows: NDArray[np.intp]
    swapped: NDArray[np.uint8]
    config: PretrainConfig
    seed: int
    epoch: int = 0
    rank: int = 0
    world: int = 1

    @property
    def batch_size(self) -> int:
        """Images in a batch, of all processes together."""
        return min(self.config.batch_size, len(self.rows))

    def __len__(self) -> int:
        return len(self.rows) // self.batch_size

    def __iter__(self) -> Iterator[Views]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.rows), generator=generator).numpy()
        size, own = self.batch_size, self.batch_size // self.world
        for number in range(len(self)):
            # Sorted, since a memory map is read faster in order, and a batch has none.
            chosen = np.sort(order[number * size : (number + 1) * size])
            groups = []
            for start in range(self.rank * own, (self.rank + 1) * own, GROUP):
                generator.manual_seed(epoch_seed(self.seed, self.epoch, number, start))
                groups.append(self._views(chosen[start : start + GROUP], generator))
            first, second, target = map(torch.cat, zip(*groups, strict=True))
            yield {"first": normalise(first), "second": normalise(second), "target": target}

    def _views(
        self, chosen: NDArray[np.intp], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        config, strength = self.config.augment, self.config.augment_strength
        images = to_unit(self.images[self.rows[chosen]])
        agrees = self.config.agreement.weight > 0
        others = self._second(images, chosen, generator) if agrees else images
        target = random_versions(images, config, strength, generator)
        second = random_versions(others, config, strength, generator) if agrees else target
        if not self.config.disturb:
            return target, second, target
        first = disturb(target, generator, config)
        return first, disturb(second, generator, config) if agrees else first, target

    def _second(
        self, images: Tensor, chosen: NDArray[np.intp], generator: torch.Generator
    ) -> Tensor:
        if not len(self.swapped):
            return images
        copy = torch.randint(len(self.swapped), (len(chosen),), generator=generator).numpy()
        take = torch.rand(len(chosen), generator=generator) < self.config.agreement.swapped_share
        mask = take.reshape(-1, *[1] * (images.ndim - 1))
        return torch.where(mask, to_unit(self.swapped[copy, chosen]), images)


def ahead(batches: Iterable[Views], device: torch.device) -> Iterator[Views]:
    """The same batches on ``device``, each made in a thread while the one before is used.

    On CUDA they are copied in a stream of their own, out of pinned memory.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    iterator = iter(batches)

    def make() -> tuple[Views | None, torch.cuda.Event | None]:
        batch = next(iterator, None)
        if batch is None or stream is None:
            return batch, None
        with torch.cuda.stream(stream):
            first, second, target = (
                one.pin_memory().to(device, non_blocking=True) for one in _tensors(batch)
            )
            return {"first": first, "second": second, "target": target}, stream.record_event()

    with ThreadPoolExecutor(1, "batches") as thread:
        coming = thread.submit(make)
        while True:
            batch, copied = coming.result()
            if batch is None:
                return
            coming = thread.submit(make)
            if copied is not None:
                current = torch.cuda.current_stream(device)
                current.wait_event(copied)
                for one in _tensors(batch):
                    one.record_stream(current)
            yield batch


def _tensors(batch: Views) -> tuple[Tensor, Tensor, Tensor]:
    return batch["first"], batch["second"], batch["target"]


def epoch_seed(seed: int, *of: int) -> int:
    """A seed for an epoch, or a part of it, that no other shares, as far as 63 bits go."""
    return int(np.random.SeedSequence([seed, *of]).generate_state(1, np.uint64)[0] >> 1)
