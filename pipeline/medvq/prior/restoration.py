"""Anomaly maps by restoration: what changes where improbable codes are drawn anew.

A prior of normal images finds some codes of an image improbable. These are drawn anew from it,
several times, and decoded; where the restored images differ from the image's own reconstruction, it
shows what normal images do not [1]_, [2]_.

References
----------
.. [1] Marimont, Tarroni: Anomaly Detection Through Latent Space Restoration Using Vector Quantized
   Variational Autoencoders. ISBI 2021, arXiv 2012.06765.
.. [2] You, Tezcan, Chen, Konukoglu: Unsupervised Lesion Detection via Image Restoration with a
   Normative Prior. MIDL 2019.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medvq.method.scaling import from_network
from medvq.method.vqvae import VQVAE
from medvq.prior.code_prior import UNKNOWN, CodePrior
from medvq.prior.samples import in_batches
from medvq.prior.typicality import Floats

_BATCH = 64
"""Images that are restored or decoded at once."""


def anomaly_maps(
    model: VQVAE,
    prior: CodePrior,
    codes: NDArray[np.int64],
    improbable: NDArray[np.bool_],
    draws: int = 8,
    seed: int = 0,
) -> Floats:
    """Return how far images are from the mean of their restored versions, (N, *spatial).

    That is the absolute difference of images in [0, 1], the mean over channels. The model has a
    single level of codes; other arguments as of :func:`restore`.
    """
    grids = torch.from_numpy(codes)
    restored = restore(prior, grids, torch.from_numpy(improbable), draws, seed)
    device = next(model.parameters()).device

    @torch.inference_mode()
    def decode(grids: Tensor) -> Tensor:
        return from_network(model.decode(grids.to(device)).cpu()).clamp(0, 1)

    def difference(rows: Tensor) -> Tensor:
        mean = torch.stack([decode(draw[rows]) for draw in restored]).mean(0)
        return (decode(grids[rows]) - mean).abs().mean(1)

    return in_batches(difference, torch.arange(len(grids)), _BATCH).numpy()


def restore(
    prior: CodePrior, codes: Tensor, improbable: Tensor, draws: int, seed: int, batch: int = _BATCH
) -> Tensor:
    """Return codes with those that are improbable drawn anew, (draws, N, *grid).

    Each is drawn from the codes before it in raster order, as they are restored.

    Parameters
    ----------
    codes : int64 (N, *grid).
    improbable : bool, the same shape.
    """
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(draws, *codes.shape, generator=generator, dtype=torch.float64)
    uniforms, fixed = uniforms.flatten(0, 1), codes.masked_fill(improbable, UNKNOWN)
    restored = codes.expand(draws, *codes.shape).clone().flatten(0, 1)

    def complete(rows: Tensor) -> Tensor:
        to_complete = fixed[rows % len(codes)].to(prior.frequency.device)
        return prior.sample(uniforms[rows], fixed=to_complete).cpu()

    changing = improbable.flatten(1).any(1).repeat(draws).nonzero()[:, 0]
    if len(changing):
        restored[changing] = in_batches(complete, changing, batch)
    return restored.view(draws, *codes.shape)
