"""Batches of views for pretraining, made from the memory-mapped cache.

Everything random comes from (seed, epoch, batch, group), so that a run that was interrupted
continues as one that was not, and each process makes its own part of a batch alone.
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
from medvq.device import threads_of_one_core
from medvq.method.augmentation import (
    PhotometricParameters,
    affine_parameter_count,
    affine_parameters,
    apply_affine,
    apply_photometric,
    photometric_parameter_count,
    photometric_parameters,
)
from medvq.method.scaling import send, to_network, to_unit

GROUP = 8  # images whose random numbers are drawn together; processes share whole groups
_PIXELS_IN_CACHE = 1 << 17  # of the images that are made at once on a processor
_SECOND_VIEW_NUMBERS = 4  # random numbers that choose the image of a second view
_CPU = torch.device("cpu")
Rows = NDArray[np.intp]
Group = tuple[Rows, Tensor, Tensor]  # some images, their random numbers, the noise of both views


class Views(TypedDict):
    """A batch for training; views have the shape (B, C, *spatial)."""

    first: Tensor  # the network's input, in its range
    second: Tensor  # the other view; without a contrastive loss the same
    target: Tensor  # ``first`` before photometric augmentation, in [0, 1]: to be reconstructed
    subjects: Tensor  # int64 (B, 2): of each image the index of its subject, and how many it has


class SubjectImages:
    """The images of each subject; ``subjects`` is (N,), the subject of each image."""

    def __init__(self, subjects: NDArray[Any]) -> None:
        _, self._subject, self._number = np.unique(
            subjects, return_inverse=True, return_counts=True
        )
        # The images in the order of their subjects, where each subject's begin, and the place of
        # each image among its subject's.
        self._order = np.argsort(self._subject, kind="stable")
        self._start = np.cumsum(self._number) - self._number
        self._place = np.argsort(self._order) - self._start[self._subject]

    def __len__(self) -> int:
        return len(self._number)

    def one_of_each(self, unit: NDArray[np.float32]) -> Rows:
        """Return one image of each subject; random numbers in [0, 1), one per subject, choose."""
        chosen: Rows = self._order[self._start + (unit * self._number).astype(np.intp)]
        return chosen

    def of(self, images: Rows) -> NDArray[np.int64]:
        """Return (B, 2): of each image the index of its subject, and how many images that has."""
        return np.stack([self._subject[images], self._number[self._subject[images]]], 1)

    def other(self, images: Rows, unit: NDArray[np.float32]) -> Rows:
        """Return for each image another of its subject, or itself if it is the only one.

        Uniform random numbers in [0, 1), one per image, choose among the others.
        """
        subject = self._subject[images]
        number = self._number[subject]
        offset = 1 + (unit * (number - 1)).astype(np.intp)
        return self._order[self._start[subject] + (self._place[images] + offset) % number]


@dataclass
class ViewBatches:
    """One epoch of training batches, anew at every iteration over it.

    Attributes
    ----------
    images : uint8, the cache; see :func:`to_unit`.
    rows : (N,), the training images among them.
    subjects : (N,), the subject of each, beyond doubt.
    swapped : uint8 (copies, N, ...), their acquisition-swapped copies; none where empty.
    config : batch size, augmentation, shares of the kinds of second views.
    seed : of the whole run.
    epoch, first : the epoch of the next iteration, and the number of its first batch; set by the
        training loop.
    rank, world : the part of every batch that is made here, of how many equal ones.
    device : where images are made. All random numbers come from the CPU, but for the noise of every
        pixel.
    """

    images: NDArray[np.uint8]
    rows: Rows
    subjects: NDArray[Any]
    swapped: NDArray[np.uint8]
    config: PretrainConfig
    seed: int
    epoch: int = 0
    first: int = 0
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
        generator, order = torch.Generator(), self._epoch_order()
        for number in range(self.first, len(self)):
            own = self._own_rows(order, number)
            groups: list[Group] = []
            for start in range(0, len(own), GROUP):
                parts = (self.epoch, number, self.rank * len(own) + start)
                generator.manual_seed(epoch_seed(self.seed, *parts))
                rows = own[start : start + GROUP]
                groups.append((rows, *self._random_numbers(len(rows), generator)))
            several = self._groups_at_once(len(groups))
            views = [
                self._views(*_concatenate(groups[start : start + several]))
                for start in range(0, len(groups), several)
            ]
            first, second, target = map(torch.cat, zip(*views, strict=True))
            subjects = send(torch.from_numpy(self._subject_images.of(own)), self.device)
            yield {
                "first": to_network(first),
                "second": to_network(second),
                "target": target,
                "subjects": subjects,
            }

    def _epoch_order(self) -> Rows:
        """Return as many images as there are, at random, each subject as often as the others.

        Subjects come in one random order after another, with one of their images each time: who has
        many images is not seen more often, and hardly meets another of them in a batch.
        """
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        number, subjects = len(self.rows), self._subject_images
        rounds = []
        for _ in range(-(-number // len(subjects))):
            unit = torch.rand(len(subjects), generator=generator).numpy()
            order = torch.randperm(len(subjects), generator=generator).numpy()
            rounds.append(subjects.one_of_each(unit)[order])
        return np.concatenate(rounds)[:number]

    def rows_of(self, number: int) -> Rows:
        """Return the places in ``rows`` of the images of a batch that are made here."""
        return self._own_rows(self._epoch_order(), number)

    def _own_rows(self, order: Rows, number: int) -> Rows:
        size, own = self.batch_size, self.batch_size // self.world
        # Sorted, since a memory map is read faster in order, and a batch has no order.
        batch = np.sort(order[number * size : (number + 1) * size])
        return batch[self.rank * own : (self.rank + 1) * own]

    @property
    def _shape(self) -> tuple[int, tuple[int, ...]]:
        """Channels and spatial sides of a view."""
        shape = self.images.shape[1:]
        channels, sides = (1, shape) if len(shape) == 2 else (shape[0], shape[1:])
        side = self.config.view_size
        return channels, sides if side is None else (side,) * len(sides)

    def _groups_at_once(self, number: int) -> int:
        """Return how many groups are made at once: on a processor as many as stay in cache."""
        if self.device.type != "cpu":
            return number
        channels, spatial = self._shape
        return max(1, _PIXELS_IN_CACHE // (GROUP * channels * math.prod(spatial)))

    def _random_numbers(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        channels, spatial = self._shape
        axes, cut_outs = len(spatial), self.config.augment.cut_outs
        view = affine_parameter_count(axes) + photometric_parameter_count(axes, cut_outs)
        unit = torch.rand((number, _SECOND_VIEW_NUMBERS + 2 * view), generator=generator)
        return unit, draw_noise((2, number, channels, *spatial), generator, self.device)

    def _views(self, rows: Rows, unit: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return two views, and the first before photometric augmentation, in [0, 1]."""
        half = (unit.shape[1] - _SECOND_VIEW_NUMBERS) // 2
        second, *per_view = unit.split([_SECOND_VIEW_NUMBERS, half, half], 1)
        images = [self.images[self.rows[rows]]]
        # Without a contrastive loss nobody looks at a second view.
        if self.config.contrast.weight > 0:
            images.append(self._second_images(rows, second.numpy()))
        views = [self._view(*of_view) for of_view in zip(images, per_view, noise, strict=False)]
        return views[0][0], views[-1][0], views[0][1]

    def _view(
        self, images: NDArray[np.uint8], unit: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return images with affine and photometric augmentation, and with the former alone."""
        config, (channels, spatial) = self.config.augment, self._shape
        numbers = affine_parameter_count(len(spatial))
        affine = affine_parameters(
            unit[:, :numbers], config, self.config.augment_strength, len(spatial)
        )
        moved = apply_affine(to_unit(images, self.device), send(affine, self.device), spatial)
        if not self.config.photometric:
            return moved, moved
        photometric = photometric_parameters(unit[:, numbers:], config, channels, spatial)
        sent = PhotometricParameters(*(send(values, self.device) for values in photometric))
        return apply_photometric(moved, sent, noise, config), moved

    def _second_images(self, rows: Rows, unit: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return a share of another image of the subject, and of all these a share swapped."""
        which_copy, swapped, which_other, other = unit.T
        take = other < self.config.contrast.same_subject_share
        rows = np.where(take, self._subject_images.other(rows, which_other), rows)
        images = np.array(self.images[self.rows[rows]])
        take = np.flatnonzero(swapped < self.config.contrast.swapped_share)
        if len(self.swapped) and len(take):
            copy = (which_copy[take] * len(self.swapped)).astype(np.intp)
            images[take] = self.swapped[copy, rows[take]]
        return images

    @cached_property
    def _subject_images(self) -> SubjectImages:
        return SubjectImages(self.subjects)


def _concatenate(groups: Sequence[Group]) -> Group:
    rows, unit, noise = zip(*groups, strict=True)
    return np.concatenate(rows), torch.cat(unit), torch.cat(noise, 1)


def draw_noise(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw normal numbers: the next of ``generator``, or on another device from its seed."""
    if device.type != "cpu":
        generator = torch.Generator(device).manual_seed(generator.initial_seed())
    return torch.randn(shape, generator=generator, device=device)


def prefetch(batches: Iterable[Views], device: torch.device) -> Iterator[Views]:
    """Yield the same batches, each made in a thread while the one before is used.

    On CUDA they are made in a stream of their own.
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
            batch, event = coming.result()
            if batch is None:
                return
            coming = thread.submit(make)
            if event is not None:
                current = torch.cuda.current_stream(device)
                current.wait_event(event)
                for name in ("first", "second", "target", "subjects"):
                    batch[name].record_stream(current)
            yield batch


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return one stream for all epochs, since libraries keep a workspace for every stream."""
    return torch.cuda.Stream(device)


def epoch_seed(seed: int, *parts: int) -> int:
    """Return a seed of 63 bits for an epoch, or a part of it, that differs from all others."""
    return int(np.random.SeedSequence([seed, *parts]).generate_state(1, np.uint64)[0] >> 1)
