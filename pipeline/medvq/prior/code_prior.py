"""What every model of the codes has in common: exact likelihood, sampling, completion.

A prior factorises the distribution of a grid of codes in raster order, ``p(c | y, t) = prod_i
p(c_i | c_1 .. c_{i-1}, y, t)``, on a label ``y`` where one is known and, for the finer levels of a
hierarchical model, on all codes ``t`` of the level above [1]_. One that knows the conditionals with
and without a label can be driven towards the label beyond what it has learnt [2]_.

References
----------
.. [1] Razavi, van den Oord, Vinyals: Generating Diverse High-Fidelity Images with VQ-VAE-2.
   NeurIPS 2019, arXiv 1906.00446.
.. [2] Ho, Salimans: Classifier-Free Diffusion Guidance. 2022, arXiv 2207.12598.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Index = tuple[int, ...]
Step = Callable[[Tensor, Index], Tensor]
UNKNOWN = -1


@dataclass(frozen=True)
class Sampling:
    """How a code is drawn from its conditional distribution.

    Attributes
    ----------
    temperature : logits are divided by it; towards 0 the likeliest code is taken.
    top_k : only so many of the likeliest codes; 0 leaves all.
    top_p : only the likeliest codes that together reach this probability; 1 leaves all.
    guidance : ``w`` in ``unlabelled + w (labelled - unlabelled)``, the logits that are drawn from:
        1 those of the label, 0 those without, beyond 1 what the label speaks for, the more. Where
        there is no label it says nothing. (In [2]_ ``w`` is one less.)
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """One code for each row of ``logits`` (B, K) by inverting its distribution function.

        ``uniform`` (B,), in [0, 1), is all the randomness, so that a sample hangs neither on the
        batch it is drawn in nor on the device.

        >>> Sampling(top_k=1).draw(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([0.99]))
        tensor([1])
        """
        logits = logits.double() / self.temperature
        if 0 < self.top_k < logits.shape[1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        probability = logits.softmax(1)
        if self.top_p < 1:
            likeliest, order = probability.sort(descending=True, stable=True)
            beyond = likeliest.cumsum(1) - likeliest >= self.top_p
            dropped = torch.zeros_like(beyond).scatter(1, order, beyond)
            probability = probability.masked_fill(dropped, 0.0)
        reached = probability.cumsum(1)
        target = uniform.double()[:, None] * reached[:, -1:]
        # The first code beyond the target: never one of no probability.
        return torch.searchsorted(reached, target, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


class CodePrior(nn.Module, ABC):
    """A distribution over grids of codes.

    Parameters
    ----------
    size : number of codes.
    shape : of the grid, two or three axes.
    classes : number of labels that it can be conditioned on; 0 for none.
    above : codebook size and grid of the level that it is conditioned on, where there is one.
    """

    def __init__(
        self,
        size: int,
        shape: Sequence[int],
        classes: int = 0,
        above: tuple[int, Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        if len(shape) not in (2, 3):
            raise ValueError(f"shape={tuple(shape)} must have two or three axes")
        self.size, self.shape, self.classes = size, tuple(shape), classes
        self.above = (above[0], tuple(above[1])) if above is not None else None
        self.frequency: Tensor
        self.register_buffer("frequency", torch.zeros(size, *self.shape))

    def start_from(self, codes: Tensor, pseudo: float = 0.1) -> None:
        """Add to all logits what each place's own frequencies in ``codes`` (B, *shape) say.

        Smoothed by ``pseudo * size`` codes spread as all places together have them. A network whose
        last layer is zero, as it is at first, is then the coding by these frequencies.
        """
        places = int(np.prod(self.shape))
        index = codes.flatten(1) * places + torch.arange(places, device=codes.device)
        count = torch.bincount(index.flatten(), minlength=self.size * places).double()
        count = count.reshape(self.size, places)
        overall = count.sum(1, keepdim=True) + 0.5
        count = count + pseudo * self.size * overall / overall.sum()
        self.frequency.copy_((count / count.sum(0)).log().reshape(self.frequency.shape))

    @abstractmethod
    def forward(
        self, codes: Tensor, labels: Tensor | None = None, above: Tensor | None = None
    ) -> Tensor:
        """Logits (B, size, *shape) of every code, each from the codes before it.

        Parameters
        ----------
        codes : int64 (B, *shape).
        labels : int64 (B,), :data:`UNKNOWN` where unknown; None where all are.
        above : int64 (B, *grid above), where the prior is conditioned on one.
        """

    @abstractmethod
    def steps(self, batch: int, labels: Tensor | None = None, above: Tensor | None = None) -> Step:
        """The same logits one position at a time, each computed from what was computed before.

        The function returned takes codes (B, *shape) and an index of the grid, which must run
        through all of it in raster order, and gives the logits (B, size) of the code there.
        """

    def log_likelihood(
        self, codes: Tensor, labels: Tensor | None = None, above: Tensor | None = None
    ) -> Tensor:
        """Of every code given those before it, in nats: (B, *shape). Their sum is the grid's."""
        logits = self(codes, labels, above)
        return -F.cross_entropy(logits.float(), codes, reduction="none")

    @torch.inference_mode()
    def complete(
        self,
        codes: Tensor,
        redo: Tensor,
        uniforms: Tensor,
        *,
        labels: Tensor | None = None,
        above: Tensor | None = None,
        sampling: Sampling | None = None,
        incremental: bool = True,
        progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> Tensor:
        """The grids ``codes`` (B, *shape), drawn anew in raster order wherever ``redo`` is true.

        Parameters
        ----------
        uniforms : (B, *shape), in [0, 1): all the randomness.
        incremental : False computes every logit by a whole forward pass, for comparison.
        progress : wraps the iterable of positions, as tqdm does.
        """
        sampling = sampling or Sampling()
        codes = codes.clone()

        def given(labels: Tensor | None) -> Step:
            def whole(codes: Tensor, index: Index) -> Tensor:
                logits: Tensor = self(codes, labels, above)
                return logits.flatten(2)[:, :, int(np.ravel_multi_index(index, self.shape))]

            return self.steps(len(codes), labels, above) if incremental else whole

        step = given(labels)
        if labels is not None and sampling.guidance != 1:
            step = _guided(step, given(None), sampling.guidance)
        for index in progress(list(np.ndindex(*self.shape))):
            here: Any = (..., *index)
            drawn = sampling.draw(step(codes, index), uniforms[here].to(codes.device))
            codes[here] = torch.where(redo[here], drawn, codes[here])
        return codes

    def sample(
        self,
        uniforms: Tensor,
        labels: Tensor | None = None,
        above: Tensor | None = None,
        **how: Any,
    ) -> Tensor:
        """Grids of codes, int64 (B, *shape), one for each of ``uniforms`` (B, *shape).

        ``how``: ``sampling``, ``incremental`` and ``progress`` of :meth:`complete`.
        """
        device = next(self.parameters()).device
        codes = torch.zeros(uniforms.shape, dtype=torch.int64, device=device)
        redo = torch.ones_like(codes, dtype=torch.bool)
        return self.complete(codes, redo, uniforms, labels=labels, above=above, **how)

    def _label_index(self, labels: Tensor | None, batch: int) -> Tensor:
        """Rows of an embedding of ``classes + 1`` labels, the last of which is the unknown."""
        device = next(self.parameters()).device
        if labels is None:
            return torch.full((batch,), self.classes, device=device)
        return torch.where(labels < 0, self.classes, labels)


def log_likelihoods(
    priors: Sequence[CodePrior], levels: Sequence[Tensor], labels: Tensor | None = None
) -> list[Tensor]:
    """Of the codes of every level (B, *grid), coarsest first, given the level above, in nats.

    The sum of them all is the image's. A level hangs on the one above it alone.
    """
    return [
        prior.log_likelihood(codes, labels, above)
        for prior, codes, above in zip(priors, levels, [None, *levels[:-1]], strict=True)
    ]


def _guided(labelled: Step, unlabelled: Step, guidance: float) -> Step:
    def step(codes: Tensor, index: Index) -> Tensor:
        without = unlabelled(codes, index)
        return without + guidance * (labelled(codes, index) - without)

    return step
