"""Restoration: nothing but the improbable is drawn anew, and what is drawn is the prior's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medvq.method.vqvae import VQVAE, Architecture
from medvq.prior.pixelcnn import GatedPixelCNN
from medvq.prior.restoration import decode_restored, limits, over_image, restoration, restore
from medvq.prior.typicality import surprise

SIZE, SHAPE = 6, (4, 4)
SHAPE_OF_MODEL = Architecture(
    widths=(4, 4), residual_levels=0, codebook_size=SIZE, codebook_dim=2
)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randint(SIZE, (1, *SHAPE), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def prior(image: torch.Tensor) -> GatedPixelCNN:
    """Of one image alone."""
    torch.manual_seed(0)
    prior = GatedPixelCNN(SIZE, SHAPE, channels=8, depth=2)
    prior.start_from(image.expand(50, *SHAPE), pseudo=1e-6)
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        (-prior.log_likelihood(image).mean()).backward()
        optimizer.step()
    return prior.eval()


def test_the_limits_are_exceeded_by_the_share_at_every_place() -> None:
    reference = np.random.default_rng(0).random((1000, 2, 3)) * [1.0, 2.0, 3.0]
    beyond = limits(reference, 0.05)
    np.testing.assert_allclose((reference > beyond).mean(0), 0.05, atol=1e-3)


def test_a_prior_of_one_image_restores_that_image(
    prior: GatedPixelCNN, image: torch.Tensor
) -> None:
    broken = image.repeat(3, 1, 1)
    broken[0, 1, 2] += 1
    broken[1, 0, 0] += 2
    broken[1, 3, 3] += 1
    broken %= SIZE
    bits = surprise(prior, broken)
    improbable = torch.from_numpy(bits > limits(surprise(prior, image), 0.5) + 5)
    assert torch.equal(improbable, broken != image)
    restored = restore(prior, broken, improbable, draws=4, seed=0)
    assert torch.equal(restored, image.expand(4, 3, *SHAPE))
    torch.manual_seed(0)
    model = VQVAE(SHAPE_OF_MODEL).eval()
    images = restoration(model, prior, broken.numpy(), improbable.numpy())
    with torch.inference_mode():
        sound = (model.decode(image) * 0.25 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images.mean, sound.expand(3, -1, -1, -1))
    assert (images.difference.amax((1, 2)) > 1e-4).tolist() == [True, True, False]


def test_nothing_but_the_improbable_is_drawn_anew() -> None:
    torch.manual_seed(0)
    even = GatedPixelCNN(SIZE, SHAPE, channels=4, depth=1).eval()
    codes = torch.randint(SIZE, (40, *SHAPE))
    none = torch.zeros(40, *SHAPE, dtype=torch.bool)
    assert torch.equal(restore(even, codes, none, draws=2, seed=0), codes.expand(2, -1, -1, -1))
    some = torch.rand(40, *SHAPE) < 0.3
    some[7] = False
    restored = restore(even, codes, some, draws=30, seed=0, batch=11)
    kept = ~some.expand_as(restored)
    assert torch.equal(restored[kept], codes.expand_as(restored)[kept])
    # Each of the codes is drawn as often as any other, in every draw and image on its own.
    counts = torch.bincount(restored[~kept], minlength=SIZE) / (~kept).sum()
    torch.testing.assert_close(counts, torch.full((SIZE,), 1 / SIZE), atol=0.02, rtol=0)
    assert len(restored.flatten(2)[:, 0].unique(dim=0)) > 25
    assert torch.equal(restored, restore(even, codes, some, draws=30, seed=0))


def test_the_difference_is_that_of_the_reconstruction_to_the_mean_of_the_restored() -> None:
    torch.manual_seed(0)
    model = VQVAE(SHAPE_OF_MODEL).eval()
    codes = torch.randint(SIZE, (3, *SHAPE))
    restored = codes.repeat(2, 1, 1, 1)
    restored[0, 1, 2, 2] = (restored[0, 1, 2, 2] + 1) % SIZE
    found = decode_restored(model, codes, restored, batch=2)
    with torch.inference_mode():
        own, first, second = (
            (model.decode(grid) * 0.25 + 0.5).clamp(0, 1)
            for grid in (codes, restored[0], restored[1])
        )
    torch.testing.assert_close(found.own, own)
    torch.testing.assert_close(found.mean, (first + second) / 2)
    torch.testing.assert_close(found.difference, (own - (first + second) / 2).abs()[:, 0])
    assert found.difference[[0, 2]].max() < 1e-6
    assert found.difference[1].max() > 1e-4


def test_maps_are_linear_between_the_middles_of_the_cells() -> None:
    pixels = over_image(np.array([[[0.0, 1.0]]]), (2, 4))
    np.testing.assert_allclose(pixels, [[[0, 0.25, 0.75, 1]] * 2])
    constant = over_image(np.full((1, 2, 2, 2), 3.0), (4, 8, 6))
    assert constant.shape == (1, 4, 8, 6)
    np.testing.assert_allclose(constant, 3)
