"""The Gated PixelCNN over a grid of codes [1]_, in two and three dimensions.

The published network has a vertical stack, which sees the rows above, and a horizontal one, which
sees the codes to the left and takes in the output of the vertical one, so that there is no blind
spot. Here there is one stack for every axis: the stack of axis ``a`` sees what comes earlier along
``a`` at the same place of the axes before ``a``, as far as the kernel reaches along the axes after
it, and takes in the gates of the stack of ``a - 1``. In two dimensions these are the published two.

Masks A and B are kernels cut to the taps that a mask would leave: in the first layer those before
the current place (A), in the others also the place itself (B).

References
----------
.. [1] van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves, Kavukcuoglu: Conditional Image
   Generation with PixelCNN Decoders. NeurIPS 2016, arXiv 1606.05328.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvq.prior.code_prior import AutoregressivePrior, Conditions, PriorArchitecture, Step

Index = tuple[int, ...]
_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_POSITION_SCALE = 0.02
"""Standard deviation of a learnt position at first, as in GPT-2."""


class CausalConvolution(nn.Module):
    """A convolution over what comes earlier along ``axis``, of the same shape as its input.

    Parameters
    ----------
    axis : of the grid; axes before it have one tap, those after it ``2 * reach + 1``.
    reach : how many earlier places are seen along ``axis``.
    inclusive : whether the current place is seen too (mask B) or not (mask A).
    """

    def __init__(
        self, channels: tuple[int, int], axis: int, spatial_dims: int, reach: int, inclusive: bool
    ) -> None:
        super().__init__()
        after = spatial_dims - axis - 1
        kernel: Any = (*[1] * axis, reach + inclusive, *[2 * reach + 1] * after)
        self.axis, self.reach, self.inclusive, self.after = axis, reach, inclusive, after
        self.convolution = _CONVOLUTION[spatial_dims](*channels, kernel)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, C, *shape) to (B, C', *shape)."""
        return self._convolve(features, self.reach, self.inclusive - 1)

    def at(self, features: Tensor, index: Index) -> Tensor:
        """Compute :meth:`forward` at ``index[: axis + 1]`` alone, for all places of the axes after.

        ``features`` are those of the whole grid.
        """
        current = index[self.axis]
        start = max(0, current - self.reach)
        window: Any = (..., *(slice(i, i + 1) for i in index[: self.axis]))
        window += (slice(start, current + self.inclusive), *[slice(None)] * self.after)
        return self._convolve(features[window], self.reach - (current - start), 0)

    def _convolve(self, features: Tensor, before: int, behind: int) -> Tensor:
        """Convolve with zeros around, of which ``before`` and ``behind`` are along ``axis``."""
        padding = [self.reach, self.reach] * self.after + [before, behind]
        out: Tensor = self.convolution(F.pad(features, padding))
        return out


class GatedLayer(nn.Module):
    """One layer of all stacks: convolve, add the gates of the stack before, gate, add the input.

    The first layer (``inclusive=False``) adds nothing to its input, which is the code itself.
    """

    def __init__(
        self, spatial_dims: int, channels: int, reach: int, inclusive: bool, dropout: float
    ) -> None:
        super().__init__()
        conv = _CONVOLUTION[spatial_dims]
        axes = range(spatial_dims)
        self.inclusive = inclusive
        self.causal = nn.ModuleList(
            CausalConvolution((channels, 2 * channels), a, spatial_dims, reach, inclusive)
            for a in axes
        )
        self.links = nn.ModuleList(conv(2 * channels, 2 * channels, 1) for _ in axes[1:])
        self.conditions = nn.ModuleList(conv(channels, 2 * channels, 1) for _ in axes)
        self.outs = nn.ModuleList(conv(channels, channels, 1) for _ in axes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, streams: Sequence[Tensor], condition: Tensor) -> list[Tensor]:
        """Map one tensor (B, C, *shape) for each stack to one of the same shape."""
        out: list[Tensor] = []
        gates: Tensor | None = None
        for axis, stream in enumerate(streams):
            gates = self.gates(axis, self.causal[axis](stream), gates, condition)
            out.append(self.output(axis, gates, stream))
        return out

    def gates(
        self, axis: int, convolved: Tensor, before: Tensor | None, condition: Tensor
    ) -> Tensor:
        """Add to a convolved stream the condition and the gates of the stack before, if any."""
        gates: Tensor = convolved + self.conditions[axis](condition)
        return gates if before is None else gates + self.links[axis - 1](before)

    def output(self, axis: int, gates: Tensor, stream: Tensor) -> Tensor:
        """Apply the gates of a stack whose input is ``stream``."""
        values, gate = gates.chunk(2, 1)
        out: Tensor = self.outs[axis](self.dropout(torch.tanh(values) * torch.sigmoid(gate)))
        return stream + out if self.inclusive else out


class GatedPixelCNN(AutoregressivePrior):
    """The Gated PixelCNN, with dropout, learnt positions, and residuals after the first layer."""

    name = "pixelcnn"

    def __init__(self, architecture: PriorArchitecture) -> None:
        super().__init__(architecture)
        dims, channels, dropout = len(self.shape), architecture.channels, architecture.dropout
        conv = _CONVOLUTION[dims]
        self.codes = nn.Embedding(architecture.size, channels)
        self.labels = nn.Embedding(architecture.classes + 1, channels)
        # Zeros outside of the grid tell little of the place in it, and radiographs are aligned.
        self.positions = nn.Parameter(torch.randn(channels, *self.shape) * _POSITION_SCALE)
        if architecture.above is not None:
            self.codes_above = nn.Embedding(architecture.above[0], channels)
            self.read_above = nn.Sequential(
                conv(channels, channels, 3, padding=1), nn.ReLU(), conv(channels, channels, 1)
            )
        self.layers = nn.ModuleList(
            GatedLayer(dims, channels, architecture.reach, number > 0, dropout)
            for number in range(architecture.depth)
        )
        self.head = nn.Sequential(
            nn.ReLU(), conv(channels, channels, 1), nn.ReLU(), nn.Dropout(dropout)
        )
        self.to_logits = conv(channels, architecture.size, 1)
        for parameter in self.to_logits.parameters():
            nn.init.zeros_(parameter)

    def forward(self, codes: Tensor, conditions: Conditions) -> Tensor:
        condition = self._embed_conditions(len(codes), conditions)
        streams = [self.codes(codes).movedim(-1, 1)] * len(self.shape)
        for layer in self.layers:
            streams = layer(streams, condition)
        logits: Tensor = self.to_logits(self.head(streams[-1])) + self.frequency
        return logits

    def incremental_logits(self, batch: int, conditions: Conditions) -> Step:
        """Return a function that computes every feature of every stack once.

        The stack of an axis is computed for a whole slab of the grid when the first place in it is
        asked for.
        """
        return _IncrementalLogits(self, self._embed_conditions(batch, conditions))

    def _embed_conditions(self, batch: int, conditions: Conditions) -> Tensor:
        """Return the sum of positions, labels and the level above, (B, channels, *shape)."""
        label = self.labels(self._label_index(conditions.labels, batch))
        condition: Tensor = self.positions + label.reshape(*label.shape, *[1] * len(self.shape))
        if (codes_above := self._codes_above(conditions)) is None:
            return condition
        embedded = self.codes_above(codes_above).movedim(-1, 1)
        # Residual, as in VQ-VAE-2: a network alone takes epochs to let the codes above through.
        read = embedded + self.read_above(embedded)
        return condition + F.interpolate(read, size=self.shape)


class _IncrementalLogits:
    """A pass through the network that goes on from the features of the places before.

    Attributes
    ----------
    streams : by layer and axis, its input.
    gates : by layer and axis, what the stack of the next axis takes in.
    """

    def __init__(self, prior: GatedPixelCNN, condition: Tensor) -> None:
        self.prior, self.condition = prior, condition
        self.layers: list[Any] = list(prior.layers)
        axes = range(len(prior.shape))
        embedded = torch.zeros_like(condition)  # one tensor for all axes
        self.streams = [[embedded for _ in axes]]
        self.streams += [[torch.zeros_like(condition) for _ in axes] for _ in self.layers[1:]]
        wide = (len(condition), 2 * condition.shape[1], *prior.shape)
        self.gates = [[condition.new_zeros(wide) for _ in axes] for _ in self.layers]

    def __call__(self, before: Tensor | None, place: int) -> Tensor:
        prior = self.prior
        if before is not None:
            embedded = self.streams[0][0].view(len(before), -1, prior.places)
            embedded[:, :, place - 1] = prior.codes(before)
        index = tuple(int(i) for i in np.unravel_index(place, prior.shape))
        for axis in range(len(prior.shape)):
            if not any(index[axis + 1 :]):
                features = self._compute_slab(axis, index)
        logits: Tensor = prior.to_logits(prior.head(features)).flatten(1)
        return logits + prior.frequency.flatten(1)[:, place]

    def _compute_slab(self, axis: int, index: Index) -> Tensor:
        """Return the features of a stack's last layer at ``index[: axis + 1]``."""
        slab: Any = (..., *(slice(i, i + 1) for i in index[: axis + 1]))
        slab += (slice(None),) * (len(index) - axis - 1)
        for number, layer in enumerate(self.layers):
            stream = self.streams[number][axis]
            before = self.gates[number][axis - 1][slab] if axis else None
            convolved = layer.causal[axis].at(stream, index)
            gates = layer.gates(axis, convolved, before, self.condition[slab])
            features: Tensor = layer.output(axis, gates, stream[slab])
            self.gates[number][axis][slab] = gates
            if number + 1 < len(self.layers):
                self.streams[number + 1][axis][slab] = features
        return features
