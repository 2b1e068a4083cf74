"""A Transformer over the codes in raster order: MONAI's network behind the interface of a prior.

The sequence starts with a token of the label, one beyond the codes, where MONAI's
``VQVAETransformerInferer`` has one start token. That inferer computes the same logits (a test holds
it), but samples by a whole pass for every code, without top-p or a generator, and counts the start
token among the codes that could come next, in likelihoods too; so only the network is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import DecoderOnlyTransformer
from torch import Tensor, nn

from medvq.prior.code_prior import CodePrior, Index, Step


class TransformerPrior(CodePrior):
    """See the module's description.

    Parameters
    ----------
    size, shape, classes, above : see :class:`CodePrior`; the level above is attended to.
    channels : of the embedding, a multiple of ``heads``.
    depth : number of blocks.
    heads : of the attention.
    dropout : of the embedded codes.
    """

    def __init__(
        self,
        size: int,
        shape: Sequence[int],
        classes: int = 0,
        above: tuple[int, Sequence[int]] | None = None,
        *,
        channels: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(size, shape, classes, above)
        self.network = DecoderOnlyTransformer(
            num_tokens=size + classes + 1,
            max_seq_len=int(np.prod(self.shape)),
            attn_layers_dim=channels,
            attn_layers_depth=depth,
            attn_layers_heads=heads,
            with_cross_attention=self.above is not None,
            embedding_dropout_rate=dropout,
        )
        nn.init.zeros_(self.network.to_logits.weight)
        nn.init.zeros_(self.network.to_logits.bias)
        if self.above is not None:
            self.codes_above = nn.Embedding(self.above[0], channels)
            places = int(np.prod(self.above[1]))
            self.positions_above = nn.Parameter(torch.randn(places, channels) * 0.02)

    def forward(
        self, codes: Tensor, labels: Tensor | None = None, above: Tensor | None = None
    ) -> Tensor:
        sequence = torch.cat([self._start(len(codes), labels), codes.flatten(1)[:, :-1]], 1)
        logits = self.network(sequence, self._context(above))
        grid: Tensor = self._of_codes(logits).movedim(-1, 1).unflatten(2, self.shape)
        return grid + self.frequency

    def _start(self, batch: int, labels: Tensor | None) -> Tensor:
        return self.size + self._label_index(labels, batch)[:, None]

    def _context(self, above: Tensor | None) -> Tensor | None:
        if self.above is None:
            return None
        if above is None:
            raise ValueError("this prior is conditioned on the codes of the level above")
        context: Tensor = self.codes_above(above.flatten(1)) + self.positions_above
        return context

    def _of_codes(self, logits: Tensor) -> Tensor:
        """Without the start tokens, which never come again."""
        return logits[..., : self.size]

    def steps(self, batch: int, labels: Tensor | None = None, above: Tensor | None = None) -> Step:
        """Keys and values of the places before are kept; MONAI's blocks cannot, so that each is
        computed here from its weights.
        """
        network, context = self.network, self._context(above)
        caches = [_Cache(block, context) for block in network.blocks]
        start = self._start(batch, labels)[:, 0]

        def step(codes: Tensor, index: Index) -> Tensor:
            place = int(np.ravel_multi_index(index, self.shape))
            token = codes.flatten(1)[:, place - 1] if place else start
            features = network.token_embeddings(token)
            features = features + network.position_embeddings.embedding.weight[place]
            features = features[:, None]
            for cache in caches:
                features = cache(features)
            logits = self._of_codes(network.to_logits(features[:, 0]))
            return logits + self.frequency.flatten(1)[:, place]

        return step


class _Cache:
    """One block of the network, fed one place at a time."""

    def __init__(self, block: Any, context: Tensor | None) -> None:
        self.block = block
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
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
        self.keys = key if self.keys is None else torch.cat([self.keys, key], 2)
        self.values = value if self.values is None else torch.cat([self.values, value], 2)
        attended = F.scaled_dot_product_attention(query, self.keys, self.values)
        features = features + attention.out_proj(attention.out_rearrange(attended))
        if self.above is not None:
            cross = block.cross_attn
            query = cross.input_rearrange(cross.to_q(block.norm_cross_attn(features)))
            attended = F.scaled_dot_product_attention(query, *self.above)
            features = features + cross.out_proj(cross.out_rearrange(attended))
        out: Tensor = features + block.mlp(block.norm2(features))
        return out
