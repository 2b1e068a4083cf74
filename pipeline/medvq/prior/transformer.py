"""A Transformer over the codes in raster order: MONAI's network behind the interface of a prior.

The sequence starts with a token of the label, numbered after the codes, where MONAI's
``VQVAETransformerInferer`` has one start token. That inferer computes the same logits (a test holds
it), but samples by a whole pass for every code, without top-p or a generator, and counts the start
token among the codes that could come next, in likelihoods too; so only the network is used.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import DecoderOnlyTransformer
from torch import Tensor, nn

from medvq.prior.code_prior import (
    UNCONDITIONAL,
    AutoregressivePrior,
    Conditions,
    PriorArchitecture,
    Step,
)

_POSITION_SCALE = 0.02
"""Standard deviation of a learnt position at first, as in GPT-2."""


class TransformerPrior(AutoregressivePrior):
    """A decoder-only Transformer, which attends to the level above where there is one."""

    name = "transformer"

    def __init__(self, architecture: PriorArchitecture) -> None:
        super().__init__(architecture)
        self.network = DecoderOnlyTransformer(
            num_tokens=architecture.size + architecture.classes + 1,
            max_seq_len=self.places,
            attn_layers_dim=architecture.channels,
            attn_layers_depth=architecture.depth,
            attn_layers_heads=architecture.heads,
            with_cross_attention=architecture.above is not None,
            embedding_dropout_rate=architecture.dropout,
        )
        nn.init.zeros_(self.network.to_logits.weight)
        nn.init.zeros_(self.network.to_logits.bias)
        if architecture.above is not None:
            size, shape = architecture.above
            self.codes_above = nn.Embedding(size, architecture.channels)
            positions = torch.randn(math.prod(shape), architecture.channels)
            self.positions_above = nn.Parameter(positions * _POSITION_SCALE)

    def forward(self, codes: Tensor, conditions: Conditions) -> Tensor:
        sequence = self._sequence(codes, conditions)
        logits = self.network(sequence, self._context(conditions))[..., : self.architecture.size]
        grid: Tensor = logits.movedim(-1, 1).unflatten(2, self.shape)
        return grid + self.frequency

    def hidden_states(self, codes: Tensor, conditions: Conditions = UNCONDITIONAL) -> list[Tensor]:
        """Return what every block makes of codes (B, *shape), maps (B, channels, *shape).

        A place tells of the codes before it. MONAI's network returns nothing but logits.
        """
        network, context = self.network, self._context(conditions)
        sequence = self._sequence(codes, conditions)
        features = network.token_embeddings(sequence) + network.position_embeddings(sequence)
        states = []
        for block in network.blocks:
            features = block(features, context=context)
            states.append(features.mT.unflatten(2, self.shape))
        return states

    def incremental_logits(self, batch: int, conditions: Conditions) -> Step:
        """Return a function that keeps the keys and values of the places before.

        MONAI's blocks cannot keep them, so each block is computed here from its weights.
        """
        network, context = self.network, self._context(conditions)
        blocks = [_IncrementalBlock(block, context) for block in network.blocks]
        start = self._start(batch, conditions)

        def step(before: Tensor | None, place: int) -> Tensor:
            features = network.token_embeddings(start if before is None else before)
            features = features + network.position_embeddings.embedding.weight[place]
            features = features[:, None]
            for block in blocks:
                features = block(features)
            logits: Tensor = network.to_logits(features[:, 0])[..., : self.architecture.size]
            return logits + self.frequency.flatten(1)[:, place]

        return step

    def _sequence(self, codes: Tensor, conditions: Conditions) -> Tensor:
        """Return the tokens before every place of codes (B, *shape), (B, places)."""
        start = self._start(len(codes), conditions)
        return torch.cat([start[:, None], codes.flatten(1)[:, :-1]], 1)

    def _start(self, batch: int, conditions: Conditions) -> Tensor:
        """Return the tokens (B,) of the labels, which no logit that is used stands for."""
        return self.architecture.size + self._label_index(conditions.labels, batch)

    def _context(self, conditions: Conditions) -> Tensor | None:
        """Return the embedding (B, places, channels) of the level above."""
        if (codes_above := self._codes_above(conditions)) is None:
            return None
        context: Tensor = self.codes_above(codes_above.flatten(1)) + self.positions_above
        return context


class _IncrementalBlock:
    """One block of the network, which is given one place at a time."""

    def __init__(self, block: Any, context: Tensor | None) -> None:
        self.block = block
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.above: tuple[Tensor, Tensor] | None = None
        if context is not None:
            cross = block.cross_attn
            key, value = (cross.input_rearrange(p(context)) for p in (cross.to_k, cross.to_v))
            self.above = (key, value)

    def __call__(self, features: Tensor) -> Tensor:
        block, attention = self.block, self.block.attn
        normal = block.norm1(features)
        query, key, value = (
            attention.input_rearrange(project(normal))
            for project in (attention.to_q, attention.to_k, attention.to_v)
        )
        self.keys.append(key)
        self.values.append(value)
        keys, values = torch.cat(self.keys, 2), torch.cat(self.values, 2)
        attended = F.scaled_dot_product_attention(query, keys, values)
        features = features + attention.out_proj(attention.out_rearrange(attended))
        if self.above is not None:
            cross = block.cross_attn
            query = cross.input_rearrange(cross.to_q(block.norm_cross_attn(features)))
            attended = F.scaled_dot_product_attention(query, *self.above)
            features = features + cross.out_proj(cross.out_rearrange(attended))
        out: Tensor = features + block.mlp(block.norm2(features))
        return out
