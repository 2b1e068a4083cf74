"""How typical images are of the training images, by the prior and by simpler means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from medvq.method.features import pool_to_grid
from medvq.method.scaling import from_network, to_network, to_unit
from medvq.method.vqvae import VQVAE
from medvq.prior.code_prior import CodePrior
from medvq.prior.typicality import Floats, surprise


@dataclass(frozen=True)
class CodeScores:
    """What a model and a prior make of images.

    Attributes
    ----------
    codes : int64 (N, *grid), of the coarsest level.
    surprise : (N, *grid), negative log-likelihood of every code in bits.
    reconstruction : (N,), mean squared error, in squared units of [0, 1].
    quantization : (N,), mean squared distance of the latents to their codes.
    features : (N, width), the deepest feature map pooled to a grid.
    """

    codes: NDArray[np.int64]
    surprise: Floats
    reconstruction: Floats
    quantization: Floats
    features: Floats


@torch.inference_mode()
def score_images(
    model: VQVAE, prior: CodePrior, images: NDArray[np.uint8], grid: int, batch: int = 64
) -> CodeScores:
    """Judge cached images, bytes (N, ...)."""
    device = next(model.parameters()).device
    parts: list[tuple[NDArray[Any], ...]] = []
    for start in range(0, len(images), batch):
        target = to_unit(images[start : start + batch]).to(device)
        encoded = model.features(to_network(target))
        codes, *finer = model.quantize(encoded)[1]
        values = model.quantizers[0].decode(codes)
        error = from_network(model.decode(codes, *finer)).clamp(0, 1) - target
        parts.append(
            (
                codes.cpu().numpy(),
                surprise(prior, codes, batch),
                error.square().flatten(1).mean(1).cpu().numpy(),
                (encoded.latent - values).square().flatten(1).mean(1).cpu().numpy(),
                pool_to_grid(encoded.levels[-1], grid),
            )
        )
    return CodeScores(*(np.concatenate(part) for part in zip(*parts, strict=True)))


class FeatureDistance:
    """How far features are from those of reference images: Mahalanobis and nearest neighbours.

    Both after a projection to the principal components of the reference.
    """

    def __init__(self, reference: Floats, components: int = 64, neighbours: int = 5) -> None:
        self.project = PCA(min(components, *reference.shape), random_state=0)
        projected = self.project.fit_transform(reference)
        self.covariance = LedoitWolf().fit(projected)
        self.nearest = NearestNeighbors(n_neighbors=neighbours).fit(projected)

    def mahalanobis(self, features: Floats) -> Floats:
        """Squared, (N,)."""
        return np.asarray(self.covariance.mahalanobis(self.project.transform(features)))

    def to_neighbours(self, features: Floats) -> Floats:
        """Mean distance to the nearest of the reference, (N,)."""
        distance, _ = self.nearest.kneighbors(self.project.transform(features))
        return np.asarray(distance.mean(1))
