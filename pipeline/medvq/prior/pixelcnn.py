"""The Gated PixelCNN over a grid of codes [1]_, in two and three dimensions.

The published network has a vertical stack, which sees the rows above, and a horizontal one, which
sees the codes to the left and is fed by the vertical one, so that no blind spot is left. Here there
is one stack for every axis: the stack of axis ``a`` sees what comes earlier along ``a`` at the same
place of the axes before ``a``, as far as the kernel reaches along the axes after it, and is fed by
the stack of ``a - 1``. In two dimensions these are the published two.

Masks A and B are kernels cut to the taps that a mask would leave: of the first layer those before
the current place (A), of the others also the place itself (B).

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

from medvq.prior.code_prior import CodePrior, Index, Step

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}


class CausalConvolution(nn.Module):
    """A convolution over what comes earlier along ``axis``, unpadded: see :meth:`padding`.

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
        """Features (B, C, *shape) to (B, C', *shape)."""
        padding = [self.reach, self.reach] * self.after + [self.reach, self.inclusive - 1]
        out: Tensor = self.convolution(F.pad(features, padding))
        return out

    def at(self, features: Tensor, index: Index) -> Tensor:
        """The part of :meth:`forward` at ``index[: axis + 1]``, of all places of the axes after."""
        here = index[self.axis]
        start = max(0, here - self.reach)
        window: Any = (..., *(slice(i, i + 1) for i in index[: self.axis]))
        window += (slice(start, here + self.inclusive), *[slice(None)] * self.after)
        seen = features[window]
        padding = [self.reach, self.reach] * self.after + [self.reach - (here - start), 0]
        out: Tensor = self.convolution(F.pad(seen, padding))
        return out


class GatedLayer(nn.Module):
    """One layer of all stacks: convolve, add what feeds it, gate, add to what came in.

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
        """One tensor (B, C, *shape) for each stack, the same back."""
        out: list[Tensor] = []
        fed: Tensor | None = None
        for axis, stream in enumerate(streams):
            fed = self._gates(axis, self.causal[axis](stream), fed, condition)
            out.append(self._out(axis, fed, stream))
        return out

    def at(
        self,
        axis: int,
        index: Index,
        stream: Tensor,
        here: Tensor,
        fed: Tensor | None,
        condition: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The gates and the output of one stack at ``index[: axis + 1]``, where ``stream`` is
        ``here``, and what feeds it and conditions it ``fed`` and ``condition``.
        """
        causal = self.causal[axis]
        assert isinstance(causal, CausalConvolution)
        gates = self._gates(axis, causal.at(stream, index), fed, condition)
        return gates, self._out(axis, gates, here)

    def _gates(self, axis: int, seen: Tensor, fed: Tensor | None, condition: Tensor) -> Tensor:
        gates: Tensor = seen + self.conditions[axis](condition)
        return gates if fed is None else gates + self.links[axis - 1](fed)

    def _out(self, axis: int, gates: Tensor, stream: Tensor) -> Tensor:
        values, gate = gates.chunk(2, 1)
        out: Tensor = self.outs[axis](self.dropout(torch.tanh(values) * torch.sigmoid(gate)))
        return stream + out if self.inclusive else out


class GatedPixelCNN(CodePrior):
    """See the module's description.

    Parameters
    ----------
    size, shape, classes, above : see :class:`CodePrior`.
    channels : of every stack.
    depth : number of layers.
    reach : how far a layer sees along each axis; the kernel has ``2 * reach + 1`` places.
    dropout : of the gated values.
    """

    def __init__(
        self,
        size: int,
        shape: Sequence[int],
        classes: int = 0,
        above: tuple[int, Sequence[int]] | None = None,
        *,
        channels: int = 128,
        depth: int = 8,
        reach: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(size, shape, classes, above)
        dims = len(self.shape)
        conv = _CONVOLUTION[dims]
        self.codes = nn.Embedding(size, channels)
        self.labels = nn.Embedding(classes + 1, channels)
        # Zeros outside of the grid tell little of the place in it, and radiographs are aligned.
        self.positions = nn.Parameter(torch.randn(channels, *self.shape) * 0.02)
        if self.above is not None:
            self.codes_above = nn.Embedding(self.above[0], channels)
            self.read_above = nn.Sequential(
                conv(channels, channels, 3, padding=1), nn.ReLU(), conv(channels, channels, 1)
            )
        self.layers = nn.ModuleList(
            GatedLayer(dims, channels, reach, number > 0, dropout) for number in range(depth)
        )
        self.head = nn.Sequential(
            nn.ReLU(), conv(channels, channels, 1), nn.ReLU(), nn.Dropout(dropout)
        )
        self.to_logits = conv(channels, size, 1)
        for parameter in self.to_logits.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, codes: Tensor, labels: Tensor | None = None, above: Tensor | None = None
    ) -> Tensor:
        condition = self._condition(len(codes), labels, above)
        streams = [self.codes(codes).movedim(-1, 1)] * len(self.shape)
        for layer in self.layers:
            streams = layer(streams, condition)
        logits: Tensor = self.to_logits(self.head(streams[-1])) + self.frequency
        return logits

    def _condition(self, batch: int, labels: Tensor | None, above: Tensor | None) -> Tensor:
        """What is known beside the codes before, (B, channels, *shape)."""
        label = self.labels(self._label_index(labels, batch))
        condition: Tensor = self.positions + label.reshape(*label.shape, *[1] * len(self.shape))
        if self.above is None:
            return condition
        if above is None:
            raise ValueError("this prior is conditioned on the codes of the level above")
        embedded = self.codes_above(above).movedim(-1, 1)
        # Residual, as in VQ-VAE-2: through the network alone they are hardly heard for epochs.
        read = embedded + self.read_above(embedded)
        return condition + F.interpolate(read, size=self.shape)

    def steps(self, batch: int, labels: Tensor | None = None, above: Tensor | None = None) -> Step:
        """Every feature of every stack is computed once: a whole slab of the grid by the stack of
        an axis, when the first place in it is asked for.
        """
        return _Steps(self, self._condition(batch, labels, above))


class _Steps:
    """The features so far: what each layer reads, by axis, and what feeds the next axis."""

    def __init__(self, prior: GatedPixelCNN, condition: Tensor) -> None:
        self.prior, self.condition = prior, condition
        self.layers = [layer for layer in prior.layers if isinstance(layer, GatedLayer)]
        axes = range(len(prior.shape))
        embedded = torch.zeros_like(condition)
        self.read = [[embedded for _ in axes]]
        self.read += [[torch.zeros_like(condition) for _ in axes] for _ in prior.layers[1:]]
        self.fed = [
            [
                condition.new_zeros(len(condition), 2 * condition.shape[1], *prior.shape)
                for _ in axes
            ]
            for _ in prior.layers
        ]

    def __call__(self, codes: Tensor, index: Index) -> Tensor:
        shape = self.prior.shape
        number = int(np.ravel_multi_index(index, shape))
        if number:
            before = tuple(int(i) for i in np.unravel_index(number - 1, shape))
            # One tensor for all axes.
            place: Any = (..., *before)
            self.read[0][0][place] = self.prior.codes(codes[place])
        for axis in range(len(shape)):
            if not any(index[axis + 1 :]):
                slab = self._slab(axis, index)
        logits: Tensor = self.prior.to_logits(self.prior.head(slab)).flatten(1)
        return logits + self.prior.frequency.flatten(1)[:, number]

    def _slab(self, axis: int, index: Index) -> Tensor:
        """The last layer of a stack at ``index[: axis + 1]``, through all layers before it."""
        place: Any = (..., *(slice(i, i + 1) for i in index[: axis + 1]))
        place += (slice(None),) * (len(index) - axis - 1)
        for number, layer in enumerate(self.layers):
            stream = self.read[number][axis]
            fed = self.fed[number][axis - 1][place] if axis else None
            gates, out = layer.at(axis, index, stream, stream[place], fed, self.condition[place])
            self.fed[number][axis][place] = gates
            if number + 1 < len(self.layers):
                self.read[number + 1][axis][place] = out
        return out
