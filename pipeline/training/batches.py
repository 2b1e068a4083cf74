"""Batches of views for pretraining, straight from the memory-mapped cache.

Everything random comes from (seed, epoch, batch, place in the batch), so that a run that was
interrupted goes on as one that was not, and so that processes make their own part of a batch alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import PretrainConfig
from pipeline.data.augment import (
    Disturbances,
    change,
    disturb,
    draw_changes,
    draw_disturbances,
)

# What a network sees: unit images with the mean and deviation of an equalised radiograph.
_MEAN, _DEVIATION = 0.5, 0.25
# Images that are drawn together, since processes share batches by them, and on a processor made
# together: few enough to stay in cache.
GROUP = 8
_CPU = torch.device("cpu")


def normalise(images: Tensor) -> Tensor:
    """[0, 1] to what networks take: (x - 0.5) / 0.25, channels last in memory."""
    layout = torch.channels_last if images.ndim == 4 else torch.channels_last_3d
    return ((images - _MEAN) / _DEVIATION).contiguous(memory_format=layout)


def to_unit(images: NDArray[np.uint8], device: torch.device = _CPU) -> Tensor:
    """Cached bytes to (B, C, *spatial) float32 in [0, 1] on ``device``: (B, height, width) of grey
    pictures, or (B, C, *spatial) of anything else.
    """
    tensor = _send(torch.from_numpy(np.ascontiguousarray(images)), device).float() / 255.0
    return tensor[:, None] if tensor.ndim == 3 else tensor


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """Without waiting for the copy: out of pinned memory it follows in the stream."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


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
    images : uint8, the cache; see :func:`to_unit`.
    rows : (N,), which of them are training images.
    swapped : uint8 (copies, N, ...), their acquisition-swapped copies; none where empty.
    config : batch size, augmentation, share of swapped second views.
    seed : of the whole run.
    epoch : which epoch the next iteration is; set by the trainer.
    rank, world : which part of every batch is made here, of how many equal ones.
    device : where images are made; what is random is drawn on the CPU whichever it is, but for the
        noise of every pixel.
    """

    images: NDArray[np.uint8]
    rows: NDArray[np.intp]
    swapped: NDArray[np.uint8]
    config: PretrainConfig
    seed: int
    epoch: int = 0
    rank: int = 0
    world: int = 1
    device: torch.device = _CPU

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
                groups.append(self._draw(chosen[start : start + GROUP], generator))
            if self.device.type != "cpu":
                groups = [_Drawn.joined(groups)]
            first, second, target = map(torch.cat, zip(*map(self._views, groups), strict=True))
            yield {"first": normalise(first), "second": normalise(second), "target": target}

    def _draw(self, chosen: NDArray[np.intp], generator: torch.Generator) -> _Drawn:
        """Everything random about the views of ``chosen``."""
        config, strength = self.config.augment, self.config.augment_strength
        picture = self.images.shape[1:]
        shape = (len(chosen), *((1, *picture) if len(picture) == 2 else picture))
        copies = np.full(len(chosen), -1)
        if len(self.swapped):
            copy = torch.randint(len(self.swapped), (len(chosen),), generator=generator).numpy()
            take = torch.rand(len(chosen), generator=generator).numpy()
            copies = np.where(take < self.config.agreement.swapped_share, copy, -1)
        changes, disturbances = [], []
        for _ in range(2):
            changes.append(draw_changes(len(chosen), config, strength, generator, len(shape) - 2))
            disturbances.append(draw_disturbances(shape, config, generator))
        return _Drawn(
            chosen, copies, changes, disturbances, draw_noise((2, *shape), generator, self.device)
        )

    def _views(self, drawn: _Drawn) -> tuple[Tensor, Tensor, Tensor]:
        images = self.images[self.rows[drawn.chosen]]
        others = images
        if (drawn.copies >= 0).any():
            mask = (drawn.copies >= 0).reshape(-1, *[1] * (images.ndim - 1))
            others = np.where(mask, self.swapped[drawn.copies, drawn.chosen], images)
        versions, seen = [], []
        for view, given in enumerate((images, others)):
            changes = _send(drawn.changes[view], self.device)
            disturbances = Disturbances(*(_send(v, self.device) for v in drawn.disturbances[view]))
            versions.append(change(to_unit(given, self.device), changes))
            noise = drawn.noise[view]
            seen.append(disturb(versions[view], disturbances, noise, self.config.augment))
        return seen[0], seen[1], versions[0]


def draw_noise(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Normal numbers: on the CPU the next of ``generator``; elsewhere as many as pixels are not
    drawn here and sent, but drawn there, from its seed.
    """
    if device.type != "cpu":
        generator = torch.Generator(device).manual_seed(generator.initial_seed())
    return torch.randn(shape, generator=generator, device=device)


class _Drawn(NamedTuple):
    """What is random of B images: which copy each second view is of (or -1: the image itself), and,
    for both views, the changes, the disturbances and the noise (2, B, C, *spatial).
    """

    chosen: NDArray[np.intp]
    copies: NDArray[np.intp]
    changes: list[Tensor]
    disturbances: list[Disturbances]
    noise: Tensor

    @classmethod
    def joined(cls, parts: Sequence[_Drawn]) -> _Drawn:
        views = range(2)
        return cls(
            np.concatenate([part.chosen for part in parts]),
            np.concatenate([part.copies for part in parts]),
            [torch.cat([part.changes[v] for part in parts]) for v in views],
            [
                Disturbances(*map(torch.cat, zip(*(p.disturbances[v] for p in parts), strict=True)))
                for v in views
            ],
            torch.cat([part.noise for part in parts], 1),
        )


def ahead(batches: Iterable[Views], device: torch.device) -> Iterator[Views]:
    """The same batches, each made in a thread while the one before is used; on CUDA, in a stream of
    its own.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    iterator = iter(batches)

    def make() -> tuple[Views | None, torch.cuda.Event | None]:
        if stream is None:
            return next(iterator, None), None
        with torch.cuda.stream(stream):
            return next(iterator, None), stream.record_event()

    with ThreadPoolExecutor(1, "batches") as thread:
        coming = thread.submit(make)
        while True:
            batch, made = coming.result()
            if batch is None:
                return
            coming = thread.submit(make)
            if made is not None:
                current = torch.cuda.current_stream(device)
                current.wait_event(made)
                for one in (batch["first"], batch["second"], batch["target"]):
                    one.record_stream(current)
            yield batch


def epoch_seed(seed: int, *of: int) -> int:
    """A seed for an epoch, or a part of it, that no other shares, as far as 63 bits go."""
    return int(np.random.SeedSequence([seed, *of]).generate_state(1, np.uint64)[0] >> 1)
