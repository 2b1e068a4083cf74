"""How a codebook is used: counts of its codes, effective number, and bits per pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medvq.summaries import CodebookUse


def count_codes(codes: Tensor, size: int) -> Tensor:
    """Return how often each code occurs in ``codes``, int64 (size,)."""
    return torch.bincount(codes.reshape(-1).cpu(), minlength=size)


def perplexity(counts: Tensor) -> float:
    """Return the effective number of codes in use: exp of the entropy of ``counts`` (K,).

    >>> round(perplexity(torch.tensor([5, 5, 0, 0])), 6)
    2.0
    """
    share = counts.double() / counts.sum()
    return float(torch.special.entr(share).sum().exp())


def bits_per_position(
    alphabets: Sequence[float], halvings: Sequence[int], spatial_dims: int
) -> float:
    """Return the bits that the codes of an image take per pixel or voxel.

    Parameters
    ----------
    alphabets : of each level, its codebook's size, which gives the nominal rate; or the perplexity
        of its use, which gives the rate of an ideal entropy coder of single codes.
    halvings : of each level, how often the image was halved.

    Examples
    --------
    Three bits for every square of 2 x 2 pixels, and four for every square of 4 x 4:

    >>> bits_per_position([16, 8], [2, 1], 2)
    1.0
    """
    return sum(
        math.log2(size) / (1 << halved * spatial_dims)
        for size, halved in zip(alphabets, halvings, strict=True)
    )


def codebook_use(counts: Tensor) -> CodebookUse:
    """Summarise how often each code of a codebook was used, ``counts`` (K,).

    >>> codebook_use(torch.tensor([3, 3, 0]))
    CodebookUse(size=3, used=2, perplexity=2.0)
    """
    return CodebookUse(len(counts), int((counts > 0).sum()), perplexity(counts))
