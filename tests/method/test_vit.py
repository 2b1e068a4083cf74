"""The Vision Transformer of the VQ-VAE: places, patches, sizes, and that it can learn."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories.learning import learn_by_heart
from medvq.method.features import FeatureExtractor
from medvq.method.scaling import to_network
from medvq.method.vit import ViTDecoder, ViTEncoder, _positions
from medvq.method.vqvae import VQVAE, Architecture
from medvq.storage.weights import load_model, save_model
from torch import Tensor

SHAPE = Architecture(
    encoder="vit", widths=(24, 24), depth=2, decoder_depth=1, heads=2, codebook_size=16,
    codebook_dim=4,
)  # fmt: skip


def encoder(spatial_dims: int = 2, channels: int = 1) -> ViTEncoder:
    torch.manual_seed(0)
    return ViTEncoder(spatial_dims, channels, patch=4, width=24, depth=3, heads=2).eval()


@pytest.mark.parametrize("grid", [(3, 5), (2, 3, 4)])
def test_positions_are_those_of_the_paper(grid: tuple[int, ...]) -> None:
    axes, width = len(grid), 24
    codes = _positions(torch.zeros(1, width, *grid))
    each = width // (2 * axes)
    for place in torch.cartesian_prod(*(torch.arange(side) for side in grid)).tolist():
        for axis, where in enumerate(place):
            angles = [where / 10_000 ** (k / each) for k in range(each)]
            part = codes[(slice(2 * each * axis, 2 * each * (axis + 1)), *place)]
            expected = torch.tensor(
                [f(torch.tensor(a)) for f in (torch.sin, torch.cos) for a in angles]
            )
            torch.testing.assert_close(part, expected)


@pytest.mark.parametrize("size", [(16, 24), (32, 16), (8, 12, 16)])
def test_one_network_encodes_and_decodes_images_of_any_size(size: tuple[int, ...]) -> None:
    network = VQVAE(
        Architecture(
            encoder="vit",
            spatial_dims=len(size),
            widths=(24, 24),
            depth=2,
            decoder_depth=1,
            heads=2,
        )
    ).eval()
    images = torch.randn(2, 1, *size)
    with torch.no_grad():
        out = network(images)
        torch.testing.assert_close(network.decode(*out.codes), out.images)
    assert out.images.shape == images.shape
    assert out.codes[0].shape[1:] == torch.Size(side // 4 for side in size)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_every_place_depends_on_every_patch(spatial_dims: int) -> None:
    network = encoder(spatial_dims)
    images = torch.randn(1, 1, *[12] * spatial_dims)
    other = images.clone()
    other[(0, 0, *[slice(4)] * spatial_dims)] += 1.0
    with torch.no_grad():
        change = (network(images).levels[-1] - network(other).levels[-1]).abs().amax(1)
    assert (change > 1e-6).all()


def test_patches_are_told_apart_by_place_alone() -> None:
    network = encoder()
    images = torch.randn(1, 1, 8, 8)
    swapped = images.roll(4, 3)
    with torch.no_grad():
        maps, moved = network(images).levels[-1], network(swapped).levels[-1]
        assert (maps.roll(1, 3) - moved).abs().max() > 1e-2
        constant = network(torch.zeros(1, 1, 8, 8)).levels[-1].flatten(2)
    assert torch.cdist(constant[0].T, constant[0].T).fill_diagonal_(1).min() > 1e-2


def test_the_shallower_map_is_of_half_of_the_blocks() -> None:
    network = encoder()
    images = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        before = network(images).levels
        for parameter in network.second.parameters():
            parameter.add_(0.1)
        after = network(images).levels
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


def test_a_patch_is_decoded_to_its_place() -> None:
    torch.manual_seed(0)
    decoder = ViTDecoder(2, 4, 1, patch=4, width=24, depth=1, heads=2).eval()
    for parameter in decoder.blocks.parameters():
        torch.nn.init.zeros_(parameter)  # what is left of a block is its input
    values = torch.randn(1, 4, 3, 3)
    other = values.clone()
    other[0, :, 1, 2] += 1.0
    with torch.no_grad():
        changed = (decoder(values) - decoder(other)).abs()[0, 0] > 0
    assert changed[4:8, 8:12].all()
    assert changed.sum() == 16


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_gradient_reaches_every_parameter(spatial_dims: int) -> None:
    torch.manual_seed(0)
    network = VQVAE(replace(SHAPE, spatial_dims=spatial_dims))
    out = network(torch.randn(4, 1, *[8] * spatial_dims))
    (out.images.square().mean() + out.loss).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_its_features_are_those_of_its_weights(tmp_path: Path, spatial_dims: int) -> None:
    torch.manual_seed(0)
    network = VQVAE(replace(SHAPE, spatial_dims=spatial_dims))
    images = torch.rand(3, 1, *[16] * spatial_dims)
    with torch.no_grad():
        network(to_network(images))  # the codebook starts from data
    save_model(network, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.shape.encoder == "vit"
    with ThreadPoolExecutor(1) as threads:
        extractor = FeatureExtractor(loaded, [4] * spatial_dims, 2, torch.device("cpu"), threads)
        features = extractor.features(images, None)
    with torch.no_grad():
        middle, last = network.eval().encoder(to_network(images)).levels
    for name, maps in (("embedding", last), ("embedding_fine", middle)):
        cells = F.adaptive_avg_pool3d if spatial_dims == 3 else F.adaptive_avg_pool2d
        expected = cells(maps, 2).flatten(1).numpy()
        np.testing.assert_allclose(features[name], expected, rtol=1e-4, atol=1e-5)
    codes = network.encode(to_network(images))[0].flatten(1)
    assert features["codes_0"].tolist() == codes.tolist()
    assert np.isfinite(features["untrained_encoder"]).all()


def learnt(images: Tensor, **options: Any) -> float:
    """Return the share of the variance of images that is lost after some steps on them."""
    torch.manual_seed(0)
    return learn_by_heart(VQVAE(replace(SHAPE, codebook_size=64, **options)), images, 120)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_it_learns_four_images_by_heart(spatial_dims: int) -> None:
    torch.manual_seed(1)
    coarse = torch.randn(4, 1, *[4] * spatial_dims)
    assert learnt(F.interpolate(coarse, scale_factor=2), spatial_dims=spatial_dims) < 0.1


def test_frozen_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="no shallow levels"):
        VQVAE(SHAPE).freeze(1)
