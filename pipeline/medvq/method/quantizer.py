"""The vector quantizer: nearest codebook vectors, learnt by exponential moving averages.

References
----------
.. [1] van den Oord, Vinyals, Kavukcuoglu: Neural Discrete Representation Learning. NeurIPS 2017,
   arXiv 1711.00937 (appendix A.1 for the moving averages).
.. [2] Razavi, van den Oord, Vinyals: Generating Diverse High-Fidelity Images with VQ-VAE-2.
   NeurIPS 2019, arXiv 1906.00446.
.. [3] Dhariwal et al.: Jukebox. 2020, arXiv 2005.00341 (restarting codes that fall out of use).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvq.method.collectives import all_reduce_sum, rank, world_size

# Elements of the matrix of distances that are held at once: what a core's cache holds, and on a GPU
# what keeps it busy.
_TILE = {"cpu": 1 << 20, "cuda": 1 << 25}
_SMALLEST_CHUNK = 128
_LARGEST_BLOCK, _FEWEST_BLOCKS = 32, 32
# A prime near 2^32 over the golden ratio (Knuth, The Art of Computer Programming 3, section 6.4):
# steps of it, modulo any smaller number, reach every place once before they reach one twice, and
# never neighbours in turn.
_STRIDE = 2_654_435_761


class QuantizerOutput(NamedTuple):
    """What the quantizer makes of its input.

    Attributes
    ----------
    values : same shape as the input: the nearest codebook vectors; gradients pass straight through.
    codes : int64, (B, *spatial): their indices, 0 to size - 1.
    loss : scalar: commitment times the mean squared distance of the input to its code, plus, for a
        codebook learnt by gradient, that of the code to the input.
    """

    values: Tensor
    codes: Tensor
    loss: Tensor


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest codebook vector (Euclidean; the lowest index at a tie).

    |v - e|^2 is smallest where v.e - |e|^2 / 2 is largest: a matrix product per chunk of vectors,
    small enough to stay in cache. On a processor its largest column is found in two steps, since a
    maximum over blocks is as fast as memory and a search for its place is not: first the best of
    blocks of up to 32 codes, then the best code of that block.

    Parameters
    ----------
    vectors : float32, (N, D).
    codebook : float32, (K, D).

    Returns
    -------
    int64, (N,).
    """
    offsets = codebook.square().sum(1) / -2
    tile = _TILE.get(vectors.device.type, _TILE["cpu"])
    codes = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    search = _search_blocks if vectors.is_cpu else _search
    chunk = max(_SMALLEST_CHUNK, tile // len(codebook))
    search(vectors.split(chunk), codebook, offsets, codes.split(chunk))
    return codes


def _search(
    chunks: Sequence[Tensor], codebook: Tensor, offsets: Tensor, codes: Sequence[Tensor]
) -> None:
    for vectors, out in zip(chunks, codes, strict=True):
        torch.argmax(torch.addmm(offsets, vectors, codebook.T), 1, out=out)


def _search_blocks(
    chunks: Sequence[Tensor], codebook: Tensor, offsets: Tensor, codes: Sequence[Tensor]
) -> None:
    size = len(codebook)
    block = min(_LARGEST_BLOCK, max(1, size // _FEWEST_BLOCKS))
    blocks = -(-size // block)
    # Codes that fill the last block are infinitely far.
    padding = blocks * block - size
    offsets = F.pad(offsets, (0, padding), value=float("-inf"))
    # Transposed, so that the maximum over a block runs over contiguous rows of blocks.
    offsets = offsets.view(blocks, block).T.reshape(-1)
    padded = F.pad(codebook, (0, 0, 0, padding))
    columns = padded.view(blocks, block, -1).transpose(0, 1).reshape(blocks * block, -1).T
    for vectors, out in zip(chunks, codes, strict=True):
        scores = torch.addmm(offsets, vectors, columns).view(-1, block, blocks)
        best = scores.amax(1).argmax(1)
        inside = scores.gather(2, best[:, None, None].expand(-1, block, 1))[..., 0].argmax(1)
        torch.add(inside, best, alpha=block, out=out)


class VectorQuantizer(nn.Module):
    """Replaces every vector of a feature map by the nearest of ``size`` codebook vectors.

    The codebook starts from vectors of the first training batch. It then follows the moving
    averages of the vectors assigned to each code [1]_, or, with ``learn="gradient"``, the codebook
    loss of the same paper. A code whose moving average of assignments falls below
    ``restart_below`` of a fair share starts anew from a random vector of the batch, its moving
    averages with it [3]_. Everything is computed in float32 whatever autocast says; in eval mode
    nothing changes.

    Parameters
    ----------
    size : number of codes, K.
    dim : their dimension, D: the channels of the input.
    decay : of the moving averages, in (0, 1).
    commitment : weight of the commitment loss, beta in [1]_.
    restart_below : share of an even use below which a code starts anew; 0 never restarts.
    learn : ``"ema"`` or ``"gradient"``.
    bypass : whether vectors go on as they came, at no loss; the codebook only follows them.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    initialised: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        decay: float = 0.99,
        commitment: float = 0.25,
        restart_below: float = 0.1,
        learn: Literal["ema", "gradient"] = "ema",
        bypass: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.dim = size, dim
        self.decay, self.commitment, self.restart_below = decay, commitment, restart_below
        self.learn, self.bypass = learn, bypass
        start = torch.randn(size, dim) / dim**0.5
        if learn == "ema":
            self.register_buffer("codebook", start)
        else:
            self.codebook = nn.Parameter(start)
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("sums", start.detach().clone())
        self.register_buffer("initialised", torch.tensor(False))
        # What ``initialised`` is known to be: to look at it is to wait for the device.
        self._known_initialised = False
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]  # torch gave it no types

    def forward(self, features: Tensor) -> QuantizerOutput:
        """Quantize ``features`` of shape (B, D, *spatial)."""
        with torch.autocast(features.device.type, enabled=False):
            channels_last = features.float().movedim(1, -1)
            vectors = channels_last.reshape(-1, self.dim)
            if self.training and not self._known_initialised:
                if not self.initialised:
                    self._initialise(vectors.detach())
                self._known_initialised = True
            codes = nearest_codes(vectors.detach(), self.codebook.detach())
            nearest = F.embedding(codes, self.codebook)
            loss = self.commitment * F.mse_loss(vectors, nearest.detach())
            if self.learn == "gradient":
                loss = loss + F.mse_loss(nearest, vectors.detach())
            if self.training:
                self._update(vectors.detach(), codes)
            straight = vectors + (nearest - vectors).detach()
            if self.bypass:
                straight, loss = vectors, torch.zeros_like(loss)
            values = straight.reshape(channels_last.shape).movedim(-1, 1)
        return QuantizerOutput(values, codes.reshape(channels_last.shape[:-1]), loss)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """Codes (B, *spatial) of ``features`` (B, D, *spatial), changing nothing in any mode."""
        with torch.autocast(features.device.type, enabled=False):
            channels_last = features.float().movedim(1, -1)
            codes = nearest_codes(channels_last.reshape(-1, self.dim), self.codebook)
        return codes.reshape(channels_last.shape[:-1])

    def decode(self, codes: Tensor) -> Tensor:
        """Codebook vectors (B, D, *spatial) of ``codes`` (B, *spatial)."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def _initialise(self, vectors: Tensor) -> None:
        fair = len(vectors) * world_size() / self.size
        self.codebook.copy_(_random_rows(vectors, self.size))
        self.sums.copy_(self.codebook * fair)
        self.counts.fill_(fair)
        self.initialised.fill_(True)

    @torch.no_grad()
    def _update(self, vectors: Tensor, codes: Tensor) -> None:
        used = torch.zeros_like(self.counts).index_add_(0, codes, torch.ones_like(vectors[:, 0]))
        assigned = torch.zeros_like(self.sums).index_add_(0, codes, vectors)
        if world_size() > 1:
            assigned, used = all_reduce_sum(torch.cat([assigned, used[:, None]], 1)).split(
                [self.dim, 1], 1
            )
            used = used[:, 0]
        self.counts.lerp_(used, 1 - self.decay)
        self.sums.lerp_(assigned, 1 - self.decay)
        self._restart(vectors)
        if self.learn == "ema":
            # The averages of a code long out of use vanish from float32, and 0 / 0 is no vector.
            known = (self.counts > 1e-20)[:, None]
            self.codebook.copy_(torch.where(known, self.sums / self.counts[:, None], self.codebook))

    def _restart(self, vectors: Tensor) -> None:
        fair = len(vectors) * world_size() / self.size
        dead = self.counts < self.restart_below * fair
        # Drawn in any case, so that chance takes the same course on every device; there a GPU is
        # not waited for to learn whether any code is dead.
        start = int(torch.randint(len(vectors) * world_size(), ()))
        if dead.is_cpu and not dead.any():
            return
        places = start + (dead.cumsum(0) - 1) * _STRIDE
        fresh = _rows(vectors, places % (len(vectors) * world_size()))
        # Twice what is dead: time to win vectors, and little weight against those it wins.
        granted = 2 * self.restart_below * fair
        self.counts.masked_fill_(dead, granted)
        self.sums.copy_(torch.where(dead[:, None], fresh * granted, self.sums))
        if self.learn == "gradient":
            self.codebook.copy_(torch.where(dead[:, None], fresh, self.codebook))


def _forget(quantizer: VectorQuantizer, _: Any) -> None:
    quantizer._known_initialised = False


def _random_rows(vectors: Tensor, number: int) -> Tensor:
    """``number`` random rows of all processes' vectors, none twice while there are enough.

    Drawn on the CPU, so that every process and every device draws the same.
    """
    own = len(vectors)
    if number <= own * world_size():
        chosen = torch.randperm(own * world_size())[:number]
    else:
        chosen = torch.randint(own * world_size(), (number,))
    return _rows(vectors, chosen.to(vectors.device))


def _rows(vectors: Tensor, chosen: Tensor) -> Tensor:
    """The ``chosen`` rows of all processes' vectors, one process after another."""
    chosen = chosen - rank() * len(vectors)
    mine = (chosen >= 0) & (chosen < len(vectors))
    return all_reduce_sum(vectors[chosen.clamp(0, len(vectors) - 1)] * mine[:, None])


def perplexity(counts: Tensor) -> float:
    """Effective number of codes in use: the exponential of the entropy of ``counts`` (K,).

    >>> round(perplexity(torch.tensor([5, 5, 0, 0])), 6)
    2.0
    """
    share = counts.double() / counts.sum()
    return float(torch.special.entr(share).sum().exp())
