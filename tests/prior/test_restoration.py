"""Restoration: nothing but the improbable is drawn anew, and what is drawn is the prior's."""

from __future__ import annotations

import torch
from factories.priors import frequency_prior
from medvq.method.vqvae import VQVAE, Architecture
from medvq.prior.code_prior import PriorArchitecture, negative_log_likelihood
from medvq.prior.pixelcnn import GatedPixelCNN
from medvq.prior.restoration import anomaly_maps, restore
from torch import Tensor

SIZE, SHAPE = 6, (4, 4)


def random_model() -> VQVAE:
    torch.manual_seed(0)
    shape = Architecture(widths=(4, 4), residual_levels=0, codebook_size=SIZE, codebook_dim=2)
    return VQVAE(shape).eval()


def decode(model: VQVAE, codes: Tensor) -> Tensor:
    with torch.inference_mode():
        return (model.decode(codes) * 0.25 + 0.5).clamp(0, 1)


def test_a_prior_of_one_image_restores_that_image() -> None:
    image = torch.randint(SIZE, (1, *SHAPE), generator=torch.Generator().manual_seed(3))
    prior = frequency_prior(image.expand(50, *SHAPE), SIZE, pseudo_count=1e-6)
    broken = image.repeat(3, 1, 1)
    broken[0, 1, 2] += 1
    broken[1, 0, 0] += 2
    broken[1, 3, 3] += 1
    broken %= SIZE
    highest = negative_log_likelihood(prior, image) + 5
    improbable = torch.from_numpy(negative_log_likelihood(prior, broken) > highest)
    assert torch.equal(improbable, broken != image)
    restored = restore(prior, broken, improbable, draws=4, seed=0)
    assert torch.equal(restored, image.expand(4, 3, *SHAPE))
    model = random_model()
    maps = anomaly_maps(model, prior, broken.numpy(), improbable.numpy())
    difference = (decode(model, broken) - decode(model, image)).abs()[:, 0]
    torch.testing.assert_close(torch.from_numpy(maps), difference)
    assert (maps.max((1, 2)) > 1e-4).tolist() == [True, True, False]


def test_nothing_but_the_improbable_is_drawn_anew() -> None:
    torch.manual_seed(0)
    uniform = GatedPixelCNN(PriorArchitecture(SIZE, SHAPE, channels=4, depth=1)).eval()
    codes = torch.randint(SIZE, (40, *SHAPE))
    none = torch.zeros(40, *SHAPE, dtype=torch.bool)
    assert torch.equal(restore(uniform, codes, none, draws=2, seed=0), codes.expand(2, -1, -1, -1))
    some = torch.rand(40, *SHAPE) < 0.3
    some[7] = False
    restored = restore(uniform, codes, some, draws=30, seed=0, batch=11)
    kept = ~some.expand_as(restored)
    assert torch.equal(restored[kept], codes.expand_as(restored)[kept])
    # Every code is drawn as often as any other, in each draw and image independently.
    counts = torch.bincount(restored[~kept], minlength=SIZE) / (~kept).sum()
    torch.testing.assert_close(counts, torch.full((SIZE,), 1 / SIZE), atol=0.02, rtol=0)
    assert len(restored.flatten(2)[:, 0].unique(dim=0)) > 25
    assert torch.equal(restored, restore(uniform, codes, some, draws=30, seed=0))


def test_maps_are_differences_of_the_reconstruction_to_the_mean_of_the_restored() -> None:
    model = random_model()
    uniform = GatedPixelCNN(PriorArchitecture(SIZE, SHAPE, channels=4, depth=1)).eval()
    codes = torch.randint(SIZE, (3, *SHAPE))
    improbable = torch.zeros(codes.shape, dtype=torch.bool)
    improbable[1, 2, 2] = True
    restored = restore(uniform, codes, improbable, draws=5, seed=1)
    maps = anomaly_maps(model, uniform, codes.numpy(), improbable.numpy(), draws=5, seed=1)
    mean = torch.stack([decode(model, grids) for grids in restored]).mean(0)
    difference = (decode(model, codes) - mean).abs()[:, 0]
    torch.testing.assert_close(torch.from_numpy(maps), difference)
    assert maps[[0, 2]].max() < 1e-6
    assert maps[1].max() > 1e-4
