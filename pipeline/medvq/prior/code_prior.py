"""What every model of the codes has in common: exact likelihood, sampling, completion.

A prior factorises the distribution of a grid of codes, ``p(c | y, t) = prod_i
p(c_i | codes before it, y, t)``, on a label ``y`` where one is known and, for the finer levels of a
hierarchical model, on all codes ``t`` of the level above [1]_. An autoregressive one goes through
the grid in raster order. One that knows the conditionals with and without a label can be guided:
driven towards the label beyond what it has learnt [2]_.

References
----------
.. [1] Razavi, van den Oord, Vinyals: Generating Diverse High-Fidelity Images with VQ-VAE-2.
   NeurIPS 2019, arXiv 1906.00446.
.. [2] Ho, Salimans: Classifier-Free Diffusion Guidance. 2022, arXiv 2207.12598.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from medvq.config import SampleConfig

UNKNOWN = -1
"""A label that is unknown, or a code that is still to be drawn."""
Step = Callable[[Tensor | None, int], Tensor]
"""Takes the code (B,) before a place, None at the first place, and the number of the place in
raster order; returns the logits (B, size) of the code there."""
_PSEUDO_COUNT = 0.1
"""Codes that are added to the counts of a place, for each code of the codebook: enough that no code
is impossible anywhere, and few beside the thousands of training images."""


class Conditions(NamedTuple):
    """What a prior is conditioned on besides the codes before a place.

    Attributes
    ----------
    labels : int64 (B,), :data:`UNKNOWN` where a label is unknown; None where all are.
    codes_above : int64 (B, *grid above), where the prior is conditioned on a level above.
    """

    labels: Tensor | None = None
    codes_above: Tensor | None = None

    def select(self, rows: Tensor, device: torch.device) -> Conditions:
        """Return the conditions of some rows, on a device."""
        return Conditions(*(None if part is None else part[rows].to(device) for part in self))


UNCONDITIONAL = Conditions()


@dataclass(frozen=True)
class PriorArchitecture:
    """What a prior is built from.

    Attributes
    ----------
    size : number of codes.
    shape : of their grid, two or three axes.
    classes : number of labels that it can be conditioned on; 0 for none.
    above : codebook size and grid of the level above, where it is conditioned on one.
    channels : of every layer.
    depth : number of layers.
    dropout : of the PixelCNN's gated values, of the Transformer's embedding.
    reach : how far a layer of the PixelCNN sees along each axis.
    heads : of the Transformer's attention, which divide the channels.
    """

    size: int
    shape: tuple[int, ...]
    classes: int = 0
    above: tuple[int, tuple[int, ...]] | None = None
    channels: int = 96
    depth: int = 3
    dropout: float = 0.0
    reach: int = 1
    heads: int = 4


class CodePrior(nn.Module, ABC):
    """A distribution over grids of codes.

    Attributes
    ----------
    name : of the model in configurations and files.
    places : number of places of the grid.
    frequency : (size, *shape), log frequencies of the codes at every place, which a network adds to
        its logits; see :meth:`set_base_rates`.
    """

    name: ClassVar[str]
    frequency: Tensor

    def __init__(self, architecture: PriorArchitecture) -> None:
        super().__init__()
        self.architecture, self.shape = architecture, architecture.shape
        if len(self.shape) not in (2, 3):
            raise ValueError(f"shape={self.shape} must have two or three axes")
        self.places = math.prod(self.shape)
        self.register_buffer("frequency", torch.zeros(architecture.size, *self.shape))

    def set_base_rates(self, codes: Tensor, pseudo_count: float = _PSEUDO_COUNT) -> None:
        """Set the log frequencies to those of every code at every place of ``codes`` (B, *shape).

        Counts are smoothed by ``pseudo_count * size`` codes, distributed as the codes of all places
        together are. A network whose last layer is zero, as it is at first, then gives every code
        its frequency at its place.
        """
        size = self.architecture.size
        index = codes.flatten(1) * self.places + torch.arange(self.places, device=codes.device)
        count = torch.bincount(index.flatten(), minlength=size * self.places).double()
        count = count.reshape(size, self.places)
        overall = count.sum(1, keepdim=True) + 0.5
        count = count + pseudo_count * size * overall / overall.sum()
        self.frequency.copy_((count / count.sum(0)).log().reshape(self.frequency.shape))

    @abstractmethod
    def log_likelihood(self, codes: Tensor, conditions: Conditions = UNCONDITIONAL) -> Tensor:
        """Return that of every code given those before it, in nats: (B, *shape).

        Their sum is the log-likelihood of the grid. ``codes`` is int64 (B, *shape).
        """

    def training_loss(self, codes: Tensor, conditions: Conditions) -> Tensor:
        """Return what training makes small: the mean negative log-likelihood of a code, in nats."""
        return -self.log_likelihood(codes, conditions).mean()

    @abstractmethod
    def sample(
        self,
        uniforms: Tensor,
        conditions: Conditions = UNCONDITIONAL,
        config: SampleConfig | None = None,
        fixed: Tensor | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Return grids of codes, int64 (B, *shape).

        Parameters
        ----------
        uniforms : float64 (B, *shape), in [0, 1): all the randomness.
        config : temperature, top-k, top-p, guidance and steps.
        fixed : int64 (B, *shape), codes to keep, and :data:`UNKNOWN` where one is to be drawn.
        progress : whether to show a progress bar.
        """

    def _label_index(self, labels: Tensor | None, batch: int) -> Tensor:
        """Return rows of an embedding of all labels and, after them, of the unknown."""
        unknown = self.architecture.classes
        if labels is None:
            return torch.full((batch,), unknown, device=self.frequency.device)
        return torch.where(labels < 0, unknown, labels)

    def _codes_above(self, conditions: Conditions) -> Tensor | None:
        """Return the codes of the level above; None where the prior is not conditioned on any."""
        if self.architecture.above is None:
            return None
        if conditions.codes_above is None:
            raise ValueError("this prior is conditioned on the codes of the level above; pass them")
        return conditions.codes_above


class AutoregressivePrior(CodePrior):
    """A prior whose every code is drawn from those before it in raster order."""

    @abstractmethod
    def forward(self, codes: Tensor, conditions: Conditions) -> Tensor:
        """Return the logits (B, size, *shape) of every code, each from the codes before it.

        ``codes`` is int64 (B, *shape).
        """

    @abstractmethod
    def incremental_logits(self, batch: int, conditions: Conditions) -> Step:
        """Return a function that computes the logits of :meth:`forward` one place at a time.

        It must be called for all places in raster order, since it goes on from what it has computed
        for the places before.
        """

    def log_likelihood(self, codes: Tensor, conditions: Conditions = UNCONDITIONAL) -> Tensor:
        logits = self(codes, conditions)
        return -F.cross_entropy(logits.float(), codes, reduction="none")

    @torch.inference_mode()
    def sample(
        self,
        uniforms: Tensor,
        conditions: Conditions = UNCONDITIONAL,
        config: SampleConfig | None = None,
        fixed: Tensor | None = None,
        progress: bool = False,
    ) -> Tensor:
        config, batch = config or SampleConfig(), len(uniforms)
        logits = self.incremental_logits(batch, conditions)
        if conditions.labels is not None and config.guidance != 1:
            unlabelled = self.incremental_logits(batch, conditions._replace(labels=None))
            logits = _guide(logits, unlabelled, config.guidance)
        uniforms = uniforms.flatten(1).to(self.frequency.device)
        fixed = torch.full_like(uniforms, UNKNOWN, dtype=torch.int64) if fixed is None else fixed
        codes = fixed.flatten(1).clone()
        places = range(self.places)
        for place in tqdm(places, "sampling", unit=" codes", mininterval=1.0, disable=not progress):
            before = codes[:, place - 1] if place else None
            drawn = draw_codes(logits(before, place), uniforms[:, place], config)
            codes[:, place] = torch.where(codes[:, place] < 0, drawn, codes[:, place])
        grids: Tensor = codes.reshape(batch, *self.shape)
        return grids


def draw_codes(logits: Tensor, uniform: Tensor, config: SampleConfig) -> Tensor:
    """Return one code for each row of ``logits`` (B, K), by inverting its distribution function.

    ``uniform`` (B,), in [0, 1), is all the randomness, so that a sample depends neither on the
    batch it is drawn in nor on the device.

    >>> logits = torch.tensor([[0.0, 2.0, 1.0]])
    >>> draw_codes(logits, torch.tensor([0.99]), SampleConfig(top_k=1))
    tensor([1])
    """
    logits = logits.double() / config.temperature
    if 0 < config.top_k < logits.shape[1]:
        least = logits.topk(config.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probability = logits.softmax(1)
    if config.top_p < 1:
        likeliest, order = probability.sort(descending=True, stable=True)
        beyond = likeliest.cumsum(1) - likeliest >= config.top_p
        dropped = torch.zeros_like(beyond).scatter(1, order, beyond)
        probability = probability.masked_fill(dropped, 0.0)
    cumulative = probability.cumsum(1)
    target = uniform.double()[:, None] * cumulative[:, -1:]
    # The first code whose sum is greater than the target: never one of no probability.
    codes = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return codes.clamp(max=logits.shape[1] - 1)


def _guide(labelled: Step, unlabelled: Step, guidance: float) -> Step:
    """Return the logits without a label plus ``guidance`` times what the label adds.

    In [2]_ the guidance is one less.
    """

    def step(before: Tensor | None, place: int) -> Tensor:
        without = unlabelled(before, place)
        return without + guidance * (labelled(before, place) - without)

    return step


@torch.inference_mode()
def negative_log_likelihood(
    prior: CodePrior, codes: Tensor, conditions: Conditions = UNCONDITIONAL, batch: int = 256
) -> NDArray[np.float64]:
    """Return that of each of ``codes`` (N, *grid) given those before it, in bits: (N, *grid)."""
    device, parts = prior.frequency.device, []
    for rows in torch.arange(len(codes)).split(batch):
        nats = prior.log_likelihood(codes[rows].to(device), conditions.select(rows, device))
        parts.append(nats.double().cpu())
    return np.asarray(torch.cat(parts).numpy() / -np.log(2))
