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

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medvq.method.scaling import from_network
from medvq.method.vqvae import VQVAE
from medvq.prior.code_prior import CodePrior
from medvq.prior.typicality import Floats
from medvq.stages.sample import in_batches

_LINEAR = {2: "bilinear", 3: "trilinear"}


def limits(reference: Floats, share: float) -> Floats:
    """The surprise at each place that this share of reference images exceeds there, (*grid).

    Parameters
    ----------
    reference : :func:`surprise` (N, *grid) of normal images that the prior was not trained on.
    """
    return np.asarray(np.quantile(reference, 1 - share, axis=0))


def restore(
    prior: CodePrior, codes: Tensor, improbable: Tensor, *, draws: int, seed: int, batch: int = 64
) -> Tensor:
    """Codes with those that are ``improbable`` drawn anew, (draws, N, *grid).

    Each from what stands before it in raster order, restored where that was improbable.

    Parameters
    ----------
    codes : int64 (N, *grid).
    improbable : bool, the same shape.
    """
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(draws, *codes.shape, generator=generator, dtype=torch.float64)
    restored = codes.expand(draws, *codes.shape).clone().flatten(0, 1)
    device = next(prior.parameters()).device

    def complete(rows: Tensor) -> Tensor:
        images = rows % len(codes)
        given, redo = codes[images].to(device), improbable[images].to(device)
        return prior.complete(given, redo, uniforms.flatten(0, 1)[rows]).cpu()

    changing = improbable.flatten(1).any(1).repeat(draws).nonzero()[:, 0]
    if len(changing):
        restored[changing] = in_batches(complete, changing, batch)
    return restored.view(draws, *codes.shape)


class Restored(NamedTuple):
    """Images in [0, 1], float32 (N, C, *spatial), before and after restoration.

    Attributes
    ----------
    own : reconstructions from the images' own codes.
    mean : of the images of all restored codes.
    """

    own: Tensor
    mean: Tensor

    @property
    def difference(self) -> Tensor:
        """Absolute, the mean over channels: (N, *spatial)."""
        return (self.own - self.mean).abs().mean(1)


@torch.inference_mode()
def decode_restored(model: VQVAE, codes: Tensor, restored: Tensor, batch: int = 64) -> Restored:
    """Images of ``codes`` (N, *grid) of a single level and of what :func:`restore` made of them."""
    device = next(model.parameters()).device

    def image(grids: Tensor) -> Tensor:
        return from_network(model.decode(grids.to(device)).cpu()).clamp(0, 1)

    def mean_image(rows: Tensor) -> Tensor:
        return torch.stack([image(draw[rows]) for draw in restored]).mean(0)

    rows = torch.arange(len(codes))
    own = in_batches(lambda rows: image(codes[rows]), rows, batch)
    return Restored(own, in_batches(mean_image, rows, batch))


def restoration(
    model: VQVAE,
    prior: CodePrior,
    codes: NDArray[np.int64],
    improbable: NDArray[np.bool_],
    *,
    draws: int = 8,
    seed: int = 0,
) -> Restored:
    """:func:`restore`, then :func:`decode_restored`, of codes (N, *grid)."""
    given = torch.from_numpy(codes)
    restored = restore(prior, given, torch.from_numpy(improbable), draws=draws, seed=seed)
    return decode_restored(model, given, restored)


def over_image(values: Floats, shape: Sequence[int]) -> Floats:
    """Values (N, *grid) at every pixel or voxel of images of ``shape``, linearly between."""
    given = torch.from_numpy(np.asarray(values, np.float64))[:, None]
    mode = _LINEAR[given.ndim - 2]
    return F.interpolate(given, tuple(shape), mode=mode, align_corners=False)[:, 0].numpy()
