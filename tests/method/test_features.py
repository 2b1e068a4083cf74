"""The trivial features: block means, gradients that brightness leaves alone, a fixed network."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from medvq.method.efficientnet import EfficientNetLite0
from medvq.method.features import (
    FeatureExtractor,
    FeatureSets,
    histogram_of_oriented_gradients,
    pool_to_grid,
    raw_pixels,
    texture,
    untrained_network,
)
from medvq.method.scaling import to_network
from medvq.method.vqvae import VQVAE, Architecture
from numpy.typing import NDArray
from torch import Tensor

SHAPE = Architecture(widths=(8, 8), codebook_size=4)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 1, 128, 128, generator=torch.Generator().manual_seed(0))


def test_raw_pixels_are_block_means(images: Tensor) -> None:
    blocks = images.numpy().reshape(3, 16, 8, 16, 8).mean((2, 4)).reshape(3, 256)
    np.testing.assert_allclose(raw_pixels(images), blocks, rtol=1e-5)


def test_gradients_are_the_same_every_time_and_each_image_has_its_own(images: Tensor) -> None:
    described = histogram_of_oriented_gradients(images)
    assert described.shape == (3, 1764)
    np.testing.assert_array_equal(described, histogram_of_oriented_gradients(images))
    np.testing.assert_array_equal(described[1:2], histogram_of_oriented_gradients(images[1:2]))
    assert np.abs(described[0] - described[1]).max() > 0.05


def test_brightness_leaves_gradients_alone(images: Tensor) -> None:
    greys = (images * 100).round() / 255
    np.testing.assert_allclose(
        histogram_of_oriented_gradients(greys + 80 / 255),
        histogram_of_oriented_gradients(greys),
        atol=1e-5,
    )


def test_gradients_show_the_direction_of_stripes() -> None:
    stripes = (torch.arange(128) // 8 % 2).float()
    upright = stripes.expand(1, 1, 128, 128)
    lying = upright.transpose(2, 3).contiguous()
    by_direction = [
        histogram_of_oriented_gradients(image).reshape(-1, 9).mean(0) for image in (upright, lying)
    ]
    # The bins hold 20 degrees each: a gradient along x lies between the last and the first, one
    # along y in the middle one.
    assert by_direction[0][[0, 8]].sum() > 0.9 * by_direction[0].sum()
    assert by_direction[1][4] > 0.9 * by_direction[1].sum()


@pytest.mark.parametrize("spatial", [(8, 4), (4, 4, 8)])
def test_pooling_gives_the_mean_of_each_cell(spatial: tuple[int, ...]) -> None:
    features = torch.randn(2, 3, *spatial, generator=torch.Generator().manual_seed(1))
    expected = [
        [
            image[(channel, *(slice(i * s // 2, (i + 1) * s // 2) for i, s in cell))].mean().item()
            for channel in range(3)
            for cell in (
                tuple(zip(index, spatial, strict=True)) for index in np.ndindex(*[2] * len(spatial))
            )
        ]
        for image in features
    ]
    np.testing.assert_allclose(pool_to_grid(features, 2), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spatial", [(5, 4), (3, 4, 5)])
def test_texture_is_the_distance_from_the_mean_of_the_neighbours(spatial: tuple[int, ...]) -> None:
    maps = torch.randn(2, 3, *spatial, generator=torch.Generator().manual_seed(1))
    expected = np.zeros(maps.shape)
    for place in np.ndindex(*maps.shape):
        around = tuple(slice(max(at - 1, 0), at + 2) for at in place[2:])
        expected[place] = abs(maps[place] - maps[(*place[:2], *around)].mean())
    np.testing.assert_allclose(texture(maps), expected, atol=1e-6)
    np.testing.assert_allclose(texture(5 - 2 * maps), 2 * expected, atol=2e-6)


def test_an_encoders_texture_is_that_of_its_embedding(images: Tensor) -> None:
    model, device = VQVAE(SHAPE), torch.device("cpu")
    with ThreadPoolExecutor(1) as threads:
        extractor = FeatureExtractor(model, [32, 32], 4, device, threads, with_texture=True)
        sets, maps = extractor.features(images, None), extractor.maps(images).pooled["embedding"]
        without = FeatureExtractor(model, [32, 32], 4, device, threads).features(images, None)
    expected = np.concatenate([pool_to_grid(texture(one), 4) for one in maps], axis=1)
    np.testing.assert_array_equal(sets.pop("texture"), expected)
    assert expected.std(0).min() > 0
    assert sets.keys() == without.keys()


def test_the_untrained_network_is_the_same_every_time() -> None:
    torch.manual_seed(5)
    first = untrained_network(SHAPE)
    torch.manual_seed(6)
    second = untrained_network(SHAPE)
    assert not first.training
    assert first.state_dict().keys() == second.state_dict().keys()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_the_untrained_network_is_convolutional_and_sees_at_most_128_pixels() -> None:
    shape = Architecture(encoder="efficientnet_lite0", widths=(16, 24, 40, 112), codebook_size=4)
    images = torch.rand(2, 1, 128, 128).repeat_interleave(2, -1).repeat_interleave(2, -2)
    with ThreadPoolExecutor(1) as threads:

        def untrained(of: Architecture, images: Tensor) -> NDArray[np.float32]:
            latent = [side // 2 ** len(of.widths) for side in images.shape[2:]]
            extractor = FeatureExtractor(VQVAE(of), latent, 4, torch.device("cpu"), threads)
            return extractor.features(images, None)["untrained_encoder"]

        # The mean of 2x2 equal pixels is any of them.
        expected = untrained(Architecture(codebook_size=4), images[:, :, ::2, ::2])
        np.testing.assert_allclose(untrained(shape, images), expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_encoder_of_pictures_sees_224_pixels() -> None:
    torch.manual_seed(0)
    frozen = EfficientNetLite0(channels=1, levels=5)
    images = torch.rand(2, 1, 112, 112).repeat_interleave(2, -1).repeat_interleave(2, -2)
    with ThreadPoolExecutor(1) as threads:

        def features(images: Tensor) -> FeatureSets:
            latent = [side // 4 for side in images.shape[2:]]
            model, device = VQVAE(SHAPE), torch.device("cpu")
            return FeatureExtractor(model, latent, 4, device, threads, frozen).features(
                images, None
            )

        with torch.inference_mode():
            maps = frozen.eval()(to_network(images)).embedding
            expected = np.concatenate([pool_to_grid(one, 4) for one in maps], axis=1)
        np.testing.assert_allclose(
            features(images)["frozen_imagenet"], expected, rtol=1e-4, atol=1e-5
        )
        # Larger images are reduced, without aliasing.
        larger = images.repeat_interleave(2, -1).repeat_interleave(2, -2)
        likeness = np.corrcoef(features(larger)["frozen_imagenet"][0], expected[0])[0, 1]
        assert likeness > 0.9


def test_an_untrained_network_leaves_the_global_random_state() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    untrained_network(SHAPE)
    assert torch.equal(torch.rand(3), expected)
