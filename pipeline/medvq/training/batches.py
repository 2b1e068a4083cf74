"""Batches of views for pretraining, straight from the memory-mapped cache.

Everything random comes from (seed, epoch, batch, place in the batch), so that a run that was
interrupted goes on as one that was not, and so that processes make their own part of a batch alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medvq.config import PretrainConfig
from medvq.distributed import threads_of_one_core
from medvq.method.augmentation import (
    Disturbances,
    change,
    changes_of,
    disturb,
    disturbances_of,
    numbers_for_changes,
    numbers_for_disturbances,
)
from medvq.method.scaling import send, to_network, to_unit

# Images that are drawn together, since processes share batches by them.
GROUP = 8
# Pixels.
_IN_CACHE = 1 << 17
# Random numbers that choose a second view.
_OF_SECOND = 4
_CPU = torch.device("cpu")


class Views(TypedDict):
    """A batch for training, each of shape (B, C, *spatial).

    ``first`` and ``second`` are what the network sees, normalised; ``target`` is ``first`` before
    it was disturbed, in [0, 1]: what is to be reconstructed. Where views need not agree, ``second``
    is ``first``.
    """

    first: Tensor
    second: Tensor
    target: Tensor


class OtherImages:
    """The other images of the same subject.

    Parameters
    ----------
    subjects : (N,), of whom each image is.
    """

    def __init__(self, subjects: NDArray[Any]) -> None:
        _, self._subject, self._number = np.unique(
            subjects, return_inverse=True, return_counts=True
        )
        # The images of one subject after another, and where each subject's begin and each image is.
        self._order = np.argsort(self._subject, kind="stable")
        self._start = np.cumsum(self._number) - self._number
        self._place = np.argsort(self._order) - self._start[self._subject]

    def of(self, images: NDArray[np.intp], unit: NDArray[np.float32]) -> NDArray[np.intp]:
        """For each of ``images`` one of the others, all as likely, by a number in [0, 1); of a
        subject with a single image itself.
        """
        subject = self._subject[images]
        number = self._number[subject]
        further = 1 + (unit * (number - 1)).astype(np.intp)
        return self._order[self._start[subject] + (self._place[images] + further) % number]


@dataclass
class ViewBatches:
    """One epoch of training batches, anew at every iteration over it.

    Attributes
    ----------
    images : uint8, the cache; see :func:`to_unit`.
    rows : (N,), which of them are training images.
    subjects : (N,), of whom each of these is, beyond doubt.
    swapped : uint8 (copies, N, ...), their acquisition-swapped copies; none where empty.
    config : batch size, augmentation, shares of second views of another kind.
    seed : of the whole run.
    epoch : which epoch the next iteration is; set by the trainer.
    rank, world : which part of every batch is made here, of how many equal ones.
    device : where images are made; what is random is drawn on the CPU whichever it is, but for the
        noise of every pixel.
    """

    images: NDArray[np.uint8]
    rows: NDArray[np.intp]
    subjects: NDArray[Any]
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
            parts = []
            for start in range(self.rank * own, (self.rank + 1) * own, GROUP):
                generator.manual_seed(epoch_seed(self.seed, self.epoch, number, start))
                part = chosen[start : start + GROUP]
                parts.append((part, *self._draw(len(part), generator)))
            together = self._groups_together(len(parts))
            views = [
                self._views(*_joined(parts[start : start + together]))
                for start in range(0, len(parts), together)
            ]
            first, second, target = map(torch.cat, zip(*views, strict=True))
            yield {"first": to_network(first), "second": to_network(second), "target": target}

    def _groups_together(self, number: int) -> int:
        """How many groups are made at once: on a processor as many as stay in cache."""
        if self.device.type != "cpu":
            return number
        channels, spatial = self._picture
        return max(1, _IN_CACHE // (GROUP * channels * math.prod(spatial)))

    def _draw(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A row of uniform numbers for each of so many images, and the noise of both views."""
        channels, spatial = self._picture
        axes, config = len(spatial), self.config.augment
        view = numbers_for_changes(axes) + numbers_for_disturbances(axes, config.cut_outs)
        unit = torch.rand((number, _OF_SECOND + 2 * view), generator=generator)
        return unit, draw_noise((2, number, channels, *spatial), generator, self.device)

    @property
    def _picture(self) -> tuple[int, tuple[int, ...]]:
        shape = self.images.shape[1:]
        return (1, shape) if len(shape) == 2 else (shape[0], shape[1:])

    def _views(
        self, chosen: NDArray[np.intp], unit: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        config, (channels, spatial) = self.config.augment, self._picture
        half = (unit.shape[1] - _OF_SECOND) // 2
        second, *of_views = unit.split([_OF_SECOND, half, half], 1)
        images = self.images[self.rows[chosen]]
        pictures = [images]
        # Without agreement nobody looks at a second view.
        if self.config.contrast.weight > 0:
            pictures.append(self._second(chosen, second.numpy()))
        views, versions = [], []
        for number, (given, numbers) in enumerate(zip(pictures, of_views, strict=False)):
            of_change, of_disturbance = numbers.tensor_split(
                (numbers_for_changes(len(spatial)),), 1
            )
            changes = changes_of(of_change, config, self.config.augment_strength, len(spatial))
            view = change(to_unit(given, self.device), send(changes, self.device))
            versions.append(view)
            if self.config.photometric:
                disturbances = disturbances_of(of_disturbance, config, channels, spatial)
                sent = Disturbances(*(send(values, self.device) for values in disturbances))
                view = disturb(view, sent, noise[number], config)
            views.append(view)
        return views[0], views[-1], versions[0]

    def _second(self, chosen: NDArray[np.intp], unit: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Of some images another one of the same subject, and of some of either a swapped copy."""
        which_copy, swapped, which_other, other = unit.T
        take = other < self.config.contrast.same_subject_share
        chosen = np.where(take, self._others.of(chosen, which_other), chosen)
        seconds = np.array(self.images[self.rows[chosen]])
        take = np.flatnonzero(swapped < self.config.contrast.swapped_share)
        if len(self.swapped) and len(take):
            copy = (which_copy[take] * len(self.swapped)).astype(np.intp)
            seconds[take] = self.swapped[copy, chosen[take]]
        return seconds

    @cached_property
    def _others(self) -> OtherImages:
        return OtherImages(self.subjects)


def _joined(
    parts: Sequence[tuple[NDArray[np.intp], Tensor, Tensor]],
) -> tuple[NDArray[np.intp], Tensor, Tensor]:
    rows, unit, noise = zip(*parts, strict=True)
    return np.concatenate(rows), torch.cat(unit), torch.cat(noise, 1)


def draw_noise(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Normal numbers: on the CPU the next of ``generator``; elsewhere as many as pixels are not
    drawn here and sent, but drawn there, from its seed.
    """
    if device.type != "cpu":
        generator = torch.Generator(device).manual_seed(generator.initial_seed())
    return torch.randn(shape, generator=generator, device=device)


def ahead(batches: Iterable[Views], device: torch.device) -> Iterator[Views]:
    """The same batches, each made in a thread while the one before is used; on CUDA, in a stream of
    its own.
    """
    stream = _stream(device) if device.type == "cuda" else None
    iterator = iter(batches)

    def make() -> tuple[Views | None, torch.cuda.Event | None]:
        if stream is None:
            return next(iterator, None), None
        with torch.cuda.stream(stream):
            return next(iterator, None), stream.record_event()

    with threads_of_one_core(1) as thread:
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


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all epochs, since libraries keep a workspace for every stream."""
    return torch.cuda.Stream(device)


def epoch_seed(seed: int, *of: int) -> int:
    """A seed for an epoch, or a part of it, that no other shares, as far as 63 bits go."""
    return int(np.random.SeedSequence([seed, *of]).generate_state(1, np.uint64)[0] >> 1)
