"""Evidence maps: the logit of a linear probe as a sum over the places of an image, exactly.

A probe scales its features, projects them on components, and weighs these: all linear, so together
they are one weight for each feature. A pooled feature is a mean over the places of a map, so each
place has a share of it: its weight times its value over the number of places. A histogram's bin is
the *root* of a share of places and no sum over them; what it adds to the logit is divided evenly
among the places whose codes fell into it, which keeps the sum exact.

Evidence is relative to a reference image, the mean of the training images: what the reference adds
to the logit in a cell of the pooling grid is taken from all places of the cell alike. The intercept
is then the logit of the reference, and a place with no evidence looks like the mean.

The logit is the one that the probe's probability is the logistic function (of several classes the
softmax) of: the slope and intercept, or the temperature, that calibrate it are linear as well and
part of the weights. A correction of the prevalence that comes after the logit is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline

from medvq.errors import UserError
from medvq.method.encodings import BlockScaler, CodeHistogram, NormScaler, WithinImageWhitening

Floats = NDArray[np.float64]


class Evidence(NamedTuple):
    """The evidence of one map of B images.

    Attributes
    ----------
    name : the feature set that it belongs to.
    values : (B, K, *grid), what each place adds to each of K logits: to one, that of class 1, of
        two classes; to that of every class of more; to the number of a probe of numbers.
    """

    name: str
    values: Floats


@dataclass(frozen=True)
class Decomposition:
    """The logits of B images, taken apart.

    Attributes
    ----------
    intercept : (K,), the logits of the reference image.
    parts : the evidence of every map that the probe's features are pooled from.
    """

    intercept: Floats
    parts: list[Evidence]

    @cached_property
    def logits(self) -> Floats:
        """The logits (B, K): the intercept and all evidence."""
        sums = [_over_places(part.values) for part in self.parts]
        return np.asarray(self.intercept + np.sum(sums, axis=0))

    @cached_property
    def total(self) -> Floats:
        """The evidence of all parts on the finest grid among them, (B, K, *grid)."""
        grid = tuple(np.max([part.values.shape[2:] for part in self.parts], axis=0))
        parts = [redistribute(part.values, grid) for part in self.parts]
        return np.asarray(np.sum(parts, axis=0))


@dataclass(frozen=True)
class LinearProbe:
    """A probe as one linear map, ``weights @ features + intercept``.

    Attributes
    ----------
    names : the columns that the probe reads.
    widths : of the columns, in features; their sum is D.
    weights : (K, D).
    intercept : (K,).
    mean : (D,), the reference image's features.
    histogram : what makes features of codes; None where features are columns themselves.
    """

    names: tuple[str, ...]
    widths: tuple[int, ...]
    weights: Floats
    intercept: Floats
    mean: Floats
    histogram: CodeHistogram | None

    @classmethod
    def of(cls, probe: Pipeline, reference: Floats | None = None) -> LinearProbe:
        """Multiply the steps of a probe out.

        Parameters
        ----------
        probe : see :func:`medvq.load_probe`.
        reference : (D,), the features of the reference image; None for the mean that the probe was
            scaled by, which probes on histograms do not have: theirs is 0 then.

        Raises
        ------
        UserError
            A step is not linear.
        """
        columns, *steps, model = (step for _, step in probe.steps)
        if not isinstance(model, LogisticRegression | Ridge):
            raise _no_map(f"{type(model).__name__} is not linear")
        weights = np.atleast_2d(np.asarray(model.coef_, np.float64))
        intercept = np.atleast_1d(np.asarray(model.intercept_, np.float64))
        histogram, widths, mean = None, None, None
        for step in reversed(steps):
            if isinstance(step, NormScaler):
                weights = weights * step.factor_
            elif isinstance(step, WithinImageWhitening):
                weights = weights @ step.directions_
            elif isinstance(step, TruncatedSVD):
                weights = weights @ step.components_
            elif isinstance(step, PCA) and not step.whiten:
                weights = weights @ step.components_
                intercept = intercept - weights @ step.mean_
            elif isinstance(step, BlockScaler):
                weights, widths, mean = weights / step.scale_, tuple(step.widths), step.mean_
                intercept = intercept - weights @ mean
            elif isinstance(step, CodeHistogram):
                histogram, widths = step, (weights.shape[1],)
            else:
                raise _no_map(f"its step {type(step).__name__} is not linear")
        if reference is None:
            reference = np.zeros(weights.shape[1]) if mean is None else np.asarray(mean)
        widths = widths or (weights.shape[1],)
        return cls(tuple(columns.names), widths, weights, intercept, reference, histogram)

    def decompose(
        self, codes: NDArray[np.integer], pooled: Mapping[str, Sequence[NDArray[np.floating]]]
    ) -> Decomposition:
        """Take the logits of B images apart.

        Parameters
        ----------
        codes : the coarsest codes, (B, *grid).
        pooled : by feature set, the maps (B, C, *grid) that it is pooled from; see
            :meth:`medvq.method.features.FeatureExtractor.maps`.

        Raises
        ------
        UserError
            A feature set is not pooled from maps.
        """
        intercept = self.intercept + self.weights @ self.mean
        if self.histogram is not None:
            values = self._of_codes(self.histogram, codes)
            return Decomposition(intercept, [Evidence(self.names[0], values)])
        parts, start = [], 0
        for name, width in zip(self.names, self.widths, strict=True):
            if name not in pooled:
                raise _no_map(f"'{name}' is no mean over places of a map")
            maps = pooled[name]
            channels = sum(one.shape[1] for one in maps)
            for one in maps:
                end = start + width * one.shape[1] // channels
                parts.append(Evidence(name, self._of_map(one, slice(start, end))))
                start = end
        return Decomposition(intercept, parts)

    def _of_map(self, values: NDArray[np.floating], columns: slice) -> Floats:
        """Return the evidence of a map (B, C, *grid) that ``columns`` are pooled from."""
        channels, grid = values.shape[1], values.shape[2:]
        cells = (columns.stop - columns.start) // channels
        shape = (channels, *(round(cells ** (1 / len(grid))),) * len(grid))
        weights = self.weights[:, columns].reshape(-1, *shape)
        of_reference = (weights * self.mean[columns].reshape(shape)).sum(1)
        of_places = np.einsum("bc...,kc...->bk...", values, _unpool(weights, grid), optimize=True)
        return np.asarray(of_places - _unpool(of_reference, grid))

    def _of_codes(self, histogram: CodeHistogram, codes: NDArray[np.integer]) -> Floats:
        """Return the evidence of codes (B, *grid), each bin's divided evenly among its places."""
        grid = tuple(histogram.shape)
        flat = codes.reshape(len(codes), -1)
        image = np.arange(len(codes))[:, None]
        values: Floats = np.zeros((len(self.weights), *flat.shape))
        start = 0
        for cells, number in zip(histogram.cells_, histogram.grids, strict=True):
            bins = number ** len(grid) * histogram.size
            columns = slice(start, start + bins)
            weights, start = self.weights[:, columns], columns.stop
            bin_ = cells * histogram.size + flat
            counts = np.zeros((len(codes), bins))
            np.add.at(counts, (image, bin_), 1)
            counts, places = counts[image, bin_], np.bincount(cells)[cells]
            of_reference = (weights * self.mean[columns]).reshape(len(weights), -1, histogram.size)
            of_places = weights[:, bin_] * np.sqrt(counts / places) / counts
            values = values + of_places - (of_reference.sum(2)[:, cells] / places)[:, None]
        return np.moveaxis(values, 0, 1).reshape(len(codes), -1, *grid)


def redistribute(values: Floats, grid: Sequence[int]) -> Floats:
    """Divide values (B, K, *any grid) among the places of another grid by overlap; sums stay.

    >>> redistribute(np.array([[[1.0, 3.0]]]), (4,)).tolist()
    [[[0.5, 0.5, 1.5, 1.5]]]
    """
    for axis, side in enumerate(grid, start=2):
        old = values.shape[axis]
        low, high = np.arange(side) / side, (np.arange(side) + 1) / side
        starts = np.arange(old)[:, None] / old
        overlap = np.minimum(high, starts + 1 / old) - np.maximum(low, starts)
        share = np.maximum(overlap, 0) * old
        share /= share.sum(1, keepdims=True)
        values = np.moveaxis(np.moveaxis(values, axis, -1) @ share, -1, axis)
    return values


def extent_in_image(position: Sequence[float], shape: Sequence[int]) -> list[tuple[float, float]]:
    """Return where the aligned grid lies in the image that was registered.

    Parameters
    ----------
    position : of :class:`~medvq.method.alignment.Registration`, 2n numbers: the logarithms of the
        scales, then the shifts, in the order x, y(, z).
    shape : the n sides of the image in pixels, in the order (z,) y, x.

    Returns
    -------
    Of every axis of ``shape`` the first and the last edge, in pixels from the image's edge; beyond
    it where the grid reaches out of the image.

    >>> extent_in_image([0.0, 0.0, 0.0, 0.5], (100, 200))
    [(25.0, 125.0), (0.0, 200.0)]
    """
    n = len(shape)
    scales, shifts = np.exp(np.asarray(position[:n]))[::-1], np.asarray(position[n:])[::-1]
    return [
        (float((shift - scale + 1) / 2 * side), float((shift + scale + 1) / 2 * side))
        for scale, shift, side in zip(scales, shifts, shape, strict=True)
    ]


def _unpool(weights: Floats, grid: Sequence[int]) -> Floats:
    """Return what weights (..., *cells) of means over cells are for the places of a grid.

    Cells are those of torch's adaptive pooling, and overlap where the sides do not divide.
    """
    first = weights.ndim - len(grid)
    for axis, side in enumerate(grid, start=first):
        cells = weights.shape[axis]
        mean = np.zeros((cells, side))
        for cell in range(cells):
            start, end = cell * side // cells, -(-(cell + 1) * side // cells)
            mean[cell, start:end] = 1 / (end - start)
        weights = np.moveaxis(np.moveaxis(weights, axis, -1) @ mean, -1, axis)
    return weights


def _over_places(values: Floats) -> Floats:
    return np.asarray(values.reshape(*values.shape[:2], -1).sum(2))


def _no_map(reason: str) -> UserError:
    return UserError(
        f"there is no evidence map of this probe: {reason}; there are maps of linear probes on "
        "histograms, pyramids and pooled feature sets (embedding, latent, quantized)"
    )
