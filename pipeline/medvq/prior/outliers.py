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
from medvq.prior.code_prior import CodePrior, negative_log_likelihood
from medvq.prior.typicality import Floats


@dataclass(frozen=True)
class CodeScores:
    """How far images are from the training images, by a model and a prior.

    Attributes
    ----------
    codes : int64 (N, *grid), of the coarsest level.
    negative_log_likelihood : (N, *grid), of every code, in bits.
    reconstruction : (N,), mean squared error, in squared units of [0, 1].
    features : (N, width), the deepest feature map pooled to a grid.
    """

    codes: NDArray[np.int64]
    negative_log_likelihood: Floats
    reconstruction: Floats
    features: Floats


@torch.inference_mode()
def score_images(
    model: VQVAE, prior: CodePrior, images: NDArray[np.uint8], grid: int, batch: int = 64
) -> CodeScores:
    """Score cached images, bytes (N, ...); ``grid`` cells along each axis are pooled to."""
    device = next(model.parameters()).device
    parts: list[tuple[NDArray[Any], ...]] = []
    for start in range(0, len(images), batch):
        target = to_unit(images[start : start + batch]).to(device)
        encoded = model.features(to_network(target))
        codes, *finer = model.quantize(encoded)[1]
        error = from_network(model.decode(codes, *finer)).clamp(0, 1) - target
        parts.append(
            (
                codes.cpu().numpy(),
                negative_log_likelihood(prior, codes),
                error.square().flatten(1).mean(1).cpu().numpy(),
                pool_to_grid(encoded.levels[-1], grid),
            )
        )
    return CodeScores(*(np.concatenate(part) for part in zip(*parts, strict=True)))


class FeatureDistance:
    """Distances of features to those of reference images: Mahalanobis and nearest neighbours.

    Both are measured after a projection to the principal components of the reference.

    Parameters
    ----------
    reference : (N, width).
    """

    def __init__(self, reference: Floats, components: int = 64, neighbours: int = 5) -> None:
        self.projection = PCA(min(components, *reference.shape), random_state=0)
        projected = self.projection.fit_transform(reference)
        self.covariance = LedoitWolf().fit(projected)
        self.neighbours = NearestNeighbors(n_neighbors=neighbours).fit(projected)

    def mahalanobis(self, features: Floats) -> Floats:
        """Return squared Mahalanobis distances to the mean of the reference, (N,)."""
        return np.asarray(self.covariance.mahalanobis(self.projection.transform(features)))

    def to_neighbours(self, features: Floats) -> Floats:
        """Return mean distances to the nearest images of the reference, (N,)."""
        distance, _ = self.neighbours.kneighbors(self.projection.transform(features))
        return np.asarray(distance.mean(1))
