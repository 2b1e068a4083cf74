"""A masked Transformer: all codes at once from any that are known, drawn in a few steps.

It is trained to tell masked codes from the others [1]_. Which codes are drawn in a step depends on
how certain the network is of a place, not, as in [1]_, of the code that it happened to draw there:
so every code follows its conditional distribution, and rare ones are not drawn less often than they
occur. The likelihood is that of the same steps in an order that is fixed: all codes of a step are
independent given those of the steps before, hence it is exact and takes one pass for each step.

References
----------
.. [1] Chang, Zhang, Jiang, Liu, Freeman: MaskGIT: Masked Generative Image Transformer. CVPR 2022,
   arXiv 2202.04200.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from monai.networks.blocks import TransformerBlock
from torch import Tensor, nn
from tqdm import tqdm

from medvq.config import SampleConfig
from medvq.prior.code_prior import (
    UNCONDITIONAL,
    UNKNOWN,
    CodePrior,
    Conditions,
    PriorArchitecture,
    draw_codes,
)

_SCALE = 0.02  # standard deviation of what is learnt of tokens and places at first, as in [1]_
_EXPANSION = 4  # of the channels within a block's perceptron
_CHOICE = 4.5  # scale of the noise of the order in the first step, as in the code of [1]_
_STEPS = 8  # of the likelihood, as many as [1]_ draws an image in
_LOW_BITS = 2.0**26  # of a uniform number; those above draw the code


class MaskedPrior(CodePrior):
    """A bidirectional Transformer, whose places know the code above them where there is one."""

    name = "masked"

    def __init__(self, architecture: PriorArchitecture) -> None:
        super().__init__(architecture)
        width, size, above = architecture.channels, architecture.size, architecture.above
        # The codes, the mask, and the labels, of which the last is the unknown one.
        self.tokens = nn.Embedding(size + 1 + architecture.classes + 1, width)
        nn.init.normal_(self.tokens.weight, std=_SCALE)
        self.positions = nn.Parameter(torch.randn(1 + self.places, width) * _SCALE)
        self.dropout = nn.Dropout(architecture.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width, _EXPANSION * width, architecture.heads, use_flash_attention=True
            )
            for _ in range(architecture.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.to_logits = nn.Linear(width, size)
        nn.init.zeros_(self.to_logits.weight)
        nn.init.zeros_(self.to_logits.bias)
        if above is not None:
            self.codes_above = nn.Embedding(above[0], width)
            nn.init.normal_(self.codes_above.weight, std=_SCALE)

    def forward(self, codes: Tensor, conditions: Conditions = UNCONDITIONAL) -> Tensor:
        """Return the logits (B, size, *shape) of every code, from those that are known.

        ``codes`` is int64 (B, *shape), :data:`UNKNOWN` where one is masked.
        """
        *_, last = self._after_blocks(codes, conditions)
        logits = self.to_logits(self.norm(last)).mT
        grid: Tensor = logits.unflatten(2, self.shape) + self.frequency
        return grid

    def hidden_states(self, codes: Tensor, conditions: Conditions = UNCONDITIONAL) -> list[Tensor]:
        """Return what every block makes of codes (B, *shape), maps (B, channels, *shape).

        A place tells of all codes that are known, those after it and its own too.
        """
        states = self._after_blocks(codes, conditions)
        return [features.mT.unflatten(2, self.shape) for features in states]

    def _after_blocks(self, codes: Tensor, conditions: Conditions) -> Iterator[Tensor]:
        """Yield the features (B, places, channels) after each block."""
        size = self.architecture.size
        label = size + 1 + self._label_index(conditions.labels, len(codes))
        known = codes.flatten(1)
        tokens = torch.cat([label[:, None], torch.where(known < 0, size, known)], 1)
        features = self.tokens(tokens) + self.positions
        if (codes_above := self._codes_above(conditions)) is not None:
            # Each place gets the code above it; attention knows the others.
            vectors = self.codes_above(codes_above).movedim(-1, 1)
            here = F.interpolate(vectors, self.shape).flatten(2).mT
            features = torch.cat([features[:, :1], features[:, 1:] + here], 1)
        features = self.dropout(features)
        for block in self.blocks:
            features = block(features)
            yield features[:, 1:]

    def training_loss(self, codes: Tensor, conditions: Conditions) -> Tensor:
        """Return the mean negative log-likelihood of masked codes given the others, in nats.

        Of every image another share is masked, by the cosine of a random angle [1]_.
        """
        # Drawn on the CPU, so that every device draws the same.
        angle, order = torch.rand(len(codes)), torch.rand(len(codes), self.places).argsort(1)
        number = (angle.mul(math.pi / 2).cos() * self.places).ceil().clamp(min=1)
        masked = (order < number[:, None]).view(codes.shape).to(codes.device)
        logits = self(codes.masked_fill(masked, UNKNOWN), conditions)
        nats = F.cross_entropy(logits.float(), codes, reduction="none")
        return nats[masked].mean()

    def log_likelihood(self, codes: Tensor, conditions: Conditions = UNCONDITIONAL) -> Tensor:
        order = torch.randperm(self.places, generator=torch.Generator().manual_seed(0))
        true, known = codes.flatten(1), torch.full_like(codes, UNKNOWN).flatten(1)
        nats = torch.zeros(true.shape, device=true.device)
        first = 0
        for number in _known_after(self.places, _STEPS):
            places, first = order[first:number].to(true.device), number
            logits = self(known.view_as(codes), conditions).flatten(2)[..., places]
            nats[:, places] = -F.cross_entropy(logits.float(), true[:, places], reduction="none")
            known[:, places] = true[:, places]
        return nats.view(codes.shape)

    @torch.inference_mode()
    def sample(
        self,
        uniforms: Tensor,
        conditions: Conditions = UNCONDITIONAL,
        config: SampleConfig | None = None,
        fixed: Tensor | None = None,
        progress: bool = False,
    ) -> Tensor:
        config, device = config or SampleConfig(), self.frequency.device
        uniforms = uniforms.double().to(device).flatten(1)
        codes = torch.full(uniforms.shape, UNKNOWN, device=device)
        if fixed is not None:
            codes = fixed.to(device).flatten(1).clone()
        missing = (codes < 0).sum(1)
        noise = _gumbel(uniforms * _LOW_BITS % 1)
        schedule = [1 - known / self.places for known in _known_after(self.places, config.steps)]
        for left in tqdm(schedule, "sampling", unit=" steps", disable=not progress):
            logits = self._guided(codes, conditions, config).mT
            certainty = -torch.special.entr(logits.double().softmax(2)).sum(2)
            rank = certainty + _CHOICE * left * noise
            place_in_order = rank.masked_fill(codes >= 0, -torch.inf).argsort(1, descending=True)
            unknown = (codes < 0).sum(1)
            number = (unknown - (missing * left).floor()).clamp(min=1).minimum(unknown)
            drawn = place_in_order.argsort(1) < number[:, None]
            codes[drawn] = draw_codes(logits[drawn], uniforms[drawn], config)
        return codes.view(-1, *self.shape)

    def _guided(self, codes: Tensor, conditions: Conditions, config: SampleConfig) -> Tensor:
        """Return logits (B, size, places), driven towards the label where that is asked for."""
        grids = codes.view(-1, *self.shape)
        logits: Tensor = self(grids, conditions).flatten(2)
        if conditions.labels is None or config.guidance == 1:
            return logits
        without = self(grids, conditions._replace(labels=None)).flatten(2)
        guided: Tensor = without + config.guidance * (logits - without)
        return guided


def _known_after(places: int, steps: int) -> list[int]:
    """Return how many codes are known after each step: few at first, by a cosine [1]_.

    >>> _known_after(16, 4)
    [2, 5, 10, 16]
    >>> _known_after(3, 8)
    [1, 2, 3]
    """
    left = [int(places * math.cos(math.pi / 2 * step / steps)) for step in range(1, steps + 1)]
    known = [max(step, places - number) for step, number in enumerate(left, 1)]
    return [number for number in known if number < places] + [places]


def _gumbel(uniforms: Tensor) -> Tensor:
    tiny = torch.finfo(uniforms.dtype).tiny
    return -uniforms.clamp(tiny, 1 - 1e-12).log().neg().log()
