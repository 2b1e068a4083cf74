"""Codes and images drawn from trained priors, in batches that fit into memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medvq.config import SampleConfig
from medvq.errors import UserError
from medvq.method.scaling import to_bytes
from medvq.method.vqvae import VQVAE
from medvq.prior.code_prior import CodePrior, Conditions

SAMPLES = "samples.npz"
_BATCH = 64
"""Images that are decoded at once."""


def sample_codes(
    priors: Sequence[CodePrior], config: SampleConfig, seed: int, label: int | None = None
) -> list[Tensor]:
    """Return code grids (N, *grid) of every level, of a label or of any.

    The first of many samples are the same as those of few.
    """
    generator = torch.Generator().manual_seed(seed)
    places = [prior.places for prior in priors]
    uniforms = torch.rand(config.number, sum(places), generator=generator, dtype=torch.float64)
    labels = None if label is None else torch.full((config.number,), label)
    levels: list[Tensor] = []
    for prior, part in zip(priors, uniforms.split(places, 1), strict=True):
        conditions = Conditions(labels, levels[-1] if levels else None)
        levels.append(_sample_level(prior, part.unflatten(1, prior.shape), conditions, config))
    return levels


def _sample_level(
    prior: CodePrior, uniforms: Tensor, conditions: Conditions, config: SampleConfig
) -> Tensor:
    def sample(rows: Tensor) -> Tensor:
        of_rows = conditions.select(rows, prior.frequency.device)
        return prior.sample(uniforms[rows], of_rows, config, progress=True).cpu()

    return in_batches(sample, torch.arange(len(uniforms)), config.batch_size)


def independent_codes(codes: Tensor, number: int, rng: np.random.Generator) -> Tensor:
    """Return grids whose every code is drawn from those of ``codes`` (B, *grid) at its place."""
    flat = codes.flatten(1)
    rows = torch.from_numpy(rng.integers(0, len(flat), (number, flat.shape[1])))
    return flat.gather(0, rows).reshape(number, *codes.shape[1:])


@torch.inference_mode()
def decode_codes(model: VQVAE, *levels: Tensor) -> NDArray[np.uint8]:
    """Return the images of code grids (N, *grid) of every level as the cache has them.

    They are bytes (N, C, *spatial), of grey pictures (N, height, width).
    """
    device = next(model.parameters()).device

    def decode(rows: Tensor) -> Tensor:
        return model.decode(*(codes[rows].to(device) for codes in levels)).cpu()

    images = to_bytes(in_batches(decode, torch.arange(len(levels[0])), _BATCH))
    return images[:, 0] if images.ndim == 4 and images.shape[1] == 1 else images


def in_batches(compute: Callable[[Tensor], Tensor], rows: Tensor, size: int) -> Tensor:
    """Return ``compute`` of ``rows``, ``size`` at a time; half as many where memory runs out.

    Raises
    ------
    UserError
        There is no memory even for one.
    """
    parts: list[Tensor] = []
    start = 0
    while start < len(rows):
        try:
            parts.append(compute(rows[start : start + size]))
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if size == 1:
                raise UserError("not enough memory for a single sample") from error
            size //= 2
            print(f"not enough memory: going on with batches of {size}", file=sys.stderr)
            continue
        start += size
    return torch.cat(parts)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
