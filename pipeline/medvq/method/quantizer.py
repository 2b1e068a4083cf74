"""The vector quantizer: nearest codebook vectors, learnt by exponential moving averages.

References
----------
.. [1] van den Oord, Vinyals, Kavukcuoglu: Neural Discrete Representation Learning. NeurIPS 2017,
   arXiv 1711.00937 (appendix A.1 for the moving averages).
.. [2] Dhariwal et al.: Jukebox: A Generative Model for Music. 2020, arXiv 2005.00341 (restarting
   codes that fall out of use).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn

from medvq.method.collectives import all_reduce_sum, rank, world_size

# A code used less than this share of an even use restarts. Jukebox [2]_ restarts below one vector a
# batch; a share does not depend on the size of the batch.
RESTART_SHARE = 0.1
# A restarted code counts as if it had been used twice as often as that: time to win vectors, and
# little weight against those that it wins.
_RESTART_COUNT = 2
_REACH = 0.2  # share of a training that moving averages reach over at most
# Elements of the matrix of distances that are held at once: what a core's cache holds, and on a GPU
# what keeps it busy. Like the next line, measured (``make benchmark-speed``).
_TILE = {"cpu": 1 << 20, "cuda": 1 << 25}
_SMALLEST_CHUNK, _LARGEST_BLOCK, _FEWEST_BLOCKS = 128, 32, 32
_KMEANS_BATCH = 4096
# A prime near 2^32 over the golden ratio (Knuth, The Art of Computer Programming 3, section 6.4):
# its multiples, modulo any smaller number, reach every place once before any twice.
_STRIDE = 2_654_435_761


def decay_over(steps: int, most: float) -> float:
    """Return the decay of the moving averages of a training of so many steps, at most ``most``.

    Averages reach over ``1 / (1 - decay)`` steps. In more than a fifth of a training they would lag
    behind the encoder, and a code out of use would hardly restart before the end.

    >>> decay_over(2000, 0.99), decay_over(100, 0.99), decay_over(1, 0.99)
    (0.99, 0.95, 0.5)
    """
    reach = max(2.0, steps * _REACH)
    return min(most, 1 - 1 / reach)


class QuantizerOutput(NamedTuple):
    """A quantized feature map."""

    values: Tensor  # the nearest codebook vectors (B, D, *spatial); gradients pass straight through
    codes: Tensor  # int64, (B, *spatial): their indices, 0 to size - 1
    loss: Tensor  # scalar: commitment times the mean squared distance of the input to its code


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the index (N,) of the codebook vector (K, D) nearest to each vector (N, D).

    By Euclidean distance, in float32; the lowest index at a tie. |v - e|^2 is smallest where
    v.e - |e|^2 / 2 is largest: a matrix product per chunk of vectors, small enough to stay in
    cache. On a processor the largest column is found in two steps, since a maximum over blocks is
    as fast as memory and a search for its place is not: first the best of blocks of up to 32 codes,
    then the best code of that block.
    """
    offsets = codebook.square().sum(1) / -2
    if torch.onnx.is_in_onnx_export():  # a graph would hold the number of chunks
        return torch.addmm(offsets, vectors, codebook.T).argmax(1)
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

    The codebook starts from vectors of the first training batch and then follows the moving
    averages of the vectors assigned to each code [1]_. A code that falls out of use restarts from a
    random vector of the batch, with its moving averages [2]_. Everything is computed in float32
    whatever autocast says, and alike in every process; in eval mode nothing changes.

    Parameters
    ----------
    size : number of codes, K.
    dim : their dimension, D: the channels of the input.
    decay : of the moving averages, in (0, 1); 0.99 as in [1]_.
    commitment : weight of the commitment loss, beta in [1]_, which takes 0.25 and finds any value
        from 0.1 to 2 as good.
    bypass : whether vectors are passed on unchanged, at no loss, while the codebook follows them.
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
        bypass: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.dim = size, dim
        self.decay, self.commitment, self.bypass = decay, commitment, bypass
        start = torch.randn(size, dim) / dim**0.5
        self.register_buffer("codebook", start)
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("sums", start.clone())
        self.register_buffer("initialised", torch.tensor(False))
        # The last known value of ``initialised``: to read the tensor is to wait for the device.
        self._known_initialised = False
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]  # torch has no types for it

    def forward(self, features: Tensor) -> QuantizerOutput:
        """Quantize ``features`` of shape (B, D, *spatial)."""
        with torch.autocast(features.device.type, enabled=False):
            channels_last = features.float().movedim(1, features.ndim - 1)
            vectors = channels_last.reshape(-1, self.dim)
            if self.training and not self._known_initialised:
                if not self.initialised:
                    self._initialise(vectors.detach())
                self._known_initialised = True
            codes = nearest_codes(vectors.detach(), self.codebook)
            nearest = F.embedding(codes, self.codebook)
            loss = self.commitment * F.mse_loss(vectors, nearest)
            if self.training:
                self._update(vectors.detach(), codes)
            straight = vectors + (nearest - vectors).detach()
            if self.bypass:
                straight, loss = vectors, torch.zeros_like(loss)
            values = straight.reshape(channels_last.shape).movedim(features.ndim - 1, 1)
        return QuantizerOutput(values, codes.reshape(channels_last.shape[:-1]), loss)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the codebook vectors (B, D, *spatial) of codes (B, *spatial)."""
        return F.embedding(codes, self.codebook).movedim(codes.ndim, 1)

    @torch.no_grad()
    def fit(self, features: Tensor, seed: int) -> None:
        """Replace the codebook by the centroids of k-means of ``features`` (B, D, *spatial).

        For a network that is not trained, whose codebook no moving average comes to fit. The
        features are the same in every process.
        """
        vectors = features.float().movedim(1, features.ndim - 1).reshape(-1, self.dim)
        self._initialise(vectors)
        number = min(self.size, len(vectors))
        clusters = MiniBatchKMeans(number, batch_size=_KMEANS_BATCH, n_init=1, random_state=seed)
        centroids = clusters.fit(vectors.cpu().numpy()).cluster_centers_
        # Machines may round otherwise, and all are to have the same.
        shared = all_reduce_sum(torch.from_numpy(centroids).to(vectors) * (rank() == 0))
        self.codebook[:number].copy_(shared)
        self.sums.copy_(self.codebook * self.counts[:, None])

    @torch.no_grad()
    def _initialise(self, vectors: Tensor) -> None:
        even = len(vectors) * world_size() / self.size
        self.codebook.copy_(_random_rows(vectors, self.size))
        self.sums.copy_(self.codebook * even)
        self.counts.fill_(even)
        self.initialised.fill_(True)

    @torch.no_grad()
    def _update(self, vectors: Tensor, codes: Tensor) -> None:
        used = torch.zeros_like(self.counts).index_add_(0, codes, torch.ones_like(vectors[:, 0]))
        assigned = torch.zeros_like(self.sums).index_add_(0, codes, vectors)
        if world_size() > 1:
            both = all_reduce_sum(torch.cat([assigned, used[:, None]], 1))
            assigned, used = both[:, :-1], both[:, -1]
        self.counts.lerp_(used, 1 - self.decay)
        self.sums.lerp_(assigned, 1 - self.decay)
        self._restart(vectors)
        # The averages of a code long out of use vanish from float32, and 0 / 0 is no vector.
        known = (self.counts > 1e-20)[:, None]
        self.codebook.copy_(torch.where(known, self.sums / self.counts[:, None], self.codebook))

    def _restart(self, vectors: Tensor) -> None:
        number = len(vectors) * world_size()
        least = RESTART_SHARE * (number / self.size)
        dead = self.counts < least
        # Drawn in any case, so that the random stream is the same on every device. A GPU is not
        # waited for to learn whether any code is dead.
        start = int(torch.randint(number, ()))
        if dead.is_cpu and not dead.any():
            return
        places = start + (dead.cumsum(0) - 1) * _STRIDE
        fresh = _rows(vectors, places % number)
        self.counts.masked_fill_(dead, _RESTART_COUNT * least)
        self.sums.copy_(torch.where(dead[:, None], fresh * (_RESTART_COUNT * least), self.sums))


def _forget(quantizer: VectorQuantizer, _: Any) -> None:
    quantizer._known_initialised = False


def _random_rows(vectors: Tensor, number: int) -> Tensor:
    """Return random rows of all processes' vectors, none twice where there are enough."""
    # Drawn on the CPU, so that every process and every device draws the same.
    available = len(vectors) * world_size()
    if number <= available:
        chosen = torch.randperm(available)[:number]
    else:
        chosen = torch.randint(available, (number,))
    return _rows(vectors, chosen.to(vectors.device))


def _rows(vectors: Tensor, chosen: Tensor) -> Tensor:
    """Return the ``chosen`` rows of all processes' vectors, one process after another."""
    chosen = chosen - rank() * len(vectors)
    local = (chosen >= 0) & (chosen < len(vectors))
    return all_reduce_sum(vectors[chosen.clamp(0, len(vectors) - 1)] * local[:, None])
