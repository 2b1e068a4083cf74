"""How typical images are of the training images, by a model and a prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
    """

    codes: NDArray[np.int64]
    negative_log_likelihood: Floats
    reconstruction: Floats


@torch.inference_mode()
def score_images(
    model: VQVAE, prior: CodePrior, images: NDArray[np.uint8], batch: int = 64
) -> CodeScores:
    """Score cached images, bytes (N, ...)."""
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
            )
        )
    return CodeScores(*(np.concatenate(part) for part in zip(*parts, strict=True)))
