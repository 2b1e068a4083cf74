"""Scores of images by a model and a prior."""

from __future__ import annotations

import numpy as np
import torch
from factories.priors import frequency_prior
from medvq.method.vqvae import VQVAE, Architecture
from medvq.prior.outliers import score_images


def test_scores_are_those_of_model_and_prior() -> None:
    torch.manual_seed(0)
    shape = Architecture(widths=(4, 4), residual_levels=1, codebook_size=4, codebook_dim=2)
    model = VQVAE(shape).eval()
    prior = frequency_prior(torch.randint(4, (20, 2, 2)), 4)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    scores = score_images(model, prior, images, batch=2)
    unit = torch.from_numpy(images).float()[:, None] / 255
    with torch.inference_mode():
        out = model((unit - 0.5) / 0.25)
        likelihood = prior.log_likelihood(out.codes[0]).exp()
    assert np.array_equal(scores.codes, out.codes[0].numpy())
    np.testing.assert_allclose(2**-scores.negative_log_likelihood, likelihood.numpy(), rtol=1e-4)
    error = ((out.images * 0.25 + 0.5).clamp(0, 1) - unit).square().mean((1, 2, 3))
    np.testing.assert_allclose(scores.reconstruction, error.numpy(), rtol=1e-4)
