"""Synthetic lesions: as large, as bright and where they are said to be; and found by a trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medvq.method.scaling import to_network, to_unit
from medvq.method.vqvae import VQVAE, Architecture
from medvq.prior.pixelcnn import GatedPixelCNN
from medvq.prior.typicality import surprise

from benchmarks.prior.lesions import CONTRAST, EDGE, RADIUS, Lesion, draw_lesion, found_lesions

SHAPE = (24, 32, 24)


def test_a_lesion_is_a_ball_of_the_contrast_that_it_has() -> None:
    lesion = Lesion((12, 16, 12), 6.0, 0.2)
    volume = np.full(SHAPE, 100, np.uint8)
    marked = lesion.on(volume)
    assert marked[12, 16, 12] == 100 + 51
    # Half at the radius, nothing beyond the edge.
    assert marked[12, 22, 12] == marked[6, 16, 12] == 126
    away = np.linalg.norm(np.indices(SHAPE).T - (12, 16, 12), axis=-1).T
    assert (marked[away > 6 + EDGE] == 100).all()
    assert (marked[away < 6 - EDGE] == 151).all()
    assert np.array_equal(lesion.mask(SHAPE), away <= 6)
    assert lesion.mask(SHAPE).sum() == pytest.approx(4 / 3 * np.pi * 6**3, rel=0.05)
    assert Lesion((12, 16, 12), 6.0, -0.2).on(volume)[12, 16, 12] == 49
    assert Lesion((12, 16, 12), 6.0, 0.9).on(volume)[12, 16, 12] == 255


def test_lesions_lie_in_the_tissue_and_are_of_every_kind() -> None:
    volume = np.zeros(SHAPE, np.uint8)
    volume[:, :10] = 180
    rng = np.random.default_rng(0)
    lesions = [draw_lesion(volume, rng) for _ in range(300)]
    assert all(volume[tuple(int(c) for c in lesion.centre)] == 180 for lesion in lesions)
    radii = [lesion.radius for lesion in lesions]
    contrasts = np.array([lesion.contrast for lesion in lesions])
    for values, (low, high) in ((radii, RADIUS), (abs(contrasts), CONTRAST)):
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high
    assert (contrasts > 0).mean() == pytest.approx(0.5, abs=0.1)
    assert len({lesion.centre for lesion in lesions}) > 250


def test_of_volumes_that_are_all_alike_every_lesion_is_found() -> None:
    rng = np.random.default_rng(0)
    ramp = np.linspace(60, 180, SHAPE[1])[:, None] + np.zeros(SHAPE)
    volumes = (ramp + rng.normal(0, 2, (12, 1, *SHAPE))).astype(np.uint8)
    torch.manual_seed(0)
    shape = {"widths": (4, 8), "residual_levels": 0, "codebook_size": 16, "codebook_dim": 4}
    model = VQVAE(Architecture(spatial_dims=3, **shape, batch_norm=False))
    with torch.inference_mode():
        model(to_network(to_unit(volumes)))
        codes = model.eval().encode(to_network(to_unit(volumes)))[0].clone()
    prior = GatedPixelCNN(16, codes.shape[1:], channels=4, depth=1).eval()
    prior.start_from(codes)
    found = found_lesions(model, prior, volumes[:3], surprise(prior, codes), seed=0)
    assert set(found) >= {"volumes by surprise", "voxels by restoration"}
    for name in ("surprise", "surprise of the worst quarter", "restoration"):
        assert found[f"volumes by {name}"] == 1.0
    for name in ("surprise", "restoration"):
        assert found[f"voxels by {name}"] > 0.8
    # Without a lesion nothing is told from nothing.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lesion, "on", lambda _, volume: volume)
        nothing = found_lesions(model, prior, volumes[:3], surprise(prior, codes), seed=0)
    assert nothing["volumes by surprise"] == pytest.approx(0.5)
